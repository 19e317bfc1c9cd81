"""The fused kernels do what the torch functions say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cmf.nmf import kernels, sweeps, updates
from bluesky_cmf.nmf.blocks import Blocks

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
@given(shapes, st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
def test_fused_sweeps_follow_the_reference(shape, seed, dtype):
    X, W, H, free = problem(shape, seed, dtype)
    one, two = (sweeps.Extrapolation(X, W, H, free) for _ in range(2))
    one.sweep(6)
    for _ in range(6):
        two._sweep()
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


def test_several_blocks_are_swept_as_one(monkeypatch):
    """Beyond one block torch does the work, from the same formulas."""
    monkeypatch.setattr("bluesky_cmf.nmf.blocks._FIRST_ROWS", 4)
    X, W, H, free = problem((9, 50, 3), 1)
    assert X.single() is None
    monkeypatch.undo()
    whole, *_ = problem((9, 50, 3), 1)
    assert whole.single() is not None
    ends = [
        sweeps.descend(data, W, H, free=free, max_sweeps=30, tol=0.0).objective
        for data in (X, whole)
    ]
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)


def test_without_numba_torch_does_the_work(monkeypatch):
    X, W, H, free = problem((6, 40, 3), 5)
    expected = sweeps.descend(X, W, H, free=free, max_sweeps=10, tol=0.0)
    monkeypatch.setattr(sweeps, "kernels_for", lambda device: None)
    found = sweeps.descend(X, W, H, free=free, max_sweeps=10, tol=0.0)
    assert found.objective == pytest.approx(expected.objective, rel=1e-9)
