"""The fused kernels do what the torch functions say."""

import math
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cmf.nmf import kernels, sweeps, updates
from bluesky_cmf.nmf.blocks import Blocks
from bluesky_cmf.nmf.factors import Factors
from bluesky_cmf.nmf.rows import Rows
from bluesky_cmf.nmf.rules import Rules

fused = kernels.kernels_for(torch.device("cpu"))
pytestmark = pytest.mark.skipif(fused is None, reason="numba is not installed")

shapes = st.tuples(st.integers(1, 9), st.integers(1, 1100), st.integers(1, 7))


def problem(shape, seed, dtype=torch.float32):
    N, F, K = shape
    rng = np.random.default_rng(seed)
    X = Blocks(F, dtype=dtype, device=torch.device("cpu"))
    X.append(torch.tensor(rng.random((N, F)), dtype=dtype))
    W, H = torch.tensor(rng.random((N, K))), torch.tensor(rng.random((K, F)))
    if seed % 3 == 0:
        H[-1] = 0.0
    return X, W, H, [k for k in range(K) if k % 2 or K == 1]


@settings(max_examples=40, deadline=None)
@given(
    shapes,
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([(0.0, 0.0), (0.1, 0.0), (0.0, 0.3)]),
)
def test_fused_sweeps_follow_the_reference(shape, seed, dtype, penalty):
    X, W, H, free = problem(shape, seed, dtype)
    rules = Rules(tuple(free), l1=penalty[0], l2=penalty[1])
    one, two = (sweeps.Extrapolation(X, H, rules, W=W) for _ in range(2))
    one.sweep(6)
    for _ in range(6):
        two._sweep()
    if len(H) <= min(shape[:2]):
        # With more components than that, weights are not unique, and rounding picks the way.
        np.testing.assert_allclose(one.curve, two.curve, rtol=1e-7, atol=1e-9 * X.half_norm)
    held = [k for k in range(len(H)) if k not in free]
    assert torch.equal(one.H[held], H[held]), "a held component has changed"
    assert (one.H >= 0).all() and (one.Wt >= 0).all()
    assert np.diff(one.curve).max() <= 1e-12 * X.half_norm


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 2**31))
def test_fused_nnls_solves_the_same_problem(shape, seed):
    X, _, H, _ = problem(shape, seed)
    C, G = X.times(H), H @ H.T
    found = torch.from_numpy(fused.nnls(C.numpy(), G.numpy()))
    expected = updates.nnls(C, G)
    # Where components depend on each other the weights may differ, but not what they explain.
    for row, other, x in zip(found, expected, X.stored().double(), strict=True):
        errors = [float(((x - w @ H) ** 2).sum()) for w in (row, other)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-9, abs=1e-9)
    assert (found >= 0).all()


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 2**31))
def test_fused_gram_and_inner_products_are_those_of_numpy(shape, seed):
    _, _, H, _ = problem(shape, seed)
    V, G = H.numpy(), np.full((len(H), len(H)), np.nan)
    fused.gram(V, G)
    np.testing.assert_allclose(G, V @ V.T, rtol=1e-12)
    assert fused.inner(V, V[::-1].copy()) == pytest.approx((V * V[::-1]).sum(), rel=1e-12)


@pytest.mark.parametrize("first", range(8))
def test_products_of_the_rows_that_moved_have_the_bits_that_those_of_all_rows_have(first):
    V, whole, part = (
        np.random.default_rng(first).random((7, 1100)),
        np.empty((7, 7)),
        np.empty((7, 7)),
    )
    fused.gram(V, part)
    V[first:] *= 1.1
    fused.gram(V, whole)
    fused.gram_from(V, first, part)

    np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("bad", [-1e-30, np.nan, np.inf, -np.inf, None])
def test_numbers_are_called_harmless_only_where_each_of_them_is(dtype, bad):
    X = np.random.default_rng(0).random((3, 37)).astype(dtype)
    X[0, 0] = -0.0
    if bad is not None:
        X[1, 20] = bad

    assert fused.harmless(X, 1e140) == (bad is None)
    assert not fused.harmless(X + 1, 1.0)


@pytest.mark.parametrize("seed", range(60))
def test_fractions_are_exact_also_of_components_that_depend_on_each_other(seed):
    from bluesky_cmf.nmf.kernels.nnls import solve_weights

    random = np.random.default_rng(seed)
    K = int(random.integers(1, 9))
    H = random.random((K, int(random.integers(K, 40)))) * 10 ** random.uniform(-3, 3, (K, 1))
    if seed % 3 == 0:
        H[-1] = 1.7 * H[0]
    if seed % 4 == 0:
        H[random.integers(K)] = 0.0
    x, total = random.random(K) @ H + random.normal(0, 0.1, H.shape[1]), random.uniform(0.2, 2)
    G, c, w = H @ H.T, H @ x, np.empty(K)
    solve_weights(G, c.copy(), 0.0, 0.0, total, np.empty(0), w)
    expected = updates.solve_rows(
        torch.tensor(c)[None], torch.tensor(G), l1=0.0, l2=0.0, total=total, held=None
    )[0].numpy()

    assert w.min() >= 0
    assert w.sum() == pytest.approx(total, rel=1e-9)
    left, least = (np.square(x - v @ H).sum() for v in (w, expected))
    assert left <= least + 1e-9 * np.square(x).sum()


def test_several_blocks_are_swept_as_one(monkeypatch):
    """Beyond one block torch does the work, from the same formulas."""
    monkeypatch.setattr("bluesky_cmf.nmf.blocks._FIRST_ROWS", 4)
    X, _, H, free = problem((9, 50, 3), 1)
    assert X.fused() is None
    monkeypatch.undo()
    whole, *_ = problem((9, 50, 3), 1)
    assert whole.fused() is not None
    ends = [
        sweeps.Extrapolation(data, H, Rules(tuple(free))).descend(max_sweeps=30, tol=0.0).objective
        for data in (X, whole)
    ]
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)


def test_without_numba_torch_does_the_work(monkeypatch):
    X, _, H, free = problem((6, 40, 3), 5)
    expected = sweeps.Extrapolation(X, H, Rules(tuple(free))).descend(max_sweeps=10, tol=0.0)
    monkeypatch.setattr(sweeps, "kernels_for", lambda device: None)
    found = sweeps.Extrapolation(X, H, Rules(tuple(free))).descend(max_sweeps=10, tol=0.0)
    assert found.objective == pytest.approx(expected.objective, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    shapes,
    st.integers(0, 2**31),
    st.sampled_from(["free", "penalised", "held", "total", "held, total"]),
)
def test_fused_rows_are_solved_for_as_the_reference_says(shape, seed, asked):
    """Weights, their statistics and the residuals, from scratch and again with other components."""
    X, W, H, free = problem(shape, seed, torch.float64)
    l1, l2 = (0.3, 0.2) if asked == "penalised" else (0.0, 0.0)
    rules = Rules(tuple(free), l1=l1, l2=l2, total=1.0 if "total" in asked else None)
    held = None
    if "held" in asked:
        values = torch.where(W < 0.4, W / len(H), math.nan)
        held = Rows(len(H), device=torch.device("cpu"))
        held.replace(values)
    first, ends = [], []
    for road in (fused, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bluesky_cmf.nmf.factors.kernels_for", lambda device, road=road: road)
            factors = Factors(X, H, rules, held=held)
            factors.follow()
            first.append((factors.objective, factors.squared.tensor()))
            factors.descend(2)
            factors.resolve(0, len(X))
            ends.append(factors)
    (one, squared), (two, expected) = first
    # Where components depend on each other, weights may differ, but not what they explain.
    # A multiplier that is bisected is good to the square root of rounding, where they do.
    rounding = 1e-5 if "total" in asked else 1e-7
    assert one == pytest.approx(two, rel=1e-7, abs=rounding * X.half_norm)
    np.testing.assert_allclose(squared, expected, rtol=1e-6, atol=rounding * float(X.norms.max()))
    for factors in ends:
        weights = factors.W.tensor()
        np.testing.assert_allclose(factors.A, weights.T @ weights, rtol=1e-9, atol=1e-9)
        B = X.transposed_times(weights)
        np.testing.assert_allclose(factors.B[free], B[free], rtol=1e-9, atol=1e-9)
        left = 0.5 * float((X.stored().double() - weights @ factors.H).square().sum())
        without = factors.objective - factors.penalty
        assert without == pytest.approx(left, rel=1e-7, abs=1e-12 * X.half_norm)
        assert factors._W_sum == pytest.approx(float(weights.sum()))
        assert (weights >= 0).all()
        if held is not None:
            kept = ~held.tensor().isnan()
            assert torch.equal(weights[kept], held.tensor()[kept])


ASK = """
import numpy as np
from copied import products, user
print(user.trace(np.ones((2, 3))))
"""
USER = """
import numpy as np
from .products import compiled, gram

@compiled
def trace(V):
    G = np.empty((len(V), len(V)))
    gram(V, G)
    return G[0, 0] + G[1, 1]
"""


def test_a_kernel_is_compiled_anew_where_one_that_it_calls_has_changed(tmp_path):
    """numba's cache looks at the file of a function alone: it would give the old number."""
    package = tmp_path / "copied"
    package.mkdir()
    (package / "__init__.py").touch()
    products = package / "products.py"
    shutil.copy(Path(kernels.__file__).parent / "products.py", products)
    (package / "user.py").write_text(USER)

    def ask():
        run = subprocess.run(
            [sys.executable, "-c", ASK], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        return float(run.stdout)

    assert ask() == 6.0
    assert list(package.glob("__pycache__/kernels-*/**/*.nbc")), "nothing was kept"
    products.write_text(products.read_text().replace("g0 += v[j] * a[j]", "g0 += 2 * v[j] * a[j]"))
    assert ask() == 12.0


def test_whoever_waits_for_the_compiler_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Event()
    monkeypatch.setattr(kernels.logger, "warning", lambda *text: told.set())
    monkeypatch.setattr(kernels, "_LOADED", 0.01)
    monkeypatch.setattr(
        kernels, "_cpu", lambda name: SimpleNamespace(warm_up=lambda: told.wait(10))
    )

    kernels.warm_up.__wrapped__()

    assert told.is_set()


def test_powers_are_those_of_numpy_and_end_in_zero_and_infinity():
    from bluesky_cmf.nmf.kernels.divergence import _power

    v = np.exp(np.random.default_rng(0).uniform(-40, 40, 1001))
    found, scratch = np.empty_like(v), np.empty_like(v)
    for exponent in (-3.0, -1.5, -0.25, 0.5, 1.0, 2.5, 12.0):
        _power(v, exponent, found, scratch)
        np.testing.assert_allclose(found, v**exponent, rtol=1e-12)
    ends = np.array([1e-200, 1.0, 1e200])
    for exponent, expected in ((2.0, [0.0, 1.0, np.inf]), (-2.0, [np.inf, 1.0, 0.0])):
        _power(ends, exponent, found[:3], scratch[:3])
        np.testing.assert_array_equal(found[:3], expected)
