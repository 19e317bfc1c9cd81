"""Pattern files of text: columns, with a header and comments."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PatternFileError
from .record import Array, Found

__all__ = ["read_text"]

_COMMENTS = "#;!%'\"/*"
_DECIMAL_COMMA = r"[+-]?\d+,\d+([eE][+-]?\d+)?|[+-]?\d+"
#: What a body without comments and surprises is made of.
_CLEAN = b"0123456789+-.eE, \n"
_TABS = bytes.maketrans(b"\t", b" ")
#: Lines and characters of a header that are kept.
_HEADER_LINES, _HEADER_WIDTH = 50, 200

#: What headers call axes.
_AXES = (
    (r"2[-_ ]?th|2θ|two[-_ ]?theta|\btth\b", "two_theta", ((r"\brad", "rad"), (r"", "deg"))),
    (r"(^|[^a-z])q([^a-z]|$)", "q", ((r"nm", "1/nm"), (r"a(ng\w*)?\W*-1|Å|angstr", "1/angstrom"))),
)


def read_text(path: Path) -> Found:
    """Read the columns of a file.

    Raises
    ------
    PatternFileError
        Where there are none, or a line is garbled, cut off or lacks a value.
    """
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    header, body = _parted(raw)
    columns = _clean_columns(body)
    if columns is None:
        columns = _columns(path, raw)
    errors = columns[2] if path.suffix.lower() == ".xye" and len(columns) > 2 else None
    return Found(columns[0], columns[1], errors, _metadata(header))


def _parted(raw: bytes) -> tuple[list[str], bytes]:
    """Part a file where its numbers begin."""
    header: list[str] = []
    start = 0
    while start < len(raw):
        end = raw.find(b"\n", start) + 1 or len(raw)
        line = _decoded(raw[start:end])
        if _numbers(_fields(line)) is not None:
            break
        header.append(line.strip())
        start = end
    return header, raw[start:]


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        # Older programs write the degree sign of a header in Latin-1; numbers read the same.
        return raw.decode("latin-1")


def _clean_columns(body: bytes) -> list[Array] | None:
    """Read a body of nothing but numbers, fast; None where it is anything else."""
    body = body.replace(b"\r\n", b"\n").translate(_TABS)
    if not body or body.translate(None, _CLEAN):
        return None
    while b"  " in body:
        body = body.replace(b"  ", b" ")
    body = body.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip(b" \n")
    if b"," in body:
        body = body.replace(b", ", b",")
        framed = b"\n" + body + b"\n"
        # What is missing, in a column that is read or not, is for the careful road to judge.
        if b" " in body or any(gap in framed for gap in (b",,", b",\n", b"\n,")):
            return None
    return _parsed(body, "," if b"," in body else " ")


def _parsed(body: bytes, delimiter: str) -> list[Array] | None:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import csv

    try:
        table = csv.read_csv(
            pyarrow.BufferReader(body),
            read_options=csv.ReadOptions(autogenerate_column_names=True, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=delimiter, quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types={f"f{k}": pyarrow.float64() for k in range(3)}, null_values=[]
            ),
        )
    except pyarrow.ArrowInvalid:
        return None
    columns = table.columns[:3]
    if len(columns) < 2 or any(column.null_count for column in columns):
        return None
    return [column.to_numpy() for column in columns]


def _columns(path: Path, raw: bytes) -> list[Array]:
    """Read a file line by line, and say what is wrong with it."""
    rows = list(_rows(path, _decoded(raw)))
    if not rows:
        raise PatternFileError(
            f"{path}: expected lines of at least two numbers (axis, intensity), found none"
        )
    return list(np.array(rows).T)


def _rows(path: Path, text: str) -> Iterator[tuple[float, ...]]:
    """Yield the first three numbers of each line, or two where there are no more."""
    first, width = 0, 0
    for number, line in enumerate(text.splitlines(), 1):
        fields = _fields(line)
        row = _numbers(fields)
        if row is None:
            if first and line.strip() and line.lstrip()[0] not in _COMMENTS:
                raise PatternFileError(
                    f"{path}: line {number}: expected two numbers or a comment, got {line[:40]!r}"
                )
            continue
        if first and len(fields) != width:
            raise PatternFileError(
                f"{path}: line {number}: expected {width} columns as in line {first}, got "
                f"{len(fields)} in {line[:40]!r}: is a value missing, or the file cut off?"
            )
        first, width = first or number, len(fields)
        yield row if width > 2 else row[:2]


def _fields(line: str) -> list[str]:
    """Split a line at semicolons, commas or blanks; an empty field is a missing value.

    Beside semicolons, and beside blanks where both numbers have one, a comma is a decimal one.
    """
    line = line.replace('"', " ").strip()
    parts = [part.strip() for part in line.split(";")] if ";" in line else line.split()
    decimal = ";" in line or all(re.fullmatch(_DECIMAL_COMMA, part) for part in parts[:2])
    if len(parts) > 1 and decimal:
        return _without_comment([part.replace(",", ".") for part in parts])
    return _without_comment(re.split(r"\s*,\s*|\s+", line))


def _without_comment(fields: list[str]) -> list[str]:
    for k, field in enumerate(fields):
        if field and field[0] in _COMMENTS:
            fields = fields[:k]
            break
    # A delimiter may end the line.
    while fields and not fields[-1]:
        fields = fields[:-1]
    return fields


def _numbers(fields: list[str]) -> tuple[float, ...] | None:
    """Give the first two or three numbers; a third field need not be one."""
    try:
        row = float(fields[0]), float(fields[1])
    except (ValueError, IndexError):
        return None
    try:
        return (*row, float(fields[2]))
    except (ValueError, IndexError):
        return (*row, np.nan)


def _metadata(header: list[str]) -> dict[str, Any]:
    lines = [line[:_HEADER_WIDTH] for line in header[:_HEADER_LINES] if line]
    if not lines:
        return {}
    return {"header": lines, **_axis("\n".join(lines))}


def _axis(header: str) -> dict[str, str]:
    """Tell which axis a header names; nothing where it names none or several."""
    found = []
    for name, axis, units in _AXES:
        lines = [line for line in header.splitlines() if re.search(name, line, re.IGNORECASE)]
        for line in lines[:1]:
            unit = (u for pattern, u in units if re.search(pattern, line, re.IGNORECASE))
            if (known := next(unit, None)) is not None:
                found.append({"axis": axis, "units": known})
    return found[0] if len(found) == 1 else {}
