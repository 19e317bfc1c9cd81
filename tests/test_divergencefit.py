"""Other losses than least squares, in a stream."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from bluesky_cmf.nmf import blocks, fit
from bluesky_cmf.nmf.blocks import Blocks
from bluesky_cmf.nmf.covariance import weight_covariance
from bluesky_cmf.nmf.divergencefit import DivergenceFit, ReweightedSweeps
from bluesky_cmf.nmf.divergences import beta_divergence, elementwise
from bluesky_cmf.nmf.models import NMF
from bluesky_cmf.nmf.reweighting import Floor, HalfSteps
from bluesky_cmf.nmf.rows import Rows
from bluesky_cmf.nmf.rules import Rules
from bluesky_cmf.nmf.streaming import FitResult, StreamingNMF

LOSSES = ["kullback-leibler", "itakura-saito", 0.5, 1.5, 3.0, -1.0]
CPU = torch.device("cpu")
rng = np.random.default_rng(0)
H = 0.05 + rng.random((3, 30))
COUNTS = rng.poisson(20 * (0.1 + rng.random((14, 3))) @ H).astype("f4")


def beta_of(loss: Any) -> float:
    return {"kullback-leibler": 1.0, "itakura-saito": 0.0}.get(loss, loss)


def said(X: np.ndarray, result: FitResult, beta: float) -> float:
    WH = result.weights.astype(float) @ result.components.astype(float)
    return float(beta_divergence(torch.tensor(X, dtype=torch.float64), torch.tensor(WH), beta))


def problem(seed: int, shape: tuple[int, int, int], beta: float, *, zeros: bool) -> Any:
    N, F, K = shape
    random = np.random.default_rng(seed)
    data = random.random((N, F)) * (random.random((N, F)) < (0.7 if zeros else 1.0))
    X = Blocks(F, dtype=torch.float64, device=CPU)
    X.append(torch.tensor(data))
    W, H = torch.tensor(random.random((N, K))), torch.tensor(random.random((K, F)))
    free = tuple(k for k in range(K) if k % 2 or K == 1)
    return X, W, H, Rules(free, beta=beta)


cases = given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 8), st.integers(1, 600), st.integers(1, 5)),
    st.sampled_from([1.0, 0.0, 0.5, 1.5, 2.0, 3.0]),
    st.booleans(),
)


@settings(deadline=None, max_examples=50)
@cases
def test_fused_half_steps_are_those_of_torch(
    seed: int, shape: tuple[int, int, int], beta: float, zeros: bool
) -> None:
    X, W, H, rules = problem(seed, shape, beta, zeros=zeros)
    fused, plain = HalfSteps(X, rules, Floor()), HalfSteps(X, rules, Floor())
    if fused._kernels is None:
        pytest.skip("numba is not installed")
    plain._kernels = None
    ends = []
    for steps in (fused, plain):
        weights = W.clone()
        _, before, after = steps.rows(H, weights, steps=1)
        stepped, left = steps.components(H, W)
        ends.append((before, after, left.numpy(), steps.left(stepped, W).numpy()))
    for one, two in zip(*ends, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1.0, 0.0, 1.5]),
    st.sampled_from(["free", "held", "total", "penalty"]),
)
def test_fused_rows_come_to_the_solution_that_torch_comes_to(
    seed: int, beta: float, asked: str
) -> None:
    X, W, H, rules = problem(seed, (6, 40, 3), beta, zeros=False)
    options = {"total": {"total": 1.0}, "penalty": {"l1": 0.2, "l2": 0.1}}.get(asked, {})
    rules = Rules(rules.free, beta=beta, **options)
    held = torch.where(W < 0.4, W, math.nan) if asked == "held" else None
    fused, plain = HalfSteps(X, rules, Floor()), HalfSteps(X, rules, Floor())
    plain._kernels = None
    ends = []
    for steps in (fused, plain):
        weights = W.clone()
        fit, _, after = steps.rows(H, weights, held=held, steps=40)
        ends.append((weights, fit, after))
    assert ends[0][2] == pytest.approx(ends[1][2], rel=1e-6)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=1e-2)
    if held is not None:
        kept = ~held.isnan()
        assert torch.equal(ends[0][0][kept], held[kept])


@settings(deadline=None, max_examples=50)
@cases
def test_no_half_step_raises_the_divergence(
    seed: int, shape: tuple[int, int, int], beta: float, zeros: bool
) -> None:
    X, W, H, rules = problem(seed, shape, beta, zeros=zeros)
    steps = HalfSteps(X, rules, Floor())

    fit, before, after = steps.rows(H, W, steps=3)
    assert after <= before * (1 + 1e-12)
    assert float(fit[:, 1].sum()) == pytest.approx(after)
    assert (W >= 0).all()

    left = steps.left(H, W)
    stepped, after_step = steps.safe_components(H, W)
    assert (after_step <= left * (1 + 1e-12) + 1e-300).all()
    held = [k for k in range(len(H)) if k not in rules.free]
    assert torch.equal(stepped[held], H[held])
    assert (stepped >= 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_sweeps_never_climb_and_beat_many_multiplicative_ones(loss: Any) -> None:
    beta = beta_of(loss)
    X = COUNTS + 1.0 if beta <= 0 else COUNTS
    data = Blocks(30, dtype=torch.float64, device=CPU)
    data.append(torch.tensor(X, dtype=torch.float64))
    start = torch.tensor(H + 0.5 * rng.random(H.shape))
    sweeps = ReweightedSweeps(data, start, Rules((0, 1, 2), beta=beta), floor=Floor())
    for _ in range(60):
        sweeps.sweep(1)
        WH = sweeps.W @ sweeps.H
        now = float(beta_divergence(torch.tensor(X, dtype=torch.float64), WH, beta))
        assert sweeps.curve[-1] == pytest.approx(now, rel=1e-8)
    assert np.diff(sweeps.curve).max() <= 0
    batch = NMF(X.shape, 3, initial_components=list(start), dtype=torch.float64, seed=0)
    curve = batch.fit(X, beta=beta, tol=0, max_iter=300)
    assert sweeps.curve[-1] <= curve[-1] * (1 + 1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_objective_is_the_divergence_of_the_factors(loss: Any) -> None:
    X = COUNTS + 1.0
    model = StreamingNMF(30, 3, components=[H[0]], fixed=[True], loss=loss, dtype=torch.float64)
    results = []
    for pattern in X:
        model.append(pattern)
        results.append(model.refit())
    results.append(model.refit(converge=True))

    for result in results[3:]:
        expected = said(X[: result.n_patterns], result, beta_of(loss))
        assert result.objective == pytest.approx(expected, rel=1e-6)
    assert results[-1].objective <= results[-2].objective * (1 + 1e-9)
    np.testing.assert_array_equal(results[-1].components[0], H[0])
    assert (results[-1].components[1:].max(1) == 1.0).all()


def test_weights_of_counts_are_the_most_likely_ones() -> None:
    model = StreamingNMF(
        30, 3, components=H, fixed=[True] * 3, loss="kullback-leibler", dtype=torch.float64
    )
    model.append(COUNTS)
    weights = model.refit().weights

    for w, counts in zip(weights, COUNTS.astype(float), strict=True):
        best = minimize(
            lambda z, c=counts: (z @ H - c * np.log(z @ H)).sum(),
            np.ones(3),
            bounds=[(1e-12, None)] * 3,
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000},
        )
        assert (w @ H - counts * np.log(w @ H)).sum() <= best.fun + 1e-6


def test_errors_of_weights_are_the_scatter_of_repeated_counts() -> None:
    random = np.random.default_rng(5)
    truth = np.array([30.0, 10.0, 20.0])
    many = random.poisson(np.repeat(truth[None] @ H, 3000, 0))
    model = StreamingNMF(30, 3, components=H, fixed=[True] * 3, loss="kullback-leibler")
    model.append(many)
    model.refit()

    rows = model.rows()

    # The estimate of each pattern scatters by itself: its factor comes from 27 spare points.
    np.testing.assert_allclose(np.sqrt((rows.errors**2).mean(0)), rows.weights.std(0), rtol=0.08)


def test_zero_may_be_left_again() -> None:
    """A multiplicative step would hold a weight, or a point of a component, at zero for ever."""
    X = Blocks(30, dtype=torch.float64, device=CPU)
    X.append(torch.tensor(COUNTS, dtype=torch.float64))
    start = torch.tensor(H)
    start[1, :10] = 0.0
    W = torch.ones(14, 3, dtype=torch.float64)
    W[:, 0] = 0.0

    sweeps = ReweightedSweeps(X, start, Rules((0, 1, 2), beta=1.0), floor=Floor(), W=W)
    sweeps.sweep(5)

    assert (sweeps.W[:, 0] > 0).any()
    assert (sweeps.H[1, :10] > 0).any()


@pytest.mark.parametrize("asked", ["held", "total", "penalty"])
def test_weights_and_penalties_are_what_was_asked(asked: str) -> None:
    options: dict[str, Any] = {
        "penalty": {"alpha": 0.3, "l1_ratio": 0.5},
        "total": {"sum_to_one": True},
    }.get(asked, {})
    model = StreamingNMF(
        30,
        3,
        components=[H[0]],
        fixed=[True],
        loss="kullback-leibler",
        dtype=torch.float64,
        **options,
    )
    for pattern in COUNTS:
        model.append(pattern, [2.0, math.nan, math.nan] if asked == "held" else None)
        before = model.refit()
    model.improve(0.2)
    result = model.refit(converge=True)

    W, F = result.weights, result.components
    penalty = 0.15 * (W.sum() + F.sum()) + 0.075 * ((W**2).sum() + (F**2).sum())
    value = said(COUNTS, result, 1.0) + (penalty if asked == "penalty" else 0.0)
    assert result.objective == pytest.approx(value, rel=1e-6)
    assert result.objective <= before.objective * (1 + 1e-9)
    if asked == "held":
        assert (W[:, 0] == 2.0).all()
    if asked == "total":
        np.testing.assert_allclose(W.sum(1), 1.0, rtol=1e-9)


def test_many_patterns_are_followed_at_a_bounded_cost_and_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "_FIRST_ROWS", 32)
    monkeypatch.setattr(fit.Fit, "sample", 24)
    monkeypatch.setattr(DivergenceFit, "all_rows", 30 * 90)
    random = np.random.default_rng(6)
    X = random.poisson(40 * random.random((120, 3)) @ H).astype("f4")
    model = StreamingNMF(30, 3, loss="kullback-leibler", dtype=torch.float64)
    for pattern in X:
        model.append(pattern)
        result = model.refit()
    assert result.objective == pytest.approx(said(X, result, 1.0), rel=1e-6)

    while not model.settled:
        model.improve(1.0)
    improved = model.result
    end = model.refit(converge=True)

    assert improved is not None
    assert end.objective <= improved.objective * (1 + 1e-9)
    assert improved.objective <= 1.1 * end.objective
    assert end.converged


def test_a_stream_of_counts_goes_on_from_its_state() -> None:
    model = StreamingNMF(30, 3, loss="itakura-saito", dtype=torch.float64)
    model.append(COUNTS[:8] + 1)
    model.refit()
    file = io.BytesIO()
    np.savez(file, **model.state())
    file.seek(0)

    other = StreamingNMF.from_state(np.load(file))

    assert other.loss == "itakura-saito"
    for each in (model, other):
        each.append(COUNTS[8:] + 1)
    assert model.refit().objective == pytest.approx(other.refit().objective, rel=1e-12)


@pytest.mark.parametrize("loss", ["kullback-leibler", "itakura-saito"])
def test_it_does_not_matter_in_which_portions_patterns_come(loss: str) -> None:
    X = np.concatenate([1e-4 * COUNTS[:1], np.zeros((1, 30)), COUNTS])
    ends = []
    for step in (1, 5, len(X)):
        model = StreamingNMF(30, 2, components=H[:2], fixed=[True] * 2, loss=loss)
        for first in range(0, len(X), step):
            model.append(X[first : first + step])
            model.refit()
        ends.append(model.refit(converge=True).objective)
    assert ends == pytest.approx([ends[0]] * 3, rel=1e-6)


def test_units_change_nothing_for_a_loss_either() -> None:
    ends = []
    for scale in (1e-6, 1.0, 1e6):
        model = StreamingNMF(30, 3, loss=3.0, dtype=torch.float64)
        model.append(scale * (COUNTS + 1.0))
        ends.append(model.refit(converge=True).objective / scale**3)
    assert ends == pytest.approx([ends[1]] * 3, rel=1e-3)


def test_empty_patterns_come_first_and_are_no_harm() -> None:
    model = StreamingNMF(30, 2, loss="kullback-leibler")
    model.append(np.zeros((2, 30)))
    assert math.isfinite(model.refit(converge=True).objective)
    model.append(COUNTS)

    result = model.refit(converge=True)

    assert math.isfinite(result.objective)
    assert not result.weights[:2].any()


def test_rows_of_a_table_are_held_in_a_sweep() -> None:
    X = Blocks(30, dtype=torch.float64, device=CPU)
    X.append(torch.tensor(COUNTS, dtype=torch.float64))
    held = Rows(3, device=CPU)
    held.replace(
        torch.full((14, 3), math.nan, dtype=torch.float64).index_fill(1, torch.tensor([1]), 3.0)
    )
    rules = Rules((0, 2), beta=1.0, holds_weights=True)

    sweeps = ReweightedSweeps(X, torch.tensor(H), rules, floor=Floor(), held=held)
    sweeps.sweep(20)

    assert (sweeps.W[:, 1] == 3.0).all()
    assert np.diff(sweeps.curve).max() <= 0


def test_a_component_that_wakes_where_its_weights_are_held_counts_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DivergenceFit, "all_rows", 0)
    random = np.random.default_rng(0)
    known, late = random.random(20) + 0.1, np.zeros(20)
    late[5:8] = 1
    X = np.outer(random.random(55) + 0.5, known)
    X[50:] += late
    model = StreamingNMF(20, 2, components=[known], fixed=[True], loss=1, dtype=torch.float64)
    model.fix_weights("unknown 2", 0.5)
    for part in (X[:50], X[50:]):
        model.append(part)
        result = model.refit()
    assert result.objective == pytest.approx(said(X, result, 1.0), rel=1e-6)
    fresh = model.refresh()
    assert fresh.objective == pytest.approx(said(X, fresh, 1.0), rel=1e-6)


def test_what_stands_for_zero_follows_the_first_pattern_that_is_not_empty() -> None:
    shapes = rng.random((2, 20))
    X = np.concatenate([np.zeros((1, 20)), 1e-12 * rng.random((3, 20))])
    model = StreamingNMF(20, 2, components=shapes, fixed=[True] * 2, loss=1, dtype=torch.float64)
    for part in (X[:1], X[1:]):
        model.append(part)
        result = model.refit()
    assert result.objective == pytest.approx(said(X, result, 1.0), rel=1e-4)
    assert result.r_factor[0] == 0


def multiplied(X: np.ndarray, H: np.ndarray, beta: float, seed: int) -> float:
    """Where a thousand multiplicative steps lead from a random start; one component is held."""
    random = np.random.default_rng(seed)
    W, H = random.random((len(X), len(H))) * X.mean(), H.copy()
    H[1:] = 0.1 + random.random(H[1:].shape)
    floor = np.finfo("f4").eps * X[0].mean()
    raised, power = np.maximum(X, floor) if beta <= 0 else X, 1 / max(2 - beta, 1)
    for _ in range(1000):
        V = np.maximum(W @ H, floor)
        W *= (V ** (beta - 2) * raised @ H.T / (V ** (beta - 1) @ H.T)) ** power
        V = np.maximum(W @ H, floor)
        H[1:] *= ((W.T @ (V ** (beta - 2) * raised)) / (W.T @ V ** (beta - 1)))[1:] ** power
    return told(X, W @ H, beta)


def told(X: np.ndarray, V: np.ndarray, beta: float) -> float:
    floor = float(np.finfo("f4").eps * X[0].mean())
    raised = np.maximum(X, floor) if beta <= 0 else X
    fitted = torch.tensor(V).clamp_min(floor)
    return float(elementwise(torch.tensor(raised), fitted, beta).sum())


@pytest.mark.parametrize("beta", [0.25, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_few_counts_and_many_zeros_are_fitted_as_well_as_by_multiplicative_steps(
    beta: float, seed: int
) -> None:
    random, x = np.random.default_rng(seed), np.arange(150)
    peaks = np.exp(-(((x - random.uniform(0, 150, (3, 5, 1))) / 4) ** 2)).sum(1)
    share = np.exp(-(((np.linspace(0, 1, 24)[:, None] - [0.0, 0.5, 1.0]) / 0.3) ** 2))
    X = random.poisson(2 * (share @ peaks + 0.02)).astype(float)
    model = StreamingNMF(150, 3, components=peaks[:1], fixed=[True], loss=beta, dtype=torch.float64)
    model.append(X)
    result = model.refit(converge=True)
    ours = told(X, result.weights @ result.components, beta)
    best = min(multiplied(X, peaks, beta, start) for start in range(3))
    assert ours == pytest.approx(result.objective, rel=1e-9)
    assert ours < 1.03 * best


def test_a_point_that_weighs_much_more_than_others_does_not_keep_them_where_they_are() -> None:
    X = Blocks(3, dtype=torch.float64, device=CPU)
    X.append(torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]], dtype=torch.float64))
    steps = HalfSteps(X, Rules((0,), beta=0.0), Floor())
    H = torch.tensor([[3.0, 3.0, 0.0]], dtype=torch.float64)
    for road in (steps._kernels, None):
        steps._kernels = road
        new, _ = steps.components(H, torch.tensor([[1.0], [2.0]], dtype=torch.float64))
        np.testing.assert_allclose(new[0, :2], [1.0, 2.0])


def test_an_objective_that_falls_to_next_to_nothing_keeps_nothing_of_what_it_was() -> None:
    shapes = np.random.default_rng(0).random((2, 40))
    model = StreamingNMF(40, 2, components=shapes, fixed=[True] * 2, loss=3.0, dtype=torch.float64)
    X = Blocks(40, dtype=torch.float64, device=CPU)
    X.append(torch.tensor(np.random.default_rng(1).random((3, 2)) @ shapes))
    model.append(X.stored())
    model.refit()
    factors = model._fit.factors
    factors.W.replace(torch.full((3, 2), 1e5, dtype=torch.float64))
    factors._look()
    assert factors.objective > 1e12

    factors.resolve(0, 3)

    left = factors.objective
    factors._look()
    assert left == pytest.approx(factors.objective, abs=1e-25)


@pytest.mark.parametrize("loss", ["itakura-saito", -10.0])
@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_zeros_that_are_fitted_by_zeros_add_nothing_to_the_errors_of_weights(
    loss: Any, scale: float
) -> None:
    shapes = np.repeat(np.eye(2), 10, axis=1)
    model = StreamingNMF(20, 2, components=shapes, fixed=[True] * 2, loss=loss)
    model.append(scale * shapes[0] * (1 + 0.1 * (np.arange(20) % 2)))
    model.refit()

    rows = model.rows()

    assert rows.weights[0, 0] == pytest.approx(1.05 * scale)
    # Ten points scatter by 5 %, and 18 of all twenty are to spare.
    assert rows.errors[0, 0] == pytest.approx(scale * 0.05 / np.sqrt(18), rel=0.02)


def test_what_nobody_knows_of_weights_that_are_held_leaves_the_errors_of_others_known() -> None:
    meat = np.full((1, 2, 2), math.nan)
    meat[0, 0, 0] = 3.0
    found = weight_covariance(np.diag([2.0, 1.0]), meat, np.array([[True, False]]))
    np.testing.assert_allclose(found, [[[0.75, 0.0], [0.0, 0.0]]])
