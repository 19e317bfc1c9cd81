"""The variables of files in a table: a log of the measurement."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .names import Variable

__all__ = ["variables_from_table"]

#: What the column of the files may be called.
_FILES = ("file", "filename", "file_name", "name", "path")


def variables_from_table(
    table: str | Path, files: Sequence[Path], names: Sequence[str] = ()
) -> list[Variable]:
    """Read the variables of files in a table.

    Parameters
    ----------
    table : str or Path
        Text with a line of column names, parted by commas, semicolons, tabs or blanks. The column
        of the files is called ``file`` (or ``filename``, ``name``, ``path``), or else is the first
        one that holds the name of one of the files, with or without folder and suffix.
    files : sequence of Path
        The files; rows of others are passed over.
    names : sequence of str
        Columns to take; by default all others that hold a number for each of the files.

    Returns
    -------
    list of Variable
        In the order of `names`, or of the columns.

    Raises
    ------
    InputError
        Where the table cannot be read, a column is not there, a file has no row or two, or a
        value is no number.
    """
    path = Path(table)
    rows = _rows(path)
    by_file = _by_file(path, rows, files)
    columns = [key for key in rows[0] if key != by_file.column]
    for name in names:
        if name not in columns:
            raise InputError(f"{path}: no column {name!r}; there are {', '.join(rows[0])}")
    chosen = names or [key for key in columns if by_file.is_numeric(key)]
    if not chosen:
        raise InputError(f"{path}: expected a column of numbers beside {by_file.column!r}")
    return [Variable(name, "", by_file.values(name)) for name in chosen]


class _ByFile:
    """The row of each file."""

    def __init__(self, path: Path, column: str, found: list[tuple[Path, dict[str, str]]]) -> None:
        self.column = column
        self._path, self._found = path, found

    def is_numeric(self, name: str) -> bool:
        return all(math.isfinite(_number(row[name])) for _, row in self._found)

    def values(self, name: str) -> np.ndarray:
        values = np.array([_number(row[name]) for _, row in self._found])
        if not np.isfinite(values).all():
            file, row = self._found[int(np.argmin(np.isfinite(values)))]
            raise InputError(
                f"{self._path}: expected a number in column {name!r} for {file.name!r}, got "
                f"{row[name]!r}"
            )
        return values


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        raise InputError(f"{path}: expected a line of column names and lines of values, got less")
    delimiter = next((mark for mark in (";", "\t", ",") if mark in lines[0]), " ")
    if delimiter == " ":
        parted = [line.split() for line in lines]
    else:
        parted = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    header = [name.lstrip("#").strip() for name in parted[0]]
    for number, row in enumerate(parted[1:], 2):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number}: expected {len(header)} values ({', '.join(header)}), got "
                f"{len(row)}"
            )
    if delimiter == ";":
        # A comma is a decimal one then.
        parted = [[cell.replace(",", ".") for cell in row] for row in parted]
    return [dict(zip(header, row, strict=True)) for row in parted[1:]]


def _by_file(path: Path, rows: list[dict[str, str]], files: Sequence[Path]) -> _ByFile:
    named = [key for key in rows[0] if key.lower() in _FILES]
    known = {label for file in files for label in (file.name, file.stem)}
    guessed = (key for key in rows[0] if any(Path(row[key]).name in known for row in rows))
    column = named[0] if named else next(guessed, None)
    if column is None:
        raise InputError(
            f"{path}: expected a column 'file', or one that holds the names of the files; there "
            f"are {', '.join(rows[0])}"
        )
    places: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        places.setdefault(Path(row[column]).name, []).append(row)
    found = []
    for file in files:
        matching = places.get(file.name) or places.get(file.stem) or []
        if len(matching) != 1:
            raise InputError(
                f"{path}: expected one row for {file.name!r} in column {column!r}, got "
                f"{len(matching)}"
            )
        found.append((file, matching[0]))
    return _ByFile(path, column, found)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
