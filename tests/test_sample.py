"""Rows that stand for all of them: which are chosen, and what they count for."""

import pytest
import torch

from bluesky_cmf.nmf import sample
from bluesky_cmf.nmf.blocks import Blocks
from bluesky_cmf.nmf.compressed import Compressed
from bluesky_cmf.nmf.leastsquares import LeastSquares
from bluesky_cmf.nmf.rules import Rules
from bluesky_cmf.nmf.sample import choose_rows
from bluesky_cmf.nmf.steps import finished


@pytest.mark.parametrize("at_once", [48, 10_000])
@pytest.mark.parametrize(("n", "count", "n_worst"), [(1000, 64, 32), (1000, 64, 0), (70, 64, 8)])
def test_chosen_rows_stand_for_all(
    n: int, count: int, n_worst: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_AT_ONCE", at_once)
    left = torch.rand(n, generator=torch.Generator().manual_seed(n))
    rows, weights = finished(choose_rows(lambda start, stop: left[start:stop], n, count, n_worst))

    assert len(rows) == len(rows.unique()) == count
    assert (rows.diff() > 0).all()
    assert float(weights.sum()) == pytest.approx(n)
    worst = set(left.topk(n_worst).indices.tolist()) if n_worst else set()
    assert worst <= set(rows[weights == 1].tolist())
    # The others are spread over all the rest.
    others = rows[[int(row) not in worst for row in rows]]
    assert int(others[0]) < n_worst + 5
    assert int(others[-1]) > n - n_worst - 5
    assert int(others.diff().max()) <= 2 * n / (count - n_worst) + n_worst


@pytest.mark.parametrize("n", [0, 1, 40])
def test_few_rows_are_all_chosen_and_stand_for_themselves(n: int) -> None:
    left = torch.rand(n)
    rows, weights = finished(choose_rows(lambda start, stop: left[start:stop], n, 64, 32))

    assert rows.tolist() == list(range(n))
    assert weights.tolist() == [1.0] * n


@pytest.mark.parametrize(("n", "n_features"), [(30, 50), (300, 700)])
def test_a_row_that_counts_several_times_is_as_if_it_were_there_several_times(
    n: int, n_features: int
) -> None:
    random = torch.Generator().manual_seed(1)
    X = torch.rand(n, n_features, generator=random)
    H = torch.rand(3, n_features, generator=random).double()
    times = torch.randint(1, 5, (n,), generator=random)
    fit = LeastSquares(_blocks(X), H, Rules((1, 2)), seed=0)
    fit.follow()
    rows = finished(fit.some(torch.arange(n), work=lambda: 10**6))
    assert isinstance(rows, Compressed) == (n_features == 700)
    H = fit.factors.H
    weighted = fit.sweeps(fit.weighted(rows, times.double()), H, held=None)
    repeated = fit.sweeps(_blocks(X.repeat_interleave(times, 0)), H, held=None)

    assert weighted.curve[0] == pytest.approx(repeated.curve[0], rel=1e-6)
    if n_features == 50:
        # What is compressed is near the data, and no more.
        weighted.sweep(5)
        repeated.sweep(5)
        assert weighted.curve == pytest.approx(repeated.curve, rel=1e-6)
        torch.testing.assert_close(weighted.H, repeated.H, rtol=1e-5, atol=1e-6)


def test_a_descent_that_is_begun_in_steps_begins_where_the_fit_was() -> None:
    """Events change the components in between."""
    X = torch.rand(300, 700, generator=torch.Generator().manual_seed(2))
    fit = LeastSquares(_blocks(X), X[:3].double(), Rules((1, 2)), seed=0)
    fit.follow()
    begun = fit.begun(fit.X, fit.factors.H, held=None)
    was = fit.factors.H.clone()
    next(begun)
    fit.factors.descend(4)

    state = finished(begun)
    assert not torch.equal(fit.factors.H, was)
    left = X.double() - state.weights @ was
    assert state.curve[0] == pytest.approx(0.5 * float(left.square().sum()))


def _blocks(X: torch.Tensor) -> Blocks:
    rows = Blocks(X.shape[1], dtype=torch.float32, device=torch.device("cpu"))
    rows.append(X)
    return rows
