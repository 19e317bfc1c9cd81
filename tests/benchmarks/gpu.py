"""Parity with the CPU, then timings, a table last: ``python -m tests.benchmarks.gpu``.

Without a CUDA device the same script runs the twins on the CPU, on less data, and says so.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from bluesky_cmf import FitResult, StreamingNMF
from bluesky_cmf.nmf import kernels, leastsquares
from bluesky_cmf.nmf.kernels import warm_up
from bluesky_cmf.nmf.rules import Rules
from bluesky_cmf.nmf.seeds import match_components
from bluesky_cmf.nmf.sweeps import Extrapolation

from .data import synthetic


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--patterns", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=4_000)
    parser.add_argument("--components", type=int, default=8)
    options = parser.parse_args()
    warm_up()
    cuda = torch.cuda.is_available()
    if cuda:
        device, name = "cuda", torch.cuda.get_device_name()
    else:
        device, name = "cpu", "CPU twin (no CUDA device here)"
        options.patterns, options.points = min(options.patterns, 1500), min(options.points, 1000)
    X, phases = synthetic(
        options.patterns, 5_000, n_features=options.points, n_phases=options.components
    )
    reference = end_of_stream(X[:2000], phases, "cpu")
    if not cuda:
        # The twins go the same way: one buffer, one step, no word in between, no kernels.
        leastsquares.uses_graphs = lambda device: True
        kernels._cpu = lambda name: None
    rows: list[tuple[str, str]] = [
        ("device", name),
        ("data", f"{X.shape[0]} patterns of {X.shape[1]} points, K = {options.components}"),
    ]
    parts = [
        lambda: parity(end_of_stream(X[:2000], phases, device), reference, known=len(phases) // 2),
        lambda: events(X, phases, device),
    ]
    if cuda:
        parts.append(lambda: sweep(X, phases))
    for part in parts:
        for label, value in part():
            # At once, should what comes next take too long.
            print(f"{label}: {value}", file=sys.stderr, flush=True)
            rows.append((label, value))
    print()
    for label, value in rows:
        print(f"{label:>48}  {value}")


def model_on(device: str, phases: np.ndarray) -> StreamingNMF:
    known = len(phases) // 2
    return StreamingNMF(
        phases.shape[1],
        len(phases),
        components=list(phases[:known]),
        fixed=[True] * known,
        device=device,
    )


def end_of_stream(X: np.ndarray, phases: np.ndarray, device: str) -> FitResult:
    """Fit pattern by pattern, and converge."""
    model = model_on(device, phases)
    for pattern in X:
        model.append(pattern)
        model.refit()
    return model.refit(converge=True)


def parity(end: FitResult, reference: FitResult, *, known: int) -> list[tuple[str, str]]:
    """Compare the end of the stream with that on the CPU."""
    gap = abs(end.objective / reference.objective - 1)
    # Unknown components may have come up in another order.
    shapes = [torch.from_numpy(np.array(fit.components)).double() for fit in (end, reference)]
    order = match_components(*shapes, range(known, len(end.names)))
    weights = np.abs(end.weights[:, order] - reference.weights).max()
    verdict = "met" if gap <= 1e-4 else "NOT met"
    return [
        ("parity of the objective (bar 1e-4)", f"{gap:.2e}: {verdict}"),
        ("largest difference of a weight", f"{weights:.2e}"),
    ]


def events(X: np.ndarray, phases: np.ndarray, device: str) -> list[tuple[str, str]]:
    """The cost of an event with all but the last thousand patterns there."""
    model = model_on(device, phases)
    last = min(1000, len(X) // 2)
    model.append(X[:-last])
    model.refit()
    seconds, waited = [], []
    synchronize(device)
    begun = time.perf_counter()
    for pattern in X[-last:]:
        started = time.perf_counter()
        model.append(pattern)
        model.refit()
        seconds.append(time.perf_counter() - started)
    synchronize(device)
    whole = (time.perf_counter() - begun) / last
    for pattern in X[-200:]:
        started = time.perf_counter()
        model.append(pattern)
        model.refit()
        synchronize(device)
        waited.append(time.perf_counter() - started)
    fresh = model.refresh()
    rows = model.patterns() - fresh.weights.astype(float) @ fresh.components
    off = fresh.objective / (0.5 * float(np.square(rows).sum())) - 1
    return [
        ("event, on the host, median (bar 100 µs)", f"{1e6 * statistics.median(seconds):.0f} µs"),
        ("event, on the host, 99 % within", f"{1e6 * np.quantile(seconds, 0.99):.0f} µs"),
        ("event, with the device's work, mean", f"{1e6 * whole:.0f} µs"),
        ("event, until the device is through, median", f"{1e6 * statistics.median(waited):.0f} µs"),
        ("objective against a sum over the residuals", f"{off:.1e}"),
    ]


def sweep(X: np.ndarray, phases: np.ndarray) -> list[tuple[str, str]]:
    """One exact sweep, beside one pass over X at measured bandwidth."""
    model = model_on("cuda", phases)
    model.append(X)
    known = len(phases) // 2
    rules = Rules(tuple(range(known, len(phases))))
    state = Extrapolation(model._X, torch.from_numpy(phases).to("cuda"), rules)
    whole, large = torch.from_numpy(X).to("cuda"), torch.ones(1 << 30, device="cuda")
    repeats = 50
    # The first are compiled, and recorded.
    state.sweep(repeats)
    pass_ = on_device(lambda: whole.sum(), repeats)
    bandwidth = 4 * large.numel() / on_device(lambda: large.sum(), 5)
    synchronize("cuda")
    started = time.perf_counter()
    state.sweep(repeats)
    seconds = (time.perf_counter() - started) / repeats
    lines = [
        ("one pass over X", f"{1e6 * pass_:.0f} µs"),
        ("bandwidth, by 4 GiB", f"{bandwidth / 1e9:.0f} GB/s"),
        (
            "one exact sweep (bar 2 passes)",
            f"{1e6 * seconds:.0f} µs: {seconds / pass_:.1f} passes, "
            f"{seconds * bandwidth / X.nbytes:.1f} at that bandwidth",
        ),
    ]
    sweeps = state._on_device
    if sweeps is not None:
        for name, launch in sweeps.launches().items():
            lines.append((f"of it, {name}", f"{1e6 * on_device(launch, 20):.0f} µs"))
    return lines


def on_device(work: Callable[[], object], repeats: int) -> float:
    """Seconds that the device takes, once all is compiled; the best of some."""
    work()
    seconds = []
    for _ in range(5):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        # While the first ones run, the others are launched.
        torch.cuda._sleep(2_000_000)
        events[0].record()
        for _ in range(repeats):
            work()
        events[1].record()
        synchronize("cuda")
        seconds.append(events[0].elapsed_time(events[1]) / 1e3 / repeats)
    return min(seconds)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
