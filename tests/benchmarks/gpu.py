"""Parity with the CPU, then timings, a table last: ``python -m tests.benchmarks.gpu``.

Without a CUDA device the same script runs the twins on the CPU, on less data, and says so.
"""

import argparse
import statistics
import time

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
    rows = [
        ("device", name),
        ("data", f"{X.shape[0]} patterns of {X.shape[1]} points, K = {options.components}"),
        *parity(end_of_stream(X[:2000], phases, device), reference, known=len(phases) // 2),
        *events(X, phases, device),
    ]
    if cuda:
        rows += sweep(X, phases)
    print()
    for label, value in rows:
        print(f"{label:>44}  {value}")


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
    seconds = []
    synchronize(device)
    begun = time.perf_counter()
    for pattern in X[-last:]:
        started = time.perf_counter()
        model.append(pattern)
        model.refit()
        seconds.append(time.perf_counter() - started)
    synchronize(device)
    whole = (time.perf_counter() - begun) / last
    return [
        ("event, on the host, median (bar 100 µs)", f"{1e6 * statistics.median(seconds):.0f} µs"),
        ("event, on the host, 99 % within", f"{1e6 * np.quantile(seconds, 0.99):.0f} µs"),
        ("event, with the device's work, mean", f"{1e6 * whole:.0f} µs"),
    ]


def sweep(X: np.ndarray, phases: np.ndarray) -> list[tuple[str, str]]:
    """One exact sweep, beside one pass over X at measured bandwidth."""
    model = model_on("cuda", phases)
    model.append(X)
    data = model._X
    state = Extrapolation(data, torch.from_numpy(phases).to("cuda"), Rules((4, 5)))
    whole = torch.from_numpy(X).to("cuda")
    timings, repeats = {}, 10

    def passes() -> None:
        for _ in range(repeats):
            whole.sum()

    for label, work in (("sweep", lambda: state.sweep(repeats)), ("pass", passes)):
        # The first records, and compiles.
        work()
        synchronize("cuda")
        started = time.perf_counter()
        work()
        synchronize("cuda")
        timings[label] = (time.perf_counter() - started) / repeats
    bandwidth = X.nbytes / timings["pass"] / 1e9
    return [
        ("one pass over X", f"{1e6 * timings['pass']:.0f} µs, {bandwidth:.0f} GB/s"),
        (
            "one exact sweep (bar 2 passes)",
            f"{1e6 * timings['sweep']:.0f} µs: {timings['sweep'] / timings['pass']:.1f} passes",
        ),
    ]


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
