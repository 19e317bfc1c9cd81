"""Read and write pattern files."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PatternFileError

__all__ = ["read_pattern", "write_pattern"]

Array = npt.NDArray[np.float64]

_TEXT = (".xy", ".xye", ".dat", ".chi", ".csv", ".txt")
_BINARY = (".npy", ".npz")
_SUFFIXES = (*_TEXT, *_BINARY)


def read_pattern(path: str | Path) -> tuple[Array, Array]:
    """Read a pattern from a file.

    Parameters
    ----------
    path : str or Path
        ``.xy``, ``.xye``, ``.dat``, ``.chi``, ``.csv`` or ``.txt``: columns of text, axis first
        and intensity second, parted by blanks, commas, semicolons or tabs; lines that do not
        begin with two numbers are headers or comments. ``.npy``: an array (F, 2) or (2, F).
        ``.npz``: arrays ``x`` and ``y``, or exactly two arrays (F,), axis first.

    Returns
    -------
    x, y : ndarray (F,)
        Axis, increasing, and intensity. A decreasing axis is turned round.

    Raises
    ------
    PatternFileError
        Where the file is missing, has another form, or its values cannot be a pattern.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise PatternFileError(f"{path}: expected one of {', '.join(_SUFFIXES)}, got {suffix!r}")
    try:
        x, y = _read_text(path) if suffix in _TEXT else _read_binary(path)
    except FileNotFoundError as error:
        raise PatternFileError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PatternFileError(f"{path}: cannot be read ({error})") from error
    return _checked(path, x, y)


def write_pattern(path: str | Path, x: npt.ArrayLike, y: npt.ArrayLike) -> None:
    """Write a pattern so that `read_pattern` gives back the same values, to the bit.

    Parameters
    ----------
    path : str or Path
        ``.xy``, ``.dat``, ``.chi``, ``.txt`` (columns parted by a blank), ``.csv`` or ``.npz``.
    x, y : array_like (F,)
        Axis and intensity.

    Raises
    ------
    PatternFileError
        Where the suffix is another one, or the values cannot be a pattern.
    """
    path = Path(path)
    x, y = _checked(path, np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    suffix = path.suffix.lower()
    if suffix == ".npz":
        np.savez(path, x=x, y=y)
    elif suffix in _TEXT and suffix != ".xye":
        # 17 digits bring every float64 back.
        delimiter = "," if suffix == ".csv" else " "
        np.savetxt(path, np.column_stack([x, y]), fmt="%.17g", delimiter=delimiter)
    else:
        raise PatternFileError(f"{path}: cannot write {suffix!r}; use .xy, .csv or .npz")


def _read_text(path: Path) -> tuple[Array, Array]:
    rows = list(_rows(path.read_text(encoding="utf-8-sig", errors="strict")))
    if not rows:
        raise PatternFileError(
            f"{path}: expected lines of at least two numbers (axis, intensity), found none"
        )
    columns = np.array(rows)
    return columns[:, 0], columns[:, 1]


def _rows(text: str) -> Iterator[tuple[float, float]]:
    for line in csv.reader(re.sub(r"[;\t ]+", ",", line.strip()) for line in text.splitlines()):
        fields = [field for field in line if field]
        try:
            yield float(fields[0]), float(fields[1])
        except (ValueError, IndexError):
            continue


def _read_binary(path: Path) -> tuple[Array, Array]:
    try:
        loaded: Any = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise PatternFileError(f"{path}: not an array file without pickles ({error})") from error
    if isinstance(loaded, np.ndarray):
        return _two_columns(path, loaded)
    with loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    names = ("x", "y") if {"x", "y"} <= arrays.keys() else tuple(arrays)
    if len(names) != 2:
        raise PatternFileError(f"{path}: expected arrays 'x' and 'y', found {list(arrays)}")
    return np.asarray(arrays[names[0]]), np.asarray(arrays[names[1]])


def _two_columns(path: Path, values: npt.NDArray[Any]) -> tuple[Array, Array]:
    if values.ndim == 2 and values.shape[1] == 2:
        return values[:, 0], values[:, 1]
    if values.ndim == 2 and values.shape[0] == 2:
        return values[0], values[1]
    raise PatternFileError(f"{path}: expected an array (F, 2) or (2, F), got {values.shape}")


def _checked(path: Path, x: Array, y: Array) -> tuple[Array, Array]:
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise PatternFileError(
            f"{path}: expected axis and intensity of one length, got {x.shape} and {y.shape}"
        )
    if x.dtype.kind not in "fiu" or y.dtype.kind not in "fiu":
        raise PatternFileError(f"{path}: expected numbers, got {x.dtype} and {y.dtype}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise PatternFileError(f"{path}: NaN or infinity among the values")
    if len(x) > 1 and x[0] > x[-1]:
        x, y = x[::-1], y[::-1]
    if (x[1:] <= x[:-1]).any():
        raise PatternFileError(f"{path}: expected an axis that increases or decreases throughout")
    return x.astype(float), y.astype(float)
