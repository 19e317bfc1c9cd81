"""Events on fixed buffers, as a device runs them; here by their twin on the CPU."""

import numpy as np
import pytest
import torch

from bluesky_cmf.nmf import blocks, fit, kernels, leastsquares
from bluesky_cmf.nmf.blocks import Blocks
from bluesky_cmf.nmf.factors import Factors
from bluesky_cmf.nmf.graphed import GraphedEvent
from bluesky_cmf.nmf.rules import Rules
from bluesky_cmf.nmf.streaming import StreamingNMF

rng = np.random.default_rng(0)
F = 60
PHASES = rng.random((3, F)) ** 3 + 0.01
X = ((0.1 + rng.random((220, 3))) @ PHASES + 0.01 * rng.random((220, F))).astype("f4")


def factors_of(n: int) -> Factors:
    data = Blocks(F, dtype=torch.float32, device=torch.device("cpu"))
    data.append(torch.from_numpy(X[:n]))
    factors = Factors(data, torch.tensor(PHASES + 0.1), Rules((1, 2)))
    factors.follow()
    factors.descend(2)
    return factors


def test_an_event_on_fixed_buffers_does_what_a_bounded_event_does() -> None:
    one, two = factors_of(150), factors_of(150)
    event = GraphedEvent(two, 16)
    for n in range(150, 200):
        start = (16 * (n - 150)) % (n - 16)
        for factors in (one, two):
            factors.X.append(torch.from_numpy(X[n : n + 1]))
        one.follow()
        one.descend(2)
        one.resolve(start, start + 16)
        one.resolve(n, n + 1)
        event(start)

    assert float(event.objective) == pytest.approx(one.objective, rel=1e-4)
    assert float(event.objective) == pytest.approx(two.objective, rel=1e-9)
    np.testing.assert_allclose(two.H, one.H, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(two.W.tensor(), one.W.tensor(), atol=1e-3)
    weights = two.W.tensor()
    np.testing.assert_allclose(two.A, weights.T @ weights, rtol=1e-9)
    free = list(two.rules.free)
    np.testing.assert_allclose(two.B[free], two.X.transposed_times(weights)[free], rtol=1e-9)


def go_by_graphs(patch: pytest.MonkeyPatch) -> None:
    """Do on the CPU what a device does: one step on fixed buffers, and no kernels."""
    patch.setattr(leastsquares, "uses_graphs", lambda device: True)
    patch.setattr(kernels, "_cpu", lambda name: None)


def test_a_stream_by_graphs_ends_where_the_other_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_FIRST_ROWS", 64)
    monkeypatch.setattr(fit.Fit, "sample", 64)
    monkeypatch.setattr(leastsquares.LeastSquares, "_window", 16)
    go_by_graphs(monkeypatch)
    model = StreamingNMF(F, 3, components=[PHASES[0]], fixed=[True])
    results = []
    for pattern in X:
        model.append(pattern)
        results.append(model.refit())
    assert model._fit._graphed is not None  # type: ignore[attr-defined]
    factors = model._fit.factors
    assert factors.state()["value"][1] == pytest.approx(float(factors.squared.tensor().sum()))
    for result in results[::40]:
        rows = X[: result.n_patterns] - result.weights.astype(float) @ result.components
        assert result.objective == pytest.approx(0.5 * float((rows**2).sum()), rel=1e-3)
    assert results[-1].components[0].tobytes() == PHASES[0].astype("f4").tobytes()
    end = model.refit(converge=True).objective
    assert results[-1].objective <= 1.2 * end

    monkeypatch.undo()
    other = StreamingNMF(F, 3, components=[PHASES[0]], fixed=[True])
    other.append(X)
    assert end == pytest.approx(other.refit(converge=True).objective, rel=1e-3)


def test_a_component_without_a_shape_is_found_before_events_go_as_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leastsquares.LeastSquares, "_window", 16)
    go_by_graphs(monkeypatch)
    model = StreamingNMF(F, 2, components=[PHASES[0]], fixed=[True])
    late = np.where(np.arange(60) < 30, 0.0, 1.0)[:, None]
    for pattern in 0.5 * PHASES[0] + late * PHASES[1]:
        model.append(pattern)
        result = model.refit()

    assert result.r_factor[-1] < 1e-2
    fresh = model.refresh()
    rows = model.patterns() - fresh.weights.astype(float) @ fresh.components
    assert fresh.objective == pytest.approx(0.5 * float((rows**2).sum()), rel=1e-3, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_events_on_a_device_are_those_on_the_cpu() -> None:
    ends = []
    for device in ("cpu", "cuda"):
        model = StreamingNMF(F, 3, components=[PHASES[0]], fixed=[True], device=device)
        for pattern in X:
            model.append(pattern)
            model.refit()
        ends.append(model.refit(converge=True).objective)
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
