"""Read a crystal structure from a CIF, and say what is wrong with one that does not tell it."""

import codecs
import gzip
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import numpy.typing as npt

from .crystals import Crystal
from .errors import CIFError

__all__ = ["read_crystal"]

Array = npt.NDArray[Any]
logger = logging.getLogger(__name__)

_CELL = (
    *(f"_cell_length_{name}" for name in "abc"),
    *(f"_cell_angle_{name}" for name in ("alpha", "beta", "gamma")),
)
_OPERATORS = (
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
)
#: Tags of magnetic and modulated structures, whose symmetry is written in another way.
_OTHER_SYMMETRY = (
    "_space_group_symop_magn_operation.xyz",
    "_space_group_symop_magn_operation_xyz",
    "_space_group_symop_ssg_operation_algebraic",
)
#: Images of a site within this distance in Å are the same atom, on a special position …
_ROUNDING = 0.02
#: … and within this one too where more than one atom would stand there otherwise.
_TOO_CLOSE = 0.4
#: Occupancy that is still 1, as refined.
_FULL = 1.1
#: How far, relative to the cell, symmetry may miss the cell before the two contradict each other.
_CONTRADICTION = 0.02
#: gemmi counts rotations and translations in these parts.
_PARTS = gemmi.Op.DEN


def read_crystal(
    path: str | Path, *, block: str | None = None, displacement: bool = True
) -> Crystal:
    """Read a crystal structure from a CIF.

    The symmetry is that of the operators listed in the CIF, else of its Hall symbol, its
    Hermann-Mauguin symbol or its number; a CIF that names none is taken as P 1. An occupancy
    that is missing is 1, a displacement that is missing is 0. Charges are passed over: form
    factors are those of neutral atoms.

    Parameters
    ----------
    path : str or Path
        The CIF, plain or gzipped.
    block : str, optional
        Name of its data block; needed where several hold atoms.
    displacement : bool, optional
        Whether displacement parameters (isotropic and anisotropic, U or B) are read; otherwise
        the atoms are at rest.

    Returns
    -------
    Crystal
        With the form factors of International Tables for Crystallography, Vol. C, table 6.1.1.4
        (good to sin θ/λ = 2 1/Å), as gemmi has them.

    Raises
    ------
    CIFError
        Where the file is missing or no CIF, where cell, atoms or coordinates are missing, or
        where what it says is no crystal structure.

    Notes
    -----
    Images of a site within 0.02 Å of it are the same atom on a special position; within 0.4 Å
    they are where their occupancies would add up to more than one atom, and a split site
    otherwise.
    """
    path = Path(path)
    found = _choose(path, _read(path), block)
    # gemmi raises at a cell that cannot be.
    metric = _metric(path, found)
    structure = gemmi.make_small_structure_from_block(found)
    rotations, translations = _symmetry(path, found, structure)
    _check_symmetry(path, structure, metric, rotations)
    sites = list(structure.sites)
    _check_numbers(path, found)
    positions = np.array([_position(path, site) for site in sites])
    form_factors = np.array([_form_factor(path, site) for site in sites])
    amounts = [
        site.occ * _share(metric, rotations, translations, position, site.occ)
        for position, site in zip(positions, sites, strict=True)
    ]
    _check_occupancies(path, sites, metric, rotations, translations, positions)
    return Crystal(
        metric,
        rotations,
        translations,
        positions,
        np.array(amounts),
        form_factors,
        *_displacements(path, found, structure, displacement),
    )


def _read(path: Path) -> gemmi.cif.Document:
    try:
        return gemmi.cif.read(str(path))
    except FileNotFoundError as error:
        raise CIFError(f"{path}: no such file") from error
    except (OSError, RuntimeError, ValueError) as error:
        unmarked = _without_mark(path)
        if unmarked is not None:
            return unmarked
        raise CIFError(f"{path}: expected a CIF, got what cannot be read as one ({error})") from (
            error
        )


def _without_mark(path: Path) -> gemmi.cif.Document | None:
    """Read a CIF behind a byte order mark, which some editors write, and gemmi refuses."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        if raw.startswith(codecs.BOM_UTF8):
            return gemmi.cif.read_string(raw.removeprefix(codecs.BOM_UTF8).decode())
    except (OSError, EOFError, RuntimeError, ValueError, zlib.error):
        # What is wrong with the file, gemmi has told already.
        return None
    return None


def _choose(path: Path, document: gemmi.cif.Document, name: str | None) -> gemmi.cif.Block:
    """Take the block that was asked for, or else the only one with atoms."""
    names = [block.name for block in document]
    if name is not None:
        if name not in names:
            raise CIFError(f"{path}: block: expected one of {names}, got {name!r}")
        return _with_atoms(path, document[names.index(name)])
    filled = [block for block in document if _has_atoms(block)]
    if len(filled) > 1:
        raise CIFError(
            f"{path}: expected one data block with atoms, got {[b.name for b in filled]}; "
            "choose one by its name (block=…)"
        )
    if not filled and len(names) != 1:
        raise CIFError(
            f"{path}: expected a data block with atoms (_atom_site_fract_x), found none in {names}"
        )
    return _with_atoms(path, filled[0] if filled else document[0])


def _has_atoms(block: gemmi.cif.Block) -> bool:
    return bool(len(block.find_values("_atom_site_fract_x")))


def _with_atoms(path: Path, block: gemmi.cif.Block) -> gemmi.cif.Block:
    missing = [
        tag
        for tag in ("_atom_site_label", *(f"_atom_site_fract_{axis}" for axis in "xyz"))
        if not len(block.find_values(tag))
    ]
    if missing == ["_atom_site_label"] and len(block.find_values("_atom_site_type_symbol")):
        missing = []
    if missing:
        raise CIFError(
            f"{path}: expected atoms with fractional coordinates in block {block.name!r}, "
            f"but there is no {', '.join(missing)}"
        )
    return block


def _metric(path: Path, block: gemmi.cif.Block) -> Array:
    # gemmi puts a cell of 1, 1, 1 where one is missing or cannot be.
    found = [block.find_value(tag) for tag in _CELL]
    numbers = np.array([gemmi.cif.as_number(text) if text else np.nan for text in found])
    got = "got " + ", ".join(text or "nothing" for text in found)
    if not np.isfinite(numbers).all():
        raise CIFError(f"{path}: expected a cell of six numbers ({_CELL[0]} to {_CELL[-1]}), {got}")
    lengths, angles = numbers[:3], numbers[3:]
    cosines = np.cos(np.radians(angles))
    shape = np.array(
        [
            [1.0, cosines[2], cosines[1]],
            [cosines[2], 1.0, cosines[0]],
            [cosines[1], cosines[0], 1.0],
        ]
    )
    if (lengths <= 0.5).any() or np.linalg.det(shape) < 1e-6 or not (angles > 0).all():
        raise CIFError(
            f"{path}: expected a cell with lengths in angstrom and angles in degrees that "
            f"enclose a volume, {got}"
        )
    metric: Array = shape * np.outer(lengths, lengths)
    # cos 90° is 6e-17 in floating point, which would part lines that lie at one place.
    metric[np.abs(metric) < 1e-12 * metric.max()] = 0.0
    return metric


def _symmetry(
    path: Path, block: gemmi.cif.Block, structure: gemmi.SmallStructure
) -> tuple[Array, Array]:
    listed = next((column for tag in _OPERATORS if (column := block.find_values(tag))), None)
    other = [tag for tag in _OTHER_SYMMETRY if len(block.find_values(tag))]
    if listed is None and other:
        raise CIFError(
            f"{path}: expected a structure with a space group, got a magnetic or modulated one "
            f"({other[0]}); give its average structure, with _space_group_symop_operation_xyz"
        )
    if listed is not None:
        operators = _parsed(path, [listed.str(n) for n in range(len(listed))])
    else:
        operators = list(_named_group(path, structure))
    rotations = np.array([operator.rot for operator in operators]) // _PARTS
    translations = np.array([operator.tran for operator in operators]) / _PARTS
    return rotations, translations


def _parsed(path: Path, listed: Sequence[str]) -> list[gemmi.Op]:
    operators: dict[str, gemmi.Op] = {}
    for text in listed:
        try:
            operator = gemmi.Op(text).wrap()
        except (RuntimeError, ValueError) as error:
            raise CIFError(
                f"{path}: expected symmetry operators such as 'x,y,z+1/2', got {text!r} ({error})"
            ) from error
        if np.any(np.array(operator.rot) % _PARTS):
            raise CIFError(f"{path}: expected symmetry operators of a cell, got {text!r}")
        operators[operator.triplet()] = operator
    group = gemmi.GroupOps(list(operators.values()))
    count = len(group)
    group.add_missing_elements()
    if "x,y,z" not in operators or len(group) != count:
        raise CIFError(
            f"{path}: expected the symmetry operators of a space group, got {len(operators)} "
            f"that make no group (it would have {len(group)}): one is missing or wrong"
        )
    return list(operators.values())


def _named_group(path: Path, structure: gemmi.SmallStructure) -> gemmi.GroupOps:
    """Find the space group by Hall symbol, Hermann-Mauguin symbol or number."""
    hall, symbol = (
        "" if text in ("?", ".") else text
        for text in (structure.spacegroup_hall, structure.spacegroup_hm)
    )
    if hall:
        try:
            return gemmi.symops_from_hall(hall)
        except (RuntimeError, ValueError) as error:
            raise CIFError(
                f"{path}: expected a Hall symbol, got {hall!r} ({error}); write the operators "
                "instead (_space_group_symop_operation_xyz)"
            ) from error
    if not symbol and not structure.spacegroup_number:
        logger.warning("%s names no symmetry: taken as P 1, where each atom stands once", path)
        return gemmi.SpaceGroup("P 1").operations()
    return _tabulated(path, symbol, structure.spacegroup_number, structure.cell)


def _tabulated(path: Path, symbol: str, number: int, cell: gemmi.UnitCell) -> gemmi.GroupOps:
    standard = None if symbol else gemmi.find_spacegroup_by_number(number)
    # The cell tells hexagonal from rhombohedral axes.
    name = standard.hm if standard else symbol
    group = gemmi.find_spacegroup_by_name(name, cell.alpha, cell.gamma)
    if group is None:
        raise CIFError(
            f"{path}: expected a space group, got {symbol or number!r}, which is none that is "
            "known; write its operators (_space_group_symop_operation_xyz)"
        )
    if group.ext in ("1", "2") and not symbol.replace(" ", "").endswith(f":{group.ext}"):
        raise CIFError(
            f"{path}: the space group {symbol or number!r} has two origins and the CIF does not "
            "say which; write it with ':1' or ':2', or write its operators "
            "(_space_group_symop_operation_xyz)"
        )
    return group.operations()


def _check_symmetry(
    path: Path, structure: gemmi.SmallStructure, metric: Array, rotations: Array
) -> None:
    """Refuse a symmetry that the cell does not have; warn of a name that says another one."""
    turned = np.einsum("gia,ij,gjb->gab", rotations, metric, rotations)
    missed = float(np.abs(turned - metric).max() / np.abs(metric).max())
    if missed > _CONTRADICTION:
        cell = structure.cell
        raise CIFError(
            f"{path}: expected a cell that has the symmetry of its space group, got "
            f"{cell.a:g}, {cell.b:g}, {cell.c:g}, {cell.alpha:g}, {cell.beta:g}, {cell.gamma:g}, "
            f"which misses it by {missed:.0%}: another setting, or another axis"
        )
    named = gemmi.find_spacegroup_by_name(structure.spacegroup_hm)
    order = len(named.operations().sym_ops) if named else 0
    count = len(np.unique(rotations, axis=0))
    if named and order != count:
        logger.warning(
            "%s names the space group %s, which has %d rotations, and lists operators with %d: "
            "the operators are used",
            *(path, structure.spacegroup_hm, order, count),
        )


def _check_numbers(path: Path, block: gemmi.cif.Block) -> None:
    """Refuse an occupancy that is no number: gemmi takes it as 1."""
    for row in block.find("_atom_site_", ["fract_x", "?label", "?type_symbol", "occupancy"]):
        text = row.str(3)
        if text and np.isnan(gemmi.cif.as_number(row[3])):
            label = next((row.str(n) for n in (1, 2) if row.has(n)), "?")
            raise CIFError(
                f"{path}: atom {label!r}: expected an occupancy from 0 to 1, got {text!r}"
            )


def _position(path: Path, site: gemmi.SmallStructure.Site) -> list[float]:
    position = site.fract.tolist()
    if not np.isfinite(position).all():
        raise CIFError(
            f"{path}: atom {site.label!r}: expected three fractional coordinates, got "
            f"{', '.join('?' if np.isnan(x) else f'{x:g}' for x in position)}"
        )
    if not 0 <= site.occ <= _FULL:
        raise CIFError(
            f"{path}: atom {site.label!r}: expected an occupancy from 0 to 1, got {site.occ:g}"
        )
    return position


def _form_factor(path: Path, site: gemmi.SmallStructure.Site) -> list[float]:
    # gemmi gives the unknown element X the form factor of oxygen.
    element = site.element
    if not element.atomic_number or element.it92 is None:
        raise CIFError(
            f"{path}: atom {site.label!r}: expected an element with a form factor (H to Cf), "
            f"got {site.type_symbol!r}; write it as _atom_site_type_symbol"
        )
    return [*element.it92.a, *element.it92.b, element.it92.c]


def _distances(metric: Array, differences: Array) -> Array:
    """Distances in Å to the nearest image in another cell."""
    shifts = differences - np.round(differences)
    squares: Array = np.einsum("...i,ij,...j->...", shifts, metric, shifts)
    return np.sqrt(np.maximum(squares, 0.0))


def _share(
    metric: Array, rotations: Array, translations: Array, position: Array, occupancy: float
) -> float:
    """One over the number of operators that leave a site where it is."""
    distances = _distances(metric, rotations @ position + translations - position)
    same, near = int((distances < _ROUNDING).sum()), int((distances < _TOO_CLOSE).sum())
    return 1 / near if occupancy * near / same > _FULL else 1 / same


def _check_occupancies(
    path: Path,
    sites: Sequence[gemmi.SmallStructure.Site],
    metric: Array,
    rotations: Array,
    translations: Array,
    positions: Array,
) -> None:
    """Refuse atoms that share a place which they fill more than once."""
    occupancies = np.array([site.occ for site in sites])
    for position in positions:
        images = rotations @ position + translations
        apart = _distances(metric, images[:, None] - positions).min(axis=0)
        there = np.flatnonzero(apart < _ROUNDING)
        total = float(occupancies[there].sum())
        if total > _FULL:
            labels = [sites[n].label for n in there.tolist()]
            raise CIFError(
                f"{path}: atoms {labels} share one place: expected "
                f"occupancies that add up to at most 1, got {total:g}"
            )


def _displacements(
    path: Path, block: gemmi.cif.Block, structure: gemmi.SmallStructure, wanted: bool
) -> tuple[Array, Array]:
    """Give isotropic displacements (S,), and anisotropic ones (S, 3, 3) where the file has them."""
    sites = list(structure.sites)
    u_iso, u_star = np.zeros(len(sites)), np.zeros((len(sites), 3, 3))
    if not wanted:
        return u_iso, u_star
    tensors = _tensors_from_b(block)
    cell = structure.cell.reciprocal()
    lengths = np.array([cell.a, cell.b, cell.c])
    for n, site in enumerate(sites):
        tensor = tensors.get(site.label, np.array(site.aniso.as_mat33().tolist()))
        u_star[n] = tensor * np.outer(lengths, lengths)
        u_iso[n] = 0.0 if tensor.any() else site.u_iso
        values = [u_iso[n], *np.linalg.eigvalsh(tensor)]
        if not np.isfinite(values).all() or min(values) < -1e-6 or max(values) > 10:
            raise CIFError(
                f"{path}: atom {site.label!r}: expected displacements from 0 to 10 Å² in every "
                f"direction, got {min(values):.3g} to {max(values):.3g}; leave them out "
                "(displacement=False) or mend the CIF"
            )
    return u_iso, u_star


def _tensors_from_b(block: gemmi.cif.Block) -> dict[str, Array]:
    """Anisotropic displacements that are written as B = 8π² U, which gemmi passes over."""
    names = ("11", "22", "33", "12", "13", "23")
    tags = ["_atom_site_aniso_label", *(f"_atom_site_aniso_B_{name}" for name in names)]
    tensors = {}
    for row in block.find(tags):
        b = np.array([gemmi.cif.as_number(row[n]) for n in range(1, 7)]) / (8 * np.pi**2)
        if np.isfinite(b).all():
            tensors[row.str(0)] = b[[[0, 3, 4], [3, 1, 5], [4, 5, 2]]]
    return tensors
