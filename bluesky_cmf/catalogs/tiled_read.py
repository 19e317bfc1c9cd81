"""A stored run's documents from a Tiled server, read stream by stream in chunks of rows.

This needs no document exporter on the server, keeps the arrays' types, and holds no more of a
run in memory than a chunk of each stream.
"""

import heapq
import logging
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from bluesky_tiled_plugins.exporters import build_descriptor_docs

from .tiled_columns import ROW_SHAPES, STAND_INS
from .tiled_nodes import plain_node

__all__ = ["tiled_documents"]

logger = logging.getLogger(__name__)

#: What one request of rows of one array may bring.
_CHUNK_BYTES = 8 * 2**20
_CHUNK_ROWS = 1000

_Named = tuple[str, dict[str, Any]]


def tiled_documents(run: Any) -> Iterator[_Named]:
    """Give the documents of a run that is stored in Tiled's tables and arrays.

    Parameters
    ----------
    run
        The run's node.

    Yields
    ------
    name, doc
        The start document, descriptors and events in the order of their times, and the stop
        document if there is one. Rows that are not whole yet are left out; what a finished run
        lacks is NaN. Data in files come as arrays, where the server can read them.
    """
    run = plain_node(run)
    metadata = _plain(run.metadata)
    start = metadata["start"]
    yield "start", start
    streams = _streams_of(run)
    merged = heapq.merge(
        *(_stream_documents(streams, name, start["uid"], "stop" in metadata) for name in streams),
        key=lambda named: float(named[1]["time"]),
    )
    yield from merged
    if stop := metadata.get("stop"):
        yield "stop", stop


def _streams_of(run: Any) -> Any:
    """Give the container of streams; old runs have one more level."""
    if "streams" in run:
        inner = run["streams"]
        if not any(spec.name == "BlueskyEventStream" for spec in inner.specs):
            return plain_node(inner)
    return run


def _stream_documents(streams: Any, name: str, run_uid: str, finished: bool) -> Iterator[_Named]:
    # The table is read before anything else: a run that is being written has its arrays, and the
    # shapes of their rows, before the rows of the table.
    table = _read_table(plain_node(streams[name]))
    node = plain_node(streams[name])
    metadata = _plain(node.metadata)
    descriptors = build_descriptor_docs(
        {key: value for key, value in metadata.items() if key not in (ROW_SHAPES, STAND_INS)},
        name,
        run_start_uid=run_uid,
    )
    columns: list[_Column] = []
    n_rows = 0
    if table or all("external" in key for key in metadata["data_keys"].values()):
        columns, n_rows = _whole_rows(_columns(node, metadata, table), table, finished)
        _leave_out(descriptors, set(metadata["data_keys"]) - {column.key for column in columns})
    events = _events(f"{run_uid}/{name}", table, columns, n_rows, descriptors)
    yield from _with_descriptors(descriptors, events)


def _whole_rows(
    found: Iterable["_Column"], table: Mapping[str, Sequence[Any]], finished: bool
) -> tuple[list["_Column"], int]:
    """Give the columns to read and how many rows all of them have."""
    columns = list(found)
    if not finished or "seq_num" not in table:
        lengths = [column.n_rows for column in columns]
        if "seq_num" in table:
            lengths.append(len(table["seq_num"]))
        return columns, min(lengths, default=0)
    n_rows = len(table["seq_num"])
    return [_completed(column, n_rows) for column in columns if column.n_rows or not n_rows], n_rows


def _completed(column: "_Column", n_rows: int) -> "_Column":
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


def _with_descriptors(
    descriptors: Sequence[dict[str, Any]], events: Iterable[dict[str, Any]]
) -> Iterator[_Named]:
    """Announce each descriptor before the first event that refers to it."""
    waiting = list(descriptors)
    yield "descriptor", waiting.pop(0)
    for event in events:
        while waiting and waiting[0]["time"] <= event["time"]:
            yield "descriptor", waiting.pop(0)
        yield "event", event
    for descriptor in waiting:
        yield "descriptor", descriptor


def _events(
    where: str,
    table: Mapping[str, Sequence[Any]],
    columns: Sequence["_Column"],
    n_rows: int,
    descriptors: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    times = [float(descriptor["time"]) for descriptor in descriptors]
    step = min([_CHUNK_ROWS, *(column.chunk for column in columns)])
    for first in range(0, n_rows, step):
        stop = min(first + step, n_rows)
        chunks = {column.key: column.read(first, stop) for column in columns}
        for row in range(first, stop):
            time = float(table["time"][row]) if "time" in table else times[0]
            data = {key: chunk[row - first] for key, chunk in chunks.items()}
            yield {
                "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{where}/{row}")),
                "descriptor": descriptors[max(bisect_right(times, time) - 1, 0)]["uid"],
                "seq_num": int(table["seq_num"][row]) if "seq_num" in table else row + 1,
                "time": time,
                "data": data,
                "timestamps": {key: _timestamp(table, key, row, time) for key in data},
                "filled": {column.key: True for column in columns if column.external},
            }


def _timestamp(table: Mapping[str, Sequence[Any]], key: str, row: int, time: float) -> float:
    """Give a value's own time, or the event's where the store keeps none."""
    stamps = table.get(f"ts_{key}")
    stamp = None if stamps is None else stamps[row]
    return time if stamp is None or stamp != stamp else float(stamp)


def _leave_out(descriptors: Iterable[dict[str, Any]], unreadable: set[str]) -> None:
    for descriptor in descriptors:
        for key in unreadable:
            del descriptor["data_keys"][key]
            for keys in descriptor["object_keys"].values():
                if key in keys:
                    keys.remove(key)


def _read_table(node: Any) -> dict[str, list[Any]]:
    """Read a stream's table, or all parts of a very wide one, and what had to be outside it."""
    columns: dict[str, list[Any]] = {}
    parts = dict(node.items())
    for key, part in parts.items():
        if part.structure_family == "table" and key.startswith("internal"):
            frame = part.read()
            columns.update({name: frame[name].tolist() for name in frame.columns})
    for key, part in parts.items():
        if part.structure_family == "array" and key.startswith("ts_") and len(part.shape) == 1:
            columns[key] = part.read().tolist()
    if not columns:
        return columns
    n_rows = min(len(values) for values in columns.values())
    return {name: values[:n_rows] for name, values in columns.items()}


@dataclass(frozen=True)
class _Column:
    """The values of one data key, read by row number."""

    key: str
    n_rows: int
    chunk: int
    read: Callable[[int, int], Sequence[Any]]
    external: bool = False


def _columns(
    node: Any, metadata: Mapping[str, Any], table: Mapping[str, list[Any]]
) -> Iterator[_Column]:
    data_keys = metadata.get("data_keys", {})
    shapes = metadata.get(ROW_SHAPES, {})
    parts = dict(node.items())
    for key, stand_in in metadata.get(STAND_INS, {}).items():
        parts[key] = parts[stand_in]
    for key, declared in data_keys.items():
        if key in table:
            yield _table_column(key, declared, table[key])
        elif key in parts:
            column = _part_column(key, declared, parts[key], shapes.get(key), table)
            if column is not None:
                yield column
        else:
            logger.warning("The data key %r is not in the catalog and is left out.", key)


def _table_column(key: str, declared: Mapping[str, Any], values: list[Any]) -> _Column:
    array = declared.get("dtype") == "array"

    def read(first: int, stop: int) -> Sequence[Any]:
        rows = values[first:stop]
        return [_array(row, declared) for row in rows] if array else rows

    return _Column(key, len(values), _CHUNK_ROWS, read)


def _array(value: Any, declared: Mapping[str, Any]) -> np.ndarray:
    """Make an array of a table's cell, which nests one-dimensional ones."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = [_array(part, {}) for part in value]
    array = np.asarray(value)
    dtype = declared.get("dtype_numpy")
    return array.astype(dtype) if isinstance(dtype, str) and array.dtype.kind in "biuf" else array


def _part_column(
    key: str,
    declared: Mapping[str, Any],
    part: Any,
    shapes: list[Any] | None,
    table: Mapping[str, list[Any]],
) -> _Column | None:
    """Make a column of a node of its own; None, with a warning, where it cannot be read."""
    external = "external" in declared
    try:
        column = _reader(key, declared, part, shapes, table)
        if external and column.n_rows:
            column.read(0, 1)
    except Exception as error:
        if not external:
            raise
        logger.warning(
            "The data key %r is in files that the server cannot read and is left out: %s",
            key,
            error,
        )
        return None
    return column


def _reader(
    key: str,
    declared: Mapping[str, Any],
    part: Any,
    shapes: list[Any] | None,
    table: Mapping[str, list[Any]],
) -> _Column:
    external = "external" in declared
    if part.structure_family == "table":
        frame = part.read()
        values = frame[key if key in frame.columns else frame.columns[0]].tolist()
        return _Column(key, len(values), _CHUNK_ROWS, lambda a, b: values[a:b], external)
    shape = tuple(part.shape)
    per_event = _rows_per_event(shape, declared, len(table.get("seq_num", ()))) if external else 0
    n_rows = shape[0] // per_event if per_event else shape[0]
    size = int(np.prod(shape[1:], dtype=float)) * np.dtype(part.dtype).itemsize
    chunk = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // max(size * max(per_event, 1), 1)))
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

    return _Column(key, n_rows, chunk, read, external)


def _rows_per_event(shape: tuple[int, ...], declared: Mapping[str, Any], n_events: int) -> int:
    """Tell how many rows of an array in files make one event; 0 where an event is one row."""
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


def _plain(value: Any) -> Any:
    """Turn the read-only views of Tiled's client into dictionaries and lists."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ListView":
        return [_plain(part) for part in value]
    return value
