import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bluesky_cmf import Phase
from bluesky_cmf.errors import AxisError, InputError, PatternError
from bluesky_cmf.preprocess import Preprocess

X = np.linspace(0.0, 10.0, 101)
Y = 1 + np.cos(X)


@settings(deadline=None)
@given(hnp.arrays(np.float32, 101, elements=st.floats(0, 2.0**100, width=32)))
def test_without_steps_a_pattern_stays_the_same_to_the_bit(y: np.ndarray) -> None:
    steps = Preprocess()

    assert steps(X, y).tobytes() == y.tobytes()
    assert steps.axis(X).tobytes() == X.tobytes()


def test_a_region_keeps_its_ends_and_cuts_axis_and_pattern_alike() -> None:
    steps = Preprocess(roi=(X[20], X[70]))

    assert np.array_equal(steps.axis(X), X[20:71])
    assert np.array_equal(steps(X, Y), Y[20:71])


@pytest.mark.parametrize("roi", [None, (2.0, 7.0)])
def test_the_maximum_is_one_within_what_is_kept(roi: tuple[float, float] | None) -> None:
    found = Preprocess(roi=roi, normalize="max")(X, 40 * Y)

    kept = Y if roi is None else Y[20:71]
    assert found.max() == 1
    np.testing.assert_allclose(found, kept / kept.max(), rtol=1e-12)


def test_the_area_is_one_over_the_axis_that_is_kept() -> None:
    steps = Preprocess(roi=(2.0, 7.0), normalize="area")

    found = steps(X, 40 * Y)

    kept_x, kept = X[20:71], Y[20:71]
    area = (np.diff(kept_x) * (kept[1:] + kept[:-1]) / 2).sum()
    np.testing.assert_allclose(found, kept / area, rtol=1e-12)


@settings(deadline=None)
@given(st.floats(1e-20, 1e20), st.sampled_from(["max", "area"]))
def test_the_intensity_of_a_pattern_does_not_matter_once_it_is_normalized(
    factor: float, by: Any
) -> None:
    steps = Preprocess(normalize=by)

    np.testing.assert_allclose(steps(X, factor * Y), steps(X, Y), rtol=1e-12)


def test_the_pattern_of_the_caller_is_not_changed() -> None:
    for steps in (Preprocess(), Preprocess(normalize="max"), Preprocess(roi=(1, 9))):
        y = Y.copy()
        steps(X, y)[:] = -1
        assert np.array_equal(y, Y)


def test_a_dark_pattern_cannot_be_normalized() -> None:
    with pytest.raises(PatternError, match="cannot be normalised by its max, which is 0"):
        Preprocess(normalize="max")(X, np.zeros(101))
    with pytest.raises(PatternError, match="cannot be normalised by its area, which is 0"):
        Preprocess(normalize="area")(X, np.zeros(101))
    assert not Preprocess()(X, np.zeros(101)).any()


def test_a_region_outside_the_axis_is_refused() -> None:
    with pytest.raises(
        AxisError, match=r"roi: \(20\.0, 30\.0\) keeps nothing of an axis from 0 to 10"
    ):
        Preprocess(roi=(20, 30)).axis(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi": (3, 1)}, r"roi: expected numbers \(first, last\) with first < last, got \(3, 1\)"),
        ({"roi": (1, 1)}, "roi: expected"),
        ({"roi": (1, 2, 3)}, "roi: expected"),
        ({"roi": (float("nan"), 1)}, "roi: expected"),
        ({"regrid": 0}, "regrid: expected a step above 0, or an axis"),
        ({"regrid": float("nan")}, "regrid: expected a step above 0"),
        ({"regrid": "fine"}, "regrid: expected a step or an axis"),
        ({"regrid": [1.0]}, "regrid: expected a step above 0, or an axis"),
        ({"regrid": [1.0, 3.0, 2.0]}, "regrid: expected an axis that increases throughout"),
        ({"regrid": [[1.0, 3.0]]}, "regrid: expected a step above 0, or an axis"),
        ({"regrid": [1.0, [3.0]]}, "regrid: expected a step or an axis"),
        ({"rebin": 0}, "rebin: expected a whole number, 1 or more, got 0"),
        ({"rebin": 2.5}, "rebin: expected a whole number, 1 or more, got 2.5"),
        ({"rebin": True}, "rebin: expected a whole number"),
        ({"normalize": "monitor"}, "monitor: expected its data key"),
        ({"normalize": "monitor", "monitor": 3}, "monitor: expected a data key, got 3"),
        ({"monitor": "i0"}, "monitor: 'i0' is used with normalize='monitor' alone"),
        ({"normalize": "mean"}, "normalize: expected 'max', 'area', 'monitor' or None, got 'mean'"),
    ],
)
def test_steps_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess(**options)


def test_the_steps_are_told_in_plain_values() -> None:
    steps = Preprocess(roi=(np.float64(1), 20), normalize="max")

    told = {"roi": [1.0, 20.0], "normalize": "max", "negative": "reject"}
    told |= dict.fromkeys(["regrid", "rebin", "background", "monitor"])
    assert json.loads(json.dumps(steps.describe())) == told
    assert Preprocess().describe() == told | {"roi": None, "normalize": None}


def test_steps_with_the_same_values_are_equal() -> None:
    assert Preprocess(roi=(1, 20)) == Preprocess(roi=(1.0, 20.0))
    onto = np.linspace(1, 5, 9)
    assert Preprocess(regrid=onto) == Preprocess(regrid=list(onto))
    assert hash(Preprocess(regrid=onto)) == hash(Preprocess(regrid=list(onto)))


# --- regrid, rebin, monitor ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roi", "first", "last", "points"),
    [(None, 0.0, 10.0, 41), ((2.05, 7.0), 2.05, 6.8, 20), ((-5, 40), 0.0, 10.0, 41)],
)
def test_a_step_makes_an_even_axis_of_what_is_kept(
    roi: Any, first: float, last: float, points: int
) -> None:
    steps = Preprocess(regrid=0.25, roi=roi)
    axis = steps.axis(X)
    np.testing.assert_allclose(axis, first + 0.25 * np.arange(points), rtol=1e-12)
    assert axis[-1] == pytest.approx(last)
    np.testing.assert_allclose(steps(X, Y), np.interp(axis, X, Y), rtol=1e-12)


def test_an_axis_is_taken_as_it_is_within_the_region_that_is_kept() -> None:
    onto = np.sort(np.random.default_rng(0).uniform(0, 10, 50))
    steps = Preprocess(regrid=onto, roi=(1, 9))
    kept = onto[(onto >= 1) & (onto <= 9)]
    assert np.array_equal(steps.axis(X), kept)
    np.testing.assert_allclose(steps(X, Y), np.interp(kept, X, Y), rtol=1e-12)


def test_an_axis_that_the_pattern_does_not_cover_is_refused() -> None:
    with pytest.raises(
        AxisError, match="the pattern covers 0 to 10 but the data's axis is 0 to 11"
    ):
        Preprocess(regrid=np.linspace(0, 11, 30))(X, Y)


@pytest.mark.parametrize(("step", "told"), [(30.0, "makes 1 points"), (1e-9, "makes 1000000001")])
def test_a_step_that_leaves_nothing_or_too_much_is_refused(step: float, told: str) -> None:
    with pytest.raises(AxisError, match=f"regrid: a step of .* {told}"):
        Preprocess(regrid=step).axis(X)


@settings(deadline=None)
@given(st.integers(1, 30))
def test_neighbours_are_averaged_and_what_is_left_over_is_left_out(count: int) -> None:
    steps = Preprocess(rebin=count)
    expected = [
        (np.mean(X[i : i + count]), np.mean(Y[i : i + count]))
        for i in range(0, len(X) - count + 1, count)
    ]
    x, y = np.transpose(expected)
    np.testing.assert_allclose(steps.axis(X), x, rtol=1e-12)
    np.testing.assert_allclose(steps(X, Y), y, rtol=1e-12, atol=1e-12)


def test_counts_of_small_integers_are_averaged_without_wrapping_round() -> None:
    y = np.full(101, 250, dtype=np.uint8)
    assert Preprocess(rebin=4)(X, y).tolist() == [250.0] * 25


def test_more_points_than_there_are_cannot_be_averaged() -> None:
    with pytest.raises(AxisError, match="rebin: 102 points are averaged, and 101 are left"):
        Preprocess(rebin=102).axis(X)


def test_averages_are_taken_of_the_signs_that_were_measured() -> None:
    """Noise about zero averages to zero; set to zero first, it would be left as intensity."""
    y = np.tile([3.0, -3.0], 20)
    found = Preprocess(rebin=2, negative="clip")(np.arange(40.0), y)
    assert not found.any()
    with pytest.raises(PatternError, match="negative intensity at 1 of 20 points"):
        Preprocess(rebin=2)(np.arange(40.0), np.r_[-7.0, y[1:]])


def test_the_monitor_divides_patterns_but_not_phases() -> None:
    steps = Preprocess(normalize="monitor", monitor="i0")
    np.testing.assert_allclose(steps.prepare(X, Y, monitor=50.0).values, Y / 50, rtol=1e-12)
    assert np.array_equal(steps(X, Y), Y)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), None])
def test_a_monitor_that_is_no_positive_number_costs_the_pattern(value: Any) -> None:
    steps = Preprocess(normalize="monitor", monitor="i0")
    told = "missing" if value is None else f"{value:g}"
    with pytest.raises(PatternError, match=f"normalised by the monitor 'i0', which is {told}"):
        steps.prepare(X, Y, monitor=value)


@pytest.mark.parametrize("options", [{}, {"rebin": 3}, {"regrid": 0.31, "normalize": "area"}])
def test_a_pattern_on_another_axis_comes_onto_that_of_the_others(options: dict[str, Any]) -> None:
    steps = Preprocess(**options)
    other = np.linspace(-0.3, 10.4, 260)
    straight = 3 + 2 * other
    found = steps(other, straight, onto=steps.grid(X))
    np.testing.assert_allclose(found, steps(X, 3 + 2 * X), rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_no_number_matters_only_where_it_is_used(bad: float) -> None:
    y = Y.copy()
    y[3] = bad
    for options in ({"roi": (1, 9)}, {"regrid": 0.3, "roi": (1, 9)}, {"rebin": 2, "roi": (0.4, 9)}):
        assert np.isfinite(Preprocess(**options).prepare(X, y).values).all()
    with pytest.raises(PatternError, match="NaN or infinity at 1 of 100 points"):
        Preprocess(rebin=2).prepare(X, y)


ALL_STEPS: list[dict[str, Any]] = [
    {"regrid": 0.2, "rebin": 3, "background": ("snip", {"max_half_window": 4})},
    {"regrid": np.linspace(1, 9, 80), "roi": (2, 8), "background": "modpoly", "normalize": "max"},
    {"rebin": 2, "normalize": "monitor", "monitor": "i0", "negative": "clip"},
    {"normalize": "area", "negative": "offset", "roi": (1, 9)},
]


@pytest.mark.parametrize("options", ALL_STEPS, ids=str)
def test_steps_are_made_again_of_what_is_told_of_them(options: dict[str, Any]) -> None:
    steps = Preprocess(**options)
    told = json.loads(json.dumps(steps.describe()))
    assert Preprocess(**told) == steps and Preprocess(**told).describe() == told
    assert replace(steps, negative="clip").describe() == told | {"negative": "clip"}


@pytest.mark.parametrize("options", ALL_STEPS, ids=str)
@settings(deadline=None, max_examples=10)
@given(st.floats(0.5, 1e4))
def test_data_and_phases_go_through_the_same(options: dict[str, Any], monitor: float) -> None:
    """A pattern that is a phase comes out as the phase does, but for the monitor."""
    steps = Preprocess(**options)
    phase = Phase.from_array("known", X, Y)
    as_phase = steps(X, phase.on(X))
    as_data = steps.prepare(X, Y, monitor=monitor).values
    np.testing.assert_allclose(as_data * (monitor if steps.monitor else 1), as_phase, rtol=1e-12)


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(float, 101, elements=st.floats(0, 1e4)), st.sampled_from(ALL_STEPS))
def test_whatever_comes_out_can_be_factorised(y: np.ndarray, options: dict[str, Any]) -> None:
    steps = Preprocess(**options)
    try:
        values = steps.prepare(X, y, monitor=3.0).values
    except PatternError:
        return
    assert values.shape == steps.axis(X).shape
    assert np.isfinite(values).all() and (values >= 0).all()
