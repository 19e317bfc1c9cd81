from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls as scipy_nnls

from bluesky_cmf.nmf.kernels import kernels_for
from bluesky_cmf.nmf.updates import coordinate_descent, nnls

EPS = np.finfo(float).eps
Solver = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def fused(C: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    """The same in a kernel, which the CPU uses where it is there."""
    kernels = kernels_for(torch.device("cpu"))
    if kernels is None:
        pytest.skip("there are no kernels here")
    return torch.from_numpy(kernels.nnls(C.numpy(), G.numpy()))


both = pytest.mark.parametrize("solver", [nnls, fused])


@dataclass(frozen=True)
class Problem:
    """Patterns X (N, F) and components H (K, F) to explain them with."""

    X: np.ndarray
    H: np.ndarray

    def solve(self, solver: Solver = nnls) -> np.ndarray:
        C, G = torch.tensor(self.X @ self.H.T), torch.tensor(self.H @ self.H.T)
        return solver(C, G).numpy()


def problem(K: int, F: int, N: int = 5, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    return Problem(rng.random((N, F)), rng.random((K, F)))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Components that repeat, vanish, nearly agree, depend on others, of any intensity."""
    K, F = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    H = rng.random((K, F)) ** draw(st.sampled_from([1, 6]))
    H *= rng.random(H.shape) < draw(st.sampled_from([1.0, 0.4]))
    for k in range(K):
        other = draw(st.integers(0, K - 1))
        kind = draw(st.sampled_from(["own", "own", "own", "equal", "near", "sum", "zero"]))
        if kind == "equal":
            H[k] = H[other]
        elif kind == "near":
            H[k] = H[other] + 10.0 ** -draw(st.integers(3, 15)) * rng.random(F)
        elif kind == "sum":
            H[k] = H[other] + H[draw(st.integers(0, K - 1))]
        elif kind == "zero":
            H[k] = 0
    H *= 10.0 ** np.array(draw(st.lists(st.integers(-20, 20), min_size=K, max_size=K)))[:, None]
    X = rng.random((4, F)) * 10.0 ** draw(st.integers(-15, 15))
    X[0] *= draw(st.booleans())
    return Problem(X, H)


def violation(given_problem: Problem, W: np.ndarray) -> float:
    """The worst violation of the optimality conditions, in units of ‖x‖ and of each ‖h‖."""
    X, H = given_problem.X, given_problem.H
    size = np.linalg.norm(H, axis=1)
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    norm[norm == 0] = 1
    unit = H / np.where(size > 0, size, 1)[:, None]
    shares = W * size / norm
    gradient = (shares @ unit - X / norm) @ unit.T
    return max(float(-gradient.min()), float(np.abs(gradient * shares).max()))


@both
@settings(deadline=None, max_examples=120)
@given(given_problem=problems())
@example(given_problem=Problem(np.zeros((2, 3)), np.zeros((2, 3))))
@example(given_problem=Problem(np.ones((2, 3)), np.ones((4, 3))))
@example(given_problem=Problem(np.ones((1, 1)), np.array([[1e-150], [1e150]])))
def test_weights_meet_the_optimality_conditions_for_any_components(
    solver: Solver, given_problem: Problem
) -> None:
    W = given_problem.solve(solver)

    assert np.isfinite(W).all()
    assert (W >= 0).all()
    assert (W[:, ~given_problem.H.any(1)] == 0).all()
    assert violation(given_problem, W) < 1e-9


@both
@pytest.mark.parametrize(("K", "F"), [(1, 1), (1, 20), (2, 3), (8, 30), (25, 40), (30, 10)])
def test_weights_explain_as_much_as_those_of_scipy(solver: Solver, K: int, F: int) -> None:
    given_problem = problem(K, F, N=8, seed=K)

    W = given_problem.solve(solver)

    for x, w in zip(given_problem.X, W, strict=True):
        expected, norm = scipy_nnls(given_problem.H.T, x)
        if K <= F:
            np.testing.assert_allclose(w, expected, atol=1e-8 * np.abs(expected).max())
        assert np.linalg.norm(x - w @ given_problem.H) == pytest.approx(norm, abs=1e-8)


@both
def test_weights_are_exact_for_many_correlated_components(solver: Solver) -> None:
    rng = np.random.default_rng(2)
    shared = rng.random(60)
    correlated = Problem(rng.random((40, 60)), shared + 0.05 * rng.random((20, 60)))

    assert violation(correlated, correlated.solve(solver)) < 1e-9


def test_every_row_is_solved_by_itself() -> None:
    whole = problem(6, 12, N=50, seed=4)

    one_by_one = [Problem(row[None], whole.H).solve()[0] for row in whole.X]

    np.testing.assert_allclose(whole.solve(), one_by_one, rtol=1e-9, atol=1e-12)


@both
def test_identical_components_share_their_weight_evenly(solver: Solver) -> None:
    W = Problem(np.full((1, 4), 3.0), np.ones((3, 4))).solve(solver)

    np.testing.assert_allclose(W, [[1.0, 1.0, 1.0]], rtol=1e-3)


def test_the_intensity_of_a_component_only_rescales_its_weight() -> None:
    plain = problem(3, 10, seed=5)
    scales = np.array([1e-9, 1.0, 1e9])

    W = Problem(plain.X, plain.H * scales[:, None]).solve()

    np.testing.assert_allclose(W * scales, plain.solve(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("N", "K"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_solve_gives_nothing(N: int, K: int) -> None:
    G = torch.eye(K, dtype=torch.float64)

    assert nnls(torch.zeros(N, K, dtype=torch.float64), G).shape == (N, K)


@both
def test_nnls_leaves_its_arguments_alone(solver: Solver) -> None:
    C, G = torch.rand(4, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    before = C.clone(), G.clone()

    solver(C, G)

    assert torch.equal(C, before[0])
    assert torch.equal(G, before[1])


# --- coordinate descent ---------------------------------------------------------------------


def naive_descent(
    V: np.ndarray, G: np.ndarray, C: np.ndarray, free: list[int], passes: int
) -> np.ndarray:
    V = V.copy()
    for _ in range(passes):
        for k in free:
            for m in range(V.shape[1]):
                slope = sum(G[k, j] * V[j, m] for j in range(len(V))) - C[k, m]
                V[k, m] = max(0.0, V[k, m] - slope / G[k, k])
    return V


def objective(V: np.ndarray, G: np.ndarray, C: np.ndarray) -> float:
    return float(0.5 * np.einsum("im,ij,jm->", V, G, V) - (C * V).sum())


@pytest.mark.parametrize("free", [[0, 1, 2, 3], [2], [3, 0], []])
@pytest.mark.parametrize("passes", [0, 1, 4])
def test_descent_does_what_the_naive_loops_do(free: list[int], passes: int) -> None:
    rng = np.random.default_rng(6)
    H = rng.random((4, 9))
    V, G, C = rng.random((4, 5)), H @ H.T, H @ rng.random((9, 5))

    found = coordinate_descent(*map(torch.tensor, (V, G, C)), free=free, passes=passes)

    np.testing.assert_allclose(found.numpy(), naive_descent(V, G, C, free, passes), rtol=1e-11)
    held = [k for k in range(4) if k not in free]
    assert np.array_equal(found.numpy()[held], V[held])


@settings(deadline=None, max_examples=100)
@given(problems(), st.data())
def test_descent_never_climbs_and_never_moves_a_held_row(
    given_problem: Problem, data: st.DataObject
) -> None:
    K = len(given_problem.H)
    # The largest component is given the size of 1: an objective in float64 is compared below.
    H = given_problem.H / max(np.abs(given_problem.H).max(), EPS)
    X = given_problem.X / max(np.abs(given_problem.X).max(), EPS)
    G, C = H @ H.T, H @ X.T
    V = np.random.default_rng(0).random((K, len(X)))
    free = data.draw(st.lists(st.integers(0, K - 1), unique=True))

    found = coordinate_descent(*map(torch.tensor, (V, G, C)), free=free, passes=3).numpy()

    assert (found >= 0).all()
    assert objective(found, G, C) <= objective(V, G, C) + 1e-11 * K * K
    held = [k for k in range(K) if k not in free]
    assert np.array_equal(found[held], V[held])


def test_descent_comes_to_the_exact_solution() -> None:
    given_problem = problem(3, 12, seed=7)
    G, C = given_problem.H @ given_problem.H.T, given_problem.H @ given_problem.X.T
    start = torch.ones(3, 5, dtype=torch.float64)

    found = coordinate_descent(start, torch.tensor(G), torch.tensor(C), free=range(3), passes=2000)

    # Passes end where one moves less than a millionth.
    np.testing.assert_allclose(found.numpy().T, given_problem.solve(), atol=1e-5)
    assert torch.equal(start, torch.ones(3, 5, dtype=torch.float64))


def test_descent_leaves_a_row_without_a_component_where_it_is_but_not_negative() -> None:
    G = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    V = torch.tensor([[1.0, 1.0], [5.0, -5.0]], dtype=torch.float64)
    C = torch.tensor([[4.0, 4.0], [0.0, 0.0]], dtype=torch.float64)

    found = coordinate_descent(V, G, C, free=[0, 1], passes=1)

    assert found.tolist() == [[2.0, 2.0], [5.0, 0.0]]
