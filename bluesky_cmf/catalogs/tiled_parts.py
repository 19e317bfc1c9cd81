"""The columns of a stream that is stored in Tiled: which there are, and their rows by number."""

import logging
from bisect import bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .patience import is_outage
from .tiled_columns import ROW_SHAPES, STAND_INS
from .tiled_nodes import read_frame

__all__ = ["CHUNK_ROWS", "StoredColumn", "completed", "read_columns", "read_table"]

logger = logging.getLogger(__name__)

#: What one request of rows of one array may bring.
_CHUNK_BYTES = 8 * 2**20
CHUNK_ROWS = 1000


@dataclass(frozen=True)
class StoredColumn:
    """The values of one data key, read by row number."""

    key: str
    n_rows: int
    chunk: int
    read: Callable[[int, int], Sequence[Any]]
    external: bool = False


def read_table(node: Any) -> tuple[dict[str, list[Any]], Any]:
    """Read a stream's table, or all parts of a very wide one, and what had to be outside it.

    Parameters
    ----------
    node
        The stream's node.

    Returns
    -------
    columns, counted
        The columns, all of one length, and the node of the table whose ``seq_num`` tells how many
        rows there are; None where there is none.
    """
    columns: dict[str, list[Any]] = {}
    counted = None
    parts = dict(node.items())
    for key, part in parts.items():
        if part.structure_family == "table" and key.startswith("internal"):
            frame = read_frame(part)
            counted = part if "seq_num" in frame.columns else counted
            columns.update({name: frame[name].tolist() for name in frame.columns})
    for key, part in parts.items():
        if part.structure_family == "array" and key.startswith("ts_") and len(part.shape) == 1:
            columns[key] = part.read().tolist()
    n_rows = min((len(values) for values in columns.values()), default=0)
    return {name: values[:n_rows] for name, values in columns.items()}, counted


def read_columns(
    node: Any,
    metadata: Mapping[str, Any],
    table: Mapping[str, list[Any]],
    *,
    growing: bool,
    known: Container[str] | None = None,
) -> tuple[list[StoredColumn], dict[str, Exception | None]]:
    """Find the columns of a stream's data keys.

    Parameters
    ----------
    node
        The stream's node.
    metadata
        Its metadata.
    table
        What `read_table` has read, before this.
    growing
        Whether rows may be on their way, so that there may be more of one column than of another.
    known
        The data keys to look for, which could be read before; by default all, and those in files
        are tried.

    Returns
    -------
    columns, missing
        The columns, and the keys that have none: with the reason why the server cannot read
        their files, or None where they are not in the catalog.
    """
    columns: list[StoredColumn] = []
    missing: dict[str, Exception | None] = {}
    shapes = metadata.get(ROW_SHAPES, {})
    parts = dict(node.items())
    for key, stand_in in metadata.get(STAND_INS, {}).items():
        if stand_in in parts:
            parts[key] = parts[stand_in]
    n_events = 0 if growing else len(table.get("seq_num", ()))
    for key, declared in metadata.get("data_keys", {}).items():
        if known is not None and key not in known:
            continue
        if key in table:
            columns.append(_table_column(key, declared, table[key]))
            continue
        if key not in parts:
            missing[key] = None
            continue
        try:
            column = _reader(key, declared, parts[key], shapes.get(key), n_events)
            if column.external and column.n_rows and known is None:
                column.read(0, 1)
        except Exception as error:
            if "external" not in declared or is_outage(error):
                raise
            missing[key] = error
        else:
            columns.append(column)
    return columns, missing


def completed(column: StoredColumn, n_rows: int) -> StoredColumn:
    """Make up for rows that were not stored: numbers are NaN there, texts empty."""
    if column.n_rows >= n_rows:
        return column
    logger.warning(
        "The data key %r has %d of %d rows in the catalog; it is NaN in the others.",
        column.key,
        column.n_rows,
        n_rows,
    )

    def read(first: int, stop: int) -> Sequence[Any]:
        there = list(column.read(first, min(stop, column.n_rows))) if first < column.n_rows else []
        like = there[-1] if there else column.read(column.n_rows - 1, column.n_rows)[0]
        return [*there, *(_nothing_like(like) for _ in range(stop - first - len(there)))]

    return replace(column, n_rows=n_rows, read=read)


def _nothing_like(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        return np.full(array.shape, "") if array.ndim else ""
    nothing = np.full(array.shape, np.nan, np.result_type(array.dtype, np.float16))
    return nothing if array.ndim else nothing.item()


def _table_column(key: str, declared: Mapping[str, Any], values: list[Any]) -> StoredColumn:
    array = declared.get("dtype") == "array"

    def read(first: int, stop: int) -> Sequence[Any]:
        rows = values[first:stop]
        return [_array(row, declared) for row in rows] if array else rows

    return StoredColumn(key, len(values), CHUNK_ROWS, read)


def _array(value: Any, declared: Mapping[str, Any]) -> np.ndarray:
    """Make an array of a table's cell, which nests one-dimensional ones."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = [_array(part, {}) for part in value]
    array = np.asarray(value)
    dtype = declared.get("dtype_numpy")
    return array.astype(dtype) if isinstance(dtype, str) and array.dtype.kind in "biuf" else array


def _reader(
    key: str,
    declared: Mapping[str, Any],
    part: Any,
    shapes: list[Any] | None,
    n_events: int,
) -> StoredColumn:
    external = "external" in declared
    if part.structure_family == "table":
        frame = read_frame(part)
        values = frame[key if key in frame.columns else frame.columns[0]].tolist()
        return StoredColumn(key, len(values), CHUNK_ROWS, lambda a, b: values[a:b], external)
    shape = tuple(part.shape)
    per_event = _rows_per_event(shape, declared, n_events) if external else 0
    n_rows = shape[0] // per_event if per_event else shape[0]
    size = int(np.prod(shape[1:], dtype=float)) * np.dtype(part.dtype).itemsize
    chunk = max(1, min(CHUNK_ROWS, _CHUNK_BYTES // max(size * max(per_event, 1), 1)))
    scalar = declared.get("dtype") != "array" and len(shape) == 1

    def read(first: int, stop: int) -> Sequence[Any]:
        if per_event:
            block = np.asarray(part[first * per_event : stop * per_event])
            block = block.reshape(stop - first, per_event, *shape[1:])
        else:
            block = np.asarray(part[first:stop])
        if scalar:
            rows: list[Any] = block.tolist()
            return rows
        return [_cropped(row, shapes, first + n) for n, row in enumerate(block)]

    return StoredColumn(key, n_rows, chunk, read, external)


def _rows_per_event(shape: tuple[int, ...], declared: Mapping[str, Any], n_events: int) -> int:
    """Tell how many rows of an array in files make one event; 0 where an event is one row.

    Where `n_events` is not known (0), the descriptor is believed.
    """
    per_event = declared.get("shape") or ()
    if len(shape) == len(per_event) + 1:
        return 0
    if n_events and shape[0] % n_events == 0:
        return shape[0] // n_events
    return int(per_event[0] or 1) if per_event else 1


def _cropped(row: np.ndarray, shapes: list[Any] | None, number: int) -> np.ndarray:
    """Give a row its true shape where it was padded, as an array of its own."""
    if shapes:
        _, shape = shapes[bisect_right([first for first, _ in shapes], number) - 1]
        row = row[tuple(slice(size) for size in shape)]
    return row.copy()
