import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from bluesky_cmf.errors import InputError
from bluesky_cmf.nmf.divergences import beta_divergence
from bluesky_cmf.nmf.models import NMF, NMFD, NMFBase

BETAS = [-1.5, 0, 0.5, 1, 1.5, 2, 2.5, 4]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These matrices are small: more threads would only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def uniform(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 0.05 + torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and first.numpy().tobytes() == second.numpy().tobytes()


class ThreeMethods(NMFBase):
    """What the documentation asks of a subclass, and nothing more."""

    def reconstruct(self, H: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        return W @ H

    def get_W_positive(self, WH: torch.Tensor, beta: float, H_sum: Any) -> Any:
        if beta != 1:
            return WH.pow(beta - 1) @ self.H.T, H_sum
        H_sum = self.H.sum(1) if H_sum is None else H_sum
        return H_sum[None], H_sum

    def get_H_positive(self, WH: torch.Tensor, beta: float, W_sum: Any) -> Any:
        if beta != 1:
            return self.W.T @ WH.pow(beta - 1), W_sum
        W_sum = self.W.sum(0) if W_sum is None else W_sum
        return W_sum[:, None], W_sum


def naive_updates(
    X: np.ndarray,
    W: np.ndarray,
    H: np.ndarray,
    beta: float,
    n_iterations: int,
    held: int = 0,
    l1: float = 0,
    l2: float = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Multiplicative updates as in the papers, in numpy; the first `held` components stay."""
    gamma = 1 / (2 - beta) if beta < 1 else 1 / (beta - 1) if beta > 2 else 1
    W, H = W.copy(), H.copy()
    for _ in range(n_iterations):
        WH = W @ H
        positive = WH ** (beta - 1) @ H.T + l1 + l2 * W
        W = W * ((X * WH ** (beta - 2)) @ H.T / positive) ** gamma
        WH = W @ H
        positive = W.T @ WH ** (beta - 1) + l1 + l2 * H
        H[held:] = (H * (W.T @ (X * WH ** (beta - 2)) / positive) ** gamma)[held:]
    return W, H


def naive_deconvolution(W: np.ndarray, H: np.ndarray) -> np.ndarray:
    """The sum that NMFD documents, as loops."""
    m_examples, n_components, n_shifts = W.shape
    X = np.zeros((m_examples, H.shape[1] + n_shifts - 1))
    for m in range(m_examples):
        for k in range(n_components):
            for t in range(n_shifts):
                for channel in range(H.shape[1]):
                    X[m, channel + t] += W[m, k, t] * H[k, channel]
    return X


def naive_deconvolution_gradients(
    G: np.ndarray, W: np.ndarray, H: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a gradient G of the data is for W and for H."""
    for_W, for_H = np.zeros_like(W), np.zeros_like(H)
    for t in range(W.shape[2]):
        part = G[:, t : t + H.shape[1]]
        for_W[:, :, t] = part @ H.T
        for_H += W[:, :, t].T @ part
    return for_W, for_H


# The documented surface


def test_the_documented_example_runs() -> None:
    X = torch.rand(30, 100)
    x_0 = torch.zeros(1, 100)
    x_1 = torch.ones(1, 100)
    model = NMF(X.shape, initial_components=[x_0, x_1], fix_components=[True, True, False])

    loss = model.fit(X)

    weights, components = model.W.detach().numpy(), model.H.detach().numpy()
    assert weights.shape == (30, 3)
    assert components.shape == (3, 100)
    assert np.isfinite(weights).all()
    assert np.isfinite(components).all()
    assert (components[0] == 0).all()
    assert (components[1] == 1).all()
    assert all(isinstance(value, float) for value in loss)
    assert loss[-1] < loss[0]


def test_the_number_of_components_may_be_positional_or_implied_by_the_longer_list() -> None:
    assert NMF((5, 9), 4).H.shape == (4, 9)
    assert NMF(
        (5, 9), initial_components=[torch.ones(1, 9)] * 2, fix_components=[True]
    ).W.shape == (
        5,
        2,
    )
    assert NMF((5, 9), initial_components=[None], fix_components=[False] * 3).W.shape == (5, 3)


def test_forward_reconstruct_and_loss_agree() -> None:
    X = uniform((6, 8), 0, torch.float32)
    model = NMF(X.shape, 2, seed=1)
    W, H = torch.ones(6, 2), torch.ones(2, 8)

    assert torch.equal(model(), model.W @ model.H)
    assert torch.equal(model(H=H), model.W @ H)
    assert torch.equal(model.reconstruct(H, W), torch.full((6, 8), 2.0))
    assert float(model.loss(X)) == float(beta_divergence(X, model(), 2))
    assert float(model.loss(X, beta=1)) == float(beta_divergence(X, model(), 1))


def test_fit_transform_takes_the_options_of_fit_and_returns_the_weights() -> None:
    X = uniform((6, 8), 0)
    model, other = NMF(X.shape, 2, seed=1), NMF(X.shape, 2, seed=1)

    W = model.fit_transform(X, True, False, beta=2)
    other.fit(X, True, False, beta=2)

    assert torch.equal(W, other.W)
    assert W is model.W


def test_a_seed_repeats_the_draw_and_without_one_the_global_generator_is_used() -> None:
    assert torch.equal(NMF((4, 6), 2, seed=3).H, NMF((4, 6), 2, seed=3).H)
    assert not torch.equal(NMF((4, 6), 2, seed=3).H, NMF((4, 6), 2, seed=4).H)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(NMF((4, 6), 2, seed=generator).W, NMF((4, 6), 2, seed=3).W)
    torch.manual_seed(5)
    first = NMF((4, 6), 2)
    torch.manual_seed(5)
    assert torch.equal(first.W, NMF((4, 6), 2).W)


def test_the_dtype_is_that_of_the_initials_else_as_asked_else_float32() -> None:
    assert NMF((4, 6), 2).W.dtype == torch.float32
    assert NMF((4, 6), 2, initial_components=[np.ones(6)]).W.dtype == torch.float64
    assert NMF((4, 6), 2, initial_weights=[torch.ones(1, 4)]).H.dtype == torch.float32
    assert NMF((4, 6), 2, initial_components=[np.ones(6)], dtype=torch.float32).W.dtype == (
        torch.float32
    )
    assert NMF((4, 6), 2, initial_components=[[1, 2, 3, 4, 5, 6]]).W.dtype == torch.float32


def test_a_fit_keeps_the_dtype_of_the_model_whatever_the_data_are() -> None:
    for X in (uniform((4, 6), 0), np.ones((4, 6), dtype=np.uint16), [[1.0] * 6] * 4):
        model = NMF((4, 6), 2, seed=0)
        for beta in (0, 1, 2):
            model.fit(X, beta=beta, max_iter=3)
            assert model.W.dtype == model.H.dtype == torch.float32


def test_data_in_foreign_byte_order_read_only_or_reversed_are_read_as_they_are() -> None:
    X = np.arange(1.0, 25.0).reshape(4, 6)
    frozen = X.astype(">f8")
    frozen.setflags(write=False)
    expected = NMF(X.shape, 2, seed=0).fit(X)

    assert NMF(X.shape, 2, seed=0).fit(frozen) == expected
    assert NMF(X.shape, 2, seed=0).fit(X[::-1][::-1]) == expected


def test_a_model_goes_through_state_dict_and_copy_with_its_constraints() -> None:
    X = uniform((5, 7), 0, torch.float32)
    known = torch.ones(1, 7)
    model = NMF(X.shape, 3, initial_components=[known], fix_components=[True], seed=0)
    model.fit(X)

    twin, restored = copy.deepcopy(model), NMF(X.shape, 3)
    restored.load_state_dict(model.state_dict())

    assert twin.fit(X) == restored.fit(X)
    assert same_bits(restored.H[:1], known)


@pytest.mark.parametrize("beta", [0, 1, 2])
def test_arrays_taken_from_a_model_keep_their_values_in_a_later_fit(beta: float) -> None:
    X = uniform((5, 7), 0, torch.float32)
    model = NMF(X.shape, 2, seed=0)
    taken = model.W.detach().numpy(), model.H.detach().numpy()
    before = tuple(factor.copy() for factor in taken)

    model.fit(X, beta=beta)

    for factor, copied, fitted in zip(taken, before, (model.W, model.H), strict=True):
        assert np.array_equal(factor, copied)
        assert not np.array_equal(fitted.detach().numpy(), copied)


# What is initial and what is fixed


def test_initials_and_flags_may_be_given_in_any_mixture() -> None:
    X = uniform((6, 8), 0, torch.float32)
    first, third = torch.full((1, 8), 0.3), torch.full((8,), 0.7)
    model = NMF(
        X.shape,
        5,
        initial_components=[first, None, third],
        fix_components=[False, True, True, True],
        seed=0,
    )
    start = model.H.detach().clone()
    assert same_bits(start[:1], first)
    assert same_bits(start[2], third)

    model.fit(X)

    changed = [not torch.equal(model.H[i], start[i]) for i in range(5)]
    assert changed == [True, False, False, False, True]


def test_initial_weights_go_to_components_or_to_examples_by_their_shape() -> None:
    per_component = NMF((4, 6), 2, initial_weights=[None, torch.arange(4.0)[None]])
    per_example = NMF((4, 6), 2, initial_weights=[None, np.array([[0.25, 0.5]])])
    coinciding = NMF((2, 6), 2, initial_weights=[torch.tensor([[3.0, 4.0]])])

    assert per_component.W[:, 1].tolist() == [0, 1, 2, 3]
    assert per_example.W[1].tolist() == [0.25, 0.5]
    assert coinciding.W[0].tolist() == [3, 4]


@pytest.mark.parametrize("beta", [0.5, 1, 2])
def test_flags_for_weights_hold_columns_or_rows_as_their_initials_are(beta: float) -> None:
    X = uniform((4, 6), 0, torch.float32)
    column, row = torch.full((1, 4), 0.5), torch.full((1, 2), 0.5)

    by_column = NMF(X.shape, 2, initial_weights=[column, column], fix_weights=[False, True])
    by_row = NMF(X.shape, 2, initial_weights=[row, None, row], fix_weights=[True])
    by_column.fit(X, beta=beta)
    by_row.fit(X, beta=beta)

    assert (by_column.W == 0.5).all(0).tolist() == [False, True]
    assert (by_row.W == 0.5).all(1).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("shape", "flags", "held"),
    [
        ((4, 6), [True], (slice(None), 0)),
        ((4, 6), [False, False, True], (2, slice(None))),
        ((2, 6), [False, True], (1, slice(None))),
    ],
)
def test_flags_without_any_initial_weights_hold_the_random_draw(
    shape: tuple[int, int], flags: list[bool], held: Any
) -> None:
    X = uniform(shape, 0, torch.float32)
    model = NMF(X.shape, 2, fix_weights=flags, seed=0)
    start = model.W.detach().clone()

    model.fit(X)

    same = torch.eq(model.W, start)
    assert same[held].all()
    assert int(same.sum()) == same[held].numel()


@pytest.mark.parametrize("model_class", [NMF, NMFD])
def test_everything_fixed_gives_the_one_loss_and_moves_nothing(model_class: type[NMFBase]) -> None:
    X = uniform((4, 6), 0, torch.float32)
    model = model_class(X.shape, 2, fix_components=[True] * 2, fix_weights=[True] * 2)  # type: ignore[arg-type]
    W, H = model.W.detach().clone(), model.H.detach().clone()

    assert model.fit(X) == [float(model.loss(X, beta=1))]
    assert model.fit(X, beta=0) == pytest.approx([float(model.loss(X, beta=0))], rel=1e-5)
    assert same_bits(model.W, W)
    assert same_bits(model.H, H)


def test_a_factor_that_is_not_updated_stays() -> None:
    X = uniform((4, 6), 0, torch.float32)
    model = NMF(X.shape, 2, seed=0)
    W, H = model.W.detach().clone(), model.H.detach().clone()

    assert model.fit(X, update_W=False, update_H=False) == [float(model.loss(X, beta=1))]
    model.fit(X, update_W=False)
    assert same_bits(model.W, W)
    assert not same_bits(model.H, H)


def test_the_callers_tensors_are_never_changed_nor_shared() -> None:
    X, known = uniform((4, 6), 0, torch.float32), uniform((1, 6), 1, torch.float32)
    weights = uniform((1, 4), 2, torch.float32)
    X_before, known_before, weights_before = X.clone(), known.clone(), weights.clone()
    model = NMF(X.shape, 2, initial_components=[known], initial_weights=[weights])

    for beta in (0, 1, 2, 3):
        model.fit(X, beta=beta)
    known_after = model.H.detach().clone()
    known += 1

    assert same_bits(X, X_before)
    assert same_bits(known - 1, known_before + 1 - 1)
    assert same_bits(weights, weights_before)
    assert torch.equal(model.H, known_after)


# The fit itself


@pytest.mark.parametrize(
    ("model_class", "beta"),
    [
        *((ThreeMethods, beta) for beta in BETAS if beta != 2),
        *((NMF, beta) for beta in BETAS if not 1 <= beta <= 2),
    ],
)
def test_the_steps_are_the_multiplicative_updates_of_the_papers(
    model_class: type[NMFBase], beta: float
) -> None:
    X, W, H = uniform((7, 11), 0), uniform((7, 3), 1), uniform((3, 11), 2)
    shapes = [(7, 11)] if model_class is NMF else [(7, 3), (3, 11)]
    model = model_class(
        *shapes,  # type: ignore[arg-type]
        n_components=3,
        initial_components=H,
        initial_weights=W,
        fix_components=[True],
    )

    model.fit(X, beta=beta, tol=0, max_iter=15)

    expected_W, expected_H = naive_updates(X.numpy(), W.numpy(), H.numpy(), beta, 15, held=1)
    np.testing.assert_allclose(model.W.detach().numpy(), expected_W, rtol=1e-9)
    np.testing.assert_allclose(model.H.detach().numpy(), expected_H, rtol=1e-9)


@pytest.mark.parametrize("beta", BETAS)
def test_a_subclass_with_three_methods_fits_as_the_closed_form_does(beta: float) -> None:
    X, W, H = uniform((7, 11), 0), uniform((7, 3), 1), uniform((3, 11), 2)
    given: dict[str, Any] = {"initial_components": H, "initial_weights": W}
    closed, derived = NMF(X.shape, 3, **given), ThreeMethods((7, 3), (3, 11), 3, **given)

    closed_loss = closed.fit(X, beta=beta, tol=0, max_iter=60)[-1]
    derived_loss = derived.fit(X, beta=beta, tol=0, max_iter=60)[-1]

    if 1 <= beta <= 2:
        assert closed_loss <= derived_loss
    else:
        assert closed_loss == pytest.approx(derived_loss, rel=1e-9)


@pytest.mark.parametrize("beta", [0.5, 3])
def test_the_penalty_enters_the_steps_and_the_curve(beta: float) -> None:
    X, W, H = uniform((7, 11), 0), uniform((7, 3), 1), uniform((3, 11), 2)
    model = NMF(X.shape, 3, initial_components=H, initial_weights=W)

    curve = model.fit(X, beta=beta, tol=0, max_iter=10, alpha=0.2, l1_ratio=0.25)

    W_end, H_end = naive_updates(X.numpy(), W.numpy(), H.numpy(), beta, 10, l1=0.05, l2=0.15)
    np.testing.assert_allclose(model.H.detach().numpy(), H_end, rtol=1e-9)
    penalty = sum(0.05 * F.sum() + 0.15 / 2 * (F**2).sum() for F in (W_end, H_end))
    assert curve[-1] == pytest.approx(float(model.loss(X, beta)) + penalty, rel=1e-9)


@pytest.mark.parametrize("beta", [1, 1.5, 2])
@pytest.mark.parametrize("fixed", ["nothing", "component", "weights", "example", "penalty"])
def test_sweeps_end_below_as_many_multiplicative_steps_and_hold_what_is_fixed(
    beta: float, fixed: str
) -> None:
    X, W, H = uniform((9, 14), 0), uniform((9, 3), 1), uniform((3, 14), 2)
    options: dict[str, Any] = {
        "component": {"initial_weights": W, "fix_components": [True]},
        "weights": {"initial_weights": list(W.T), "fix_weights": [False, True, False]},
        "example": {"initial_weights": list(W), "fix_weights": [True, *[False] * 8]},
    }.get(fixed, {"initial_weights": W})
    penalty = {"alpha": 0.1, "l1_ratio": 0.5} if fixed == "penalty" else {}
    fast = NMF(X.shape, 3, initial_components=H, **options)
    slow = ThreeMethods((9, 3), (3, 14), 3, initial_components=H, **options)

    curve = fast.fit(X, beta=beta, tol=0, max_iter=40, **penalty)
    reference = slow.fit(X, beta=beta, tol=0, max_iter=40, **penalty)

    assert curve[0] == pytest.approx(reference[0], rel=1e-9)
    assert curve == sorted(curve, reverse=True)
    assert len(curve) == 5
    assert curve[-1] <= reference[-1]
    if not penalty:
        assert curve[-1] == pytest.approx(float(fast.loss(X, beta)), rel=1e-7)
    if fixed == "component":
        assert same_bits(fast.H[0], H[0])
    if fixed == "weights":
        assert same_bits(fast.W[:, 1], W[:, 1])
    if fixed == "example":
        assert same_bits(fast.W[0], W[0])


def test_at_beta_two_known_components_get_their_least_squares_weights() -> None:
    H = uniform((3, 20), 1)
    X = uniform((6, 20), 0) * 2
    model = NMF(X.shape, initial_components=H, fix_components=[True] * 3)

    model.fit(X, beta=2, tol=0, max_iter=500)

    for row, weights in zip(X.numpy(), model.W.detach().numpy(), strict=True):
        np.testing.assert_allclose(weights, nnls(H.numpy().T, row)[0], atol=1e-7)


def test_at_beta_two_the_penalised_minimum_is_where_its_gradient_vanishes() -> None:
    H, X = uniform((3, 20), 1), uniform((6, 20), 0) * 2
    model = NMF(X.shape, initial_components=H, fix_components=[True] * 3)

    model.fit(X, beta=2, tol=0, max_iter=500, alpha=0.5, l1_ratio=0.4)

    W = model.W.detach()
    gradient = (W @ H - X) @ H.T + 0.2 + 0.3 * W
    assert gradient.min() > -1e-7
    assert (gradient * W).abs().max() < 1e-7


def test_at_beta_two_a_component_can_leave_zero() -> None:
    X = uniform((6, 3), 3) @ uniform((3, 20), 1)
    weights = uniform((6, 3), 4)
    weights[:, 2] = 0
    model = NMF(X.shape, 3, initial_weights=list(weights), seed=0)

    assert model.fit(X, beta=2, tol=0, max_iter=3000)[-1] < 1e-4
    assert model.W[:, 2].max() > 0


@pytest.mark.parametrize("tol", [1e-7, 0.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [1, 2])
def test_components_that_no_pattern_uses_any_more_are_given_what_is_not_explained(
    beta: float, seed: int, tol: float
) -> None:
    """From a flat start two known phases explain nearly all: the others would stay unused."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 700, (4, 25, 1))
    peaks = np.exp(-0.5 * ((np.arange(700) - centres) / rng.uniform(4, 12, (4, 25, 1))) ** 2)
    phases = (rng.uniform(0.1, 1.0, (4, 25, 1)) * peaks).sum(1) + 0.02
    weights = np.array([1.0, 0.3, 0.02, 0.01]) * rng.normal(1.0, 0.1, (60, 4))
    X = torch.from_numpy(rng.poisson(5_000 * weights @ phases) / 5_000)
    truth = float(beta_divergence(torch.from_numpy(weights @ phases), X, beta))
    model = NMF(
        X.shape,
        4,
        initial_components=[torch.from_numpy(phases[[k]]) for k in (0, 1)],
        fix_components=[True, True],
        seed=seed,
    )
    curve = model.fit(X, beta=beta, tol=tol, max_iter=300)

    assert (model.W.detach().sum(0) > 0).all(), "a component is not used"
    assert curve[-1] <= truth
    assert all(later <= earlier for earlier, later in pairwise(curve))


def test_at_beta_two_free_weights_settle_around_those_that_are_held() -> None:
    H, X, held = uniform((3, 20), 1), uniform((6, 20), 0) * 2, uniform((1, 6), 2)
    model = NMF(
        X.shape,
        initial_components=H,
        fix_components=[True] * 3,
        initial_weights=[None, held],
        fix_weights=[False, True],
    )

    model.fit(X, beta=2, tol=0, max_iter=500)

    W, free = model.W.detach(), [0, 2]
    gradient = ((W @ H - X) @ H.T)[:, free]
    assert gradient.min() > -1e-7
    assert (gradient * W[:, free]).abs().max() < 1e-7


@pytest.mark.parametrize("beta", [0.5, 1, 1.5])
@pytest.mark.parametrize("model_class", [NMF, NMFD])
def test_channels_that_no_component_reaches_do_not_stop_a_fit(
    model_class: type[NMF] | type[NMFD], beta: float
) -> None:
    known = torch.tensor([[0.0, 1.0, 3.0, 2.0]])
    X = torch.tensor([[5.0, 2.0, 6.0, 4.0], [0.0, 4.0, 12.0, 8.0]])
    model = model_class(X.shape, initial_components=[known], fix_components=[True], seed=0)

    model.fit(X, beta=beta)

    assert model.W.flatten().tolist() == pytest.approx([2, 4], rel=1e-4)


class Overshooting(ThreeMethods):
    """Steps of twice the right size in H: they oscillate, and raise the objective in the end."""

    def get_H_positive(self, WH: torch.Tensor, beta: float, W_sum: Any) -> Any:
        positive, W_sum = super().get_H_positive(WH, beta, W_sum)
        return positive / 2, W_sum


def test_the_best_factors_seen_are_kept_where_a_step_raises_the_objective() -> None:
    X = uniform((7, 11), 0)
    model = Overshooting((7, 2), (2, 11), dtype=torch.float64, seed=0)

    curve = model.fit(X, tol=0, max_iter=100, update_W=False)

    assert all(later <= earlier for earlier, later in pairwise(curve))
    assert curve[-1] == pytest.approx(float(model.loss(X, beta=1)), rel=1e-12)


@given(
    beta=st.one_of(st.sampled_from([0, 1, 2]), st.floats(-3, 5)),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    n_components=st.integers(1, 4),
    scale=st.sampled_from([1e-6, 1.0, 1e5]),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 10_000),
    flags=st.tuples(*[st.lists(st.booleans(), max_size=4)] * 2),
    options=st.fixed_dictionaries(
        {}, optional={"alpha": st.floats(0, 2), "l1_ratio": st.floats(0, 1)}
    ),
    model_class=st.sampled_from([NMF, NMFD]),
)
@settings(max_examples=100, deadline=None)
def test_any_fit_is_finite_never_rises_and_keeps_what_is_fixed(
    beta: float,
    shape: tuple[int, int],
    n_components: int,
    scale: float,
    zeros: float,
    seed: int,
    flags: tuple[list[bool], list[bool]],
    options: dict[str, float],
    model_class: type[NMF] | type[NMFD],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    X = scale * torch.rand(shape, generator=generator)
    X[torch.rand(shape, generator=generator) < zeros] = 0
    known = torch.rand(1, shape[1], generator=generator)
    known[torch.rand(known.shape, generator=generator) < zeros] = 0
    X_before, known_before = X.clone(), known.clone()
    fix_components, fix_weights = (each[:n_components] for each in flags)
    model = model_class(
        X.shape,
        n_components,
        initial_components=[known],
        fix_components=fix_components,
        fix_weights=fix_weights,
        seed=seed,
    )
    W, H = model.W.detach().clone(), model.H.detach().clone()
    W_fixed, H_fixed = model._W_fixed.expand_as(W), model._H_fixed.expand_as(H)

    curve = model.fit(X, beta=beta, max_iter=40, **options)

    assert np.isfinite(curve).all()
    assert all(later <= earlier for earlier, later in pairwise(curve))
    for factor in (model.W.detach(), model.H.detach()):
        assert factor.isfinite().all()
        assert (factor >= 0).all()
    assert same_bits(model.W[W_fixed], W[W_fixed])
    assert same_bits(model.H[H_fixed], H[H_fixed])
    assert same_bits(X, X_before)
    assert same_bits(known, known_before)
    if not options.get("alpha"):
        # Narrowing to float32 may turn what is next to nothing into a better nothing.
        assert float(model.loss(X, beta)) <= (1 + 1e-3) * curve[-1] + 1e-6 * curve[0]


@pytest.mark.parametrize("beta", BETAS)
def test_a_component_held_at_zero_gets_no_weight(beta: float) -> None:
    X = uniform((4, 6), 0, torch.float32)
    model = NMF(X.shape, 3, initial_components=[torch.zeros(1, 6)], fix_components=[True], seed=0)

    model.fit(X, beta=beta)

    assert (model.W[:, 0] == 0).all()


@pytest.mark.parametrize("model_class", [NMF, NMFD])
@pytest.mark.parametrize("beta", BETAS)
def test_data_of_zeros_are_fitted_by_zeros(model_class: type[NMFBase], beta: float) -> None:
    model = model_class((4, 6), 2)  # type: ignore[call-arg, arg-type]

    curve = model.fit(torch.zeros(4, 6), beta=beta, tol=0, max_iter=400)

    assert np.isfinite(curve).all()
    assert curve[-1] <= 1e-2 * curve[0]


def test_the_curve_holds_a_value_each_ten_iterations_and_one_at_the_end() -> None:
    X = uniform((7, 11), 0)

    assert len(NMF(X.shape, 3, seed=0).fit(X, tol=0, max_iter=0)) == 1
    assert len(NMF(X.shape, 3, seed=0).fit(X, tol=0, max_iter=25)) == 4
    assert len(NMF(X.shape, 3, seed=0).fit(X, tol=0.5, max_iter=2000)) < 10


def test_powers_that_float32_cannot_hold_are_fitted_all_the_same() -> None:
    X = uniform((7, 11), 0, torch.float32)
    X[:, 0] = 0
    narrow = NMF(X.shape, 2, seed=0, dtype=torch.float32)
    wide = NMF(X.shape, initial_components=narrow.H, initial_weights=narrow.W, dtype=torch.float64)

    expected = wide.fit(X, beta=-6)

    assert narrow.fit(X, beta=-6) == pytest.approx(expected, rel=1e-9)
    assert expected[-1] < 0.9 * expected[0]
    torch.testing.assert_close(narrow.W.double(), wide.W.detach(), rtol=1e-6, atol=1e-9)


def test_a_change_of_units_does_not_change_the_fit() -> None:
    X, W, H = uniform((7, 11), 0), uniform((7, 3), 1), uniform((3, 11), 2)
    X[X < 0.2] = 0
    small = NMF(X.shape, 3, initial_components=H, initial_weights=W)
    large = NMF(X.shape, 3, initial_components=H, initial_weights=1e6 * W)

    small.fit(X, beta=0)
    large.fit(1e6 * X, beta=0)

    np.testing.assert_allclose(1e6 * small().numpy(), large().numpy(), rtol=1e-9)


# Deconvolution


def test_deconvolution_reconstructs_the_documented_sum() -> None:
    model = NMFD((3, 9), 2, T=4, dtype=torch.float64, seed=0)
    W, H = model.W.detach().numpy(), model.H.detach().numpy()

    np.testing.assert_allclose(model().numpy(), naive_deconvolution(W, H), rtol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_deconvolution_takes_the_multiplicative_steps(beta: float) -> None:
    X = uniform((3, 9), 5)
    model = NMFD(X.shape, 2, T=4, dtype=torch.float64, seed=0)
    W, H = model.W.detach().numpy(), model.H.detach().numpy()
    gamma = 1 / (2 - beta) if beta < 1 else 1 / (beta - 1) if beta > 2 else 1
    x = X.numpy()
    for _ in range(10):
        for which in (0, 1):
            WH = naive_deconvolution(W, H)
            down = naive_deconvolution_gradients(x * WH ** (beta - 2), W, H)[which]
            up = naive_deconvolution_gradients(WH ** (beta - 1), W, H)[which]
            step = (down / up) ** gamma
            W, H = (W * step, H) if which == 0 else (W, H * step)

    model.fit(X, beta=beta, tol=0, max_iter=10)

    np.testing.assert_allclose(model.W.detach().numpy(), W, rtol=1e-9)
    np.testing.assert_allclose(model.H.detach().numpy(), H, rtol=1e-9)


@pytest.mark.parametrize("beta", [0.5, 3])
def test_deconvolution_with_one_shift_is_the_plain_factorization(beta: float) -> None:
    X, H, W = uniform((5, 9), 0), uniform((2, 9), 1), uniform((5, 2), 2)
    plain = NMF(X.shape, 2, initial_components=H, initial_weights=W)
    shifted = NMFD(X.shape, 2, initial_components=H, initial_weights=W[:, :, None])

    assert shifted.fit(X, beta=beta) == pytest.approx(plain.fit(X, beta=beta), rel=1e-9)
    np.testing.assert_allclose(
        shifted.W.detach().numpy()[:, :, 0], plain.W.detach().numpy(), rtol=1e-8
    )


def test_deconvolution_follows_a_peak_that_shifts() -> None:
    peak = torch.exp(-0.5 * ((torch.arange(20.0) - 10) / 1.5) ** 2)
    X = torch.zeros(4, 23)
    for shift in range(4):
        X[shift, shift : shift + 20] = peak
    model = NMFD(X.shape, T=4, initial_components=[peak], fix_components=[True], seed=0)

    model.fit(X, beta=2, tol=0, max_iter=3000)

    assert model.W[:, 0].argmax(1).tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(model.W[:, 0].detach().numpy(), np.eye(4), atol=0.02)


def test_deconvolution_takes_initial_weights_for_components_and_for_examples() -> None:
    per_component = NMFD((5, 9), 2, T=3, initial_weights=[torch.full((1, 5, 3), 2.0)])
    per_example = NMFD(
        (5, 9), 2, T=3, initial_weights=[torch.full((1, 2, 3), 2.0)], fix_weights=[True]
    )

    assert (per_component.W[:, 0] == 2).all()
    per_example.fit(torch.ones(5, 9))
    assert (per_example.W == 2).all((1, 2)).tolist() == [True, False, False, False, False]


# Bad input

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"X_shape": (30,)}, r"X_shape: expected positive integers \(m_examples, n_features\), got"),
    ({"X_shape": (30, 0)}, r"X_shape: expected positive integers .* got \(30, 0\)"),
    ({"X_shape": torch.ones(3, 4, 5)}, r"X_shape: .* got an array of shape \(3, 4, 5\)"),
    ({"n_components": 0}, "n_components: expected an integer of at least 1, got 0"),
    ({"n_components": 1.5}, "n_components: expected an integer of at least 1, got 1.5"),
    ({"n_components": None}, "n_components: expected a number, for there are neither"),
    (
        {"initial_components": [None, torch.ones(1, 5)]},
        r"initial_components\[1\]: expected shape \(1, 6\), got \(1, 5\)",
    ),
    (
        {"initial_components": [None] * 3},
        r"initial_components: expected at most 2 entries \(n_components\), got 3",
    ),
    ({"fix_components": [True] * 3}, "fix_components: expected at most 2 entries .* got 3"),
    ({"fix_components": ["yes"]}, r"fix_components\[0\]: expected True, False or None, got 'yes'"),
    ({"fix_components": True}, "fix_components: expected a list, got True"),
    ({"initial_components": 3}, "initial_components: expected a list, got 3"),
    (
        {"initial_components": [torch.tensor([1.0, -2, 3, -4, 5, 6])]},
        r"initial_components\[0\]: expected non-negative values, got 2 .* first -2.0 at index \(1,",
    ),
    (
        {"initial_components": [np.array([1, np.nan, 3, 4, 5, 6])]},
        r"initial_components\[0\]: expected finite values, got 1 that are not, the first nan",
    ),
    ({"initial_components": [["a"] * 6]}, r"initial_components\[0\]: expected real numbers"),
    ({"initial_components": [torch.ones(6) * 1j]}, "expected real numbers, got torch.complex64"),
    (
        {"initial_weights": [torch.ones(1, 3)]},
        r"initial_weights\[0\]: expected shape \(1, 4\), one per component, or \(1, 2\), one per",
    ),
    (
        {"initial_weights": [torch.ones(1, 4), torch.ones(1, 2)]},
        r"initial_weights\[1\]: expected shape \(1, 4\), got \(1, 2\)",
    ),
    (
        {"initial_weights": [torch.ones(1, 4)] * 3},
        r"initial_weights: expected at most 2 entries \(n_components\), got 3",
    ),
    (
        {"initial_weights": [torch.ones(1, 2)] * 5},
        r"initial_weights: expected at most 4 entries \(m_examples\), got 5",
    ),
    ({"fix_weights": [True] * 5}, r"fix_weights: expected at most 4 entries \(m_examples\), got 5"),
    ({"initial_weights": [-torch.ones(1, 4)]}, r"initial_weights\[0\]: expected non-negative"),
    ({"device": "abacus"}, "device: expected one that torch reaches, such as 'cpu', got 'abacus'"),
    ({"dtype": torch.int32}, "dtype: expected torch.float32 or torch.float64, got torch.int32"),
    ({"seed": "x"}, "seed: expected an integer, a torch.Generator or None, got 'x'"),
    ({"rank": 3}, "rank: no such option; the further ones are dtype and seed"),
]


@pytest.mark.parametrize(("given_options", "message"), REFUSED)
def test_a_model_that_cannot_be_is_refused_with_what_was_expected(
    given_options: dict[str, Any], message: str
) -> None:
    options = {"X_shape": (4, 6), "n_components": 2, **given_options}
    with pytest.raises(InputError, match=message):
        NMF(options.pop("X_shape"), options.pop("n_components"), **options)


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (torch.ones(3, 6), {}, r"X: expected shape \(4, 6\), got \(3, 6\)"),
        (-torch.ones(4, 6), {}, r"X: expected non-negative values, got 24 that are not"),
        (np.full((4, 6), np.inf), {}, r"X: expected finite values, got 24 .* at index \(0, 0\)"),
        (np.full((4, 6), "x"), {}, "X: expected real numbers in a tensor or array"),
        (torch.ones(4, 6), {"tol": -1}, "tol: expected a number of at least 0, got -1"),
        (torch.ones(4, 6), {"max_iter": 1.5}, "max_iter: expected an integer of at least 0"),
        (torch.ones(4, 6), {"alpha": "a"}, "alpha: expected a number of at least 0, got 'a'"),
        (
            torch.ones(4, 6),
            {"l1_ratio": 2},
            "l1_ratio: expected a number of at least 0 and at most",
        ),
        (torch.ones(4, 6), {"beta": float("nan")}, "beta: expected a finite number"),
        (1e4 * torch.ones(4, 6), {"beta": 300}, "beta: the divergence of this X at beta=300.0"),
    ],
)
def test_a_fit_that_cannot_be_is_refused_and_leaves_the_model_as_it_was(
    X: Any, options: dict[str, Any], message: str
) -> None:
    model = NMF((4, 6), 2, seed=0)
    W, H = model.W.detach().clone(), model.H.detach().clone()

    with pytest.raises(InputError, match=message):
        model.fit(X, **options)

    assert same_bits(model.W, W)
    assert same_bits(model.H, H)


def test_loss_refuses_other_shapes_too() -> None:
    with pytest.raises(InputError, match=r"X: expected shape \(4, 6\), got \(6,\)"):
        NMF((4, 6), 2).loss(torch.ones(6))


def test_the_base_refuses_shapes_that_do_not_share_their_components() -> None:
    with pytest.raises(InputError, match="n_components: expected the number in W_shape"):
        ThreeMethods((4, 3), (2, 6), 2)
    with pytest.raises(InputError, match="W_shape: expected positive integers"):
        ThreeMethods((4,), (2, 6), 2)


def test_deconvolution_refuses_more_shifts_than_channels() -> None:
    with pytest.raises(InputError, match="T: expected an integer of at least 1 and at most 6"):
        NMFD((4, 6), 2, T=7)


# Real data and devices


@pytest.mark.parametrize("beta", [1, 2])
def test_real_patterns_fit_with_the_first_and_last_as_known_phases(
    batio3: Any, beta: float
) -> None:
    X = torch.from_numpy(batio3.intensity)
    known = [X[:1].clone(), X[-1:].clone()]
    model = NMF(X.shape, 4, initial_components=known, fix_components=[True, True], seed=0)

    curve = model.fit(X, beta=beta, max_iter=100)

    assert same_bits(model.H[:1], known[0])
    assert same_bits(model.H[1:2], known[1])
    assert curve[-1] < 0.01 * curve[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("beta", BETAS)
def test_a_fit_on_cuda_ends_where_the_one_on_the_cpu_does(beta: float) -> None:
    X = uniform((7, 11), 0)
    here = NMF(X.shape, 3, seed=0, dtype=torch.float64)
    there = NMF(X.shape, 3, seed=0, dtype=torch.float64, device="cuda")

    assert there.fit(X, beta=beta) == pytest.approx(here.fit(X, beta=beta), rel=1e-6)
    assert there.W.device.type == "cuda"
