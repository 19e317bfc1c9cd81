import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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
