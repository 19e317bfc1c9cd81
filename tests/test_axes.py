"""Axes in the wrong unit: what is refused, what is warned of, and what is left alone."""

import logging
from pathlib import Path

import numpy as np
import pytest

from bluesky_cmf.axes import farthest
from bluesky_cmf.errors import AxisError, InputError
from bluesky_cmf.phases import Phase
from tests.structures import STRUCTURES

LAMBDA = 0.1671


def phase(folder: Path, axis: str, *, wavelength: float | None = LAMBDA) -> Phase:
    path = folder / "silicon.cif"
    path.write_text(STRUCTURES["silicon"])
    width = 0.03
    return Phase.from_cif(path, wavelength=wavelength, axis=axis, width=width)  # type: ignore[arg-type]


TWO_THETA = np.linspace(1.0, 20.0, 2000)
Q = 4 * np.pi * np.sin(np.radians(TWO_THETA) / 2) / LAMBDA


@pytest.mark.parametrize(("axis", "x"), [("two_theta", TWO_THETA), ("q", Q)])
def test_the_right_axis_is_taken_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, axis: str, x: np.ndarray
) -> None:
    assert phase(tmp_path, axis).on(x).max() > 0
    # A narrow window, with one weak line in it, is right as well.
    window = x[(x > x[900]) & (x < x[1100])]
    assert phase(tmp_path, axis).on(window).max() > 0
    assert not caplog.records


@pytest.mark.parametrize(
    ("axis", "x", "wavelength", "looks"),
    [
        ("two_theta", np.radians(TWO_THETA), LAMBDA, "2θ in radians"),
        ("two_theta", np.linspace(0.1, 1.5, 500), 1.54, "2θ in radians"),
        ("two_theta", np.linspace(1.0, 5.5, 900), 1.54, "q in 1/angstrom"),
        ("q", np.linspace(0.05, 0.4, 900), LAMBDA, "2θ in radians"),
        ("q", np.linspace(0.05, 0.4, 900), None, None),
    ],
)
def test_a_range_without_lines_is_refused_and_told_what_it_looks_like(
    tmp_path: Path, axis: str, x: np.ndarray, wavelength: float | None, looks: str | None
) -> None:
    silicon = phase(tmp_path, axis, wavelength=wavelength)
    with pytest.raises(AxisError, match="has no line from") as caught:
        silicon.on(x)
    assert str(caught.value).endswith("" if looks is None else f"; this range looks like {looks}")
    assert ("looks like" in str(caught.value)) == (looks is not None)


def test_q_beyond_what_the_wavelength_reaches_is_refused(tmp_path: Path) -> None:
    degrees = np.linspace(5.0, 50.0, 4000)
    with pytest.raises(AxisError, match=r"q in 1/angstrom, from 0 to 8\.2416, got 5 to 50"):
        phase(tmp_path, "q", wavelength=1.54).on(degrees)
    # All of it, to straight back, can be measured; and no more is asked of a list of lines.
    reach = 4 * np.pi / 1.54
    assert phase(tmp_path, "q", wavelength=1.54).on(np.linspace(1.0, reach, 4000)).max() > 0
    assert phase(tmp_path, "q", wavelength=1.54).reflections(0, 60)[0].max() < reach
    assert farthest("q") == 60 and farthest("two_theta", 1.54) == 180


def test_a_range_of_weak_lines_that_looks_like_another_unit_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # In 1/nm the strong lines of silicon are from 20 to 60; in 1/angstrom only weak ones are.
    silicon = phase(tmp_path, "q", wavelength=None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            silicon.on(np.linspace(15.0, 59.0, 5000))
    (record,) = caplog.records
    assert record.getMessage() == (
        "phase 'silicon' has none of its strong lines from 15 to 59 1/angstrom; "
        "this range looks like q in 1/nm"
    )


@pytest.mark.parametrize("wavelength", [0.0, 0.01671, -1.54, 12.4, 74.2])
def test_wavelengths_of_zero_or_in_nanometres_are_refused(
    tmp_path: Path, wavelength: float
) -> None:
    with pytest.raises(InputError, match=r"wavelength: expected angstrom, from 0\.05 to 5, got"):
        phase(tmp_path, "two_theta", wavelength=wavelength)
