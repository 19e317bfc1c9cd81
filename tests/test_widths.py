import math
from pathlib import Path

import numpy as np
import pytest

from bluesky_cmf.errors import AxisError, InputError
from bluesky_cmf.phases import Phase
from bluesky_cmf.profiles import Width, gaussian_and_lorentzian
from bluesky_cmf.widths import fit_width, instrument_width
from tests.conftest import Ramp
from tests.structures import STRUCTURES, written

X = np.arange(2.0, 12.0, 0.008)
NAMES = ("rutile", "corundum", "silicon")


@pytest.fixture
def phases(tmp_path: Path) -> list[Phase]:
    return [
        Phase.from_cif(written(tmp_path, STRUCTURES[name], f"{name}.cif"), wavelength=0.1671)
        for name in NAMES
    ]


def simulated(
    phases: list[Phase], width: Width, shares: np.ndarray, *, counts: float = 5000.0
) -> np.ndarray:
    """Patterns with counting noise, on a background that falls with the angle."""
    shapes = np.array([phase.with_width(width).on(X) for phase in phases])
    shapes /= shapes.max(axis=1, keepdims=True)
    ideal = counts * (shares @ shapes + 0.2 - 0.01 * X)
    return np.random.default_rng(7).poisson(ideal).astype(float)


# --- profiles -------------------------------------------------------------------------------


def test_profiles_have_unit_area_and_the_width_asked_for() -> None:
    x = np.arange(-200.0, 200.0, 0.01)
    one = np.ones(1)

    for shape, missing in zip(
        gaussian_and_lorentzian(x, 0 * one, one, 0.5 * one), (0.0, 0.5 / 200 / math.pi), strict=True
    ):
        assert shape.sum() * 0.01 == pytest.approx(1 - missing, abs=1e-5)
        assert np.ptp(x[shape >= shape.max() / 2]) == pytest.approx(0.5, abs=0.011)


def test_many_lines_are_the_sum_of_each() -> None:
    rng = np.random.default_rng(3)
    places, areas, widths = np.sort(rng.uniform(2, 12, 300)), rng.random(300), np.full(300, 0.05)

    together = gaussian_and_lorentzian(X, places, areas, widths)

    apart = np.array(
        [
            gaussian_and_lorentzian(X, *(values[n : n + 1] for values in (places, areas, widths)))
            for n in range(300)
        ]
    ).sum(axis=0)
    np.testing.assert_allclose(together, apart, atol=1e-12 * np.max(apart))


# --- the fit --------------------------------------------------------------------------------


@pytest.mark.parametrize(("fwhm", "eta"), [(0.02, 0.5), (0.03, 0.2), (0.045, 0.9), (0.1, 0.0)])
def test_the_width_of_simulated_patterns_is_found(
    phases: list[Phase], fwhm: float, eta: float
) -> None:
    shares = np.array([[1.0, 0.0, 0.3], [0.6, 0.4, 0.1], [0.2, 0.8, 0.0]])
    patterns = simulated(phases, Width(0, 0, fwhm**2, eta), shares)

    found = fit_width(phases, X, patterns)

    assert found.u == found.v == 0
    assert math.sqrt(found.w) == pytest.approx(fwhm, rel=0.05)
    assert found.eta == pytest.approx(eta, abs=0.1)


def test_the_first_lines_are_broadened_least_by_cells_that_are_a_little_off(
    phases: list[Phase],
) -> None:
    shares = np.array([[1.0, 0.5, 0.2]])
    patterns = simulated(phases, Width(0, 0, 0.03**2, 0.4), shares, counts=20000.0)
    # All lines at other places, as at another temperature.
    sines = np.sin(np.radians(X) / 2) * 1.001
    stretched = np.interp(np.degrees(2 * np.arcsin(sines)), X, patterns[0])

    everywhere = fit_width(phases, X, stretched)
    found = instrument_width(phases, X, stretched)

    assert math.sqrt(found.w) == pytest.approx(0.03, rel=0.1)
    assert found.w < 0.95 * everywhere.w


def test_a_width_is_taken_of_more_lines_where_the_first_do_not_settle_it(
    phases: list[Phase],
) -> None:
    shares = np.array([[0.0, 0.0, 1.0]])
    patterns = simulated(phases, Width(0, 0, 0.03**2, 0.4), shares, counts=1000.0)

    found = instrument_width(phases, X, patterns)

    assert math.sqrt(found.w) == pytest.approx(0.03, rel=0.1)


def test_one_pattern_beside_a_measured_phase_settles_the_width(phases: list[Phase]) -> None:
    measured = Phase.from_array("hump", X, np.exp(-(((X - 5) / 2) ** 2)))
    pattern = simulated(phases[:1], Width.of(0.03), np.ones((1, 1)))[0] + 800 * measured.y

    found = fit_width([phases[0], measured], X, pattern)

    assert math.sqrt(found.w) == pytest.approx(0.03, rel=0.05)


def test_the_width_of_barium_titanate_is_found_in_its_first_lines(batio3: Ramp) -> None:
    folder = batio3.path.parent
    phases = [
        Phase.from_cif(folder / f"{name}.cif", wavelength=batio3.wavelength)
        for name in ("rhomb", "ortho", "tetra", "cubic")
    ]
    x = batio3.two_theta
    low = (x > 2) & (x < 5)

    found = fit_width(phases, x[low], batio3.intensity[:5, low])

    assert 0.028 < math.sqrt(found.w) < 0.033


def test_a_phase_without_a_width_says_what_to_do_until_it_has_one(phases: list[Phase]) -> None:
    phase = phases[0]
    assert phase.needs_width

    with pytest.raises(
        InputError, match=r"phase 'rutile': its lines have no width yet .*fit_width"
    ):
        phase.on(X)

    fitted = phase.with_width(0.03)
    assert not fitted.needs_width
    assert phase.needs_width
    assert (fitted.name, fitted.origin) == (phase.name, phase.origin)
    assert fitted.on(X).shape == X.shape


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_patterns_without_the_phases_do_not_settle_the_width(
    phases: list[Phase], noise: float
) -> None:
    flat = np.random.default_rng(1).normal(100, noise, (2, len(X)))

    for patterns in (flat, 0 * flat):
        with pytest.raises(InputError, match="patterns: expected patterns with lines of these"):
            fit_width(phases, X, patterns)


def test_lines_wider_than_can_be_do_not_settle_the_width(phases: list[Phase]) -> None:
    wide = simulated(phases[:1], Width.of(1.5), np.ones((1, 1)))

    with pytest.raises(InputError, match=r"0\.008 and 0\.3 degrees wide, .* toward the wide end"):
        fit_width(phases[:1], X, wide)


def test_what_cannot_be_fitted_is_refused_by_name(phases: list[Phase]) -> None:
    y = np.ones(len(X))
    for values, x, message in (
        (y[:-1], X, r"patterns: expected shape \(M, F\) as the axis"),
        (np.full(len(X), np.nan), X, r"patterns: expected finite numbers"),
        (np.ones((0, len(X))), X, r"patterns: expected finite numbers"),
    ):
        with pytest.raises(InputError, match=message):
            fit_width(phases, x, values)
    with pytest.raises(AxisError, match="x: expected an axis"):
        fit_width(phases, X[::-1], y)
    with pytest.raises(
        AxisError, match=r"phase 'rutile': expected an axis of two_theta in degrees"
    ):
        fit_width(phases, X + 175, y)
    with pytest.raises(InputError, match="phases: expected at least one phase from a CIF"):
        fit_width([Phase.from_array("a", X, y)], X, y)


def test_phases_on_two_axes_have_no_common_width(tmp_path: Path, phases: list[Phase]) -> None:
    on_q = Phase.from_cif(written(tmp_path, STRUCTURES["rutile"]), axis="q")

    with pytest.raises(InputError, match="phases: expected one axis and one wavelength, got"):
        fit_width([phases[0], on_q], X, np.ones(len(X)))
