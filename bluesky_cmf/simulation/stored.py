"""A ramp of measured patterns, read from a file of numpy arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import AxisError, InputError
from .ramps import Array, Reference

__all__ = ["StoredRamp"]


@dataclass(frozen=True)
class StoredRamp:
    """Measured patterns, played again.

    Parameters
    ----------
    name : str
        What is played: usually the file's name.
    variable, axis : str
        Names of the independent variable and of the patterns' axis.
    x : ndarray (F,)
        The axis, increasing.
    positions : ndarray (N,)
        The independent variable, one value per pattern.
    patterns : ndarray (N, F)
        The measured intensities.

    Raises
    ------
    InputError
        Where the shapes do not fit or there are fewer than two patterns.
    AxisError
        Where the axis is not increasing.
    """

    name: str
    variable: str
    axis: str
    x: Array = field(repr=False)
    positions: Array = field(repr=False)
    patterns: Array = field(repr=False)

    #: The first and the last pattern, and two for what comes between.
    n_components = 4

    def __post_init__(self) -> None:
        expected = (len(self.positions), len(self.x))
        if self.patterns.shape != expected or expected[0] < 2:
            raise InputError(
                f"patterns must be (N, F) = {expected} with N of at least 2, "
                f"got {self.patterns.shape}"
            )
        if not (np.all(np.isfinite(self.x)) and np.all(np.diff(self.x) > 0)):
            raise AxisError(f"{self.axis!r} must increase and be finite: sort the patterns by it")
        if not np.all(np.isfinite(self.positions)):
            raise InputError(f"{self.variable!r} must be finite: drop the patterns where it is not")

    @classmethod
    def from_npz(
        cls, path: str | Path, *, variable: str | None = None, axis: str | None = None
    ) -> "StoredRamp":
        """Read a file of numpy arrays, which are told apart by their shapes.

        Parameters
        ----------
        path : str or Path
            An ``.npz`` file with the patterns (N, F), the independent variable (N,) and the
            axis (F,); scalars are passed over.
        variable, axis : str, optional
            Names of the arrays to take, where more than one has the right shape.

        Returns
        -------
        StoredRamp
            The ramp, named after the file.

        Raises
        ------
        InputError
            Where the file cannot be read, or an array is missing or not the only one.
        AxisError
            Where the axis is not increasing.
        """
        arrays = _load(Path(path))
        patterns = arrays[_the_one(path, arrays, 2, None, "patterns: an array (N, F)")]
        n, f = patterns.shape
        if n == f and (variable is None or axis is None):
            raise InputError(
                f"{path}: {n} patterns of {f} points each: the variable and the axis cannot be "
                "told apart by their lengths; name both"
            )
        variable = variable or _the_one(path, arrays, 1, n, f"the variable: {n} values, one each")
        axis = axis or _the_one(path, arrays, 1, f, f"the axis: {f} values, one a point")
        for name in (variable, axis):
            if name not in arrays:
                raise InputError(f"{path}: no array {name!r}; there are {_listed(arrays)}")
        return cls(Path(path).stem, variable, axis, arrays[axis], arrays[variable], patterns)

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """The first and the last pattern, unchanged."""
        return (
            Reference("first", self.x, self.patterns[0]),
            Reference("last", self.x, self.patterns[-1]),
        )

    def pattern(self, position: float, *, shot: int = 0) -> Array:
        """Give a measured pattern: the one taken at ``position``, else the nearest.

        Parameters
        ----------
        position : float
            Value of the independent variable.
        shot : int, default 0
            Number of the exposure, for ramps that come by the same position more than once.

        Returns
        -------
        ndarray (F,)
            Intensity as it was stored.
        """
        if shot < len(self.positions) and self.positions[shot] == position:
            return np.array(self.patterns[shot])
        nearest = int(np.argmin(np.abs(self.positions - position)))
        return np.array(self.patterns[nearest])


def _load(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            # A single array (.npy) is no archive and has no names.
            arrays = {name: np.asarray(archive[name]) for name in getattr(archive, "files", ())}
    except (ValueError, OSError, EOFError, BadZipFile, TypeError, AttributeError) as reason:
        raise InputError(f"{path} must be an .npz file of plain numpy arrays: {reason}") from reason
    return {name: array for name, array in arrays.items() if array.dtype.kind in "fiu"}


def _the_one(
    path: str | Path, arrays: Mapping[str, Array], ndim: int, length: int | None, what: str
) -> str:
    found = [
        name
        for name, array in arrays.items()
        if array.ndim == ndim and (length is None or len(array) == length)
    ]
    if len(found) == 1:
        return found[0]
    reason = (
        f"more than one has this shape ({', '.join(found)})" if found else "none has this shape"
    )
    raise InputError(f"{path} must hold {what}; {reason} among {_listed(arrays)}")


def _listed(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no arrays"
