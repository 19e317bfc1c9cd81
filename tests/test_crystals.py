import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_cmf.cifs import read_crystal
from bluesky_cmf.crystals import powder_reflections
from bluesky_cmf.errors import AxisError, InputError
from bluesky_cmf.phases import Phase
from bluesky_cmf.profiles import Width
from tests.conftest import DATA
from tests.structures import STRUCTURES, cif, written

BATIO3 = ("rhomb", "ortho", "tetra", "cubic")
#: pymatgen adds up lines closer than this, in degrees, and gives the first one's place.
TOGETHER = 1e-5
X = np.arange(1.0, 25.0, 0.005)


#: Space groups that pymatgen does not find by their names: their numbers in spglib.
IN_SPGLIB = {"F d -3 m:2": 526, "R -3 m": 459, "P 21/c": 81}


def spelt_out(text: str) -> str:
    """A CIF with the operators of its space group, as spglib has them, where pymatgen needs it."""
    import spglib
    from pymatgen.core.operations import SymmOp

    for name, number in IN_SPGLIB.items():
        if f"'{name}'" in text:
            group = spglib.get_symmetry_from_database(number)
            pairs = zip(group["rotations"], group["translations"], strict=True)
            operators = [SymmOp.from_rotation_and_translation(*pair).as_xyz_str() for pair in pairs]
            listed = "\n".join(f"'{operator}'" for operator in operators)
            return text + f"\nloop_\n_space_group_symop_operation_xyz\n{listed}\n"
    return text


def pymatgen_lines(path: Path, wavelength: float, top: float) -> tuple[np.ndarray, np.ndarray]:
    from pymatgen.analysis.diffraction.xrd import XRDCalculator
    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = spelt_out(path.read_text(encoding="utf-8"))
        structure = CifParser.from_str(text).parse_structures(primitive=False)[0]
        pattern = XRDCalculator(wavelength).get_pattern(structure, two_theta_range=(1.0, top))
    return np.asarray(pattern.x), np.asarray(pattern.y)


def compare(path: Path, wavelength: float, top: float) -> tuple[float, float]:
    """Largest deviation of a place in degrees, and of an intensity, from pymatgen's."""
    phase = Phase.from_cif(path, wavelength=wavelength, displacement=False)
    places, intensities = phase.reflections(1.0, top)
    wanted, heights = pymatgen_lines(path, wavelength, top)
    nearest = np.abs(wanted - places[:, None]).argmin(axis=1)
    apart = np.abs(wanted[nearest] - places)
    # Lines of next to no intensity are there in one list only.
    assert intensities[apart > 2 * TOGETHER].max(initial=0.0) < 0.01
    assert np.abs(wanted[:, None] - places)[heights > 0.01].min(axis=1).max() < 1e-3
    total = np.bincount(nearest, np.where(apart <= 2 * TOGETHER, intensities, 0), len(wanted))
    total *= 100 / total.max()
    return float(apart[intensities > 0.01].max()), float(np.abs(total - heights).max())


@pytest.mark.parametrize("wavelength", [0.1671, 1.54184])
@pytest.mark.parametrize("name", STRUCTURES)
def test_lines_are_those_of_pymatgen(tmp_path: Path, name: str, wavelength: float) -> None:
    path = written(tmp_path, STRUCTURES[name])

    place, intensity = compare(path, wavelength, top=12.0 if wavelength < 1 else 120.0)

    assert place < 1e-3
    assert intensity < 2.0


@pytest.mark.parametrize("name", BATIO3)
def test_lines_of_barium_titanate_are_those_of_pymatgen(name: str) -> None:
    path = DATA / "batio3" / f"{name}.cif"
    if not path.exists():
        pytest.skip(f"real data are not here: {path}")

    place, intensity = compare(path, 0.1671, top=25.0)

    assert place < 1e-3
    assert intensity < 2.0


# --- what the symmetry does -----------------------------------------------------------------


def test_the_symmetry_of_a_crystal_does_not_change_its_lines(tmp_path: Path) -> None:
    # The same atoms as a name, as operators, and one by one.
    atoms = ["Zn Zn 0.3333 0.6667 0 1", "O O 0.3333 0.6667 0.3821 1"]
    turned = ["Zn2 Zn 0.6667 0.3333 0.5 1", "O2 O 0.6667 0.3333 0.8821 1"]
    cell = "3.2498 3.2498 5.2066 90 90 120"
    named = written(tmp_path, cif(cell, atoms, group="P 63 m c"), "named.cif")
    spelt = written(tmp_path, cif(cell, atoms + turned, group="P 1"), "spelt.cif")

    found, again = (
        Phase.from_cif(path, wavelength=1.54).reflections(20.0, 100.0) for path in (named, spelt)
    )

    strong, same = (intensities > 1e-3 for _, intensities in (found, again))
    np.testing.assert_allclose(found[0][strong], again[0][same], atol=1e-9)
    np.testing.assert_allclose(found[1][strong], again[1][same], atol=0.05)


def test_lines_that_centring_forbids_are_left_out(tmp_path: Path) -> None:
    crystal = read_crystal(written(tmp_path, STRUCTURES["rock salt"]))

    inverse, _ = powder_reflections(crystal, 0.0, math.sqrt(12.5) / 5.6402)

    assert np.round((inverse * 5.6402) ** 2, 6).tolist() == [3, 4, 8, 11, 12]


def test_the_strength_of_a_line_is_its_multiplicity_times_the_structure_factor(
    tmp_path: Path,
) -> None:
    # One atom in a primitive cube: F is the form factor; 8 reflections (111), 6 (200).
    text = cif("4 4 4 90 90 90", ["Po Po 0 0 0 1"], group="P m -3 m")
    crystal = read_crystal(written(tmp_path, text))

    inverse, strengths = powder_reflections(crystal, 0.4, 0.51)

    factors = np.abs(crystal.structure_factors(np.array([[1, 1, 1], [2, 0, 0]])))
    np.testing.assert_allclose(inverse, [math.sqrt(3) / 4, 0.5])
    np.testing.assert_allclose(strengths, [8, 6] * factors**2)
    assert 50 < factors[1] < factors[0] < 84


def test_a_cell_that_is_a_little_off_its_symmetry_has_its_lines_apart(tmp_path: Path) -> None:
    text = cif("4.00 4.01 4.00 90 90 90", ["Po Po 0 0 0 1"], group="P m -3 m")

    places, intensities = Phase.from_cif(
        written(tmp_path, text), axis="q", displacement=False
    ).reflections(1.5, 1.6)

    np.testing.assert_allclose(places, 2 * np.pi / np.array([4.01, 4.00]), rtol=1e-12)
    np.testing.assert_allclose(intensities, [50, 100], rtol=0.01)


def test_a_split_site_is_split_and_a_rounded_special_position_is_one_atom(tmp_path: Path) -> None:
    # Eight places for one titanium, 0.07 Å from the centre, and a third that is written 0.333.
    split = cif("4 4 4 90 90 90", ["Ti Ti 0.51 0.51 0.51 0.125"], group="P m -3 m")
    rounded = cif("9 9 5 90 90 120", ["Zn Zn 0.333 0.667 0 1"], group="P 6/m m m")

    amounts = [
        read_crystal(written(tmp_path, text)).structure_factors(np.array([[0, 0, 0]]))[0].real
        for text in (split, rounded)
    ]

    assert amounts[0] == pytest.approx(22, abs=0.1)
    assert amounts[1] == pytest.approx(2 * 30, abs=0.1)


# --- displacements --------------------------------------------------------------------------

ISO = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "U_iso_or_equiv")
ANISO = """loop_
_atom_site_aniso_label
_atom_site_aniso_{0}_11
_atom_site_aniso_{0}_22
_atom_site_aniso_{0}_33
_atom_site_aniso_{0}_12
_atom_site_aniso_{0}_13
_atom_site_aniso_{0}_23
Zn {1} {1} {2} {3} 0 0
"""
HEXAGONAL = "3.2 3.2 5.2 90 90 120"


def damping(path: Path, hkl: list[int]) -> float:
    moving, still = (read_crystal(path, displacement=on) for on in (True, False))
    h = np.array([hkl])
    return float((moving.structure_factors(h) / still.structure_factors(h))[0].real)


def test_isotropic_displacements_damp_the_lines(tmp_path: Path) -> None:
    u = cif("4 4 4 90 90 90", ["Po Po 0 0 0 0.02"], group="P m -3 m", columns=ISO)
    b = u.replace("U_iso", "B_iso").replace("0.02", str(0.02 * 8 * math.pi**2))

    for text in (u, b):
        found = damping(written(tmp_path, text), [2, 1, 0])
        assert found == pytest.approx(math.exp(-8 * math.pi**2 * 0.02 * 5 / 16 / 4), rel=1e-6)


@pytest.mark.parametrize("kind", ["U", "B"])
def test_anisotropic_displacements_damp_each_direction_by_itself(tmp_path: Path, kind: str) -> None:
    unit = 1.0 if kind == "U" else 8 * math.pi**2
    aniso = ANISO.format(kind, 0.01 * unit, 0.03 * unit, 0.005 * unit)
    text = cif(HEXAGONAL, ["Zn Zn 0 0 0 1"], group="P 6/m m m", more=aniso)
    path = written(tmp_path, text)

    along = damping(path, [0, 0, 2])
    across = [damping(path, hkl) for hkl in ([1, 0, 0], [0, 1, 0], [1, -1, 0])]

    assert along == pytest.approx(math.exp(-2 * math.pi**2 * 0.03 * 4 / 5.2**2), rel=1e-6)
    d2 = 3.2**2 * 0.75
    np.testing.assert_allclose(across, math.exp(-2 * math.pi**2 * 0.01 / d2), rtol=1e-6)


def test_anisotropic_displacements_turn_with_the_atom(tmp_path: Path) -> None:
    # Oxygen moves along its x; its image, a quarter turn away, along y.
    aniso = ANISO.format("U", 0.0, 0.0, 0.0).replace("Zn 0.0", "O 0.04")
    text = cif(
        "4 4 5 90 90 90",
        ["O O 0.5 0 0 1"],
        operators=["x,y,z", "-y,x,z", "-x,-y,z", "y,-x,z"],
        more=aniso,
    )
    crystal = read_crystal(written(tmp_path, text))
    still = read_crystal(written(tmp_path, text), displacement=False)

    h = np.array([[2, 0, 0], [0, 2, 0]])
    shares = (crystal.structure_factors(h) / still.structure_factors(h)).real

    np.testing.assert_allclose(
        shares, (1 + math.exp(-2 * math.pi**2 * 0.04 * 4 / 16)) / 2, rtol=1e-6
    )


# --- on two_theta and on q ------------------------------------------------------------------


def test_a_pattern_has_one_shape_on_two_theta_and_on_q(tmp_path: Path) -> None:
    # Lines of one width on 2θ, at small angles, are of one width on q.
    path, wavelength = written(tmp_path, STRUCTURES["rutile"]), 0.1671
    q = 4 * np.pi * np.sin(np.radians(X) / 2) / wavelength
    width = 0.05
    on_angle = Phase.from_cif(path, wavelength=wavelength, width=width).on(X)
    on_q = Phase.from_cif(
        path, wavelength=wavelength, axis="q", width=np.radians(width) * 2 * np.pi / wavelength
    ).on(q)

    ratio = on_q[on_angle > 0.05 * on_angle.max()] / on_angle[on_angle > 0.05 * on_angle.max()]

    assert ratio.std() / ratio.mean() < 0.02


def test_without_a_wavelength_lines_on_q_are_not_polarised(tmp_path: Path) -> None:
    path = written(tmp_path, STRUCTURES["silicon"])
    plain, polarised = (
        Phase.from_cif(path, axis="q", wavelength=wavelength).reflections(1.0, 8.0)
        for wavelength in (None, 1.0)
    )

    sine2 = (plain[0] / (4 * np.pi)) ** 2
    expected = plain[1] * (1 + (1 - 2 * sine2) ** 2) / 2
    np.testing.assert_allclose(polarised[1], expected * 100 / expected.max(), rtol=1e-9)


def test_reflections_are_scaled_to_the_strongest_one_there(tmp_path: Path) -> None:
    phase = Phase.from_cif(written(tmp_path, STRUCTURES["corundum"]), wavelength=1.54)

    for low, high in ((20.0, 60.0), (40.0, 42.0), (100.0, 140.0)):
        places, intensities = phase.reflections(low, high)
        assert intensities.max() == pytest.approx(100)
        assert low <= places.min() <= places.max() <= high
        assert (np.diff(places) > 0).all()
    assert [len(a) for a in phase.reflections(1.0, 2.0)] == [0, 0]


def test_a_part_of_an_axis_gives_a_part_of_the_pattern(tmp_path: Path) -> None:
    phase = Phase.from_cif(written(tmp_path, STRUCTURES["corundum"]), wavelength=0.5, width=0.05)

    whole, part = phase.on(X), phase.on(X[2000:4000])

    np.testing.assert_allclose(part, whole[2000:4000], atol=1e-3 * whole.max())


@pytest.mark.parametrize("width", [0.1, (0.002, 0.001, 0.01)])
def test_areas_are_as_intensities_and_the_highest_point_is_1(tmp_path: Path, width: Any) -> None:
    path = written(tmp_path, STRUCTURES["rock salt"])
    phase = Phase.from_cif(path, wavelength=1.54, width=width)
    x = np.arange(0.0, 170.0, 0.01)

    pattern = phase.on(x)

    # The strongest line stands alone: its height is its area times that of the profile.
    strongest = phase.y.argmax()
    known = Width.of(width)
    gamma = float(known.at(np.tan(np.radians(phase.x[[strongest]]) / 2))[0])
    peak = known.eta * 2 / math.pi + (1 - known.eta) * 2 * math.sqrt(math.log(2) / math.pi)
    # The tails of lines beyond the ends are missing.
    areas = phase.y.sum() + _beyond(phase, x)
    assert pattern.sum() * 0.01 * phase.y.max() * peak / gamma == pytest.approx(areas, rel=0.01)
    assert pattern.max() == pytest.approx(1, abs=0.01)


def _beyond(phase: Phase, x: np.ndarray) -> float:
    """Areas of the lines that `phase.y` stops before."""
    places, intensities = phase.reflections(1.0, x[-1])
    intensities *= phase.y.max() / intensities[places <= phase.x[-1]].max()
    return float(intensities[places > phase.x[-1] + 1e-9].sum())


def test_the_lines_of_a_phase_are_as_wide_as_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, STRUCTURES["silicon"])
    u, v, w = 0.02, -0.01, 0.012
    for width in (0.08, (u, v, w)):
        phase = Phase.from_cif(path, wavelength=1.54, width=width)
        for place in phase.reflections(20.0, 100.0)[0][:3]:
            x = place + np.arange(-1.0, 1.0, 1e-3)
            y = phase.on(x)
            t = math.tan(math.radians(place) / 2)
            expected = 0.08 if width == 0.08 else math.sqrt(u * t**2 + v * t + w)
            assert np.ptp(x[y > y.max() / 2]) == pytest.approx(expected, abs=3e-3)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"wavelength: expected the wavelength of the measurement in angstrom, got None"),
        ({"wavelength": 0}, r"wavelength: expected angstrom, from 0\.05 to 5, got 0; 1 nm is 10"),
        ({"wavelength": -1.5}, r"wavelength: expected angstrom, .* got -1\.5"),
        ({"wavelength": 0.0167}, r"wavelength: expected angstrom, .* got 0\.0167"),
        ({"wavelength": 74.2}, r"wavelength: expected angstrom, .* got 74\.2; .* energy in keV"),
        ({"wavelength": math.nan}, r"wavelength: expected angstrom, .* got nan"),
        ({"wavelength": "CuKa"}, r"wavelength: expected a number in angstrom, got str"),
        ({"wavelength": True}, r"wavelength: expected a number in angstrom, got bool"),
        ({"axis": "d"}, r"axis: expected 'two_theta' or 'q', got 'd'"),
        ({"axis": "q", "width": 0}, r"width: expected a positive number .* got 0"),
        ({"axis": "q", "width": -0.1}, r"width: expected a positive number .* got -0\.1"),
        ({"axis": "q", "width": "wide"}, r"width: expected a positive number .* or 'fit', got"),
        ({"axis": "q", "width": (1, 2)}, r"width: expected a positive number .* got \(1, 2\)"),
        ({"axis": "q", "width": (1, "a", 2)}, r"width: expected numbers U, V, W"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    path = written(tmp_path, STRUCTURES["silicon"])

    with pytest.raises(InputError, match=message):
        Phase.from_cif(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("axis", "x", "message"),
    [
        (
            "two_theta",
            np.arange(10.0, 200.0),
            r"two_theta in degrees, from 0 to 180, got 10 to 199",
        ),
        ("two_theta", np.arange(-5.0, 50.0, 0.01), r"from 0 to 180, got -5 to 49\.99"),
        ("two_theta", np.linspace(0.0, 0.5, 99), r"phase 'test' has no line from 0 to 0\.5"),
        ("two_theta", np.arange(10.0, 90.0, 0.5), r"steps finer than its lines, got steps of 0\.5"),
        (
            "q",
            np.arange(10.0, 250.0, 0.05),
            r"q in 1/angstrom, from 0 to 8\.2416, got 10 to 249\.95",
        ),
        ("q", np.arange(9.0, 1.0, -0.05), r"phase 'test': expected an axis .* that increase"),
        ("q", [], r"phase 'test': expected an axis \(F,\)"),
        ("q", [1.0, math.nan], r"phase 'test': expected an axis"),
    ],
)
def test_an_axis_in_another_unit_is_refused(
    tmp_path: Path, axis: str, x: np.ndarray, message: str
) -> None:
    path = written(tmp_path, STRUCTURES["silicon"])
    phase = Phase.from_cif(path, wavelength=1.54, axis=axis, width=0.1)  # type: ignore[arg-type]

    with pytest.raises(AxisError, match=message):
        phase.on(x)


def test_a_width_that_vanishes_on_the_axis_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, STRUCTURES["silicon"])
    phase = Phase.from_cif(path, wavelength=1.54, width=(0.01, -0.02, 0.001))

    with pytest.raises(InputError, match="width: expected U, V, W that give a width everywhere"):
        phase.on(np.arange(20.0, 140.0, 0.01))


def test_a_phase_tells_where_it_comes_from(tmp_path: Path) -> None:
    path = written(tmp_path, STRUCTURES["silicon"])

    phase = Phase.from_cif(path, wavelength=1.54)

    assert (phase.name, phase.origin, phase.signed) == ("test", "CIF test.cif", False)
    assert phase.y.max() == pytest.approx(100)
    assert Phase.from_cif(path, axis="q", name="Si", displacement=False).name == "Si"


def test_only_a_phase_from_a_cif_has_lines() -> None:
    phase = Phase.from_array("measured", [1.0, 2.0], [1.0, 2.0])

    assert not phase.needs_width
    for call in (lambda: phase.reflections(0.0, 9.0), lambda: phase.with_width(0.1)):
        with pytest.raises(InputError, match="phase 'measured': expected a phase from a CIF, got"):
            call()
