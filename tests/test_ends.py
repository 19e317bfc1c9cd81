"""Where converged refits end: at a minimum, the same one from all seeds, told of honestly."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from bluesky_cmf.nmf import fit
from bluesky_cmf.nmf.fit import Fit
from bluesky_cmf.nmf.leastsquares import LeastSquares
from bluesky_cmf.nmf.seeds import seeds_beside
from bluesky_cmf.nmf.streaming import StreamingNMF
from bluesky_cmf.nmf.sweeps import Data

POINTS = 400
X_AXIS = np.linspace(0, 1, POINTS)


pytestmark = pytest.mark.usefixtures("one_thread")


def lines(count: int, rng: np.random.Generator) -> np.ndarray:
    """Patterns of Lorentzian lines, (count, POINTS), each with maximum 1."""
    size = (count, 15, 1)
    centres, widths = rng.uniform(0.03, 0.97, size), rng.uniform(0.002, 0.006, size)
    shapes = (rng.exponential(1, size) / (1 + ((X_AXIS - centres) / widths) ** 2)).sum(1)
    return shapes / shapes.max(1, keepdims=True)


def alike(n: int) -> np.ndarray:
    """Patterns of four phases that are nearly the same: a cell that is stretched a little."""
    rng = np.random.default_rng(1)
    (base,) = lines(1, rng)
    k = np.arange(4)[:, None]
    shapes = [np.interp(X_AXIS, X_AXIS * (1 + 0.0015 * j), base) for j in range(4)]
    phases = np.stack(shapes) * (1 + 0.15 * np.sin(7 * X_AXIS * (k + 1) + k))
    t = np.linspace(0, 0.49, n)[:, None]
    weights = np.exp(-(((t - np.linspace(0, 1, 4)) / 0.3) ** 2)) + 0.02
    return rng.poisson(1e6 * weights @ phases) / 1e6


def with_a_weak_one(n: int) -> np.ndarray:
    """Patterns of three phases that follow each other, and a fourth that is a hundredth."""
    rng = np.random.default_rng(1)
    phases = lines(4, rng) + 0.01
    t = np.linspace(0, 1, n)[:, None]
    weights = np.exp(-(((t - np.linspace(0, 1, 4)) / 0.35) ** 2))
    weights[:, -1] = 0.01 * (t[:, 0] >= 0.4)
    return rng.poisson(1e6 * weights @ phases) / 1e6


def over_decades(seed: int) -> np.ndarray:
    """Patterns of six phases, of which the least is 10,000 times weaker than the strongest."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, (24, 6)) * 10.0 ** (-np.arange(6) * 4 / 5)
    return rng.poisson(1e6 * weights @ lines(6, rng)) / 1e6


def spiked(n: int) -> np.ndarray:
    """Patterns of two phases, of which every fifth holds three spikes of its own."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, n)[:, None]
    weights = np.exp(-(((t - np.linspace(0, 1, 2)) / 0.3) ** 2)) + 0.05
    X = rng.poisson(1e3 * weights @ (lines(2, rng) + 0.05)) / 1e3
    for i in range(0, n, 5):
        X[i, rng.integers(POINTS, size=3)] += rng.uniform(2, 20)
    return X


def converged(X: np.ndarray, K: int, *, seed: int = 0) -> StreamingNMF:
    model = StreamingNMF(X.shape[1], K, seed=seed, device="cpu")
    model.append(X)
    model.refit(converge=True)
    return model


def gained_by_descent(model: StreamingNMF, X: np.ndarray, rounds: int) -> float:
    """What exact weights and passes over the components, by turns, gain from an end."""
    before, H = model._fit.objective, model._fit.factors.H.numpy().copy()
    X = X.astype("f4").astype(float)
    for _ in range(rounds):
        W = np.array([nnls(H.T, x)[0] for x in X])
        A, B = W.T @ W, W.T @ X
        for _ in range(8):
            for k in range(len(H)):
                H[k] = np.maximum(0, H[k] + (B[k] - A[k] @ H) / A[k, k])
    W = np.array([nnls(H.T, x)[0] for x in X])
    return 1 - 0.5 * float(((X - W @ H) ** 2).sum()) / before


def test_where_phases_are_alike_an_end_is_one() -> None:
    X = alike(20)
    model = converged(X, 4)

    assert model.result is not None and model.result.converged
    assert gained_by_descent(model, X, 50) < 1e-4


@pytest.mark.parametrize("n", [8, 12])
def test_the_end_does_not_depend_on_the_seed(n: int) -> None:
    ends = [converged(with_a_weak_one(n), 4, seed=seed)._fit.objective for seed in range(5)]

    assert max(ends) < 1.0005 * min(ends)


def test_starts_beside_lead_on_from_where_starts_of_the_data_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = [over_decades(seed) for seed in (0, 3)]
    found = [converged(X, 6)._fit.objective for X in streams]
    monkeypatch.setattr(fit, "_ROUNDS_BESIDE", 0)
    without = [converged(X, 6)._fit.objective for X in streams]

    gains = np.array(without) / found
    assert gains.min() > 0.9999 and gains.max() > 1.001


def test_what_no_basis_holds_is_seen_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed data lack what single patterns have of their own."""
    monkeypatch.setattr(LeastSquares, "all_rows", 1000)
    monkeypatch.setattr(LeastSquares, "_compresses", lambda self, n_rows: n_rows > 16)
    X = spiked(560)
    model = converged(X, 2)
    assert model._fit.sampled

    assert model.result is not None and model.result.converged
    assert gained_by_descent(model, X, 20) < 1e-7

    monkeypatch.setattr(LeastSquares, "_confirmed", lambda self: True)
    assert gained_by_descent(converged(X, 2), X, 20) > 1e-6


def test_beside_a_fit_one_component_at_a_time_gives_way() -> None:
    X = torch.from_numpy(with_a_weak_one(12).astype("f4"))
    model = converged(X.numpy(), 4)
    H, data = model._fit.factors.H, model._fit.X

    starts = [start for start in seeds_beside(data, H, [1, 3]) if start is not None]

    assert len(starts) == 4
    for start, k in zip(starts, (1, 1, 3, 3), strict=True):
        same = [bool(torch.equal(a, b)) for a, b in zip(start, H, strict=True)]
        assert same == [j != k for j in range(4)]
        assert float(start[k].max()) == 1.0 and float(start[k].min()) >= 0


def test_idle_time_in_small_pieces_comes_as_far_as_in_one() -> None:
    X = with_a_weak_one(16)
    ends = []
    for budget in (1e-3, 60.0):
        model = StreamingNMF(POINTS, 4, device="cpu")
        model.append(X)
        before = model.refit().objective
        for _ in range(20_000):
            if model.settled:
                break
            model.improve(budget)
            assert model._fit.objective <= before
            before = model._fit.objective
        assert model.settled
        ends.append(before)
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


def test_what_raises_in_idle_time_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StreamingNMF(POINTS, 4, device="cpu")
    model.append(with_a_weak_one(12))
    model.refit()
    beside, calls = Fit.beside, [0]

    def fails_once(self: Fit, X: Data, H: torch.Tensor) -> Iterator[torch.Tensor | None]:
        calls[0] += 1
        if calls[0] == 1:
            raise ValueError("once")
        return beside(self, X, H)

    monkeypatch.setattr(Fit, "beside", fails_once)
    with pytest.raises(ValueError, match="once"):
        model.improve(60.0)
    assert not model.settled
    for _ in range(100):
        model.improve(60.0)
    assert model.settled and calls[0] > 1
