import gzip
import logging
from pathlib import Path

import numpy as np
import pytest

from bluesky_cmf.cifs import read_crystal
from bluesky_cmf.errors import CIFError
from tests.structures import STRUCTURES, cif, written

CUBE = "4 4 4 90 90 90"
PO = ["Po Po 0 0 0 1"]
PLAIN = cif(CUBE, PO, group="P m -3 m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2.0 1.5\n3.0 1.7\n", r"test\.cif: expected a CIF, got what cannot be read as one"),
        ("", r"test\.cif: expected a data block with atoms .* found none in \[\]"),
        ("data_a\n_cell_length_a 4\n", r"expected atoms with .* block 'a', but there is no _atom"),
        (PLAIN.replace("_fract_z", "_Cartn_z"), r"there is no _atom_site_fract_z"),
        (PLAIN.replace("_cell_length_b 4", ""), r"expected a cell of six numbers"),
        (
            PLAIN.replace("_cell_angle_gamma 90", "_cell_angle_gamma ?"),
            r"cell of six .* 90, 90, \?",
        ),
        (PLAIN.replace("_alpha 90", "_alpha 0"), r"angles in degrees .* got 4, 4, 4, 0, 90, 90"),
        (PLAIN.replace("_beta 90", "_beta 180"), r"angles in degrees .* got 4, 4, 4, 90, 180"),
        (PLAIN.replace("_gamma 90", "_gamma 0"), r"angles in degrees that enclose a volume, got 4"),
        (PLAIN.replace("_length_a 4", "_length_a -4"), r"expected a cell with lengths .* got -4"),
        (PLAIN.replace("_length_a 4", "_length_a 0.4"), r"lengths in angstrom .* got 0\.4"),
        (PLAIN.replace("_length_a 4", "_length_a 5"), r"got 5, 4, 4, .* which misses it by"),
        (PLAIN.replace("Po Po", "Q1 Xx"), r"atom 'Q1': expected an element .* got 'Xx'"),
        (PLAIN.replace("Po Po", "Og1 Og"), r"atom 'Og1': expected an element .* got 'Og'"),
        (PLAIN.replace("Po 0 0 0", "Po 0 ? 0"), r"atom 'Po': expected three .* got 0, \?, 0"),
        (PLAIN.replace("0 0 0 1", "0 0 0 1.5"), r"atom 'Po': expected an occupancy .* got 1\.5"),
        (PLAIN.replace("0 0 0 1", "0 0 0 -1"), r"atom 'Po': expected an occupancy .* got -1"),
        (PLAIN.replace("'P m -3 m'", "'P nonsense'"), r"expected a space group, got 'P nonsense'"),
        (cif(CUBE, PO, group="F d -3 m"), r"space group 'F d -3 m' has two origins"),
        (cif(CUBE, PO, more="_space_group_IT_number 227"), r"space group 227 has two origins"),
        (cif(CUBE, PO, more="_space_group_name_Hall 'junk'"), r"a Hall symbol, got 'junk'"),
        (cif(CUBE, PO, operators=["x,y,z", "x,y"]), r"symmetry operators such as .* got 'x,y'"),
        (cif(CUBE, PO, operators=["x,y,z", "x/2,y,z"]), r"operators of a cell, got 'x/2,y,z'"),
        (
            cif(CUBE, PO, operators=["x,y,z", "y,z,x"]),
            r"got 2 that make no group \(it would have 3",
        ),
        (cif(CUBE, PO, operators=["-x,-y,-z"]), r"got 1 that make no group"),
        (cif(CUBE, [*PO, "At At 0 0 0 1"]), r"atoms \['Po', 'At'\] share one place: .* got 2"),
        (
            cif(CUBE, PO, more="loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1"),
            r"got a magnetic or modulated one \(_space_group_symop_magn_operation\.xyz\)",
        ),
    ],
)
def test_a_cif_that_tells_no_structure_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CIFError, match=message):
        read_crystal(written(tmp_path, text))


def test_a_file_that_is_missing_or_binary_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.cif").write_bytes(bytes(range(256)))

    with pytest.raises(CIFError, match=r"nowhere\.cif: no such file"):
        read_crystal(tmp_path / "nowhere.cif")
    for path in (tmp_path / "image.cif", tmp_path):
        with pytest.raises(CIFError, match="expected a CIF, got what cannot be read as one"):
            read_crystal(path)


def test_displacements_that_cannot_be_are_refused_unless_left_out(tmp_path: Path) -> None:
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "U_iso_or_equiv")
    for value in ("-0.1", "80"):
        path = written(tmp_path, cif(CUBE, [f"Po Po 0 0 0 {value}"], columns=columns))
        with pytest.raises(CIFError, match=r"atom 'Po': expected displacements .*displacement=Fal"):
            read_crystal(path)
        assert not read_crystal(path, displacement=False).u_iso.any()


def test_the_only_block_with_atoms_is_taken_and_of_several_the_one_that_is_named(
    tmp_path: Path,
) -> None:
    other = cif("5 5 5 90 90 90", PO, group="P m -3 m", block="other")
    one = written(tmp_path, f"data_global\n_journal_year 2020\n\n{PLAIN}", "one.cif")
    two = written(tmp_path, f"{PLAIN}\n{other}", "two.cif")

    assert read_crystal(one).volume == pytest.approx(64)
    assert read_crystal(two, block="other").volume == pytest.approx(125)
    with pytest.raises(CIFError, match=r"one data block with atoms, got \['test', 'other'\]; choo"):
        read_crystal(two)
    with pytest.raises(CIFError, match=r"block: expected one of \['test', 'other'\], got 'third'"):
        read_crystal(two, block="third")
    with pytest.raises(CIFError, match="in block 'global', but there is no"):
        read_crystal(one, block="global")


def test_without_symmetry_a_crystal_is_p1_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, cif(CUBE, PO))

    with caplog.at_level(logging.WARNING):
        crystal = read_crystal(path)

    assert len(crystal.rotations) == 1
    assert "names no symmetry: taken as P 1" in caplog.text


def test_listed_operators_win_over_the_name_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, cif(CUBE, PO, group="P m -3 m", operators=["x,y,z"]))

    with caplog.at_level(logging.WARNING):
        crystal = read_crystal(path)

    assert len(crystal.rotations) == 1
    assert "names the space group P m -3 m, which has 48 rotations, and lists" in caplog.text


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ("_space_group_name_Hall '-P 4 2 3'", 48),
        ("_space_group_IT_number 221", 48),
        ("_symmetry_equiv_pos_as_xyz 'x,y,z'", 1),
        ("loop_\n_symmetry_equiv_pos_site_id\n_symmetry_equiv_pos_as_xyz\n1 x,y,z\n2 -X,-Y,-Z", 2),
        ("loop_\n_space_group_symop_operation_xyz\nx,y,z\nx,y,z\n-x,-y,-z+1", 2),
    ],
)
def test_symmetry_is_read_however_it_is_written(tmp_path: Path, more: str, count: int) -> None:
    crystal = read_crystal(written(tmp_path, cif(CUBE, PO, more=more)))

    assert len(crystal.rotations) == count
    assert crystal.structure_factors(np.zeros((1, 3)))[0].real == pytest.approx(84, abs=0.1)


def test_what_may_be_missing_has_a_value(tmp_path: Path) -> None:
    # No type symbols, no occupancies, charges and uncertainties in brackets, no displacements.
    text = cif(
        "4.0(1) 4.0(1) 4.0(1) 90 90 90",
        ["Ba1 0 0 0(1)", "Ti1 0.5 0.5 0.5"],
        columns=("label", "fract_x", "fract_y", "fract_z"),
        group="P m -3 m",
    )
    charged = cif(CUBE, ["Ba1 Ba2+ 0 0 0 .", "Ti1 Ti4+ 0.5 0.5 0.5 ?"], group="P m -3 m")

    for source in (text, charged):
        crystal = read_crystal(written(tmp_path, source))
        electrons = crystal.structure_factors(np.zeros((1, 3)))[0].real
        assert electrons == pytest.approx(56 + 22, abs=0.2)
        assert not crystal.u_iso.any()


def test_a_gzipped_cif_is_read(tmp_path: Path) -> None:
    path = tmp_path / "test.cif.gz"
    path.write_bytes(gzip.compress(STRUCTURES["rutile"].encode()))

    assert read_crystal(path).volume == pytest.approx(4.5937**2 * 2.9587)


def test_a_cif_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "test.cif"
    path.write_bytes(b"\xef\xbb\xbf" + PLAIN.encode())
    packed = tmp_path / "test.cif.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))

    assert read_crystal(path).volume == pytest.approx(64)
    assert read_crystal(packed).volume == pytest.approx(64)


def test_an_occupancy_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CIFError, match=r"atom 'Po': expected an occupancy from 0 to 1, got 'half'"):
        read_crystal(written(tmp_path, PLAIN.replace("0 0 0 1", "0 0 0 half")))
