"""Print the table: time to the same objective, and the cost of an event in a stream."""

import argparse
import itertools
import statistics
import time

import numpy as np
import torch

from bluesky_cmf import StreamingNMF
from bluesky_cmf.nmf.kernels import warm_up

from . import roads
from .data import ramp

K = 4


def cold(X: np.ndarray, seeds: int, iterations: int) -> None:
    step = min(500, iterations)
    curve = roads.multiplicative(X, K, 0, step=step)
    seconds, target = list(itertools.islice(curve, max(1, iterations // step)))[-1]
    print(f"\ncold, K = {K}, first and last pattern held")
    print(f"  objective of {iterations} multiplicative iterations: {target:.5f}")
    print(f"{'':>28}{'seconds':>11}{'spread':>20}{'ratio':>9}{'objective':>11}")
    line("multiplicative (NMFBase)", [seconds], seconds, target)
    times, ends = [], []
    for seed in range(seeds):
        reached, _ = roads.time_to(roads.ours(X, K, seed), target, limit=5.0)
        times.append(reached)
        ends.append(next(value for t, value in roads.ours(X, K, seed) if t > 0.5))
    line("bluesky_cmf", times, seconds, max(ends))
    for name, road in (
        ("pyMCR, fixed spectra, NNLS", roads.pymcr),
        ("scikit-learn NMF, none held", roads.sklearn),
        ("MiniBatchNMF, none held", roads.minibatch),
    ):
        try:
            found = [next(road(X, K, seed)) for seed in range(min(3, seeds))]
        except ImportError:
            print(f"{name:>28}  not installed")
            continue
        line(name, [t for t, _ in found], seconds, statistics.median(v for _, v in found))


def line(name: str, times: list[float], reference: float, objective: float) -> None:
    median = statistics.median(times)
    spread = f"{min(times):.4f} to {max(times):.4f}"
    ratio = reference / median
    print(f"{name:>28}{median:>11.4f}{spread:>20}{ratio:>8.0f}x{objective:>11.5f}")


def stream(X: np.ndarray, budget: float) -> None:
    model = StreamingNMF(X.shape[1], K, components=[X[0], X[-1]], fixed=[True, True], device="cpu")
    events, gaps_event, gaps_improved = [], [], []
    for n, pattern in enumerate(X, 1):
        started = time.perf_counter()
        model.append(pattern)
        result = model.refit()
        events.append(time.perf_counter() - started)
        after = result.objective
        model.improve(budget)
        if n >= 6:
            best = best_known(X[:n], X[[0, -1]])
            gaps_event.append(after / best - 1 if n >= 12 else 0.0)
            gaps_improved.append(model.result.objective / best - 1)
    print(f"\nstream of {len(X)} patterns, improve({budget}) after each event")
    print(f"  event (append + refit): median {1e3 * statistics.median(events):.2f} ms")
    print(f"  gap after the event, from 12 patterns on: at most {max(gaps_event):.2%}")
    print(
        f"  gap after improve, from 6 on: median {statistics.median(gaps_improved):.3%}, "
        f"at most {max(gaps_improved):.3%}, at the end {gaps_improved[-1]:.3%}"
    )


def best_known(X: np.ndarray, known: np.ndarray, starts: int = 10) -> float:
    """The best of converged cold fits."""
    ends = []
    for seed in range(starts):
        curve = (value for _, value in roads.ours(X, K, seed, known=known))
        ends.append(list(itertools.islice(curve, 300))[-1])
    return min(ends)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--budget", type=float, default=0.05)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    name, X = ramp()
    print(f"{name}: {X.shape[0]} patterns of {X.shape[1]} points, one thread")
    cold(X, options.seeds, options.iterations)
    stream(X, options.budget)


if __name__ == "__main__":
    main()
