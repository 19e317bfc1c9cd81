"""Read and write pattern files."""

import re
import zipfile
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
_COMMENTS = "#;!%'\"/*"
_DECIMAL_COMMA = r"[+-]?\d+,\d+([eE][+-]?\d+)?|[+-]?\d+"


def read_pattern(path: str | Path) -> tuple[Array, Array]:
    """Read a pattern from a file.

    Parameters
    ----------
    path : str or Path
        ``.xy``, ``.xye``, ``.dat``, ``.chi``, ``.csv`` or ``.txt``: columns of text, axis first
        and intensity second, parted by blanks, commas, semicolons or tabs (beside which a comma
        may be a decimal one); what comes before the first two numbers is a header, and comments
        may stand anywhere. ``.npy``: an array (F, 2) or (2, F).
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
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, PatternFileError):
            raise
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
        Where the suffix is another one, the values cannot be a pattern, or the file cannot be
        written.
    """
    path = Path(path)
    x, y = _checked(path, np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    suffix = path.suffix.lower()
    if suffix not in (*_TEXT, ".npz") or suffix == ".xye":
        raise PatternFileError(f"{path}: cannot write {suffix!r}; use .xy, .csv or .npz")
    try:
        with path.open("wb") as file:
            if suffix == ".npz":
                np.savez(file, x=x, y=y)
            else:
                # 17 digits bring every float64 back.
                delimiter = "," if suffix == ".csv" else " "
                np.savetxt(file, np.column_stack([x, y]), fmt="%.17g", delimiter=delimiter)
    except OSError as error:
        raise PatternFileError(f"{path}: cannot be written ({error})") from error


def _read_text(path: Path) -> tuple[Array, Array]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Older programs write the degree sign of a header in Latin-1; numbers read the same.
        text = raw.decode("latin-1")
    rows = list(_rows(path, text))
    if not rows:
        raise PatternFileError(
            f"{path}: expected lines of at least two numbers (axis, intensity), found none"
        )
    columns = np.array(rows)
    return columns[:, 0], columns[:, 1]


def _rows(path: Path, text: str) -> Iterator[tuple[float, float]]:
    """Yield the first two numbers of each line; what comes before the first ones is a header."""
    began = False
    for number, line in enumerate(text.splitlines(), 1):
        fields = _fields(line)
        try:
            row = float(fields[0]), float(fields[1])
        except (ValueError, IndexError):
            if began and line.strip() and line.lstrip()[0] not in _COMMENTS:
                raise PatternFileError(
                    f"{path}: line {number}: expected two numbers or a comment, got {line[:40]!r}"
                ) from None
            continue
        began = True
        yield row


def _fields(line: str) -> list[str]:
    """Split a line at blanks, commas or semicolons; beside these, a comma may be a decimal one."""
    line = line.replace('"', " ").strip()
    parts = line.split(";") if ";" in line else line.split()
    if len(parts) > 1 and all(re.fullmatch(_DECIMAL_COMMA, part.strip()) for part in parts[:2]):
        return [part.strip().replace(",", ".") for part in parts]
    return [field for field in re.split(r"[;,\s]+", line) if field]


def _read_binary(path: Path) -> tuple[Array, Array]:
    loaded: Any = np.load(path, allow_pickle=False)
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
