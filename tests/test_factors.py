"""Factors with their statistics, at the numbers where such things go wrong."""

import numpy as np
import pytest
import torch

from bluesky_cmf.nmf.blocks import Blocks
from bluesky_cmf.nmf.factors import Factors
from bluesky_cmf.nmf.rules import Rules
from bluesky_cmf.nmf.streaming import StreamingNMF

CPU = torch.device("cpu")
rng = np.random.default_rng(0)


def factors_of(X: np.ndarray, H: np.ndarray, free: tuple[int, ...], **options: object) -> Factors:
    dtype = torch.float32 if X.dtype == np.float32 else torch.float64
    data = Blocks(X.shape[1], dtype=dtype, device=CPU)
    data.append(torch.tensor(X))
    factors = Factors(data, torch.tensor(H, dtype=torch.float64), Rules(free, **options))
    factors.follow()
    return factors


def half_square(X: np.ndarray, factors: Factors) -> float:
    residual = X.astype(float) - factors.W.tensor().numpy() @ factors.H.numpy()
    return float(0.5 * (residual**2).sum())


def test_the_objective_of_counts_far_above_their_noise_is_right_to_many_digits() -> None:
    """From float32 products it would be noise: the residual is a billionth of the data."""
    H = rng.random((3, 500)) + 0.1
    X = (1e4 * rng.random((50, 3)) @ H + 0.3 * rng.random((50, 500))).astype("f4")
    factors = factors_of(X, H, (1, 2))
    curve = [factors.objective]
    for _ in range(10):
        factors.descend(2)
        factors.resolve(0, 50)
        curve.append(factors.objective)
        assert factors.objective == pytest.approx(half_square(X, factors), rel=1e-5)

    assert half_square(X, factors) < 1e-8 * float((X.astype(float) ** 2).sum())
    assert np.diff(curve).max() <= 1e-5 * curve[-1]


@pytest.mark.parametrize("faint", [1e-170, 1e-20, 1e-9])
def test_a_component_that_hardly_any_weight_meets_does_not_overflow(faint: float) -> None:
    """Its diagonal of WᵀW is tiny beside the others: a step along it would be endless."""
    H = rng.random((2, 30)) + 0.1
    X = np.outer(1 + rng.random(9), H[0])
    X[0] += faint * H[1]
    factors = factors_of(X, H, (0, 1))
    for _ in range(20):
        factors.descend(4)
        factors.resolve(0, 9)

    assert np.isfinite(factors.H.numpy()).all()
    assert np.isfinite(factors.W.tensor().numpy()).all()
    assert np.isfinite(factors.objective)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_units_change_nothing(scale: float) -> None:
    """By powers of two, which round nothing: of minima that are as deep the same one is found."""
    X = 0.1 + np.random.default_rng(5).random((20, 40))
    ends = []
    for factor in (1.0, scale):
        model = StreamingNMF(40, 3, dtype=torch.float64)
        for pattern in X:
            model.append(factor * pattern)
            model.refit()
        ends.append(model.refit(converge=True))
    assert ends[1].objective == pytest.approx(scale**2 * ends[0].objective, rel=1e-6)
    np.testing.assert_allclose(ends[1].components, ends[0].components, atol=1e-3)


def test_a_component_that_has_died_comes_back_with_the_next_pattern_that_needs_it() -> None:
    known, late = np.eye(6)[:2] + 0.01
    model = StreamingNMF(6, 2, components=[known, None], fixed=[True], dtype=torch.float64)
    for weight in (1.0, 2.0, 3.0):
        model.append(weight * known)
        assert not model.refit().components[1].any()

    model.append(known + late)
    result = model.refit()

    assert result.objective < 1e-12
    assert result.weights[3, 1] > 0.9


def test_statistics_do_not_drift_over_thousands_of_events() -> None:
    H = rng.random((3, 20)) + 0.1
    X = (rng.random((3000, 3)) @ H + 0.05 * rng.random((3000, 20))).astype("f4")
    factors = factors_of(X[:1], H, (0, 1, 2))
    for n in range(1, 3000):
        factors.X.append(torch.tensor(X[n : n + 1]))
        factors.follow()
        factors.descend(1)
        start = (7 * n) % n
        factors.resolve(start, min(n, start + 3))

    weights = factors.W.tensor()
    np.testing.assert_allclose(factors.A, weights.T @ weights, rtol=1e-10)
    np.testing.assert_allclose(factors.B, factors.X.transposed_times(weights), rtol=1e-10)
    assert factors.objective == pytest.approx(half_square(X, factors), rel=1e-9)


@pytest.mark.parametrize("scale", [1e4, 1e8, 1e11])
def test_a_known_phase_in_raw_counts_does_not_stop_the_others(scale: float) -> None:
    points = np.linspace(0, 1, 100)
    shapes = np.exp(-0.5 * ((points - np.array([[0.3], [0.45], [0.6]])) / 0.08) ** 2) + 0.02
    random = np.random.default_rng(0)
    X = random.random((60, 3)) @ shapes + 0.001 * random.random((60, 100))
    ends = []
    for factor in (1.0, scale):
        model = StreamingNMF(
            100, 3, components=[factor * shapes[0]], fixed=[True], dtype=torch.float64
        )
        model.append(factor * X)
        ends.append(model.refit(converge=True).objective / factor**2)
    assert ends[1] == pytest.approx(ends[0], rel=0.01)
