"""The cost of an event as patterns become many."""

import argparse
import time
from multiprocessing import get_context

import numpy as np

from bluesky_cmf import StreamingNMF

from . import roads
from .data import resident_bytes, synthetic

__all__ = ["many"]


def many(options: argparse.Namespace) -> None:
    """The cost of an event as patterns become many, and what events alone are worth."""
    for counts in (500, 50_000):
        # In a process of its own: what another stream has left of its memory would be taken again.
        process = get_context("spawn").Process(target=_many, args=(options.patterns, counts))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


def _many(n_patterns: int, counts: int) -> None:
    roads.set_up()
    X, phases = synthetic(n_patterns, counts)
    before = resident_bytes()
    model = StreamingNMF(X.shape[1], 6, components=phases[:3], fixed=[True] * 3, device="cpu")
    seconds = np.array([roads.event(model, pattern)[0] for pattern in X])
    grown = resident_bytes() - before
    print(f"\nstream of {len(X)} patterns of {X.shape[1]} points, {counts} counts, K = 6")
    first, last = seconds[500:1500], seconds[-1000:]
    for name, part in (("1,000", first), (f"{len(X):,}", last), ("all", seconds)):
        print(
            f"  event at {name} patterns: median {1e6 * np.median(part):.0f} µs, "
            f"mean {1e6 * part.mean():.0f} µs, "
            f"99 % within {1e6 * np.quantile(part, 0.99):.0f} µs"
        )
    print(f"  ratio of the medians {np.median(last) / np.median(first):.2f}")
    print(f"  memory: {grown / X.nbytes:.3f} times the data")
    sweep = roads.exact_sweep_seconds(X, phases, model.components)
    print(
        f"  one exact sweep {sweep:.3f} s: {sweep / np.median(last):.0f} events by the median, "
        f"{sweep / last.mean():.0f} by the mean"
    )
    objectives = {"events alone": model.result.objective}
    started = time.perf_counter()
    model.improve(0.1)
    objectives[f"improve, {1e3 * (time.perf_counter() - started):.0f} ms"] = model.result.objective
    started = time.perf_counter()
    end = model.refit(converge=True)
    objectives[f"converged, {time.perf_counter() - started:.2f} s"] = end.objective
    best = min(*objectives.values(), roads.from_truth(X, phases))
    for name, objective in objectives.items():
        print(f"  gap, {name}: {objective / best - 1:.4%}  (best known {best:.6f})")
