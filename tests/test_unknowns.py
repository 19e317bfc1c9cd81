"""What no component explains is told: soon, once, and not where there is only noise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bluesky_cmf import StreamingNMF
from bluesky_cmf.unknowns import Alarm, Watch, tell
from bluesky_cmf.unknowns.noise import Noise
from bluesky_cmf.unknowns.recent import Recent
from bluesky_cmf.unknowns.watch import deviations
from tests.heating import Heating, least_squares


def alarms_of(
    x: np.ndarray,
    patterns: np.ndarray,
    components: np.ndarray,
    *,
    counted: bool = False,
    together: int = 1,
    watch: Watch | None = None,
    first: int = 1,
    passed: int = 0,
) -> list[Alarm]:
    watch = Watch(x) if watch is None else watch
    weights = least_squares(patterns, components)
    found: list[Alarm] = []
    for start in range(0, len(patterns), together):
        rows = slice(start, start + together)
        found += watch.look(
            patterns[rows],
            weights[rows],
            components,
            first=first + start,
            free=[False] * len(components),
            variances=[np.maximum(y, 1.0) for y in patterns[rows]] if counted else None,
            passed=passed,
        )
    return found


def watched(ramp: Heating, **kwargs: Any) -> list[Alarm]:
    return alarms_of(ramp.x, ramp.patterns, ramp.components, **kwargs)


# --- how soon, and how often in vain ---------------------------------------------------------


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    ("points", "counts", "fwhm"),
    [(500, 5000, 3), (1000, 5000, 12), (4000, 5000, 5), (1000, 500, 5), (1000, 50_000, 5)],
)
def test_an_undeclared_phase_is_told_of_within_three_patterns_of_two_percent(
    counted: bool, points: int, counts: float, fwhm: float
) -> None:
    for seed in range(3):
        ramp = Heating(seed, points, counts, fwhm, n=45, begins=20)
        first, *more = watched(ramp, counted=counted)
        assert 20 < first.n_patterns <= ramp.at_two_percent + 3
        assert 18 <= first.since <= first.n_patterns
        assert not more


@pytest.mark.parametrize("kind", [{"lines": 100}, {"shared": 7}])
def test_many_weak_lines_and_shared_ones_are_told_of_as_well(kind: dict[str, int]) -> None:
    for seed in range(3):
        ramp = Heating(seed, 2000, n=45, begins=20, **kind)
        (alarm,) = watched(ramp)
        assert 20 < alarm.n_patterns <= ramp.at_two_percent + 3


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("counts", [500, 5000, 50_000])
def test_noise_alone_raises_no_alarm(counted: bool, counts: float) -> None:
    for seed, points in enumerate((500, 1000, 2000)):
        assert not watched(Heating(seed, points, counts, n=120), counted=counted)


def smoothed(patterns: np.ndarray) -> np.ndarray:
    kernel = np.array([0.25, 0.5, 0.25])
    return np.stack([np.convolve(row, kernel, mode="same") for row in patterns])


def finer(patterns: np.ndarray) -> np.ndarray:
    x = np.arange(patterns.shape[1])
    return np.stack([np.interp(np.arange(0, x[-1] + 0.1, 0.5), x, row) for row in patterns])


def uneven(patterns: np.ndarray) -> np.ndarray:
    n = patterns.shape[1]
    x = np.linspace(0, n - 1, n - 1)
    return np.stack([np.interp(x, np.arange(n), row) for row in patterns])


@pytest.mark.parametrize("steps", [smoothed, finer, uneven])
def test_noise_that_neighbours_share_raises_none(
    steps: Callable[[np.ndarray], np.ndarray],
) -> None:
    for seed in range(2):
        ramp = Heating(seed, n=100)
        patterns, components = steps(ramp.patterns), steps(ramp.components)
        assert not alarms_of(np.arange(patterns.shape[1]), patterns, components)
        ramp = Heating(seed, n=45, begins=20)
        (alarm,) = alarms_of(np.arange(patterns.shape[1]), steps(ramp.patterns), components)
        assert alarm.n_patterns <= ramp.at_two_percent + 3


def test_other_noise_than_that_of_counting_raises_none() -> None:
    ramp, rng = Heating(n=100), np.random.default_rng(0)
    constant = ramp.expected + 40 * rng.standard_normal(ramp.expected.shape)
    fewer = np.linspace(0.05, 1, ramp.points)
    along = rng.poisson(ramp.expected * fewer) / fewer
    shorter = np.where(np.arange(ramp.n) % 3 == 0, 0.2, 1.0)[:, None]
    exposure = rng.poisson(ramp.expected * shorter) / shorter
    normalised = ramp.patterns / ramp.patterns.max(axis=1, keepdims=True)
    for patterns in (constant, along, exposure, normalised):
        assert not alarms_of(ramp.x, patterns, ramp.components)


@pytest.mark.parametrize("counted", [False, True])
def test_counts_so_sparse_that_most_are_zero_raise_none(counted: bool) -> None:
    ramp = Heating(n=100, points=2000)
    components = ramp.components[:2]
    rng = np.random.default_rng(3)
    expected = np.linspace(50, 200, ramp.n)[:, None] * components.mean(axis=0)
    patterns = rng.poisson(expected).astype(float)
    assert (patterns == 0).mean() > 0.5
    assert not alarms_of(ramp.x, patterns, components, counted=counted)


def test_exact_data_that_are_explained_to_rounding_raise_none() -> None:
    ramp = Heating(n=40)
    assert not alarms_of(ramp.x, ramp.expected.astype(np.float32), ramp.components)


def test_a_hot_point_in_one_pattern_is_no_line() -> None:
    ramp = Heating(n=40)
    patterns = ramp.patterns.copy()
    patterns[20, 400] += 20_000
    assert not alarms_of(ramp.x, patterns, ramp.components)


# --- what is told, and when again ------------------------------------------------------------


def test_an_alarm_says_where_since_when_and_how_much() -> None:
    ramp = Heating(n=40, shares=np.where(np.arange(40) >= 25, 0.03, 0.0))
    (alarm,) = watched(ramp)
    assert (alarm.since, alarm.n_patterns) == (26, 26)
    assert not alarm.from_first and alarm.estimated
    assert alarm.significance > 5
    assert 0.005 < alarm.share < 0.04
    assert 1 <= len(alarm.ranges) <= 5 and alarm.n_places >= len(alarm.ranges)
    where = ramp.hidden > 0.1 * ramp.hidden.max()
    for first, last in alarm.ranges:
        assert where[(ramp.x >= first - 2) & (ramp.x <= last + 2)].any()
    assert np.corrcoef(alarm.residual, ramp.hidden)[0, 1] > 0.8


def test_what_was_there_from_the_first_pattern_on_is_told_at_once_and_once() -> None:
    ramp = Heating(n=80, shares=np.full(80, 0.03))
    (alarm,) = watched(ramp)
    assert alarm.from_first and (alarm.since, alarm.n_patterns) == (1, 1)


def test_what_goes_on_is_told_once_however_much_it_grows() -> None:
    for counts in (500, 50_000):
        assert len(watched(Heating(counts=counts, n=160, begins=20), counted=True)) == 1


def test_what_comes_again_after_it_was_gone_is_told_again() -> None:
    there = np.arange(100)
    share = np.where(((there >= 20) & (there < 45)) | (there >= 80), 0.03, 0.0)
    first, second = watched(Heating(n=100, shares=share))
    assert (first.since, second.since) == (21, 81)
    assert second.n_patterns <= 83


def test_a_second_phase_is_told_of_beside_the_first() -> None:
    k = np.arange(120)
    one = Heating(0, 2000, n=120, shares=np.clip((k - 20) * 0.002, 0, 0.03))
    other = Heating(7, 2000, n=120)
    late = np.clip((k - 70) * 0.002, 0, 0.04)[:, None]
    expected = one.expected * (1 - late) + one.expected.sum(axis=1, keepdims=True) * (
        late * other.hidden
    )
    patterns = np.random.default_rng(1).poisson(expected).astype(float)
    first, second = alarms_of(one.x, patterns, one.components)
    assert first.n_patterns < 35 and 70 < second.n_patterns < 90
    assert np.corrcoef(second.residual, other.hidden)[0, 1] > 0.7


def test_another_model_begins_anew() -> None:
    ramp = Heating(n=80, shares=np.full(80, 0.03))
    watch = Watch(ramp.x)
    half = ramp.patterns[:40], ramp.patterns[40:]
    assert len(alarms_of(ramp.x, half[0], ramp.components, watch=watch)) == 1
    watch.reset()
    (alarm,) = alarms_of(ramp.x, half[1], ramp.components, watch=watch, first=41)
    assert alarm.since == 41 and alarm.or_before and not alarm.from_first
    watch.reset()
    whole = np.vstack([ramp.components, ramp.hidden])
    assert not alarms_of(ramp.x, half[1], whole, watch=watch, first=41)


def test_patterns_that_come_together_are_told_of_as_one_by_one() -> None:
    ramp = Heating(n=60, begins=20)
    (one,), (many,) = watched(ramp, counted=True), watched(ramp, counted=True, together=60)
    assert many.n_patterns == one.n_patterns and many.since == one.since
    np.testing.assert_allclose(many.residual, one.residual, rtol=1e-5, atol=1e-3)


def test_patterns_that_were_passed_are_looked_back_at() -> None:
    """As where they come faster than they can be looked at: since when is told all the same."""
    ramp = Heating(n=45, shares=np.where(np.arange(45) >= 20, 0.03, 0.0))

    (alarm,) = alarms_of(ramp.x, ramp.patterns, ramp.components, together=45, passed=41)

    assert (alarm.since, alarm.n_patterns) == (21, 42)
    assert not alarm.from_first and not alarm.or_before
    assert "since pattern 21:" in tell(alarm, axis="q", units="", step=1.0, known=True)


def test_what_is_in_all_patterns_that_are_remembered_may_have_begun_before() -> None:
    ramp = Heating(n=100, begins=0, shares=np.full(100, 0.03))

    (alarm,) = alarms_of(
        ramp.x, ramp.patterns[32:], ramp.components, first=33, passed=64, together=68
    )

    assert (alarm.since, alarm.n_patterns) == (34, 97)
    assert alarm.or_before and not alarm.from_first
    assert "since pattern 34 or before" in tell(alarm, axis="q", units="", step=1.0, known=True)


def test_what_is_in_the_very_first_patterns_is_told_so_though_they_were_passed() -> None:
    ramp = Heating(n=60, shares=np.full(60, 0.03))

    (alarm,) = alarms_of(ramp.x, ramp.patterns, ramp.components, passed=56, together=60)

    assert alarm.from_first and alarm.since == 1


def test_a_mishap_of_one_pattern_is_told_and_does_not_last() -> None:
    share = np.zeros(40)
    share[25] = 0.1
    ramp = Heating(n=40, shares=share)
    watch = Watch(ramp.x)
    (alarm,) = watched(ramp, watch=watch)
    assert alarm.since == 26 and not watch.lasting
    lasting = Heating(n=40, shares=np.where(np.arange(40) >= 25, 0.03, 0.0))
    watch = Watch(ramp.x)
    watched(lasting, watch=watch)
    (alarm,) = watch.lasting
    assert np.corrcoef(alarm.residual, lasting.hidden)[0, 1] > 0.9


def test_patterns_of_a_few_points_are_not_looked_at() -> None:
    x = np.arange(30.0)
    known = np.ones((1, 30))
    patterns = np.ones((10, 30)) + 5 * np.exp(-((x - 15) ** 2))
    assert not alarms_of(x, patterns, known)


def test_the_covariance_of_what_was_interpolated_is_heeded() -> None:
    ramp = Heating(n=100)
    mix = np.zeros((999, 1000))
    mix[np.arange(999), np.arange(999)] = mix[np.arange(999), np.arange(1, 1000)] = 0.5
    patterns, components = ramp.patterns @ mix.T, ramp.components @ mix.T

    def look(heeded: bool) -> list[Alarm]:
        watch, found = Watch(np.arange(999.0)), []
        for n, (y, pattern) in enumerate(zip(ramp.patterns, patterns, strict=True)):
            spread = mix * np.sqrt(np.maximum(y, 1))
            found += watch.look(
                pattern[None],
                least_squares(pattern[None], components),
                components,
                first=n + 1,
                free=[False] * 3,
                variances=[(spread**2).sum(axis=1)],
                covariance=(lambda v, s=spread: (v @ s) @ (v @ s).T) if heeded else None,
            )
        return found

    assert not look(True)
    assert look(False)


def test_noise_that_is_given_is_freed_of_its_own_fluctuation() -> None:
    rng = np.random.default_rng(0)
    mean = np.full((1, 4000), 6.0)
    counts = rng.poisson(mean).astype(float)
    sigma, _ = Noise().of(counts, mean, [np.maximum(counts[0], 1.0)])
    assert (sigma**2).mean() == pytest.approx(6.0, rel=0.02)
    # That of the counts themselves scatters by their root.
    assert (sigma**2).std() < 0.1 * np.maximum(counts, 1.0).std()
    constant, _ = Noise().of(counts, mean, [np.full(4000, 6.0)])
    np.testing.assert_allclose(constant**2, 6.0, rtol=1e-2)


def test_deviations_are_those_of_a_normal_variable() -> None:
    from scipy.stats import norm

    for z in (4.0, 6.0, 30.0):
        assert deviations(float(norm.logsf(z))) == pytest.approx(z, rel=0.03)


def test_an_alarm_reads_as_a_sentence() -> None:
    alarm = Alarm(((3.1, 3.2),), 1, 2, 12.3, 0.2, from_first=True, estimated=False)
    text = tell(alarm, axis="q", units="", step=0.01, known=True)
    assert text == (
        "from the first pattern on the known phases do not fit within the noise at q 3.10-3.20: "
        "20 % of all, 12.3 σ above the noise"
    )
    assert "the components do not" in tell(alarm, axis="q", units="", step=0.01, known=False)


def test_the_residuals_of_a_fit_are_those_of_the_model() -> None:
    """Whatever weights the fit has found, what components explain is no alarm."""
    ramp = Heating(n=30)
    model = StreamingNMF(
        ramp.points, 3, names=["a", "b", "c"], components=ramp.components, fixed=[True] * 3
    )
    watch = Watch(ramp.x)
    for n, pattern in enumerate(ramp.patterns):
        model.append(pattern)
        model.refit()
        rows = model.rows(n)
        assert not watch.look(
            pattern[None], rows.weights, model.components, first=n + 1, free=[False] * 3
        )


def test_noise_beyond_any_number_of_single_precision_is_kept_without_a_warning() -> None:
    recent = Recent(4)

    recent.add(sigma=np.array([[1e300, 2.0]]), seen=np.array([[True, False]]))

    assert np.isfinite(recent.table("sigma")).all()
    assert recent.table("sigma")[0, 1] == 2.0
    assert recent.table("seen").tolist() == [[1.0, 0.0]]


def test_patterns_without_any_noise_raise_no_alarm_and_no_warning() -> None:
    x = np.arange(2000.0)
    watch = Watch(x)

    for number in range(1, 30):
        flat = np.full((1, 2000), float(number))
        assert watch.look(flat, np.ones((1, 1)), flat, first=number, free=[False]) == []
