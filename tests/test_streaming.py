import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ramp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import nnls as scipy_nnls

from bluesky_cmf.errors import CMFError, ComponentError, InputError
from bluesky_cmf.nmf import blocks
from bluesky_cmf.nmf.streaming import FitResult, RowFit, StreamingNMF

F = 40
few = settings(deadline=None, max_examples=15)


pytestmark = pytest.mark.usefixtures("one_thread")


def peaks(*centres: float, points: int = F) -> np.ndarray:
    """A pattern of sharp lines, its maximum 1."""
    x = np.linspace(0, 1, points)
    y = sum(np.exp(-(((x - centre) / 0.03) ** 2)) for centre in centres)
    return np.asarray(y / np.max(y), dtype=np.float32)


PHASES = np.stack([peaks(0.2, 0.6), peaks(0.3, 0.8), peaks(0.45, 0.9)])


def ramp(n: int = 24, *, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """Patterns of three phases that follow each other, with noise and a background."""
    t = np.linspace(0, 1, n)[:, None]
    weights = np.exp(-(((t - np.array([0.0, 0.5, 1.0])) / 0.35) ** 2))
    noisy = weights @ PHASES + 0.05 + noise * np.random.default_rng(seed).standard_normal((n, F))
    return np.asarray(noisy.clip(0), dtype=np.float32)


def fitted(X: np.ndarray, K: int, *, converge: bool = False, **options: Any) -> StreamingNMF:
    model = StreamingNMF(X.shape[1], K, **options)
    model.append(X)
    model.refit(converge=converge)
    return model


def result_of(model: StreamingNMF) -> FitResult:
    assert model.result is not None
    return model.result


def half_square(X: np.ndarray, result: FitResult) -> float:
    residual = X.astype(float) - result.weights.astype(float) @ result.components.astype(float)
    return float(0.5 * (residual**2).sum())


@st.composite
def matrices(draw: st.DrawFn, *, rows: int = 8) -> np.ndarray:
    """Non-negative data of any intensity, with rows and columns of zeros now and then."""
    N, points = draw(st.integers(1, rows)), draw(st.integers(1, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    X = rng.random((N, points)) * (rng.random((N, points)) < draw(st.sampled_from([1.0, 0.5])))
    X[draw(st.integers(0, N - 1))] *= draw(st.booleans())
    X[:, draw(st.integers(0, points - 1))] *= draw(st.booleans())
    return np.asarray(X * 10.0 ** draw(st.integers(-6, 6)), dtype=np.float32)


# --- what a refit gives ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_batio3_ramp_is_explained_better_than_the_reference_from_every_seed(
    batio3: Ramp, seed: int
) -> None:
    X = batio3.intensity
    known = [X[0], X[-1]]

    model = fitted(X, 4, converge=True, components=known, fixed=[True, True], seed=seed)

    result = result_of(model)
    assert result.objective <= 0.1965
    assert result.converged
    assert half_square(X, result) == pytest.approx(result.objective, rel=1e-3)
    for k, pattern in enumerate(known):
        assert result.components[k].tobytes() == pattern.astype(np.float32).tobytes()


def test_a_result_is_what_numpy_makes_of_the_factors() -> None:
    X = ramp()

    result = result_of(fitted(X, 3, dtype=torch.float64))

    residual = X - result.weights @ result.components
    assert result.n_patterns == len(X)
    assert result.names == ("unknown 1", "unknown 2", "unknown 3")
    assert result.fixed == (False, False, False)
    assert result.objective == pytest.approx(0.5 * (residual**2).sum(), rel=1e-12)
    expected = np.sqrt((residual**2).sum(1) / (X.astype(float) ** 2).sum(1))
    np.testing.assert_allclose(result.r_factor, expected, rtol=1e-10)
    assert result.seconds > 0


def test_weights_are_the_exact_ones_for_the_components() -> None:
    X = ramp(10)

    result = result_of(fitted(X, 3, dtype=torch.float64))

    for x, w in zip(X, result.weights, strict=True):
        expected, _ = scipy_nnls(result.components.T, x.astype(float))
        np.testing.assert_allclose(w, expected, atol=1e-9)


def test_rows_tell_how_some_of_the_patterns_are_explained() -> None:
    X = ramp(20)
    model = fitted(X, 3, dtype=torch.float64)
    W, H = result_of(model).weights, result_of(model).components

    rows = model.rows(5, 12)

    residual = X[5:12] - W[5:12] @ H
    np.testing.assert_array_equal(rows.weights, W[5:12])
    np.testing.assert_allclose(rows.r_factor, result_of(model).r_factor[5:12], rtol=1e-10)
    excess = residual.clip(0).sum(1) / X[5:12].astype(float).sum(1)
    np.testing.assert_allclose(rows.unexplained, excess, rtol=1e-9)
    np.testing.assert_allclose(rows.reconstruction, W[11] @ H, rtol=1e-12)
    for i, w in enumerate(rows.weights):
        active = w > 0
        variance = (residual[i] ** 2).sum() / (F - active.sum())
        covariance = variance * np.linalg.inv(H[active] @ H[active].T)
        np.testing.assert_allclose(rows.errors[i][active], np.sqrt(np.diag(covariance)), rtol=1e-6)
        assert (rows.errors[i][~active] == 0).all()


@pytest.mark.parametrize("start", [0, 3])
def test_rows_that_are_not_there_yet_are_none(start: int) -> None:
    model = StreamingNMF(4, 2)
    if start:
        model = fitted(np.ones((3, 4)), 2)
    rows: RowFit = model.rows(start)

    assert rows.weights.shape == rows.errors.shape == (0, 2)
    assert rows.r_factor.shape == rows.unexplained.shape == (0,)
    assert rows.reconstruction.tolist() == [0, 0, 0, 0]


@few
@given(matrices(), st.integers(1, 4), st.booleans())
def test_a_refit_keeps_its_promises_for_any_data(X: np.ndarray, K: int, converge: bool) -> None:
    known = X[0] / max(float(X[0].max()), 1e-30)

    model = fitted(X, K, converge=converge, components=[known], fixed=[True])

    result = result_of(model)
    assert result.components[0].tobytes() == known.tobytes()
    assert (result.weights >= 0).all()
    assert (result.components >= 0).all()
    assert set(result.components[1:].max(1, initial=0).tolist()) <= {0.0, 1.0}
    assert np.isfinite(result.weights).all()
    assert np.isfinite(result.r_factor).all()
    assert (result.r_factor <= 1 + 1e-6).all()
    assert result.objective <= 0.5 * float((X.astype(float) ** 2).sum()) * (1 + 1e-9)
    assert np.isfinite(model.rows().unexplained).all()


@few
@given(matrices(), st.integers(1, 3), st.data())
def test_neither_a_refit_nor_improve_ever_climbs(
    X: np.ndarray, K: int, data: st.DataObject
) -> None:
    model = fitted(X, K)
    steps: dict[str, Callable[[], object]] = {
        "refit": model.refit,
        "converge": lambda: model.refit(converge=True),
        "look a moment": lambda: model.improve(0.0),
        "look as long as it takes": lambda: model.improve(math.inf),
    }
    scale = 0.5 * float((X.astype(float) ** 2).sum())
    for step in data.draw(st.lists(st.sampled_from(sorted(steps)), min_size=1, max_size=4)):
        before = result_of(model).objective
        steps[step]()
        assert result_of(model).objective <= before + 1e-12 * scale


@few
@given(
    hnp.arrays(
        np.float32,
        F,
        elements=st.floats(0, float(np.finfo(np.float32).max), width=32, allow_subnormal=True),
    ),
    st.booleans(),
)
def test_a_known_pattern_comes_back_to_the_bit(pattern: np.ndarray, converge: bool) -> None:
    model = StreamingNMF(F, 3, components=[None, pattern], fixed=[False, True])
    for x in ramp(4):
        model.append(x)
        model.refit()

    result = model.refit(converge=converge)

    assert result.components[1].tobytes() == pattern.tobytes()
    assert model.components[1].tobytes() == pattern.tobytes()


# --- same data, same answer -----------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 5])
@pytest.mark.parametrize("known", [0, 1])
def test_patterns_one_by_one_and_all_at_once_end_at_the_same_fit(step: int, known: int) -> None:
    X = ramp(15, seed=known)
    options: dict[str, Any] = {"components": [PHASES[0]][:known], "fixed": [True][:known]}
    at_once = result_of(fitted(X, 3, converge=True, **options))

    model = StreamingNMF(F, 3, **options)
    for first in range(0, len(X), step):
        model.append(X[first : first + step])
        model.refit()
    streamed = model.refit(converge=True)

    assert streamed.objective == pytest.approx(at_once.objective, rel=1e-3)
    assert streamed.converged
    unit = [
        H / np.linalg.norm(H, axis=1, keepdims=True)
        for H in (streamed.components, at_once.components)
    ]
    overlap = unit[0] @ unit[1].T
    assert sorted(overlap.argmax(1)) == [0, 1, 2]
    assert (overlap.max(1) > 0.999).all()


@settings(few, max_examples=8, derandomize=True)
@given(matrices(rows=6), st.integers(1, 3))
def test_streaming_never_ends_above_what_all_at_once_reaches(X: np.ndarray, K: int) -> None:
    at_once = result_of(fitted(X, K, converge=True))

    model = StreamingNMF(X.shape[1], K)
    for x in X:
        model.append(x)
        model.refit()
    streamed = model.refit(converge=True)

    # Beside the whole, as exact data leave a residual of rounding alone.
    scale = 0.5 * float((X.astype(float) ** 2).sum())
    assert streamed.objective <= at_once.objective * (1 + 1e-3) + 1e-6 * scale


def test_the_end_does_not_depend_on_how_the_data_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X = ramp(70)
    whole = fitted(X, 3)
    whole.refit(converge=True)

    # Several blocks are swept by torch, one by the fused kernels where there are some.
    monkeypatch.setattr(blocks, "_FIRST_ROWS", 16)
    monkeypatch.setattr(blocks, "_CHUNK_BYTES", 8 * F * 9)
    parted = fitted(X, 3)
    for converge in (False, True):
        parted.refit(converge=converge)

    assert result_of(parted).objective == pytest.approx(result_of(whole).objective, rel=1e-3)
    np.testing.assert_array_equal(parted.patterns(), X)
    np.testing.assert_allclose(parted.rows(60).r_factor, whole.rows(60).r_factor, rtol=1e-2)


def test_the_same_seed_gives_the_same_fit_to_the_bit() -> None:
    first, second = (result_of(fitted(ramp(), 3, converge=True, seed=7)) for _ in range(2))

    assert first.objective == second.objective
    assert first.components.tobytes() == second.components.tobytes()


def test_exact_data_are_explained_and_the_phases_found() -> None:
    rng = np.random.default_rng(1)
    weights = rng.random((20, 3))
    weights[:3] = np.eye(3)

    result = result_of(fitted(weights @ PHASES, 3, converge=True))

    assert (result.r_factor < 1e-2).all()
    unit = [H / np.linalg.norm(H, axis=1, keepdims=True) for H in (result.components, PHASES)]
    assert ((unit[0] @ unit[1].T).max(0) > 0.999).all()


def test_a_phase_that_appears_late_takes_a_free_component_and_the_others_stay() -> None:
    early, late = PHASES[:1], PHASES[[0, 2]]
    model = StreamingNMF(F, 2, names=["known"], components=[PHASES[0]], fixed=[True])
    for w in (1.0, 2.0, 3.0):
        model.append(w * early)
        result = model.refit()
    assert result.objective < 1e-9
    assert result.components[1].max() == 0
    assert result.weights[:, 1].tolist() == [0, 0, 0]

    model.append(np.array([[2.0, 1.0]]) @ late)
    result = model.refit()

    np.testing.assert_allclose(result.components[1], PHASES[2], atol=0.02)
    np.testing.assert_allclose(result.weights[3], [2.0, 1.0], rtol=0.02)
    assert result.components[0].tobytes() == PHASES[0].tobytes()


def test_components_keep_their_places_through_a_converged_refit_and_improve() -> None:
    X = ramp(15)
    model = StreamingNMF(F, 3, names=["a", "b", "c"], components=PHASES)
    model.append(X)
    model.refit()

    for again in (lambda: model.improve(math.inf), lambda: model.refit(converge=True)):
        again()
        unit = model.components / np.linalg.norm(model.components, axis=1, keepdims=True)
        known = PHASES / np.linalg.norm(PHASES, axis=1, keepdims=True)
        assert (unit @ known.T).argmax(1).tolist() == [0, 1, 2]


def test_improve_leaves_a_bad_start_says_so_and_keeps_the_order() -> None:
    X = ramp(16)
    X[:, 0] = 0
    nowhere = np.eye(F)[0]
    model = fitted(X, 3, components=[nowhere, PHASES[2], PHASES[0]])
    stuck = result_of(model)
    assert not stuck.weights[:, 0].any()

    assert model.improve(math.inf) is True

    better = result_of(model)
    assert better is not stuck
    assert better.objective < 0.9 * stuck.objective
    assert half_square(X, better) == pytest.approx(better.objective, rel=1e-4)
    overlap = better.components @ PHASES.T / np.linalg.norm(better.components, axis=1)[:, None]
    assert (overlap / np.linalg.norm(PHASES, axis=1)).argmax(1).tolist() == [1, 2, 0]
    assert model.improve(math.inf) is False
    assert model.result is better


def test_improve_fits_first_what_has_not_been_fitted() -> None:
    fresh = StreamingNMF(F, 2)
    fresh.append(ramp(5))
    fresh.improve(0.0)
    assert result_of(fresh).n_patterns == 5


@pytest.mark.parametrize("budget", ["a", -1.0, None, math.nan])
def test_a_budget_that_is_no_time_is_refused(budget: Any) -> None:
    with pytest.raises(InputError, match="budget: expected seconds, at least 0"):
        fitted(ramp(4), 2).improve(budget)


def test_improve_has_nothing_to_do_without_patterns_and_where_everything_is_held() -> None:
    fresh = StreamingNMF(F, 2)
    held = fitted(ramp(5), 1, components=[PHASES[0]], fixed=[True])

    assert fresh.improve(math.inf) is False
    assert fresh.result is None
    assert held.improve(math.inf) is False


# --- shapes at the edge ---------------------------------------------------------------------


@pytest.mark.parametrize("converge", [False, True])
@pytest.mark.parametrize(
    ("N", "points", "K"),
    [(1, 1, 1), (1, 1, 4), (1, 30, 1), (2, 30, 5), (5, 1, 2), (9, 30, 1), (3, 2, 3)],
)
def test_any_number_of_patterns_points_and_components_is_fitted(
    N: int, points: int, K: int, converge: bool
) -> None:
    X = 0.1 + np.random.default_rng(N).random((N, points))

    result = result_of(fitted(X, K, converge=converge, dtype=torch.float64))

    assert result.weights.shape == (N, K)
    assert result.components.shape == (K, points)
    assert result.r_factor.shape == (N,)
    if min(N, points) <= K:
        assert result.objective < 1e-5 * (X**2).sum()


def test_one_component_is_the_best_rank_one_fit() -> None:
    X = 0.1 + np.random.default_rng(0).random((12, 9))

    result = result_of(fitted(X, 1, converge=True))

    singular = np.linalg.svd(X, compute_uv=False)
    assert result.objective == pytest.approx(0.5 * (singular[1:] ** 2).sum(), rel=1e-5)


def test_an_empty_pattern_gets_no_weight_and_no_r_factor() -> None:
    X = ramp(6)
    X[2] = 0

    model = fitted(X, 3)

    assert result_of(model).weights[2].tolist() == [0, 0, 0]
    assert result_of(model).r_factor[2] == 0
    assert model.rows(2, 3).unexplained.tolist() == [0]


def test_a_run_that_begins_with_empty_patterns_is_fitted_from_the_first_that_is_not() -> None:
    model = StreamingNMF(F, 2)
    model.append(np.zeros((3, F)))
    assert model.refit(converge=True).objective == 0
    assert not model.components.any()

    model.append(PHASES[0])

    assert model.refit().objective < 1e-9
    np.testing.assert_allclose(model.components.max(0), PHASES[0], atol=1e-6)


def test_a_point_that_is_zero_in_all_patterns_is_zero_in_all_components() -> None:
    X = ramp(8)
    X[:, 11] = 0

    assert (result_of(fitted(X, 3, converge=True)).components[:, 11] == 0).all()


def test_identical_known_phases_share_a_finite_weight() -> None:
    twice = [PHASES[0], PHASES[0]]

    model = fitted(np.stack([4 * PHASES[0]]), 2, components=twice, fixed=[True, True])

    np.testing.assert_allclose(result_of(model).weights.sum(), 4.0, rtol=1e-6)
    np.testing.assert_allclose(result_of(model).weights, [[2.0, 2.0]], rtol=1e-3)


def test_where_everything_is_held_one_refit_is_exact_and_converged() -> None:
    X = ramp(6)

    result = result_of(fitted(X, 3, components=PHASES, fixed=[True] * 3, dtype=torch.float64))

    assert result.converged
    assert result.objective == pytest.approx(
        0.5 * sum(scipy_nnls(PHASES.T.astype(float), x.astype(float))[1] ** 2 for x in X), rel=1e-9
    )


def test_a_pattern_with_no_more_points_than_weights_has_no_known_error() -> None:
    model = fitted(np.array([[1.0, 2.0]]), 2, components=np.eye(2), fixed=[True, True])

    assert np.isnan(model.rows().errors).all()


# --- frozen views and the caller's arrays ---------------------------------------------------


def change_everything(model: StreamingNMF) -> None:
    model.append(ramp(3, seed=9))
    model.refit()
    model.fix("unknown 1", PHASES[1])
    model.refit()
    model.release("unknown 1")
    model.add_component("late")
    model.refit()
    model.remove_component("unknown 2")
    model.improve(0.0)
    model.components[:] = 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_result_stays_as_of_its_refit_also_where_it_is_looked_at_later(
    dtype: torch.dtype,
) -> None:
    model, twin = (fitted(ramp(8), 3, dtype=dtype) for _ in range(2))
    result, expected = result_of(model), result_of(twin)
    arrays = expected.weights, expected.components, expected.r_factor

    change_everything(model)

    assert model.result is not result
    assert (result.names, result.fixed, result.n_patterns) == (twin.names, twin.fixed, 8)
    for found, array in zip(
        (result.weights, result.components, result.r_factor), arrays, strict=True
    ):
        assert found.tobytes() == array.tobytes()


def test_a_result_cannot_be_written_to() -> None:
    result = result_of(fitted(ramp(5), 2))

    for array in (result.weights, result.components, result.r_factor):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    with pytest.raises(AttributeError):
        result.objective = 0.0  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_components_given_out_are_a_copy(dtype: torch.dtype) -> None:
    model = fitted(ramp(5), 2, dtype=dtype)
    before = model.components.copy()

    model.components[:] = 7

    np.testing.assert_array_equal(model.components, before)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_arrays_of_the_caller_are_neither_changed_nor_kept(
    kind: Callable[[Any], Any], dtype: torch.dtype
) -> None:
    as_numpy = np.float32 if dtype == torch.float32 else np.float64
    before = ramp(6).astype(as_numpy), PHASES[:2].astype(as_numpy)
    X, known = (kind(array.copy()) for array in before)
    model = StreamingNMF(F, 3, components=[*known], fixed=[True, False], dtype=dtype)
    model.append(X)
    model.fix("unknown 2", known[1])
    model.refit(converge=True)
    assert np.array_equal(X, before[0])
    assert np.array_equal(known, before[1])

    X[:], known[:] = 5, 5

    np.testing.assert_array_equal(model.patterns(), before[0])
    np.testing.assert_array_equal(model.components[:2], before[1])


def read_only(X: np.ndarray) -> np.ndarray:
    copy = X.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize(
    "form",
    [
        read_only,
        lambda X: X[:, ::-1][:, ::-1],
        lambda X: np.asfortranarray(X)[::1],
        lambda X: X.astype(">f4"),
        lambda X: X.astype(np.longdouble),
        lambda X: X.tolist(),
        lambda X: torch.tensor(X, requires_grad=True),
    ],
    ids=["read-only", "reversed", "by columns", "big-endian", "long", "lists", "with gradient"],
)
def test_patterns_may_come_in_any_array(form: Callable[[np.ndarray], Any]) -> None:
    X = ramp(4)
    model = StreamingNMF(F, 2)

    model.append(form(X))
    model.append(form(X)[1])
    model.fix("unknown 1", form(X)[2])

    np.testing.assert_array_equal(model.patterns(), X[[0, 1, 2, 3, 1]])
    np.testing.assert_array_equal(model.components[0], X[2])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float16, bool])
def test_counts_of_any_integer_type_are_taken(dtype: type) -> None:
    model = StreamingNMF(2, 1)

    model.append(np.array([1, 0], dtype=dtype))

    assert model.patterns().tolist() == [[1, 0]]


def test_patterns_come_back_as_they_were_appended() -> None:
    model = StreamingNMF(F, 1)
    assert model.patterns().shape == (0, F)
    model.append(ramp(4))

    np.testing.assert_array_equal(model.patterns(1, 3), ramp(4)[1:3])
    assert model.patterns(1, 100).shape == (3, F)
    assert (model.n_patterns, model.n_features) == (4, F)


# --- names and constraints ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ("unknown 1", "unknown 2", "unknown 3")),
        (["cubic"], ("cubic", "unknown 1", "unknown 2")),
        ([None, "cubic", None], ("unknown 1", "cubic", "unknown 2")),
        (["unknown 2"], ("unknown 2", "unknown 1", "unknown 3")),
        (["a", "b", "c"], ("a", "b", "c")),
    ],
)
def test_components_without_a_name_are_numbered(
    names: list[str | None] | None, expected: tuple[str, ...]
) -> None:
    assert StreamingNMF(4, 3, names=names).names == expected


def test_an_added_component_takes_the_first_number_that_is_free() -> None:
    model = StreamingNMF(4, 3, names=[None, "unknown 3"])

    assert model.add_component() == "unknown 4"
    model.remove_component("unknown 2")
    assert model.add_component() == "unknown 2"
    assert model.add_component("cubic") == "cubic"
    assert model.names == ("unknown 1", "unknown 3", "unknown 4", "unknown 2", "cubic")


def test_a_held_component_stays_and_a_released_one_moves() -> None:
    model = fitted(ramp(12), 3)
    held = model.components[1]
    model.fix("unknown 2")
    assert model.fixed == (False, True, False)
    model.append(ramp(12, seed=1))

    assert model.refit(converge=True).components[1].tobytes() == held.tobytes()

    model.fix("unknown 2", 5 * PHASES[1])
    assert model.refit().components[1].tobytes() == (5 * PHASES[1]).tobytes()

    model.release("unknown 2")
    result = model.refit(converge=True)
    assert result.fixed == (False, False, False)
    assert result.components[1].max() == 1
    assert not np.array_equal(result.components[1], PHASES[1])


def test_a_component_is_held_where_it_is_given_and_the_weights_follow_at_the_next_refit() -> None:
    model = fitted(np.stack([2 * PHASES[0]]), 1)

    model.fix("unknown 1", 4 * PHASES[0])

    np.testing.assert_allclose(model.refit().weights, [[0.5]], rtol=1e-6)


def test_a_component_that_is_added_explains_what_was_left() -> None:
    X = ramp(20)
    model = fitted(X, 2, components=PHASES[:2], fixed=[True, True])
    before = result_of(model)

    model.add_component("third")
    after = model.refit()

    assert after.objective < 0.5 * before.objective
    assert after.names == ("unknown 1", "unknown 2", "third")
    assert after.weights.shape == (20, 3)
    assert before.weights.shape == (20, 2)


def test_a_component_may_be_added_with_its_pattern_and_held() -> None:
    model = fitted(ramp(5), 1)

    model.add_component("known", 3 * PHASES[2], fixed=True)

    result = model.refit()
    assert result.fixed == (False, True)
    assert result.components[1].tobytes() == (3 * PHASES[2]).tobytes()


def test_a_component_that_is_removed_takes_its_weights_along() -> None:
    model = fitted(ramp(8), 3, names=["a", "b", "c"], components=PHASES, fixed=[True] * 3)

    model.remove_component("b")

    result = model.refit()
    assert result.names == ("a", "c")
    np.testing.assert_array_equal(result.components, PHASES[[0, 2]])
    expected = scipy_nnls(PHASES[[0, 2]].T.astype(float), ramp(8)[3].astype(float))[0]
    np.testing.assert_allclose(result.weights[3], expected, atol=1e-6)


# --- checkpoints ----------------------------------------------------------------------------


def through_a_file(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    file = io.BytesIO()
    np.savez(file, **state, allow_pickle=False)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unfitted", [0, 2])
def test_a_factorization_goes_on_from_its_state_exactly(dtype: torch.dtype, unfitted: int) -> None:
    X = ramp(90)
    model = fitted(
        X[:80], 4, names=["α/β"], components=[PHASES[0]], fixed=[True], dtype=dtype, seed=3
    )
    model.append(X[80 : 80 + unfitted])

    other = StreamingNMF.from_state(through_a_file(model.state()))

    assert (other.names, other.fixed, other.dtype, other.seed) == (
        model.names,
        model.fixed,
        dtype,
        3,
    )
    np.testing.assert_array_equal(other.patterns(), model.patterns())
    for each in (model, other):
        each.append(X[85:])
    for converge in (False, True):
        one, two = model.refit(converge=converge), other.refit(converge=converge)
        assert one.objective == two.objective
        assert one.weights.tobytes() == two.weights.tobytes()
        assert one.components.tobytes() == two.components.tobytes()


def test_no_pattern_at_all_may_be_appended_first() -> None:
    model = StreamingNMF(F, 1)
    model.append(np.zeros((0, F)))
    model.append(torch.zeros(0, F))

    assert model.n_patterns == 0
    model.append(ramp(1))
    assert model.refit().n_patterns == 1


def test_dark_frames_are_searched_without_an_error() -> None:
    model = StreamingNMF(700, 2)
    model.append(np.zeros((600, 700)))
    model.refit()
    model.improve(0.05)

    assert model.refit(converge=True).objective == 0.0


def test_numbers_too_small_for_the_dtype_are_zero_whatever_numpy_is_told_to_raise() -> None:
    model = StreamingNMF(3, 1)
    with np.errstate(all="raise"):
        model.append(np.array([1.0, 1e-60, 1.0]))

    assert model.patterns().tolist() == [[1.0, 0.0, 1.0]]


def test_a_state_whose_held_components_have_no_sum_of_their_own_is_gone_on_from() -> None:
    """So were states until the rows of WᵀX for held components were left behind."""
    X = ramp(60)
    model = fitted(X, 4, components=[PHASES[0]], fixed=[True])
    state = model.state()
    state["cross"] = state["weights"].T @ model.patterns().astype(float)
    state["value"] = state["value"][:2]

    other = StreamingNMF.from_state(state)
    for each in (model, other):
        each.append(ramp(62)[60:])

    assert other.refit().objective == pytest.approx(model.refit().objective, rel=1e-6)


def test_a_state_taken_before_the_first_pattern_can_be_gone_on_from() -> None:
    state = through_a_file(StreamingNMF(F, 2, names=["a"]).state())

    model = StreamingNMF.from_state(state)
    model.append(ramp(3))

    assert model.refit().names == ("a", "unknown 1")


def test_a_state_is_not_changed_by_what_comes_later() -> None:
    model = fitted(ramp(8), 3, dtype=torch.float64)
    state = model.state()
    before = {key: array.copy() for key, array in state.items()}

    change_everything(model)

    for key, array in state.items():
        np.testing.assert_array_equal(array, before[key])


def test_a_state_that_lacks_an_array_or_does_not_fit_is_refused() -> None:
    state = fitted(ramp(4), 2).state()
    without = {key: array for key, array in state.items() if key != "weights"}

    with pytest.raises(InputError, match=r"state: expected the arrays .*\['weights'\] are missing"):
        StreamingNMF.from_state(without)
    for key, wrong in {
        "patterns": np.ones((4, 3)),
        "weights": np.ones((5, 2)),
        "components": np.ones((3, F)),
    }.items():
        with pytest.raises(InputError, match=r"state: expected \w+ \(.*, got"):
            StreamingNMF.from_state({**state, key: wrong})
    with pytest.raises(InputError, match="finite"):
        StreamingNMF.from_state({**state, "patterns": np.full((4, F), np.nan)})
    for key, wrong in {
        "patterns": np.array(1.0),
        "seed": np.array([1, 2]),
        "alpha": np.array("a"),
        "weights": -state["weights"] - 1,
        "components": np.full_like(state["components"], np.nan),
        "fixed": np.array(["yes", "no"]),
        "held_columns": np.array([-1.0, np.nan]),
    }.items():
        with pytest.raises(InputError, match=f"state: expected {key}"):
            StreamingNMF.from_state({**state, key: wrong})


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_features": 0}, "n_features: expected an integer of at least 1, got 0"),
        ({"n_components": 0}, "n_components: expected an integer of at least 1, got 0"),
        ({"loss": "kl"}, r"loss: expected one of \['frobenius', .*\] or a number, got 'kl'"),
        ({"device": "toaster"}, "device: expected 'auto' or a torch device .* got 'toaster'"),
        ({"names": ["a", "b", "c"]}, "names: expected at most n_components = 2, got 3"),
        ({"names": ["a", "a"]}, r"names: expected names that differ, got \['a', 'a'\]"),
        ({"fixed": [True] * 3}, "fixed: expected at most n_components = 2, got 3"),
        ({"fixed": [True]}, r"fixed\[0\] is True but components\[0\] gives no pattern to hold"),
        ({"components": np.ones((3, 4))}, "components: expected at most n_components = 2, got 3"),
        ({"components": [np.ones(3)]}, r"components\[0\]: expected 4 points .* got shape \(3,\)"),
        ({"components": [None, np.ones((2, 4))]}, r"components\[1\]: expected one pattern, got 2"),
        ({"components": [[0, 0, 0, np.inf]]}, r"components\[0\]: expected finite intensities"),
        ({"components": [[0, 0, 0, -2]]}, r"components\[0\]: expected non-negative .* got -2"),
        ({"fixed": ["no"]}, r"fixed\[0\]: expected True or False, got 'no'"),
        ({"fixed": [math.nan]}, r"fixed\[0\]: expected True or False, got nan"),
        ({"sum_to_one": "no"}, "sum_to_one: expected True or False, got 'no'"),
        ({"sum_to_one": np.ones(2)}, "sum_to_one: expected True or False, got array"),
        ({"families": ["a"]}, r"families: expected a Family by the name of each, got \['a'\]"),
    ],
)
def test_a_factorization_that_cannot_be_built_says_which_argument_is_wrong(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        StreamingNMF(**{"n_features": 4, "n_components": 2, **options})


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            np.ones(3),
            r"patterns: expected 4 points a pattern, \(F,\) or \(M, F\), got shape \(3,\)",
        ),
        (np.ones((2, 3)), r"patterns: expected 4 points .* got shape \(2, 3\)"),
        (np.ones((2, 2, 4)), r"got shape \(2, 2, 4\)"),
        (1.0, r"got shape \(\)"),
        ([1, 2, np.nan, 4], "patterns: expected finite intensities"),
        ([1, 2, 1e39, 4], "patterns: expected finite intensities"),
        ([1, -3, 2, 4], "patterns: expected non-negative intensities, got -3; subtract less"),
        (
            np.ma.masked_greater([1.0, 2, 3, 4], 3),
            r"patterns: expected real numbers .* \(a masked array",
        ),
        (torch.ones(4).to_sparse(), "patterns: expected the numbers themselves, got a sparse"),
        (torch.ones(4, device="meta"), "patterns: expected the numbers .* without values"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused_and_none_is_appended(
    patterns: Any, message: str
) -> None:
    model = StreamingNMF(4, 2)
    with pytest.raises(InputError, match=message):
        model.append(patterns)

    assert model.n_patterns == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: m.fix("cubic"),
            ComponentError,
            r"name: expected one of \['a', 'b'\], got 'cubic'",
        ),
        (lambda m: m.release("cubic"), ComponentError, "name: expected one of"),
        (lambda m: m.remove_component("cubic"), ComponentError, "name: expected one of"),
        (lambda m: m.add_component("a"), ComponentError, "name: 'a' is taken; the components are"),
        (lambda m: m.fix("b"), InputError, "pattern: component 'b' has no shape yet"),
        (lambda m: m.fix("a", np.ones(3)), InputError, "pattern: expected 4 points"),
        (lambda m: m.fix("a", np.ones((2, 4))), InputError, "pattern: expected one pattern, got 2"),
        (
            lambda m: m.add_component("c", fixed=True),
            InputError,
            "pattern: a fixed component needs",
        ),
        (lambda m: m.add_component("c", -np.ones(4)), InputError, "pattern: expected non-negative"),
        (lambda m: m.add_component("c", np.ones(4), "no"), InputError, "fixed: expected True or F"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_and_changes_nothing(
    call: Callable[[StreamingNMF], object], error: type[CMFError], message: str
) -> None:
    model = StreamingNMF(4, 2, names=["a", "b"], components=[np.ones(4)], fixed=[True])
    before = model.state()
    with pytest.raises(error, match=message):
        call(model)

    after = model.state()
    for key in before:
        np.testing.assert_array_equal(after[key], before[key])


def test_the_last_component_cannot_be_removed() -> None:
    with pytest.raises(InputError, match="name: 'a' is the only component; add another one first"):
        StreamingNMF(4, 1, names=["a"]).remove_component("a")


def test_there_is_no_fit_without_a_pattern() -> None:
    model = StreamingNMF(4, 2)

    assert model.result is None
    with pytest.raises(InputError, match="refit: expected at least one pattern; append one first"):
        model.refit()


def test_a_state_that_is_none_is_told_so() -> None:
    with pytest.raises(InputError, match=r"state: expected arrays by name, .* got 3"):
        StreamingNMF.from_state(3)  # type: ignore[arg-type]


def test_a_divergence_beyond_all_numbers_is_an_error_and_no_result() -> None:
    model = StreamingNMF(20, 2, loss=50.0, dtype=torch.float64)
    model.append(1e9 * np.random.default_rng(0).random((5, 20)))
    with np.errstate(all="ignore"), pytest.raises(InputError, match=r"loss: .* exceeds float64"):
        model.refit()
    assert model.result is None


def test_an_objective_that_has_fallen_far_has_none_of_the_rounding_of_before() -> None:
    """Without noise, what a misfit was before leaves its rounding in a running sum."""
    rng = np.random.default_rng(1)
    W = rng.uniform(0.2, 1, (60, 3))
    W[:20, 1] = W[:40, 2] = 0
    X = (W @ PHASES).astype("f4")
    model = StreamingNMF(F, 3)
    for n, pattern in enumerate(X, 1):
        model.append(pattern)
        objective, factors = model.refit().objective, model._fit.factors
        left = X[:n].astype(float) - factors.W.tensor().numpy() @ factors.H.numpy()
        assert objective == pytest.approx(0.5 * float((left**2).sum()), rel=1e-5, abs=1e-30)
