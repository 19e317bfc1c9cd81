"""Few rows: an event goes further where rows jump, and idle time tries more and more starts."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bluesky_cmf.nmf.jumps import Jumps
from bluesky_cmf.nmf.leastsquares import LeastSquares
from bluesky_cmf.nmf.streaming import StreamingNMF

F, K = 300, 4


def phases(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres, widths = rng.uniform(0, F, (K, 12, 1)), rng.uniform(2, 8, (K, 12, 1))
    heights = rng.exponential(1.0, (K, 12, 1))
    lines = heights * np.exp(-0.5 * ((np.arange(F) - centres) / widths) ** 2)
    return lines.sum(1) / lines.sum(1).max(1, keepdims=True) + 0.01


def steps(seed: int) -> np.ndarray:
    """Patterns (60, F) whose weights stay, and jump, and stay."""
    rng = np.random.default_rng(100 + seed)
    W = np.repeat(rng.uniform(0, 1, (6, K)), 10, axis=0) + 0.001
    W *= rng.uniform(0.9, 1.1, (60, 1))
    return (rng.poisson(2e4 * (W @ phases(seed))) / 2e4).astype("f4")


def largest_gap(X: np.ndarray) -> float:
    """Stream patterns with idle time after each; how far an event alone was off at a jump."""
    model, gaps = StreamingNMF(F, K, components=[X[0], X[-1]], fixed=[True, True]), []
    for n, pattern in enumerate(X, 1):
        model.append(pattern)
        after = model.refit().objective
        while not model.settled:
            model.improve(math.inf)
        # The first patterns of a step.
        if n > 10 and n % 10 in (1, 2):
            cold = StreamingNMF(F, K, components=[X[0], X[-1]], fixed=[True, True])
            cold.append(X[:n])
            best = min(cold.refit(converge=True).objective, model._fit.objective)
            gaps.append(after / best - 1)
    return max(gaps)


def test_an_event_follows_a_jump_of_the_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [steps(seed) for seed in range(3)]

    with_jumps = [largest_gap(X) for X in streams]
    monkeypatch.setattr(LeastSquares, "jump_work", 0)
    without = [largest_gap(X) for X in streams]

    assert max(with_jumps) < 0.25
    assert max(without) > 2 * max(with_jumps)


def test_patterns_that_are_merely_brighter_are_jumps_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    further: list[int] = []
    go = Jumps._go_further

    def noted(self: Jumps) -> None:
        further.append(len(self._fit.factors))
        go(self)

    monkeypatch.setattr(Jumps, "_go_further", noted)
    rng = np.random.default_rng(0)
    W = rng.dirichlet(np.ones(K), 120) * np.where(np.arange(120) % 2, 1.0, 4.0)[:, None]
    X = rng.poisson(1e3 * (W @ phases(0))) / 1e3
    model = StreamingNMF(F, K, components=list(phases(0)[:2]), fixed=[True, True])
    for pattern in X:
        model.append(pattern)
        model.refit()

    assert sum(n > 60 for n in further) <= 6


def test_an_interruption_leaves_starts_for_later() -> None:
    X = steps(2)
    model = StreamingNMF(F, K, components=[X[0], X[-1]], fixed=[True, True])
    model.append(X)
    model.refit()
    model.improve(1e-9)
    assert not model.settled

    # A pattern comes between two looks at the clock.
    looks = iter([False])
    model.improve(math.inf, interrupted=lambda: next(looks, True))
    assert not model.settled
    while not model.settled:
        model.improve(math.inf)


def test_idle_time_tries_draws_until_there_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    X = steps(1)
    model = StreamingNMF(F, K, components=[X[0], X[-1]], fixed=[True, True])
    model.append(X)
    best = model.refit(converge=True).objective
    fit = model._fit
    good = fit.factors.H.clone()
    # A component without a shape stays without one.
    poor = good.clone()
    poor[2:] = 0
    given: list[int] = []

    def starts(X: object, H: torch.Tensor, *, draws: int) -> Iterator[torch.Tensor | None]:
        for number in range(3 + draws):
            given.append(number)
            yield good if number == 15 else poor

    monkeypatch.setattr(fit, "starts", starts)
    fit.factors = fit.challenger(poor)
    fit.search.drop()
    fit.search.settled = False
    while not model.settled:
        model.improve(math.inf)

    assert given == list(range(3 + fit.draws))
    assert fit.objective == pytest.approx(best, rel=1e-3)
