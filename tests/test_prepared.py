"""The noise of a prepared pattern is that of the raw one, carried through every step."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bluesky_cmf import Preprocess
from bluesky_cmf.errors import PatternError
from bluesky_cmf.resampling import Resampling

RNG = np.random.default_rng(5)
X = np.sort(RNG.uniform(0.0, 10.0, 60))
Y = 20 + 80 * np.exp(-(((X - 4.0) / 0.8) ** 2)) + RNG.uniform(0, 5, X.size)
VARIANCE = RNG.uniform(0.5, 30.0, X.size)
FINER = np.linspace(1.05, 8.9, 73)


def jacobian(steps: Preprocess, x: np.ndarray, y: np.ndarray, **options: Any) -> np.ndarray:
    """Each derivative by a central difference, one measured point after the other."""
    step = 1e-4
    columns = []
    for point in np.eye(len(y)) * step:
        above = steps.prepare(x, y + point, **options).values
        below = steps.prepare(x, y - point, **options).values
        columns.append((above - below) / (2 * step))
    return np.array(columns).T


def hats(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Linear interpolation as a dense matrix: a hat function of each measured point."""
    matrix = np.zeros((len(grid), len(x)))
    for i, at in enumerate(grid):
        for j, centre in enumerate(x):
            if j and x[j - 1] <= at <= centre:
                matrix[i, j] = (at - x[j - 1]) / (centre - x[j - 1])
            if j < len(x) - 1 and centre <= at <= x[j + 1]:
                matrix[i, j] = (x[j + 1] - at) / (x[j + 1] - centre)
    return matrix


def means(size: int, count: int) -> np.ndarray:
    """Averages of neighbours as a dense matrix."""
    matrix = np.zeros((size // count, size))
    for i in range(size // count):
        matrix[i, i * count : (i + 1) * count] = 1 / count
    return matrix


STEPS: list[dict[str, Any]] = [
    {},
    {"roi": (2.0, 7.0)},
    {"rebin": 3},
    {"roi": (2.0, 7.0), "rebin": 4},
    {"regrid": 0.11},
    {"regrid": 0.4, "rebin": 2},
    {"regrid": tuple(FINER), "roi": (1.5, 8.0), "rebin": 5},
    {"normalize": "max"},
    {"normalize": "area"},
    {"regrid": 0.13, "rebin": 3, "normalize": "area", "roi": (1.0, 9.0)},
    {"regrid": 0.13, "rebin": 3, "normalize": "max", "roi": (1.0, 9.0)},
    {"normalize": "monitor", "monitor": "i0", "rebin": 2},
    {"negative": "offset"},
    {"negative": "offset", "normalize": "max", "regrid": 0.3},
    {"negative": "offset", "normalize": "area", "rebin": 2},
]


@pytest.mark.parametrize("options", STEPS, ids=lambda options: ",".join(options))
def test_the_noise_of_the_result_is_that_of_each_measured_point_by_its_derivative(
    options: dict[str, Any],
) -> None:
    steps = Preprocess(**options)
    y = Y - 30 if "negative" in options else Y
    monitor = 250.0 if steps.monitor else None
    prepared = steps.prepare(X, y, variance=VARIANCE, monitor=monitor)
    J = jacobian(steps, X, y, monitor=monitor)
    expected = J @ np.diag(VARIANCE) @ J.T
    vectors = np.random.default_rng(0).normal(size=(4, len(prepared.values)))

    assert prepared.covariance is not None and prepared.variance is not None
    size = np.diag(expected).max()
    np.testing.assert_allclose(prepared.variance, np.diag(expected), rtol=1e-6, atol=1e-8 * size)
    found = prepared.covariance(vectors)
    np.testing.assert_allclose(found, vectors @ expected @ vectors.T, rtol=1e-5, atol=1e-8 * size)
    np.testing.assert_array_equal(found, found.T)


def test_interpolated_and_averaged_points_have_noise_in_common_as_their_matrices_say() -> None:
    steps = Preprocess(regrid=FINER, rebin=4)
    J = means(len(FINER), 4) @ hats(X, FINER)
    prepared = steps.prepare(X, Y, variance=VARIANCE)

    np.testing.assert_allclose(prepared.values, J @ Y, rtol=1e-12)
    expected = J @ np.diag(VARIANCE) @ J.T
    assert prepared.covariance is not None
    found = prepared.covariance(np.eye(len(prepared.values)))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    # Taken for independent, neighbours would be told wrong.
    assert expected[10, 11] > 0.1 * expected[10, 10]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0, 50), min_size=2, max_size=30, unique=True),
    st.lists(st.floats(0, 1), min_size=1, max_size=40, unique=True),
    st.integers(1, 5),
)
def test_the_map_and_its_transposed_are_one_matrix_on_any_axes(
    x: list[float], shares: list[float], count: int
) -> None:
    axis = np.sort(np.array(x))
    assume((np.diff(axis) > 1e-6).all())
    grid = np.unique(axis[0] + np.array(shares) * (axis[-1] - axis[0]))
    assume(len(grid) >= count and (np.diff(grid) > 1e-9).all())
    mapping = Resampling(axis, grid, count)
    J = means(len(grid), count) @ hats(axis, grid)
    variance = np.linspace(1.0, 2.0, len(axis))

    matrix = np.zeros_like(J)
    matrix[:, mapping.points] = mapping.pulled_back(np.eye(len(J)))
    np.testing.assert_allclose(matrix, J, atol=1e-9)
    np.testing.assert_allclose(mapping.spread(variance), J**2 @ variance, rtol=1e-9)
    np.testing.assert_allclose(mapping(np.sin(axis)), J @ np.sin(axis), atol=1e-9)


@pytest.mark.parametrize("by", ["max", "area"])
def test_the_scatter_of_normalised_patterns_is_what_their_covariance_says(by: Any) -> None:
    """To first order: small noise, drawn 20,000 times."""
    rng = np.random.default_rng(1)
    steps = Preprocess(normalize=by, regrid=0.25, rebin=2)
    spread = np.sqrt(VARIANCE) * 0.02
    prepared = steps.prepare(X, Y, variance=spread**2)
    size = len(prepared.values)
    vectors = np.stack([np.ones(size), np.linspace(0, 1, size)])
    assert prepared.covariance is not None
    drawn = Y + spread * rng.normal(size=(20_000, len(Y)))
    scatter = np.cov(np.stack([vectors @ steps(X, y) for y in drawn]).T)
    np.testing.assert_allclose(prepared.covariance(vectors), scatter, rtol=0.05)


@pytest.mark.parametrize("options", [{"background": "snip"}, {"negative": "clip"}], ids=str)
def test_what_is_set_to_zero_keeps_the_noise_that_it_had_as_an_upper_bound(
    options: dict[str, Any],
) -> None:
    y = Y - 22 if "negative" in options else Y
    prepared = Preprocess(**options).prepare(X, y, variance=VARIANCE)
    assert (prepared.values == 0).any()
    np.testing.assert_allclose(prepared.variance, VARIANCE)


def test_without_a_variance_there_is_no_noise_and_no_doubt() -> None:
    prepared = Preprocess().prepare(X, Y)
    assert (prepared.variance, prepared.covariance, prepared.doubt) == (None, None, "")


@pytest.mark.parametrize(
    ("where", "value", "doubt"),
    [
        (slice(30, 32), np.nan, "NaN, infinity or a negative number at 2 of 60 points"),
        (slice(0, 1), np.inf, "NaN, infinity or a negative number at 1 of 60 points"),
        (slice(7, 10), -1.0, "NaN, infinity or a negative number at 3 of 60 points"),
        (slice(None), 0.0, "every one is zero"),
    ],
)
def test_a_variance_that_cannot_be_used_is_left_out_and_it_is_said_why(
    where: slice, value: float, doubt: str
) -> None:
    variance = VARIANCE.copy()
    variance[where] = value
    prepared = Preprocess().prepare(X, Y, variance=variance)
    assert prepared.doubt == doubt and prepared.covariance is None
    np.testing.assert_array_equal(prepared.values, Y)


def test_a_variance_of_another_length_is_left_out() -> None:
    prepared = Preprocess(roi=(2, 8)).prepare(X, Y, variance=VARIANCE[:50])
    assert prepared.doubt == "50 values for 60 points" and prepared.variance is None


@pytest.mark.parametrize("options", [{"roi": (2.0, 7.0)}, {"roi": (2.0, 7.0), "regrid": 0.2}])
def test_errors_outside_the_region_of_interest_may_be_anything(options: dict[str, Any]) -> None:
    steps = Preprocess(**options, normalize="area")
    # Interpolation takes the nearest point beyond.
    first, last = X[X <= 2.0].max(), X[X >= 7.0].min()
    broken = np.where((first > X) | (last < X), np.nan, VARIANCE)
    broken[0] = -3.0
    found, whole = (steps.prepare(X, Y, variance=v) for v in (broken, VARIANCE))
    assert found.doubt == "" and found.covariance is not None and whole.covariance is not None
    vectors = np.ones((1, len(found.values)))
    np.testing.assert_array_equal(found.variance, whole.variance)
    np.testing.assert_array_equal(found.covariance(vectors), whole.covariance(vectors))


def test_single_errors_of_zero_are_taken_as_they_are() -> None:
    variance = np.where(np.arange(60) % 2, VARIANCE, 0.0)
    prepared = Preprocess(rebin=2).prepare(X, Y, variance=variance)
    np.testing.assert_allclose(prepared.variance, VARIANCE[1::2] / 4, rtol=1e-12)


@pytest.mark.parametrize("monitor", ["5 A", [1.0, 2.0], 5j, 1e-320, 10**400])
def test_a_monitor_that_is_no_usable_number_is_told(monitor: Any) -> None:
    steps = Preprocess(normalize="monitor", monitor="i0")
    with pytest.raises(PatternError, match="normalised by the monitor 'i0', which is "):
        steps.prepare(np.arange(4.0), np.ones(4), monitor=monitor)


@pytest.mark.parametrize("steps", [Preprocess(), Preprocess(normalize="max"), Preprocess(rebin=2)])
def test_a_pattern_of_another_length_than_its_axis_is_told(steps: Preprocess) -> None:
    with pytest.raises(PatternError, match=r"expected 8 points, as the axis has, got \(5,\)"):
        steps.prepare(np.arange(8.0), np.ones(5))
    with pytest.raises(PatternError, match=r"expected 8 points, as the axis has, got \(9,\)"):
        steps(np.arange(8.0), np.ones(9))
