"""Pattern files of NeXus: the default NXdata of an HDF5 file."""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PatternFileError
from .record import Found

__all__ = ["read_nexus"]

#: What units of an axis are called here.
_UNITS = {
    "deg": "deg",
    "degree": "deg",
    "degrees": "deg",
    "rad": "rad",
    "radian": "rad",
    "radians": "rad",
    "1/angstrom": "1/angstrom",
    "angstrom^-1": "1/angstrom",
    "1/nm": "1/nm",
    "nm^-1": "1/nm",
}


def read_nexus(path: Path) -> Found:
    """Read the pattern of the NXdata that the attributes ``default`` lead to, else of the only one.

    Its ``signal`` is a pattern (F,), or an array with axes of length 1 before; its last axis is
    the axis; ``<signal>_errors``, or else ``errors``, are the standard errors.

    Raises
    ------
    PatternFileError
        Where there is no such group, or it holds something else than one pattern.
    """
    import h5py

    with h5py.File(path, "r") as file:
        data = _default(path, file)
        signal = _attribute(data, "signal")
        axes = data.attrs.get("axes", ())
        axes = [_text(axes)] if isinstance(axes, str | bytes) else [_text(name) for name in axes]
        if signal not in data or not axes or axes[-1] not in data:
            raise PatternFileError(
                f"{path}: {data.name}: expected an NXdata with signal and axes that are there, got "
                f"signal {signal!r} and axes {axes}"
            )
        y = data[signal][()]
        shape = y.shape
        while y.ndim > 1 and y.shape[0] == 1:
            y = y[0]
        if y.ndim != 1:
            raise PatternFileError(
                f"{path}: {data.name}: expected one pattern (F,), got {signal!r} of shape {shape}"
            )
        names = (f"{signal}_errors", "errors")
        errors = next((np.reshape(data[name][()], -1) for name in names if name in data), None)
        return Found(data[axes[-1]][()], y, errors, _metadata(axes[-1], data[axes[-1]]))


def _default(path: Path, file: Any) -> Any:
    """Follow the attributes ``default`` to an NXdata, else find the only one."""
    import h5py

    group = file
    while isinstance(group, h5py.Group) and _attribute(group, "NX_class") != "NXdata":
        name = _attribute(group, "default")
        if name is None or name not in group:
            break
        group = group[name]
    if isinstance(group, h5py.Group) and _attribute(group, "NX_class") == "NXdata":
        return group
    found: list[Any] = []

    def note(_name: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and _attribute(item, "NX_class") == "NXdata":
            found.append(item)

    file.visititems(note)
    if len(found) != 1:
        raise PatternFileError(
            f"{path}: expected one NXdata, or a default one, found {[g.name for g in found]}"
        )
    return found[0]


def _metadata(name: str, axis: Any) -> dict[str, str]:
    units = _UNITS.get(str(_attribute(axis, "units")).lower().strip())
    angle = units in ("deg", "rad")
    return {} if units is None else {"axis": "two_theta" if angle else "q", "units": units}


def _attribute(item: Any, name: str) -> str | None:
    value = item.attrs.get(name)
    return None if value is None else _text(value)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
