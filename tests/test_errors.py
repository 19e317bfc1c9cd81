"""Errors of weights and fractions, against dense formulas, differences and repeated counts."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cmf.errors import InputError
from bluesky_cmf.nmf.fractions import areas, fraction_errors, fractions
from bluesky_cmf.nmf.results import RowFit
from bluesky_cmf.nmf.streaming import StreamingNMF

F = 24
RANDOM = np.random.default_rng(3)
H = 0.1 + RANDOM.random((4, F))
TRUE = np.array([30.0, 12.0, 20.0, 8.0])
#: A covariance of points that depends on them, and that neighbours share.
SMEAR = np.eye(F) + 0.4 * np.eye(F, k=1) + 0.2 * np.eye(F, k=-2)
SIGMA = SMEAR @ np.diag(0.1 + TRUE @ H / 40) @ SMEAR.T
#: A pattern near the fit, with weights that are far from zero.
X = np.abs(TRUE @ H + np.sqrt(np.diag(SIGMA)) * RANDOM.standard_normal(F))
LOSSES = ["frobenius", "kullback-leibler", "itakura-saito", 1.5]

Noise = Callable[[np.ndarray], np.ndarray]


def noise_of(covariance: np.ndarray) -> Noise:
    """What `rows` takes, for a covariance of the points (F, F)."""
    return lambda vectors: vectors @ covariance @ vectors.T


def counts_noise(pattern: np.ndarray) -> Noise:
    variance = np.maximum(pattern, 1.0)
    return lambda vectors: (vectors * variance) @ vectors.T


def known(patterns: np.ndarray, shapes: np.ndarray = H, **options: Any) -> StreamingNMF:
    """All components known and held."""
    K, points = shapes.shape
    options = {"dtype": torch.float64, "device": "cpu", **options}
    model = StreamingNMF(points, K, components=list(shapes), fixed=[True] * K, **options)
    model.append(patterns)
    model.refit()
    return model


def slopes(x: np.ndarray, **options: Any) -> np.ndarray:
    """How weights follow each point, (K, F): central differences of the solver itself."""
    step = 1e-3 * x
    moved = np.concatenate([x + np.diag(step), x - np.diag(step)])
    # Twice: a refit goes on from the weights that the first one has found.
    model = known(moved, **options)
    for _ in range(3):
        model.refit()
    W = model.rows().weights
    return (W[:F] - W[F:]).T / (2 * step)


def residual_variance(rows: RowFit, x: np.ndarray, shapes: np.ndarray) -> float:
    active = int((rows.weights[0] > 0).sum())
    return float(((x - rows.weights[0] @ shapes) ** 2).sum() / (len(x) - active))


# --- the covariance of weights --------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_noise_of_points_is_carried_as_differences_of_the_solver_do(loss: Any) -> None:
    J = slopes(X, loss=loss)

    rows = known(X, loss=loss).rows(noises=[noise_of(SIGMA)])

    np.testing.assert_allclose(rows.covariance[0], J @ SIGMA @ J.T, rtol=2e-3, atol=1e-4)
    np.testing.assert_array_equal(rows.errors[0], np.sqrt(np.diag(rows.covariance[0])))


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
@pytest.mark.parametrize(
    "asked", [{"alpha": 3.0}, {"alpha": 2.0, "l1_ratio": 0.5}], ids=["ridge", "ridge and sum"]
)
def test_a_penalty_takes_part_as_differences_say(loss: Any, asked: dict[str, float]) -> None:
    J = slopes(X, loss=loss, **asked)

    rows = known(X, loss=loss, **asked).rows(noises=[noise_of(SIGMA)])

    np.testing.assert_allclose(rows.covariance[0], J @ SIGMA @ J.T, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
def test_weights_that_add_up_to_one_move_on_their_plane(loss: Any) -> None:
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    x = shares @ H * (1 + 0.02 * np.cos(np.arange(F)))
    covariance = 1e-4 * SIGMA
    J = slopes(x, loss=loss, sum_to_one=True)

    rows = known(x, loss=loss, sum_to_one=True).rows(noises=[noise_of(covariance)])

    np.testing.assert_allclose(rows.covariance[0], J @ covariance @ J.T, rtol=5e-3, atol=1e-8)
    np.testing.assert_allclose(rows.covariance[0].sum(0), 0, atol=1e-12)


def test_least_squares_have_the_sandwich_of_their_active_set() -> None:
    """Dense, in the matrices of the textbook, with some weights at zero and one held."""
    W = np.array([[3.0, 0.0, 2.0, 0.0], [0.0, 5.0, 1.0, 4.0], [1.0, 1.0, 0.0, 6.0]])
    # The direction away from the components that are at zero keeps them there.
    patterns = np.maximum(W @ H - 0.05 * (W == 0) @ H, 0)
    model = StreamingNMF(F, 4, components=list(H), fixed=[True] * 4, dtype=torch.float64)
    model.append(patterns)
    model.append(patterns[1], [math.nan, math.nan, 1.0, math.nan])
    model.refit()

    rows = model.rows(noises=[noise_of(SIGMA)] * 4)

    held = np.array([[False] * 4] * 3 + [[False, False, True, False]])
    for weights, covariance, holds in zip(rows.weights, rows.covariance, held, strict=True):
        free = (weights > 0) & ~holds
        assert 0 < free.sum() < 4
        bread = np.linalg.inv(H[free] @ H[free].T)
        meat = H[free] @ SIGMA @ H[free].T
        expected = np.zeros((4, 4))
        expected[np.ix_(free, free)] = bread @ meat @ bread
        np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-15)


def test_without_a_noise_the_residual_tells_it_the_same_in_all_points() -> None:
    model = known(X)

    told, same = model.rows(), model.rows(noises=[None])

    variance = residual_variance(told, X, H)
    expected = variance * np.linalg.inv(H @ H.T)
    np.testing.assert_allclose(told.covariance[0], expected, rtol=1e-9)
    np.testing.assert_array_equal(told.covariance, same.covariance)
    given = model.rows(noises=[noise_of(variance * np.eye(F))])
    np.testing.assert_allclose(given.covariance, told.covariance, rtol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_with_a_known_noise_and_rows_without_do_not_touch_each_other(loss: Any) -> None:
    patterns = np.stack([X, 0.5 * X, 2 * X])
    model = known(patterns, loss=loss)
    noises = [noise_of(SIGMA), None, noise_of(4 * SIGMA)]

    rows = model.rows(noises=noises)

    for i, noise in enumerate(noises):
        alone = model.rows(i, i + 1, noises=[noise])
        np.testing.assert_allclose(rows.covariance[i], alone.covariance[0], rtol=1e-12)
    np.testing.assert_array_equal(rows.weights, model.rows().weights)


def test_many_rows_share_the_work_and_not_the_errors() -> None:
    W = np.random.default_rng(0).random((300, 4)) * (
        np.random.default_rng(1).random((300, 4)) > 0.4
    )
    model = known(W @ H + 0.1 * np.random.default_rng(2).random((300, F)))

    rows = model.rows()

    for i in (0, 17, 123, 299):
        alone = model.rows(i, i + 1)
        np.testing.assert_allclose(rows.covariance[i], alone.covariance[0], rtol=1e-9)
    assert (rows.errors[rows.weights == 0] == 0).all()


def test_the_error_of_a_free_component_is_in_units_of_its_maximum() -> None:
    model = StreamingNMF(
        F, 2, components=[H[0], 5 * H[1]], fixed=[True, False], dtype=torch.float64
    )
    model.append(np.random.default_rng(5).random((9, 2)) @ H[:2] + 0.01)
    result = model.refit()

    rows = model.rows(noises=[noise_of(SIGMA)] * 9)

    shapes = result.components
    assert shapes[1].max() == pytest.approx(1.0)
    bread = np.linalg.inv(shapes @ shapes.T)
    inside = (rows.weights > 0).all(1)
    assert inside.any()
    for covariance in rows.covariance[inside]:
        expected = bread @ shapes @ SIGMA @ shapes.T @ bread
        np.testing.assert_allclose(covariance, expected, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e6, 1e9])
@pytest.mark.parametrize("asked", [{}, {"sum_to_one": True}], ids=["free", "adding up"])
def test_errors_rescale_with_the_unit_of_intensity(scale: float, asked: dict[str, bool]) -> None:
    x = np.array([0.4, 0.3, 0.2, 0.1]) @ H * (1 + 0.02 * np.cos(np.arange(F)))

    here = known(x, **asked).rows(noises=[noise_of(SIGMA)])
    there = known(x * scale, H * scale, **asked).rows(noises=[noise_of(SIGMA * scale**2)])

    np.testing.assert_allclose(there.covariance, here.covariance, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e6, 1e9])
def test_errors_rescale_with_the_intensity_of_a_component(scale: float) -> None:
    sizes = np.array([1.0, scale, 1.0, 1.0])

    here = known(X).rows(noises=[noise_of(SIGMA)])
    there = known(X, H * sizes[:, None]).rows(noises=[noise_of(SIGMA)])

    np.testing.assert_allclose(there.errors * sizes, here.errors, rtol=1e-6)


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
def test_components_that_cannot_be_told_apart_have_no_known_error_and_the_others_do(
    loss: Any,
) -> None:
    twice = np.stack([H[0], H[1], H[0]])
    x = np.array([4.0, 3.0, 4.0]) @ twice + 0.01
    noise = noise_of(np.eye(F))

    rows = known(x, twice, loss=loss).rows(noises=[noise])

    both = known(x, H[:2], loss=loss).rows(noises=[noise])
    assert np.isnan(rows.errors[0, [0, 2]]).all()
    np.testing.assert_allclose(rows.errors[0, 1], both.errors[0, 1], rtol=1e-6)


def test_an_empty_component_and_an_empty_pattern_have_no_error() -> None:
    shapes = np.stack([H[0], np.zeros(F), H[1]])

    rows = known(np.stack([3 * H[0], np.zeros(F)]), shapes).rows(noises=[noise_of(SIGMA)] * 2)

    assert rows.errors[0, 0] > 0
    assert (rows.errors[0, 1], *rows.errors[1]) == (0, 0, 0, 0)


def test_a_weight_at_zero_has_no_error_also_where_the_others_have_none_that_is_known() -> None:
    # Two points, of which both weights that are free take one: nothing is left to tell the noise.
    errors = known(np.array([[1.0, 2.0]]), np.array([[1.0, 0], [0, 1], [0.0, 0]])).rows().errors

    assert np.isnan(errors[0, :2]).all()
    assert errors[0, 2] == 0


def test_errors_are_the_scatter_of_weights_where_neighbouring_points_are_correlated() -> None:
    random, root = np.random.default_rng(6), np.linalg.cholesky(SIGMA)
    many = TRUE @ H + random.standard_normal((4000, F)) @ root.T

    rows = known(np.maximum(many, 0)).rows(noises=[noise_of(SIGMA)] * 4000)

    np.testing.assert_allclose(rows.weights.std(0), rows.errors.mean(0), rtol=0.06)
    scatter = np.cov(rows.weights.T)
    np.testing.assert_allclose(
        scatter, rows.covariance.mean(0), rtol=0.25, atol=0.06 * scatter.max()
    )


def test_no_rows_have_no_covariance() -> None:
    rows = known(X).rows(1, noises=[])

    assert rows.covariance.shape == (0, 4, 4)
    assert rows.errors.shape == (0, 4)


@pytest.mark.parametrize(
    ("noises", "message"),
    [
        ([], "noises: expected one for each of 1 rows, got 0"),
        ([None, None], "noises: expected one for each of 1 rows, got 2"),
        ([SIGMA], r"noises\[0\]: expected f\(vectors \(K, F\)\) or None"),
        ([lambda vectors: vectors], r"noises: expected the covariance of 4 products, \(4, 4\)"),
    ],
)
@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
def test_a_noise_that_cannot_be_used_is_refused(loss: Any, noises: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        known(X, loss=loss).rows(noises=noises)


def test_a_noise_cannot_change_the_components() -> None:
    def careless(vectors: np.ndarray) -> np.ndarray:
        vectors *= 2
        return vectors @ vectors.T

    model = known(X)
    with pytest.raises(ValueError, match="read-only"):
        model.rows(noises=[careless])
    np.testing.assert_array_equal(model.components, H)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("loss", LOSSES)
def test_errors_on_cuda_are_those_on_the_cpu(loss: Any) -> None:
    noises = [noise_of(SIGMA), None]
    patterns = np.stack([X, 0.5 * X])

    here = known(patterns, loss=loss).rows(noises=noises)
    there = known(patterns, loss=loss, device="cuda").rows(noises=noises)

    np.testing.assert_allclose(there.covariance, here.covariance, rtol=1e-6)


# --- coverage -------------------------------------------------------------------------------

POINTS = 600


def lines(random: np.random.Generator, count: int) -> np.ndarray:
    """A phase of some lines on 600 points, with maximum 1."""
    x = np.arange(POINTS)
    places, heights = random.uniform(10, POINTS - 10, count), random.uniform(0.1, 1, count)
    shape = (heights[:, None] * np.exp(-0.5 * ((x - places[:, None]) / 4) ** 2)).sum(0)
    return shape / shape.max()


def measured(seed: int, peak: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four phases that come and go over a falling background, counted: H, W and patterns."""
    random = np.random.default_rng(seed)
    shapes = [lines(random, count) for count in (12, 15, 10, 20)]
    H = np.stack([*shapes, np.linspace(1.0, 0.4, POINTS)])
    t = np.linspace(0, 1, 20)
    a, b, c = (1 / (1 + np.exp(-(t - middle) / 0.06)) for middle in (0.3, 0.6, 0.85))
    W = peak * np.stack([1 - a, a - b, b * (1 - 0.7 * c), 0.7 * c, np.full(20, 0.05)], 1)
    return H, W, random.poisson(W @ H).astype(float)


def coverage(peak: float, loss: str, *, counts: bool = True) -> tuple[float, float]:
    """How often 68 % intervals hold the truth, of weights and of fractions, beyond 3 sigma."""
    inside: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    for seed in range(5):
        H, W, patterns = measured(seed, peak)
        noises = [counts_noise(pattern) for pattern in patterns] if counts else None
        rows = known(patterns, H, loss=loss).rows(noises=noises)
        area = areas(H)
        found, error = (
            fractions(rows.weights, area),
            fraction_errors(rows.weights, rows.covariance, area),
        )
        sure = (rows.weights > 3 * rows.errors) & (rows.errors > 0)
        inside.append((np.abs(rows.weights - W) <= rows.errors)[sure])
        sure &= found > 3 * error
        parts.append((np.abs(found - fractions(W, area)) <= error)[sure])
    weights, shares = np.concatenate(inside), np.concatenate(parts)
    assert min(len(weights), len(shares)) > 250
    return float(weights.mean()), float(shares.mean())


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
@pytest.mark.parametrize("peak", [100.0, 1000.0, 10_000.0])
def test_intervals_of_one_sigma_hold_two_thirds_of_what_is_counted(peak: float, loss: str) -> None:
    weights, parts = coverage(peak, loss)

    assert 0.60 <= weights <= 0.76
    assert 0.60 <= parts <= 0.76


def test_the_residual_alone_makes_intervals_too_narrow_for_counts() -> None:
    """Why noise is worth giving: on peaks it is larger than on the background."""
    weights, _ = coverage(1000.0, "frobenius", counts=False)

    assert weights < 0.62


# --- fractions ------------------------------------------------------------------------------


def test_fractions_are_parts_of_the_area_on_the_axis_as_it_is() -> None:
    x = np.cumsum(0.1 + RANDOM.random(F))
    W = RANDOM.random((5, 4))

    found = fractions(W, areas(H, x))

    whole = [np.trapezoid(w @ H, x) for w in W]
    for k in range(4):
        np.testing.assert_allclose(found[:, k], np.trapezoid(W[:, k : k + 1] * H[k], x) / whole)
    np.testing.assert_allclose(found.sum(1), 1.0)


def test_a_pattern_without_any_weight_has_no_fractions_and_no_errors_of_them() -> None:
    W, covariance = np.array([[0.0, 0.0], [2.0, 0.0]]), np.zeros((2, 2, 2))
    covariance[1, 0, 0] = 0.01

    assert np.isnan(fractions(W, np.ones(2))[0]).all()
    assert np.isnan(fraction_errors(W, covariance, np.ones(2))[0]).all()
    # What is there alone is all there is, however uncertain its amount.
    assert fractions(W, np.ones(2))[1].tolist() == [1, 0]
    assert fraction_errors(W, covariance, np.ones(2))[1].tolist() == [0, 0]


def test_errors_of_fractions_are_the_scatter_of_fractions() -> None:
    random, area = np.random.default_rng(8), np.array([2.0, 1.0, 5.0])
    w = np.array([[10.0, 20.0, 4.0]])
    root = 0.3 * random.standard_normal((3, 3))
    covariance = (root @ root.T)[None]
    drawn = w + random.standard_normal((20_000, 3)) @ root.T

    errors = fraction_errors(w, covariance, area)[0]

    np.testing.assert_allclose(errors, fractions(drawn, area).std(0), rtol=0.05)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_errors_of_fractions_are_those_of_their_slopes(seed: int, K: int) -> None:
    random = np.random.default_rng(seed)
    w, area = 0.1 + random.random(K), 0.1 + random.random(K)
    root = random.standard_normal((K, K))
    step = 1e-6 * np.eye(K)
    J = (fractions(w + step, area) - fractions(w - step, area)).T / 2e-6

    errors = fraction_errors(w[None], (root @ root.T)[None], area)[0]

    expected = np.sqrt(np.diag(J @ root @ root.T @ J.T).clip(0))
    np.testing.assert_allclose(errors, expected, rtol=1e-5, atol=1e-7)


def test_an_unknown_error_of_a_weight_is_one_of_the_fractions_that_it_has_a_part_in() -> None:
    covariance = np.diag([math.nan, 1.0])[None]

    assert np.isnan(fraction_errors(np.ones((1, 2)), covariance, np.ones(2))).all()


def test_the_result_of_a_fit_gives_fractions_on_any_axis() -> None:
    x = np.geomspace(1, 9, F)
    model = known(np.stack([X, np.zeros(F)]))
    result = model.result
    assert result is not None

    on_axis, evenly = result.fractions(x), result.fractions()

    whole = np.trapezoid(result.weights[0] @ result.components, x)
    expected = result.weights[0] * np.trapezoid(result.components, x) / whole
    np.testing.assert_allclose(on_axis[0], expected, rtol=1e-12)
    np.testing.assert_allclose(evenly, result.fractions(7 + 2 * np.arange(F)), rtol=1e-12)
    assert np.isnan(on_axis[1]).all()
    with pytest.raises(InputError, match=r"x: expected an axis \(24,\)"):
        result.fractions(x[1:])


def test_patterns_of_one_point_have_fractions() -> None:
    assert areas(np.array([[2.0], [3.0]])).tolist() == [2, 3]
