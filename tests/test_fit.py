"""Many patterns: events at a bounded cost, the search between them, compressed sweeps."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bluesky_cmf.nmf import blocks, compressed, fit
from bluesky_cmf.nmf.alarm import Alarm
from bluesky_cmf.nmf.factors import Factors
from bluesky_cmf.nmf.leastsquares import LeastSquares
from bluesky_cmf.nmf.search import Search
from bluesky_cmf.nmf.streaming import FitResult, StreamingNMF

F, N = 700, 500
rng = np.random.default_rng(1)
x = np.arange(F)


def phase(seed: int) -> np.ndarray:
    lines = np.random.default_rng(seed).uniform(0, F, 12)
    return np.exp(-0.5 * ((x - lines[:, None]) / 4) ** 2).sum(0) + 0.02


PHASES = np.stack([phase(k) for k in range(4)])
PHASES /= PHASES.max(1, keepdims=True)


def ramp(noise: float = 0.002) -> np.ndarray:
    """Patterns of four phases, of which the last appears late, and a dwell at the end."""
    t = np.minimum(np.linspace(0, 1.4, N), 1.0)[:, None]
    weights = np.exp(-(((t - [0.0, 0.4, 0.8, 1.0]) / 0.3) ** 2)) + 0.05
    weights[:, 3] = np.where(t[:, 0] < 0.6, 0.0, t[:, 0])
    return (weights @ PHASES + noise * np.random.default_rng(2).random((N, F))).astype("f4")


@pytest.fixture(autouse=True)
def _many_is_few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some hundreds of patterns go the way of many thousands."""
    monkeypatch.setattr(blocks, "_FIRST_ROWS", 64)
    monkeypatch.setattr(fit.Fit, "sample", 64)
    monkeypatch.setattr(fit.Fit, "trial_sweeps", 12)
    monkeypatch.setattr(fit, "_WINDOW_WORK", 8 * F * 4)
    monkeypatch.setattr(fit.Fit, "all_rows", 40 * F * 4)
    monkeypatch.setattr(compressed, "_FEW_ROWS", 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def streamed(X: np.ndarray, **options: Any) -> tuple[StreamingNMF, list[FitResult]]:
    model = StreamingNMF(F, 4, components=[PHASES[0]], fixed=[True], **options)
    results = []
    for pattern in X:
        model.append(pattern)
        results.append(model.refit())
    return model, results


def half_square(X: np.ndarray, result: FitResult) -> float:
    residual = X[: result.n_patterns] - result.weights.astype(float) @ result.components
    return float(0.5 * (residual**2).sum())


def best_of_all(X: np.ndarray) -> float:
    whole = StreamingNMF(F, 4, components=list(PHASES), fixed=[True, False, False, False])
    whole.append(X)
    return whole.refit(converge=True).objective


def test_the_objective_of_an_event_is_that_of_the_factors_it_gives() -> None:
    X = ramp()
    _, results = streamed(X)

    for result in results[::37]:
        assert result.objective == pytest.approx(half_square(X, result), rel=1e-4)
        assert not result.converged
    newest = results[-1]
    residual = X[-1] - newest.weights[-1].astype(float) @ newest.components
    assert newest.r_factor[-1] == pytest.approx(
        math.sqrt((residual**2).sum() / (X[-1].astype(float) ** 2).sum()), rel=1e-3
    )


@pytest.mark.parametrize("explained", [False, True])
def test_an_event_over_all_rows_goes_on_only_while_that_gains_something(
    explained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[int] = []
    resolve = Factors.resolve

    def noted(self: Factors, start: int, stop: int) -> None:
        if start == 0:
            solved.append(stop)
        resolve(self, start, stop)

    monkeypatch.setattr(Factors, "resolve", noted)
    monkeypatch.setattr(LeastSquares, "jump_work", 0)
    model = StreamingNMF(F, 4, components=[PHASES[0]], fixed=[True])
    X = ramp()[[0, 60, 120, 180, 239]]
    model.append(X)
    model.refit(converge=True)
    solved.clear()
    model.append(np.zeros(F) if explained else ramp(noise=0.1)[90])
    model.refit()

    # A row of zeros changes nothing, and another one a lot.
    assert solved == [6] * (1 if explained else LeastSquares.rounds)


def test_a_result_stays_as_of_its_event_while_older_weights_are_solved_anew() -> None:
    X = ramp()
    model, results = streamed(X[:200])
    early = results[150]
    model.append(X[200:])
    late = model.refit(converge=True)

    # First looked at now: what it gives is what the factors were then.
    assert early.weights.shape == (151, 4)
    assert early.objective == pytest.approx(half_square(X, early), rel=1e-4)
    assert late.weights.shape == (N, 4)


def test_events_alone_find_a_phase_that_appears_late_with_all_components_spent() -> None:
    X = ramp()

    _, results = streamed(X)

    assert results[-1].objective <= 1.05 * best_of_all(X)


@pytest.mark.parametrize("searching", [False, True])
def test_older_weights_are_solved_anew_in_turn_for_as_long_as_patterns_come(
    monkeypatch: pytest.MonkeyPatch, searching: bool
) -> None:
    monkeypatch.setattr(Alarm, "raised", lambda *_: False)
    monkeypatch.setattr(Search, "step", lambda *_: False)
    monkeypatch.setattr(fit, "_WINDOW_WORK", (64 if searching else 8) * F * 4)
    model, _ = streamed(ramp()[:300])
    model._fit.search.alarm.on = searching
    times, resolve = np.zeros(N, int), Factors.resolve

    def noted(self: Factors, start: int, stop: int) -> None:
        times[start:stop] += 1
        resolve(self, start, stop)

    monkeypatch.setattr(Factors, "resolve", noted)
    for pattern in ramp()[300:]:
        model.append(pattern)
        model.refit()

    assert times[:300].min() >= 1


@pytest.mark.parametrize("held", [None, 0.5])
def test_an_event_in_one_kernel_is_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, held: float | None
) -> None:
    def last() -> FitResult:
        model = StreamingNMF(F, 4, components=[PHASES[0]], fixed=[True])
        model.append(ramp()[:100])
        model.refit()
        for pattern in ramp()[100:160]:
            model.append(pattern, None if held is None else [np.nan, held, np.nan, np.nan])
            model.refit()
        return model.refit()

    together = last()
    times = []
    monkeypatch.setattr(Factors, "follow_one", lambda *_: bool(times.append(1)))
    apart = last()

    assert len(times) > 50
    np.testing.assert_array_equal(together.weights, apart.weights)
    np.testing.assert_array_equal(together.components, apart.components)
    assert together.objective == apart.objective


def test_older_weights_are_brought_up_to_date_by_a_refresh() -> None:
    X = ramp()
    model, results = streamed(X)

    fresh = model.refresh()

    assert fresh.objective <= results[-1].objective
    assert fresh.components.tobytes() == results[-1].components.tobytes()
    again = StreamingNMF(F, 4, components=list(fresh.components), fixed=[True] * 4)
    again.append(X)
    np.testing.assert_allclose(fresh.weights, again.refit().weights, atol=1e-4)
    assert model.refresh() is fresh


def test_a_search_goes_on_where_it_was_interrupted_and_comes_to_an_end() -> None:
    X = ramp()
    model = StreamingNMF(F, 4, components=[PHASES[0]], fixed=[True])
    model.append(X)
    before = model.refit().objective
    calls = 0
    while not model.settled and calls < 20_000:
        asked = iter([False, True])
        model.improve(math.inf, interrupted=lambda asked=asked: next(asked, True))
        calls += 1

    assert 100 < calls < 20_000
    assert model.result is not None
    assert model.result.objective < 0.9 * before
    assert model.result.objective <= 1.02 * best_of_all(X)
    assert model.improve(math.inf) is False


def test_patterns_may_arrive_while_a_search_is_under_way() -> None:
    X = ramp()
    model = StreamingNMF(F, 4, components=[PHASES[0]], fixed=[True])
    model.append(X[:300])
    model.refit()
    for pattern in X[300:]:
        asked = iter([False] * 9)
        model.improve(math.inf, interrupted=lambda asked=asked: next(asked, True))
        model.append(pattern)
        result = model.refit()
        assert result.objective == pytest.approx(half_square(X, result), rel=1e-3)
    assert result.n_patterns == N


def test_a_converged_end_is_the_same_on_the_data_and_on_what_is_compressed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X = ramp()
    model, _ = streamed(X)
    end = model.refit(converge=True)
    assert end.converged
    assert end.objective == pytest.approx(half_square(X, end), rel=1e-4)

    monkeypatch.setattr(blocks, "_FIRST_ROWS", 512)
    whole, _ = streamed(X[:1])
    whole.append(X[1:])
    assert end.objective == pytest.approx(whole.refit(converge=True).objective, rel=1e-3)


def test_directions_are_orthonormal_and_hold_the_fit() -> None:
    X = blocks.Blocks(F, dtype=torch.float32, device=torch.device("cpu"))
    X.append(torch.from_numpy(ramp()))
    H = torch.tensor(PHASES)
    B = X.transposed_times(X.times(H))

    V = compressed.directions(X, H, B)

    np.testing.assert_allclose(V @ V.T, np.eye(len(V)), atol=1e-12)
    for rows in (H, B):
        np.testing.assert_allclose((rows @ V.T) @ V, rows, atol=1e-9 * float(rows.max()))
    small = compressed.compress(X, V)
    np.testing.assert_allclose(small.times(H), X.times(H), rtol=1e-9)
    assert small.half_norm == pytest.approx(X.half_norm, rel=1e-13)


def test_identical_patterns_are_compressed_all_the_same() -> None:
    X = blocks.Blocks(F, dtype=torch.float32, device=torch.device("cpu"))
    X.append(torch.from_numpy(np.repeat(ramp()[:1], 100, 0)))
    H = torch.tensor(PHASES[:1])

    V = compressed.directions(X, H, torch.zeros_like(H))

    assert 1 <= len(V) <= 2
    np.testing.assert_allclose(compressed.compress(X, V).row(5), X.row(5), atol=1e-6)


@pytest.mark.parametrize("points", [5, 639])
def test_many_patterns_of_few_points_are_searched_without_compression(points: int) -> None:
    X = np.random.default_rng(3).random((150, 2)) @ np.random.default_rng(4).random((2, points))
    model = StreamingNMF(points, 2)
    for part in np.split(X, 30):
        model.append(part)
        model.refit()

    model.improve(5.0)

    assert model.refit(converge=True).objective < 1e-3 * 0.5 * (X**2).sum()


def test_held_weights_and_fractions_are_searched_as_well() -> None:
    X = ramp()
    model = StreamingNMF(F, 4, components=[PHASES[0]], fixed=[True])
    for i, pattern in enumerate(X[:200]):
        model.append(pattern, [0.5, *[math.nan] * 3] if i % 2 else None)
        model.refit()
    model.improve(1.0)

    result = model.refresh()

    assert (result.weights[1::2, 0] == 0.5).all()
    assert result.objective == pytest.approx(half_square(X, result), rel=1e-4)


def test_without_numba_torch_follows_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # Further on, rounding decides when a search that goes with events is through.
    X = ramp()[:110]
    _, fused = streamed(X)
    for module in ("factors", "blocks", "sweeps"):
        monkeypatch.setattr(f"bluesky_cmf.nmf.{module}.kernels_for", lambda device: None)
    _, plain = streamed(X)

    assert plain[-1].objective == pytest.approx(fused[-1].objective, rel=2e-3)
    for result in plain[::50]:
        assert result.objective == pytest.approx(half_square(X, result), rel=1e-4)


# --- the alarm ------------------------------------------------------------------------------


def quiet_alarm(level: float) -> Alarm:
    alarm = Alarm(1.5)
    alarm.quiet(1000, level, gain=0.1)
    assert not any(alarm.raised(1000 + n, level) for n in range(100))
    return alarm


def test_a_jump_of_the_residual_raises_the_alarm_until_a_search_is_through() -> None:
    alarm = quiet_alarm(0.01)

    assert [alarm.raised(1100, 0.1) for _ in range(10)].count(True) == 1
    assert not alarm.raised(1110, 0.01)
    assert alarm.on
    alarm.quiet(1110, 0.01, gain=0.1)
    assert not alarm.on
    assert not any(alarm.raised(1111, 0.01) for _ in range(100))


def test_what_exceeds_the_usual_is_told_also_while_a_search_is_under_way() -> None:
    alarm = quiet_alarm(0.01)
    assert alarm.raised(1501, 0.01)

    assert not any(alarm.raised(1502, 0.1) for _ in range(10))
    assert alarm.exceeded(0.0111)
    assert not alarm.exceeded(0.0109)


def test_one_bad_pattern_raises_no_alarm_of_its_own_that_stays() -> None:
    alarm = quiet_alarm(0.01)
    assert not alarm.raised(1100, 0.05)
    assert not alarm.raised(1101, 0.01)


def test_patterns_that_are_merely_noisier_raise_one_alarm() -> None:
    alarm = quiet_alarm(0.01)
    assert any(alarm.raised(1100, 0.05) for _ in range(10))
    alarm.quiet(1200, 0.05, gain=0.1)

    assert not any(alarm.raised(1200 + n, 0.05) for n in range(200))


def test_jumps_that_a_search_finds_nothing_in_must_be_larger_the_next_time() -> None:
    alarm = quiet_alarm(0.01)
    assert any(alarm.raised(1100, 0.012) for _ in range(100))
    alarm.quiet(1100, 0.012, gain=0.0)

    assert not any(alarm.raised(1101, 0.012 * 1.15) for _ in range(100))
    assert any(alarm.raised(1102, 0.024) for _ in range(20))
    alarm.quiet(1102, 0.024, gain=0.1)
    assert any(alarm.raised(1103, 0.024 * 1.15) for _ in range(100))


def test_growth_that_leads_to_nothing_leaves_events_as_wakeful_as_they_were() -> None:
    alarm = quiet_alarm(0.01)
    assert alarm.raised(1501, 0.01)
    alarm.quiet(1501, 0.01, gain=0.0)
    alarm.quiet(1502, 0.01, gain=0.0)

    assert any(alarm.raised(1503, 0.0115) for _ in range(100))


def test_growth_raises_the_alarm() -> None:
    alarm = quiet_alarm(0.01)

    assert not alarm.raised(1500, 0.01)
    assert alarm.raised(1501, 0.01)
