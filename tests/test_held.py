"""Weights that are held, weights that add up to one, and penalties, in a stream."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear, minimize

from bluesky_cmf.errors import ComponentError, InputError
from bluesky_cmf.nmf.models import NMF
from bluesky_cmf.nmf.streaming import FitResult, StreamingNMF

rng = np.random.default_rng(0)
H = 0.05 + rng.random((3, 20))
TRUE = 0.1 + rng.random((12, 3))
X = TRUE @ H + 0.02 * rng.random((12, 20))


def model_of(known: int = 2, **options: Any) -> StreamingNMF:
    fixed = [True] * known
    options = {"names": ["a", "b", "c"], "dtype": torch.float64, **options}
    return StreamingNMF(20, 3, components=list(H[:known]), fixed=fixed, **options)


def half_square(X: np.ndarray, result: FitResult) -> float:
    return float(0.5 * ((X - result.weights @ result.components) ** 2).sum())


@pytest.mark.parametrize("converge", [False, True])
def test_weights_that_come_with_a_pattern_are_held(converge: bool) -> None:
    model = model_of()
    for i, x in enumerate(X):
        held = [math.nan, 0.25, math.nan] if i % 3 == 0 else None
        model.append(x, held)
        model.refit()
    result = model.refit(converge=converge)

    assert (result.weights[::3, 1] == 0.25).all()
    assert (result.weights[1::3, 1] != 0.25).all()
    assert result.objective == pytest.approx(half_square(X, result), rel=1e-9)


def test_free_weights_are_exact_beside_those_that_are_held() -> None:
    model = model_of(known=3)
    model.append(X[:1], [math.nan, 0.9, math.nan])

    result = model.refit()

    left = X[0] - 0.9 * H[1]
    expected = lsq_linear(H[[0, 2]].T, left, bounds=(0, np.inf), tol=1e-14).x
    np.testing.assert_allclose(result.weights[0, [0, 2]], expected, atol=1e-7)


def test_a_whole_pattern_may_be_held() -> None:
    model = model_of(known=3)
    model.append(X, TRUE)

    np.testing.assert_array_equal(model.refit().weights, TRUE)


def test_a_column_is_held_at_one_number_also_for_patterns_to_come() -> None:
    model = model_of()
    model.append(X[:4])
    model.refit()
    model.fix_weights("b", 0.5)
    model.append(X[4:])

    assert (model.refit().weights[:, 1] == 0.5).all()
    assert (model.refit(converge=True).weights[:, 1] == 0.5).all()

    model.release_weights("b")
    assert (model.refit().weights[:, 1] != 0.5).all()


def test_a_column_is_held_at_a_number_for_each_pattern_and_free_beyond() -> None:
    model = model_of()
    model.append(X[:4])
    model.fix_weights("a", [0.1, math.nan, 0.3, 0.4])
    model.append(X[4:])

    weights = model.refit().weights

    assert weights[[0, 2, 3], 0].tolist() == [0.1, 0.3, 0.4]
    assert 0.1 not in weights[4:, 0]


def test_the_scale_of_a_free_component_is_what_its_held_weights_say() -> None:
    model = StreamingNMF(20, 1, names=["c"], dtype=torch.float64)
    model.append(TRUE[:, 2:] * H[2])
    assert model.refit().components.max() == 1.0

    model.fix_weights("c", TRUE[:, 2])

    result = model.refit(converge=True)
    np.testing.assert_array_equal(result.weights[:, 0], TRUE[:, 2])
    np.testing.assert_allclose(result.components[0], H[2], rtol=1e-9)


def test_held_weights_follow_components_that_come_and_go() -> None:
    model = model_of(known=3)
    model.append(X)
    model.fix_weights("c", 0.7)
    model.refit()

    model.remove_component("a")
    model.add_component("d", H[0], fixed=True)

    result = model.refit()
    assert result.names == ("b", "c", "d")
    assert (result.weights[:, 1] == 0.7).all()
    model.remove_component("c")
    assert 0.7 not in model.refit().weights


def test_what_is_held_survives_a_checkpoint() -> None:
    model = model_of()
    model.append(X[:5], [math.nan, 0.2, math.nan])
    model.fix_weights("a", 0.3)
    model.refit()
    file = io.BytesIO()
    np.savez(file, **model.state())
    file.seek(0)

    other = StreamingNMF.from_state(np.load(file))

    for each in (model, other):
        each.append(X[5:])
    one, two = model.refit(), other.refit()
    np.testing.assert_array_equal(one.weights, two.weights)
    assert (two.weights[:, 0] == 0.3).all()
    assert (two.weights[:5, 1] == 0.2).all()


def test_a_pattern_with_held_weights_leaves_the_fit_where_it_was() -> None:
    model = StreamingNMF(20, 3, dtype=torch.float64)
    model.append(TRUE @ H)
    before = model.refit(converge=True)
    assert before.objective < 1e-4

    model.append(TRUE[0] @ H, [math.nan, math.nan, 0.3])

    np.testing.assert_allclose(model.components, before.components)
    assert model.refit().objective < 0.05


def test_checkpoints_may_be_taken_again_and_again() -> None:
    model = model_of()
    for part in np.split(X, 4):
        model.append(part)
        model.append(part[0], [math.nan] * 3)
        model.refit()
        model = StreamingNMF.from_state(model.state())
        model.state()
    model.append(X[0], [0.3, math.nan, math.nan])

    weights = model.refit().weights

    assert weights[-1, 0] == 0.3
    assert (weights[:-1].max(1) > 0).all(), "nobody has asked for these to be held"


def test_a_weight_that_is_held_has_no_error_and_takes_none_from_the_others() -> None:
    model = model_of(known=3)
    model.append(X)
    model.fix_weights("b", 0.4)
    model.refit()
    two = StreamingNMF(20, 2, components=list(H[[0, 2]]), fixed=[True] * 2, dtype=torch.float64)
    two.append(np.maximum(X - 0.4 * H[1], 0))
    two.refit()

    errors = model.rows().errors

    assert (errors[:, 1] == 0).all()
    usable = (0.4 * H[1] < X).all(1)
    assert usable.any()
    np.testing.assert_allclose(errors[usable][:, [0, 2]], two.rows().errors[usable], rtol=1e-6)


def test_fractions_scatter_against_each_other() -> None:
    random = np.random.default_rng(1)
    many = np.array([0.5, 0.3, 0.2]) @ H + 0.02 * random.standard_normal((4000, 20))
    model = StreamingNMF(
        20, 3, components=list(H), fixed=[True] * 3, sum_to_one=True, dtype=torch.float64
    )
    model.append(many.clip(0))
    model.refit()

    rows = model.rows()

    np.testing.assert_allclose(np.sqrt((rows.errors**2).mean(0)), rows.weights.std(0), rtol=0.1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_weights_that_add_up_to_one_are_the_best_that_do(seed: int, some_held: bool) -> None:
    random = np.random.default_rng(seed)
    shapes = random.random((3, 8)) + 0.01
    x = random.random(8)
    model = StreamingNMF(
        8, 3, components=shapes, fixed=[True] * 3, sum_to_one=True, dtype=torch.float64
    )
    held = np.array([0.25, math.nan, math.nan]) if some_held else None
    model.append(x, held)

    result = model.refit()

    weights = result.weights[0]
    assert weights.sum() == pytest.approx(1.0, abs=1e-9)
    assert (weights >= 0).all()
    best = minimize(
        lambda w: 0.5 * ((x - w @ shapes) ** 2).sum(),
        np.full(3, 1 / 3),
        bounds=[(0.25, 0.25) if some_held and k == 0 else (0, 1) for k in range(3)],
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.objective <= best.fun * (1 + 1e-6) + 1e-9


def test_fractions_stay_fractions_while_free_components_are_found() -> None:
    weights = TRUE / TRUE.sum(1, keepdims=True)
    model = StreamingNMF(20, 3, components=list(H[:2]), fixed=[True] * 2, sum_to_one=True)
    curve = []
    for x in weights @ H:
        model.append(x)
        curve.append(model.refit())
    end = model.refit(converge=True)

    for result in (*curve, end):
        np.testing.assert_allclose(result.weights.sum(1), 1.0, rtol=1e-5)
    assert end.objective < 1e-3 * 0.5 * ((weights @ H) ** 2).sum()


def test_a_fraction_that_is_held_above_one_leaves_nothing_for_the_others() -> None:
    model = model_of(known=3, sum_to_one=True)
    model.append(X[:1], [1.5, math.nan, math.nan])

    assert model.refit().weights.tolist() == [[1.5, 0.0, 0.0]]


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_a_penalty_is_that_of_a_batch_fit(l1_ratio: float) -> None:
    model = model_of(known=0, alpha=0.05, l1_ratio=l1_ratio)
    model.append(X)

    result = model.refit(converge=True)

    W, F = result.weights, result.components
    l1, l2 = 0.05 * l1_ratio, 0.05 * (1 - l1_ratio)
    said = (
        half_square(X, result) + l1 * (W.sum() + F.sum()) + l2 / 2 * ((W**2).sum() + (F**2).sum())
    )
    assert result.objective == pytest.approx(said, rel=1e-9)
    # A batch fit finds nothing to do there.
    batch = NMF(
        X.shape,
        3,
        initial_components=list(F),
        initial_weights=list(W.T),
        dtype=torch.float64,
    )
    curve = batch.fit(X, beta=2, alpha=0.05, l1_ratio=l1_ratio, tol=0, max_iter=200)
    assert curve[0] == pytest.approx(result.objective, rel=1e-9)
    assert curve[-1] >= result.objective * (1 - 1e-4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"weights: expected 3 weights a pattern, .* got shape \(2,\)"),
        ([1.0, -2.0, 0.0], "weights: expected numbers from 0 to .* got -2"),
        ([1.0, np.inf, 0.0], "weights: expected numbers from 0 to .* got inf"),
        (["a", "b", "c"], "weights: expected numbers"),
    ],
)
def test_weights_that_cannot_be_held_are_refused_and_no_pattern_is_appended(
    weights: Any, message: str
) -> None:
    model = model_of()
    with pytest.raises(InputError, match=message):
        model.append(X[:2], weights)

    assert model.n_patterns == 0
    with pytest.raises(InputError):
        model.fix_weights("a", weights)
    with pytest.raises(ComponentError, match="name: expected one of"):
        model.fix_weights("z", 1.0)
    model.append(X)
    assert model.refit().n_patterns == 12


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
def test_an_end_is_not_worse_for_weights_that_are_held_on_free_components(
    seed: int, loss: str
) -> None:
    random = np.random.default_rng(seed)
    points = np.linspace(0, 1, 30)
    shapes = np.exp(-0.5 * ((points - random.random((4, 1))) / 0.1) ** 2) + 0.02
    weights = random.random((20, 4))
    model = StreamingNMF(30, 3, dtype=torch.float64, loss=loss)
    model.append(weights @ shapes)
    model.fix_weights("unknown 1", weights[:, 0])
    stands = model.refit().objective

    end = model.refit(converge=True)

    assert end.objective <= stands * (1 + 1e-3)
    np.testing.assert_array_equal(end.weights[:, 0], weights[:, 0])


def test_fractions_may_be_taken_by_a_component_of_zeros() -> None:
    """Nothing there is a choice, where the weights have to add up."""
    ones, zeros = np.ones(20), np.zeros(20)
    model = StreamingNMF(
        20, 2, components=[zeros, ones], fixed=[True] * 2, sum_to_one=True, dtype=torch.float64
    )
    model.append(0.3 * ones)

    result = model.refit()

    np.testing.assert_allclose(result.weights, [[0.7, 0.3]], atol=1e-6)
    assert result.objective < 1e-9


@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
def test_a_penalty_is_not_paid_for_a_component_that_nothing_needs(l1_ratio: float) -> None:
    model = StreamingNMF(
        20, 1, components=[H[0]], alpha=1e4, l1_ratio=l1_ratio, dtype=torch.float64
    )
    model.append(np.ones((3, 20)))

    assert model.refit(converge=True).objective == pytest.approx(30.0, rel=1e-6)


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
def test_refits_under_a_penalty_do_not_climb(l1_ratio: float, loss: str) -> None:
    random = np.random.default_rng(0)
    points = np.linspace(0, 1, 30)
    shapes = np.exp(-0.5 * ((points - random.random((3, 1))) / 0.1) ** 2)
    model = StreamingNMF(30, 4, alpha=1.0, l1_ratio=l1_ratio, loss=loss, dtype=torch.float64)
    model.append(random.random((20, 3)) @ shapes)
    curve = [model.refit().objective for _ in range(6)]
    curve.append(model.refit(converge=True).objective)
    curve += [model.refit().objective for _ in range(3)]

    assert np.diff(curve).max() <= 2e-4 * curve[0]
