"""Kernels for CUDA against their twins, by triton's interpreter: ``python -m tests.interpreted``.

It must be chosen before triton is imported: the tests run this in a process of its own.
"""

import gc
import os
import sys
from dataclasses import astuple
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from triton.runtime import interpreter

from bluesky_cmf.nmf import blocks, factors, kernels, pinned, sweeps, updates
from bluesky_cmf.nmf.deviceblocks import DeviceBlocks
from bluesky_cmf.nmf.devicesweeps import DeviceSweeps
from bluesky_cmf.nmf.eventtables import DeviceTables, EventBuffers, HostTables
from bluesky_cmf.nmf.factors import Factors
from bluesky_cmf.nmf.graphed import GraphedEvent, settle
from bluesky_cmf.nmf.kernels import cuda, cudaevent
from bluesky_cmf.nmf.recording import Recording
from bluesky_cmf.nmf.rows import Rows
from bluesky_cmf.nmf.rules import Rules
from bluesky_cmf.nmf.updates import coordinate_descent as reference

CPU = torch.device("cpu")


class Guarded:
    """What the interpreter reads and writes with, after a look at where: a device does not look."""

    def __init__(self, memory: Any) -> None:
        self._memory, self._known = memory, np.zeros((0, 2), np.uint64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def load(self, places: np.ndarray, mask: np.ndarray, other: np.ndarray, kind: Any) -> Any:
        self._check(places, mask, np.dtype(kind).itemsize)
        return self._memory.load(places, mask, other, kind)

    def store(self, places: np.ndarray, values: np.ndarray, mask: np.ndarray) -> Any:
        self._check(places, mask, values.dtype.itemsize)
        return self._memory.store(places, values, mask)

    def _check(self, places: np.ndarray, mask: np.ndarray, size: int) -> None:
        wanted = np.asarray(places, np.uint64)[np.asarray(mask, bool)].ravel()
        if not self._holds(wanted, size):
            # Tensors may have come since.
            objects = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
            found = [tensor.untyped_storage() for tensor in objects]
            spans = {(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in found if s.nbytes()}
            self._known = np.array(sorted(spans), np.uint64)
            assert self._holds(wanted, size), "a kernel reads or writes what belongs to nobody"

    def _holds(self, places: np.ndarray, size: int) -> bool:
        if not len(places):
            return True
        if not len(self._known):
            return False
        number = np.searchsorted(self._known[:, 0], places, side="right").astype(int) - 1
        ends = self._known[np.maximum(number, 0), 1]
        return bool(((number >= 0) & (places + np.uint64(size) <= ends)).all())


interpreter._interpreter = Guarded(interpreter._interpreter)
# One by one, so that what lies beyond one of them belongs to nobody.
pinned._SUPPLY = 1

generator = torch.Generator().manual_seed(0)


def random(*size: int) -> torch.Tensor:
    return torch.rand(*size, generator=generator, dtype=torch.float64)


def some_data(n: int, n_features: int, n_components: int) -> tuple[DeviceBlocks, torch.Tensor]:
    """Rows in several blocks, and components that are not far from theirs."""
    H = random(n_components, n_features) ** 3 + 0.01
    X = (0.1 + random(n, n_components)) @ H + 0.01 * random(n, n_features)
    data = DeviceBlocks(n_features, dtype=torch.float32, device=CPU)
    data.append(X.float())
    assert data.n_blocks > 1
    return data, H + 0.1


def coordinate_descent() -> None:
    for K, M, free in [(1, 1, [0]), (4, 150, [0, 1, 2, 3]), (5, 70, [1, 3]), (8, 64, [7])]:
        H, V = random(K, 30), random(K, M) - 0.3
        H[-1] *= K != 5
        C = H @ random(30, M)
        flags = torch.zeros(K, dtype=torch.int32)
        flags[free] = 1
        found, expected = V.clone(), reference(V, H @ H.T, C, free=free, passes=3)
        cuda.coordinate_descent(found, H @ H.T, C, flags, 3)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        if M == 150:
            # Passes end where nothing moves any more.
            found, some = V[:, :6].clone(), C[:, :6]
            cuda.coordinate_descent(found, H @ H.T, some, flags, 1_000_000_000)
            expected = reference(V[:, :6], H @ H.T, some, free=free, passes=5000)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def products() -> None:
    for M, F, K, dtype in [
        (1, 1, 1, torch.float32),
        (5, 40, 3, torch.float32),
        (40, 130, 5, torch.float64),
        (300, 33, 9, torch.float32),
    ]:
        X, H, W = random(M, F).to(dtype), random(K, F), random(K, M).T
        C, B = H.new_full((M, K), torch.nan), H.clone()
        cuda.times(X, H, C)
        torch.testing.assert_close(C, X.double() @ H.T, rtol=1e-13, atol=1e-13)
        cuda.add_transposed_times(X, W, B)
        torch.testing.assert_close(B, H + W.T @ X.double(), rtol=1e-13, atol=1e-13)
    cuda.warm_up(CPU)


def sweeps_decided_on_the_device() -> None:
    """The same curve as with a host that decides, with sweeps that were not kept."""
    sweeps.kernels_for = lambda device: None
    cuda.SLAB = 32
    for l1, l2 in ((0.0, 0.0), (0.05, 0.2)):
        data, H = some_data(150, 70, 3)
        rules = Rules((1, 2), l1=l1, l2=l2)
        expected = sweeps.Extrapolation(data, H.flip(0), rules, most=updates.DEVICE_PASSES)
        found = DeviceSweeps(
            data,
            expected.H.clone(),
            expected.Wt.clone(),
            rules,
            objective=expected.curve[0],
            pace=astuple(sweeps.Pace()),
            passes=(sweeps.PASSES[0], updates.DEVICE_PASSES),
        )
        expected.sweep(25)
        curve = found.sweep(1) + found.sweep(24)
        np.testing.assert_allclose(curve, expected.curve[1:], rtol=1e-6)
        np.testing.assert_allclose(found.H, expected.H, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.Wt, expected.Wt, rtol=1e-3, atol=1e-3)
        assert len(set(curve)) < len(curve), "no sweep was dropped"
        assert torch.equal(found.H[0], H.flip(0)[0])


def tables_of_an_event() -> None:
    """Rows, weights and results by addresses, with snapshots that stay what they are."""
    factors.kernels_for = lambda device: None
    made = Rows.__init__

    def on_device(rows: Rows, width: int, *, device: torch.device) -> None:
        made(rows, width, device=device)
        rows._on_host = False

    Rows.__init__ = on_device  # type: ignore[method-assign]
    data, H = some_data(400, 60, 3)
    rows, window = torch.cat([piece for _, piece in data.pieces()]), 16
    fits = []
    for by_address in (False, True):
        X = DeviceBlocks(60, dtype=torch.float32, device=CPU)
        X.append(rows[:240])
        fit = Factors(X, H, Rules((1, 2)))
        fit.follow()
        event = GraphedEvent(fit, window, tables=DeviceTables if by_address else HostTables)
        fits.append((fit, event))
    Recording.__call__ = lambda recording: recording._step()  # type: ignore[method-assign]
    kept = []
    for n in range(240, 330):
        start = (window * (n - 240)) % (n - window) // window * window
        for fit, event in fits:
            # An array waits for what is sent with it.
            fit.X.append(rows[n : n + 1].numpy())
            event(start)
        one, two = fits
        assert float(one[1].objective) == float(two[1].objective)
        assert torch.equal(one[1].shapes, two[1].shapes)
        kept.append([(fit.W.frozen(), fit.squared.frozen()) for fit, _ in fits])
    for host, device in kept:
        for expected, found in zip(host, device, strict=True):
            assert torch.equal(expected.tensor(), found.tensor())
    assert torch.equal(fits[0][0].H, fits[1][0].H)


def rows_settled_in_one_launch() -> None:
    """Weights, what is left, and WᵀW, for the new row alone and for all of a window."""
    K, M = 5, 17
    H, X = random(K, 30), random(M, 30)
    for rows in (slice(M - 1, M), slice(0, M)):
        found, expected = [], []
        every, A, Wt = torch.ones(K, dtype=torch.int32), random(K, K), random(K, M) - 0.2
        for made, settled in ((found, cudaevent.settle), (expected, settle)):
            buffers, A_here = EventBuffers.of(M, H), A.clone()
            buffers.C.copy_(H @ X.T)
            buffers.Wt.copy_(Wt)
            buffers.norms.copy_(X.square().sum(1))
            settled(buffers, H @ H.T, A_here, every, rows, 48)
            made += [buffers.Wt, buffers.change, buffers.squared, A_here]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def rows_solved_on_a_device() -> None:
    """Factors that follow rows one by one keep their sufficient statistics."""
    blocks.device_products = lambda device: cuda
    factors.descends_on = lambda device, n_components: cuda
    factors.kernels_for = lambda device: None
    data, H = some_data(80, 60, 5)
    rows = torch.cat([piece for _, piece in data.pieces()])
    X = DeviceBlocks(60, dtype=torch.float32, device=CPU)
    fit = Factors(X, H, Rules((3, 4)))
    for n in (1, 2, 5, 6, 80):
        X.append(rows[len(X) : n])
        fit.follow()
        fit.descend(4)
        fit.resolve(0, n)
        W, seen = fit.W.tensor(), rows[:n].double()
        left = 0.5 * float((seen - W @ fit.H).square().sum())
        assert abs(fit.objective - left) < 1e-9 * X.half_norm
        torch.testing.assert_close(fit.A, W.T @ W)
        torch.testing.assert_close(fit.B, W.T @ seen)


def a_row_that_waits_is_there_for_whoever_reads() -> None:
    rows = random(150, 40).float()
    reads = {
        "pieces": lambda X: torch.cat([piece for _, piece in X.pieces()]),
        "take": lambda X: X.take(torch.arange(len(X))),
        "stored": lambda X: X.stored(),
        "norms": lambda X: X.norms,
    }
    for name, read in reads.items():
        X = DeviceBlocks(40, dtype=torch.float32, device=CPU)
        # More than are sent in turn.
        for n in range(150):
            X.append(rows[n : n + 1].numpy())
            if n % 7 == 0 or n == 149:
                expected = rows[: n + 1]
                if name == "norms":
                    expected = expected.double().square().sum(1)
                torch.testing.assert_close(read(X), expected)
        assert len(X.tiles()) * 64 >= 150


CHECKS = {
    check.__name__: check
    for check in (
        a_row_that_waits_is_there_for_whoever_reads,
        coordinate_descent,
        products,
        rows_settled_in_one_launch,
        rows_solved_on_a_device,
        sweeps_decided_on_the_device,
        tables_of_an_event,
    )
}

if __name__ == "__main__":
    kernels._cpu = lambda name: None
    blocks._FIRST_ROWS = 64
    if sys.argv[1:]:
        CHECKS[sys.argv[1]]()
        print("equal")
    else:
        print(*CHECKS)
