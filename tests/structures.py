"""Crystal structures that several test files share, as CIFs."""

from collections.abc import Sequence
from pathlib import Path

Atoms = Sequence[str]


def cif(
    cell: str,
    atoms: Atoms,
    *,
    group: str | None = None,
    operators: Sequence[str] = (),
    columns: Sequence[str] = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy"),
    more: str = "",
    block: str = "test",
) -> str:
    """The text of a CIF with one data block."""
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{block}"]
    lines += [f"_cell_{name} {value}" for name, value in zip(names, cell.split(), strict=True)]
    if group is not None:
        lines.append(f"_symmetry_space_group_name_H-M '{group}'")
    if operators:
        lines += ["loop_", "_space_group_symop_operation_xyz", *(f"'{op}'" for op in operators)]
    lines += ["loop_", *(f"_atom_site_{column}" for column in columns), *atoms, more, ""]
    return "\n".join(lines)


PBNM = ("x,y,z", "-x,-y,1/2+z", "1/2-x,1/2+y,1/2-z", "1/2+x,1/2-y,-z")
PBNM += ("-x,-y,-z", "x,y,1/2-z", "1/2+x,1/2-y,1/2+z", "1/2-x,1/2+y,z")
P21N = ("x,y,z", "1/2-x,1/2+y,1/2-z", "-x,-y,-z", "1/2+x,1/2-y,1/2+z")

#: From cubic to triclinic, some in unusual settings, some with sites that two elements share.
STRUCTURES = {
    "rock salt": cif(
        "5.6402 5.6402 5.6402 90 90 90",
        ["Na Na 0 0 0 1", "Cl Cl 0.5 0.5 0.5 1"],
        group="F m -3 m",
    ),
    "silicon": cif(
        "5.4309 5.4309 5.4309 90 90 90", ["Si Si 0.125 0.125 0.125 1"], group="F d -3 m:2"
    ),
    "mixed perovskite": cif(
        "3.9650 3.9650 3.9650 90 90 90",
        ["Ba Ba 0 0 0 0.6", "Sr Sr 0 0 0 0.4", "Ti Ti 0.5 0.5 0.5 1", "O O 0.5 0.5 0 1"],
        group="P m -3 m",
    ),
    "spinel with vacancies": cif(
        "8.3940 8.3940 8.3940 90 90 90",
        [
            "Fe1 Fe 0.125 0.125 0.125 0.7",
            "Mn1 Mn 0.125 0.125 0.125 0.25",
            "Fe2 Fe 0.5 0.5 0.5 0.9",
            "O1 O 0.2549 0.2549 0.2549 1",
        ],
        group="F d -3 m:2",
    ),
    "wurtzite": cif(
        "3.2498 3.2498 5.2066 90 90 120",
        ["Zn Zn 0.3333 0.6667 0 1", "O O 0.3333 0.6667 0.3821 1"],
        group="P 63 m c",
    ),
    "corundum": cif(
        "4.7589 4.7589 12.991 90 90 120",
        ["Al Al 0 0 0.35228 1", "O O 0.30640 0 0.25 1"],
        group="R -3 c",
    ),
    "bismuth on rhombohedral axes": cif(
        "4.7458 4.7458 4.7458 57.236 57.236 57.236",
        ["Bi Bi 0.23389 0.23389 0.23389 1"],
        group="R -3 m",
    ),
    "rutile": cif(
        "4.5937 4.5937 2.9587 90 90 90",
        ["Ti Ti 0 0 0 1", "O O 0.3053 0.3053 0 1"],
        group="P 42/m n m",
    ),
    "ferrite in P b n m": cif(
        "5.349 5.611 7.669 90 90 90",
        [
            "Gd Gd 0.98437 0.06272 0.25 1",
            "Fe Fe 0 0.5 0 0.8",
            "Mn Mn 0 0.5 0 0.2",
            "O1 O 0.1006 0.4672 0.25 1",
            "O2 O 0.6957 0.3009 0.0506 1",
        ],
        group="P b n m",
        operators=PBNM,
    ),
    "baddeleyite": cif(
        "5.1505 5.2116 5.3173 90 99.23 90",
        [
            "Zr Zr 0.2754 0.0395 0.2083 1",
            "O1 O 0.0700 0.3317 0.3447 1",
            "O2 O 0.4496 0.7569 0.4792 1",
        ],
        group="P 21/c",
    ),
    "monoclinic in P 21/n": cif(
        "6.152 7.345 5.918 90 95.4 90",
        ["Cu Cu 0.123 0.281 0.417 1", "S S 0.712 0.145 0.233 1", "O O 0.352 0.566 0.081 0.85"],
        group="P 1 21/n 1",
        operators=P21N,
    ),
    "triclinic with an inversion": cif(
        "4.911 6.237 7.843 88.3 101.7 94.2",
        ["Mn Mn 0.211 0.348 0.129 1", "V V 0.672 0.113 0.412 1", "O1 O 0.45 0.81 0.27 1"],
        group="P -1",
    ),
    "triclinic without symmetry": cif(
        "5.02 5.57 6.31 81.5 74.9 68.2",
        [
            "Pb Pb 0 0 0 1",
            "Zr Zr 0.52 0.49 0.51 0.5",
            "Ti Ti 0.52 0.49 0.51 0.5",
            "O O 0.1 0.55 0.4 1",
        ],
        group="P 1",
    ),
}


def written(folder: Path, text: str, name: str = "test.cif") -> Path:
    """Write a CIF and give its path."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
