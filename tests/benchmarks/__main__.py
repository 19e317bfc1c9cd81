"""Print the tables: time to the same objective, the cost of an event, what the end is worth."""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from bluesky_cmf import StreamingNMF
from bluesky_cmf.nmf.kernels import warm_up

from . import roads
from .data import ramp, synthetic
from .many import many

K = 4


def cold(options: argparse.Namespace) -> None:
    """Time to the objective of many multiplicative iterations, ours and the peers'."""
    X = ramp()[1]
    step = min(500, options.iterations)
    curve = roads.multiplicative(X, K, 0, step=step)
    seconds, target = list(itertools.islice(curve, max(1, options.iterations // step)))[-1]
    times, ends = [], []
    # The first call of a process sets things up in torch and numpy.
    next(roads.ours(X, K, 0))
    for seed in range(options.seeds):
        reached, _ = roads.time_to(roads.ours(X, K, seed), target, limit=5.0)
        times.append(reached)
        ends.append(next(value for t, value in roads.ours(X, K, seed) if t > 0.5))
    best = min(ends, default=target)
    print(f"\ncold, K = {K}, first and last pattern held; best known objective {best:.6f}")
    print(f"  objective of {options.iterations} multiplicative iterations: {target:.6f}")
    print(f"{'':>28}{'seconds':>11}{'spread':>20}{'ratio':>9}{'objective':>11}{'gap':>9}")
    _line("multiplicative (NMFBase)", [seconds], seconds, target, best)
    _line("bluesky_cmf", times, seconds, max(ends), best)
    for name, road in (
        ("pyMCR, fixed spectra, NNLS", roads.pymcr),
        ("scikit-learn NMF, none held", roads.sklearn),
        ("MiniBatchNMF, none held", roads.minibatch),
        ("nmf-torch, none held", roads.nmf_torch),
    ):
        try:
            found = [next(road(X, K, seed)) for seed in range(min(3, options.seeds))]
        except ImportError:
            print(f"{name:>28}  not installed")
            continue
        objective = statistics.median(value for _, value in found)
        _line(name, [t for t, _ in found], seconds, objective, best)


def _line(
    name: str, times: Sequence[float], reference: float, objective: float, best: float
) -> None:
    median = statistics.median(times)
    spread = f"{min(times):.4f} to {max(times):.4f}"
    ratio, gap = reference / median, objective / best - 1
    print(f"{name:>28}{median:>11.4f}{spread:>20}{ratio:>8.0f}x{objective:>11.5f}{gap:>9.3%}")


def stream(options: argparse.Namespace) -> None:
    """The gap after each event and after `improve`, against the best of ten cold fits."""
    X, budget = ramp()[1], options.budget
    model = StreamingNMF(X.shape[1], K, components=[X[0], X[-1]], fixed=[True, True], device="cpu")
    events, gaps_event, gaps_improved = [], [], []
    for n, pattern in enumerate(X, 1):
        seconds, result = roads.event(model, pattern)
        events.append(seconds)
        after = result.objective
        model.improve(budget)
        improved = model.result.objective
        if n >= 6:
            best = min(improved, _best_known(X[:n], X[[0, -1]]))
            gaps_event.append(after / best - 1 if n >= 12 else 0.0)
            gaps_improved.append(improved / best - 1)
    print(f"\nstream of {len(X)} patterns, improve({budget}) after each event")
    print(f"  event (append + refit): median {1e3 * statistics.median(events):.2f} ms")
    print(f"  gap after the event, from 12 patterns on: at most {max(gaps_event):.2%}")
    print(
        f"  gap after improve, from 6 on: median {statistics.median(gaps_improved):.3%}, "
        f"at most {max(gaps_improved):.3%}, at the end {gaps_improved[-1]:.3%}; "
        f"best known at the end {best:.6f}"
    )


def _best_known(X: np.ndarray, known: np.ndarray, starts: int = 10) -> float:
    """The best of converged cold fits."""
    ends = []
    for seed in range(starts):
        curve = (value for _, value in roads.ours(X, K, seed, known=known))
        ends.append(list(itertools.islice(curve, 300))[-1])
    return min(ends)


def converged(options: argparse.Namespace) -> None:
    """The converged refit of many patterns against exact extrapolated sweeps."""
    X, phases = synthetic(10_000, 50_000)
    model = StreamingNMF(X.shape[1], 6, components=phases[:3], fixed=[True] * 3, device="cpu")
    for part in np.array_split(X, 40):
        model.append(part)
    model.refit()
    started = time.perf_counter()
    result = model.refit(converge=True)
    seconds = time.perf_counter() - started
    best = min(result.objective, roads.from_truth(X, phases))
    curve = list(roads.exact_until(X, phases, best * 1.0001, limit=120.0))
    print(f"\nconverged refit of 10,000 patterns, 50,000 counts; best known {best:.6f}")
    print(f"  bluesky_cmf: {seconds:.2f} s, gap {result.objective / best - 1:.4%}")
    reached = "" if curve[-1][1] <= best * 1.0001 else "not "
    print(
        f"  exact extrapolated HALS: 0.01 % {reached}reached in {curve[-1][0]:.1f} s, "
        f"gap {curve[-1][1] / best - 1:.4%}: {curve[-1][0] / seconds:.0f}x"
    )


def counts(options: argparse.Namespace) -> None:
    """Kullback-Leibler: time to the objective of a thousand multiplicative iterations."""
    X = ramp()[1]
    warm_up(beta=1.0)
    seconds, target = next(roads.multiplicative(X, K, 0, step=1000, beta=1.0))
    times, monotone = [], True
    for seed in range(options.seeds):
        curve = list(
            itertools.takewhile(lambda point: point[1] > target, roads.reweighted(X, K, seed))
        )
        times.append(curve[-1][0] * (len(curve) + 1) / len(curve))
        monotone &= all(b <= a for (_, a), (_, b) in itertools.pairwise(curve))
    print(f"\nKullback-Leibler, K = {K}: objective of 1000 multiplicative iterations {target:.6f}")
    print(f"  multiplicative, autograd: {seconds:.3f} s")
    print(
        f"  bluesky_cmf: median {statistics.median(times):.4f} s, at most {max(times):.4f} s: "
        f"{seconds / statistics.median(times):.0f}x, at least {seconds / max(times):.0f}x; "
        f"{'monotone' if monotone else 'NOT monotone'}"
    )


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "cold": cold,
    "stream": stream,
    "many": many,
    "converged": converged,
    "counts": counts,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(TABLES)}; all by default")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--patterns", type=int, default=100_000)
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no such table: {', '.join(unknown)}")
    roads.set_up()
    name, X = ramp()
    print(f"{name}: {X.shape[0]} patterns of {X.shape[1]} points, one thread")
    for table in options.tables or TABLES:
        TABLES[table](options)


if __name__ == "__main__":
    main()
