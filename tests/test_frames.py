"""Frames integrated as pyFAI integrates them, and what is doubtful about them refused by name."""

import json
import sys
from pathlib import Path
from typing import Any

import fabio
import numpy as np
import pytest
from pyFAI.detectors import Detector, detector_factory
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from bluesky_cmf import Integrator
from bluesky_cmf.errors import InputError, MissingExtraError, PatternError

ROWS, COLUMNS = 96, 80
SHAPE = (ROWS, COLUMNS)
PIXEL = 200e-6
DISTANCE = 0.05
#: Where the beam hits the detector, in pixels.
CENTRE = (40.0, 30.0)
WAVELENGTH = 0.2e-10


def geometry(*, shape: tuple[int, int] | None = SHAPE, wavelength: Any = WAVELENGTH) -> Any:
    return AzimuthalIntegrator(
        dist=DISTANCE,
        poni1=CENTRE[0] * PIXEL,
        poni2=CENTRE[1] * PIXEL,
        detector=Detector(PIXEL, PIXEL, max_shape=shape),
        wavelength=wavelength,
    )


def radius() -> np.ndarray:
    """Distance of each pixel's middle from the beam, in metres."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS] + 0.5
    return np.hypot(rows - CENTRE[0], columns - CENTRE[1]) * PIXEL


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(1).poisson(100, SHAPE).astype(np.uint16)


@pytest.fixture
def mask() -> np.ndarray:
    """A beamstop, its arm and a dead corner: no bin of the pattern lies within one of them."""
    masked = radius() < 5 * PIXEL
    masked[40:43, 30:] = True
    masked[:10, :10] = True
    return masked


@pytest.fixture
def poni(tmp_path: Path) -> Path:
    path = tmp_path / "geometry.poni"
    geometry().save(str(path))
    return path


@pytest.mark.parametrize("unit", ["2th_deg", "2th_rad", "q_A^-1", "q_nm^-1", "r_mm", "d*2_A^-2"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["u2", ">i4", "f4", "f8"])
def test_a_frame_is_integrated_as_pyfai_does_it_to_the_bit(
    poni: Path, frame: np.ndarray, mask: np.ndarray, unit: str, masked: bool, dtype: str
) -> None:
    frame, mask_or_none = frame.astype(dtype), mask if masked else None
    options = {"method": ("full", "csr", "cython"), "polarization_factor": 0.95}

    x, y = Integrator(poni, mask=mask_or_none, n_points=60, unit=unit, **options)(frame)

    expected = geometry().integrate1d(frame, 60, mask=mask_or_none, unit=unit, **options)
    assert x.tobytes() == expected.radial.tobytes()
    assert y.tobytes() == expected.intensity.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"correctSolidAngle": False},
        {"radial_range": (2.0, 8.0), "azimuth_range": (-60, 100)},
        {"normalization_factor": 7.0},
        {"method": ("no", "histogram", "cython")},
        {"method": "csr", "error_model": "poisson"},
    ],
)
def test_options_reach_pyfai_as_they_are(
    poni: Path, frame: np.ndarray, options: dict[str, Any]
) -> None:
    dark, flat = np.full(SHAPE, 3.0), np.linspace(0.5, 1.5, frame.size).reshape(SHAPE)

    x, y = Integrator(poni, n_points=30, dark=dark, flat=flat, **options)(frame)

    direct = {"method": ("bbox", "csc", "cython"), "unit": "2th_deg", "dark": dark, "flat": flat}
    expected = geometry().integrate1d(frame, 30, **(direct | options))
    assert x.tobytes() == expected.radial.tobytes()
    assert y.tobytes() == expected.intensity.tobytes()


def test_a_ring_comes_out_at_the_angle_that_its_radius_and_distance_make(poni: Path) -> None:
    ring = 27.0 * PIXEL
    frame = np.exp(-(((radius() - ring) / PIXEL) ** 2))

    integrator = Integrator(poni, n_points=90)
    two_theta, y = integrator(frame)
    q, y_q = Integrator(poni, n_points=90, unit="q_A^-1")(frame)

    angle = np.arctan(ring / DISTANCE)
    step = two_theta[1] - two_theta[0]
    assert np.average(two_theta, weights=y) == pytest.approx(np.degrees(angle), abs=step / 4)
    assert (integrator.name, integrator.units) == ("two_theta", "deg")
    length = 4 * np.pi * np.sin(angle / 2) / (WAVELENGTH * 1e10)
    assert np.average(q, weights=y_q) == pytest.approx(length, abs=(q[1] - q[0]) / 4)


@pytest.mark.parametrize(
    ("unit", "name", "units"),
    [
        ("2th_deg", "two_theta", "deg"),
        ("2th_rad", "two_theta", "rad"),
        ("q_A^-1", "q", "1/angstrom"),
        ("q_nm^-1", "q", "1/nm"),
        ("d*2_nm^-2", "d_star_squared", "1/nm^2"),
        ("r_mm", "radius", "mm"),
    ],
)
def test_the_axis_has_the_fields_name_and_unit(unit: str, name: str, units: str) -> None:
    integrator = Integrator(geometry(), unit=unit)
    assert (integrator.name, integrator.units) == (name, units)


def test_an_object_is_taken_as_it_is_now_and_is_left_alone(frame: np.ndarray) -> None:
    ai = geometry()
    integrator = Integrator(ai, n_points=50)
    before = integrator(frame)
    assert not ai.engines

    ai.dist = 2 * DISTANCE

    for found, expected in zip(integrator(frame), before, strict=True):
        assert found.tobytes() == expected.tobytes()


def test_every_frame_has_the_same_axis_which_nobody_can_change(
    poni: Path, frame: np.ndarray
) -> None:
    integrator = Integrator(poni, n_points=50)
    x, y = integrator(frame)
    again, other = integrator(np.asfortranarray(frame[::-1].astype(float)))
    assert again is x
    assert not np.array_equal(y, other)
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 0.0


@pytest.mark.parametrize("kind", ["array", ".npy", ".npz", ".edf", ".tif"])
def test_a_mask_comes_from_an_array_or_a_file(
    tmp_path: Path, poni: Path, frame: np.ndarray, mask: np.ndarray, kind: str
) -> None:
    given: Any = mask.astype(float) * 0.3 if kind == "array" else tmp_path / f"mask{kind}"
    if kind == ".npy":
        np.save(given, mask)
    elif kind == ".npz":
        np.savez(given, other=np.zeros(3), mask=mask)
    elif kind == ".edf":
        fabio.edfimage.edfimage(data=mask.astype(np.uint8)).write(str(given))
    elif kind == ".tif":
        fabio.tifimage.tifimage(data=mask.astype(np.uint8)).write(str(given))

    integrator = Integrator(poni, mask=given, n_points=60)

    expected = Integrator(poni, mask=mask, n_points=60)(frame)
    for found, other in zip(integrator(frame), expected, strict=True):
        assert found.tobytes() == other.tobytes()
    assert integrator.describe()["mask"]["file"] == (None if kind == "array" else str(given))


def test_a_change_of_the_callers_mask_changes_nothing(
    poni: Path, frame: np.ndarray, mask: np.ndarray
) -> None:
    integrator = Integrator(poni, mask=mask, n_points=60)
    before = integrator(frame)[1]
    mask[:] = True
    assert integrator(frame)[1].tobytes() == before.tobytes()


def test_masked_pixels_count_for_nothing(poni: Path, frame: np.ndarray, mask: np.ndarray) -> None:
    integrator = Integrator(poni, mask=mask, n_points=60)
    before = integrator(frame)[1]
    frame[mask] = 60_000
    assert integrator(frame)[1].tobytes() == before.tobytes()


def test_bins_that_no_pixel_can_reach_are_not_on_the_axis(poni: Path, frame: np.ndarray) -> None:
    hidden = (radius() > 20 * PIXEL) & (radius() < 26 * PIXEL)
    options: dict[str, Any] = {"radial_range": (-3.0, 60.0)}

    x, y = Integrator(poni, mask=hidden, n_points=400, **options)(frame)

    direct = geometry().integrate1d(
        frame, 400, unit="2th_deg", mask=hidden, method=("bbox", "csc", "cython"), **options
    )
    reached = direct.count > 0
    assert x.tobytes() == direct.radial[reached].tobytes()
    assert y.tobytes() == direct.intensity[reached].tobytes()
    assert len(x) < 400 and (y > 50).all()
    gap = np.degrees(np.arctan(np.array([20, 26]) * PIXEL / DISTANCE))
    assert not ((x > gap[0] + 0.2) & (x < gap[1] - 0.2)).any()
    assert x[0] > 0 and x[-1] < np.degrees(np.arctan(radius().max() / DISTANCE)) + 0.3


@pytest.mark.parametrize("method", [("bbox", "csc", "cython"), ("full", "histogram", "cython")])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_left_out_of_their_frame(
    poni: Path, frame: np.ndarray, bad: float, method: tuple[str, str, str]
) -> None:
    spots = np.zeros(SHAPE, dtype=bool)
    spots[60:70, 50:60] = True
    broken = np.where(spots, bad, frame)
    integrator = Integrator(poni, n_points=40, method=method)

    x, y = integrator(broken)

    # The sparse matrix differs where the mask is in it, so it is equal but for rounding.
    masked = Integrator(poni, mask=spots, n_points=40, method=method)
    np.testing.assert_allclose(y, masked(frame)[1], rtol=1e-5)
    expected = integrator(frame)[1]
    assert y.tobytes() != expected.tobytes()
    assert integrator(frame)[0] is x


def test_a_dummy_value_is_left_out_of_its_frame(poni: Path, frame: np.ndarray) -> None:
    broken = frame.astype(float)
    broken[60:70, 50:60] = -5
    marked = np.where(broken == -5, np.nan, broken)

    y = Integrator(poni, n_points=40, dummy=-5)(broken)[1]

    assert y.tobytes() == Integrator(poni, n_points=40)(marked)[1].tobytes()


def test_a_bin_without_a_valid_pixel_refuses_the_frame(poni: Path, frame: np.ndarray) -> None:
    integrator = Integrator(poni, n_points=40)
    ring = (radius() > 15 * PIXEL) & (radius() < 22 * PIXEL)
    y = integrator(frame)[1]
    with pytest.raises(PatternError, match=r"of 40 bins have no valid pixel in it, the first at"):
        integrator(np.where(ring, np.nan, frame))
    with pytest.raises(PatternError, match="40 of 40 bins have no valid pixel"):
        integrator(np.full(SHAPE, np.nan))
    with pytest.raises(PatternError, match="no valid pixel"):
        integrator(np.where(radius() < 3 * PIXEL, 1e300, frame))
    assert integrator(frame)[1].tobytes() == y.tobytes()


def test_a_detector_that_pyfai_knows_brings_its_own_mask() -> None:
    ai = AzimuthalIntegrator(
        dist=0.1, poni1=0.015, poni2=0.04, detector=detector_factory("Pilatus100k")
    )
    frame = np.ones(ai.detector.shape, dtype=np.int32)
    frame[ai.detector.mask != 0] = -2
    x, y = Integrator(ai, n_points=200)(frame)
    assert (np.diff(x) > 0).all()
    assert y.min() > 0.5


def test_a_detector_of_unknown_size_takes_the_first_frames_shape(
    tmp_path: Path, frame: np.ndarray
) -> None:
    path = tmp_path / "old.poni"
    path.write_text(
        f"PixelSize1: {PIXEL}\nPixelSize2: {PIXEL}\nDistance: {DISTANCE}\n"
        f"Poni1: {CENTRE[0] * PIXEL}\nPoni2: {CENTRE[1] * PIXEL}\nRot1: 0\nRot2: 0\nRot3: 0\n"
    )
    integrator = Integrator(path, n_points=60)

    x, y = integrator(frame)

    expected = Integrator(geometry(), n_points=60)(frame)
    assert (x.tobytes(), y.tobytes()) == (expected[0].tobytes(), expected[1].tobytes())
    with pytest.raises(PatternError, match=r"frame: expected shape \(96, 80\), got \(80, 96\)"):
        integrator(frame.T)
    assert integrator(frame)[1].tobytes() == y.tobytes()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((80, 96)), r"frame: expected shape \(96, 80\), got \(80, 96\)"),
        (np.zeros((1, 96, 80)), r"shape \(rows, columns\), got float64 of shape \(1, 96, 80\)"),
        (np.zeros(96 * 80), r"got float64 of shape \(7680,\)"),
        (np.zeros(SHAPE, dtype=complex), "got complex128"),
        ([["a"]], "got <U1"),
    ],
)
def test_what_is_no_frame_of_the_detector_is_refused(poni: Path, bad: Any, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        Integrator(poni)(bad)


def test_the_description_is_plain_and_tells_what_was_done(
    poni: Path, frame: np.ndarray, mask: np.ndarray
) -> None:
    integrator = Integrator(
        poni, mask=mask, n_points=np.int64(60), unit="q_A^-1", radial_range=(np.float32(1), 5)
    )
    found = integrator.describe()

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["poni_file"] == str(poni)
    assert found["geometry"]["dist"] == DISTANCE
    assert found["geometry"]["wavelength"] == WAVELENGTH
    assert (found["unit"], found["n_points"]) == ("q_A^-1", 60)
    assert found["options"] == {"method": ["bbox", "csc", "cython"], "radial_range": [1.0, 5]}
    assert found["mask"]["shape"] == list(SHAPE) and len(found["mask"]["sha256"]) == 64
    assert found["dark"] is None and found["flat"] is None
    mask[0, 40] = True
    assert Integrator(poni, mask=mask).describe()["mask"]["sha256"] != found["mask"]["sha256"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "tth"}, "unit: expected one of 2th_deg, .*, got 'tth'"),
        ({"n_points": 1}, "n_points: expected a whole number, 2 or more, got 1"),
        ({"n_points": 10.5}, r"n_points: .* got 10\.5"),
        ({"mask": np.zeros((3, 4))}, r"mask: .* the detector of poni, \(96, 80\), got \(3, 4\)"),
        ({"flat": np.zeros((3, 4))}, r"flat: expected the shape .* got \(3, 4\)"),
        ({"mask": np.zeros(5)}, r"mask: expected numbers of shape \(rows, columns\)"),
        ({"mask": "nowhere.npy"}, r"mask: no such file: nowhere\.npy"),
        ({"mask": "nowhere.edf"}, r"mask: no such file: nowhere\.edf"),
        ({"mask": np.ones(SHAPE)}, "mask, options: no pixel is left in any bin"),
        ({"radial_range": (70.0, 80.0)}, "no pixel is left in any bin"),
        ({"radial_range": "wide"}, "pyFAI cannot integrate a frame of shape"),
        ({"method": ("zigzag", "csr", "cython")}, "method: pyFAI cannot use .*zigzag"),
        ({"polarisation": 0.9}, r"options: expected some of .* got \['polarisation'\]"),
        ({"filename": "out.xy"}, r"options: expected some of .* got \['filename'\]"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(
    poni: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Integrator(poni, **options)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".edf"])
def test_a_file_that_is_no_mask_is_refused(tmp_path: Path, poni: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    path.write_text("not an image")
    with pytest.raises(InputError, match="mask: cannot be read as an image"):
        Integrator(poni, mask=path)


@pytest.mark.parametrize("text", ["", "nothing: here\n", "Distance: 0.1\nPoni1: 0.1\n", "{}"])
def test_a_file_that_is_no_geometry_is_refused_rather_than_guessed(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "a.poni"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.poni is not a \.poni file: it does not give"):
        Integrator(path)


def test_a_geometry_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"poni: no such file: .*nowhere\.poni"):
        Integrator(tmp_path / "nowhere.poni")
    path = tmp_path / "a.poni"
    path.write_bytes(b"\x7fELF\xd0\xff")
    with pytest.raises(InputError, match=r"a\.poni cannot be read as a \.poni file"):
        Integrator(path)
    path.write_text("Distance: 0.1\nPoni1: 0.1\nPoni2: 0.1\n")
    with pytest.raises(InputError, match="neither a detector nor the size of its pixels"):
        Integrator(path)
    with pytest.raises(InputError, match=r"poni: expected a path or a pyFAI .*, got dict"):
        Integrator({"dist": 0.1})


@pytest.mark.parametrize("unit", ["q_A^-1", "q_nm^-1", "d*2_A^-2"])
def test_a_unit_that_needs_a_wavelength_is_refused_without_one(unit: str) -> None:
    without = AzimuthalIntegrator(dist=0.1, detector=Detector(PIXEL, PIXEL, max_shape=SHAPE))
    with pytest.raises(InputError, match="needs a wavelength, and the geometry of poni has none"):
        Integrator(without, unit=unit)
    assert Integrator(without, unit="2th_deg").name == "two_theta"


def test_without_pyfai_it_says_what_to_install(poni: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pyFAI"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyFAI", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bluesky-cmf\[frames\]'"):
        Integrator(poni)


@pytest.mark.parametrize("method", [("bbox", "csc", "cython"), ("full", "csr", "cython")])
def test_variance_comes_beside_the_same_intensities_as_pyfai_has_it(
    poni: Path, frame: np.ndarray, mask: np.ndarray, method: tuple[str, str, str]
) -> None:
    integrator = Integrator(poni, mask=mask, n_points=60, method=method)

    x, y, variance = integrator.with_variance(frame)

    assert (x.tobytes(), y.tobytes()) == tuple(part.tobytes() for part in integrator(frame))
    reference = geometry().integrate1d(
        frame, 60, mask=mask, unit="2th_deg", method=method, error_model="poisson"
    )
    assert np.array_equal(variance, reference.sigma.astype(float) ** 2)
    assert variance.dtype == float and (variance > 0).all()


def test_an_error_model_of_the_users_own_is_taken(poni: Path, frame: np.ndarray) -> None:
    own = Integrator(poni, n_points=40, error_model="azimuthal")
    reference = geometry().integrate1d(
        frame,
        40,
        unit="2th_deg",
        method=("bbox", "csc", "cython"),
        error_model="azimuthal",
    )
    assert np.array_equal(own.with_variance(frame)[2], reference.sigma.astype(float) ** 2)
    with pytest.raises(PatternError, match="no variance with the option error_model='no'"):
        Integrator(poni, n_points=40, error_model="no").with_variance(frame)
