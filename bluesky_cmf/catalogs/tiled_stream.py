"""The rows of one stream on their way into Tiled: each once, however often it has to be tried."""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow  # type: ignore[import-untyped]
from bluesky_tiled_plugins.utils import truncate_json_overflow
from bluesky_tiled_plugins.writing.tiled_writer import MAX_TABLE_COLUMNS
from tiled.adapters.sql import COLUMN_NAME_PATTERN, is_safe_identifier
from tiled.utils import UnsafeIdentifier

from .patience import existing_or_new, patiently
from .routing import Document, is_array
from .tiled_columns import ROW_SHAPES, STAND_INS, ArrayColumn, ScalarColumn
from .tiled_nodes import read_frame

__all__ = ["Stream"]

logger = logging.getLogger(__name__)

#: The most that one request carries.
_REQUEST_BYTES = 8 * 2**20
#: Seconds that the first rows of a stream are held back: Zarr's chunks are as long as the first
#: batch, and a file for each event is slow.
_FIRST_BATCH = 0.75


@dataclass
class _Table:
    """Columns of a stream that are one table on the server, and how many rows stand in it."""

    node: Any
    names: list[str]
    n_rows: int = 0
    #: Whether there may be more rows: those of a request whose answer was lost, or of a process
    #: that ended.
    unsure: bool = False

    def append(self, columns: Any) -> None:
        """Append rows, once each, however often that has to be tried."""

        def request() -> bool:
            there = self._further() if self.unsure else 0
            rows = columns.slice(min(there, len(columns)))
            self.unsure = True
            if len(rows):
                self.node.append_partition(0, rows)
            return there > len(columns)

        self.unsure = patiently(request, proven=self.n_rows > 0)
        self.n_rows += len(columns)

    def _further(self) -> int:
        """Count the rows that are there beyond those that are known."""
        return max(0, len(read_frame(self.node, self.names[:1])) - self.n_rows)


class Stream:
    """The rows of one stream: what waits, and the nodes that they are appended to.

    Parameters
    ----------
    find_node
        Gives its container.
    name
        Its name.
    data_keys
        Those of its first descriptor.
    access_tags
        For what is made.
    lost
        Takes what costs one data key.
    before
        The `state` to go on from, empty for a new stream.
    """

    def __init__(
        self,
        find_node: Callable[[], Any],
        name: str,
        data_keys: Mapping[str, Any],
        access_tags: Any,
        lost: list[Exception],
        *,
        before: Mapping[str, Any],
    ) -> None:
        self.notes: list[str] = list(before.get("notes", ()))
        self._find_node = find_node
        self._name = name
        self._data_keys = data_keys
        self._access_tags = access_tags
        self._lost = lost
        self._rows: list[Document] = []
        self._n_written = int(before.get("written", 0))
        self._keys: list[str] = list(before.get("keys", ()))
        self._refused: set[str] = set(before.get("refused", ()))
        self._shapes: Mapping[str, Any] = before.get("shapes", {})
        self._since = 0.0
        self._node: Any = None
        self._arrays: dict[str, ArrayColumn] = {}
        self._scalars: dict[str, ScalarColumn] = {}
        self._tables: dict[str, _Table] = {}

    def state(self) -> dict[str, Any]:
        """Give, as plain data, what waits and what is known to be written."""
        return {
            "rows": list(self._rows),
            "written": self._n_written,
            "keys": list(self._keys),
            "refused": sorted(self._refused),
            "shapes": {
                name: column.shapes(self._n_written) for name, column in self._arrays.items()
            }
            or dict(self._shapes),
            "notes": list(self.notes),
        }

    def append(self, event: Document) -> None:
        """Keep a row."""
        if not self._rows:
            self._since = time.monotonic()
        self._rows.append(event)

    def flush(self, *, force: bool) -> bool:
        """Write the rows that wait; tell whether they still do."""
        if not self._rows:
            return False
        if self._node is None and not force and time.monotonic() - self._since < _FIRST_BATCH:
            return True
        if self._node is None:
            self._settle(self._rows)
        while self._rows:
            # What waits is taken away when it is written, so that `state` may be asked any time.
            portion = _portion(self._rows)
            self._write(portion)
            self._n_written += len(portion)
            del self._rows[: len(portion)]
        return False

    def close(self) -> None:
        """Tell those who follow the stream on the server that no more comes."""
        nodes = [column.node for column in self._arrays.values()]
        for node in [*nodes, *(table.node for table in self._tables.values())]:
            if node is not None:
                patiently(node.close_stream)

    def _settle(self, rows: Sequence[Document]) -> None:
        """Decide which columns are arrays of their own and which are in the table."""
        node = patiently(self._find_node)
        self._keys = self._keys or list(rows[0]["data"])
        columns = _columns(rows, self._keys)
        there = self._find_columns(node, columns)
        taken: set[str] = set()
        for name, values in columns.items():
            declared = self._data_keys.get(name, {})
            if name in self._arrays or name in self._refused:
                continue
            if name not in there and (_any_array(values) or not _is_column_name(name, taken)):
                self._arrays[name] = ArrayColumn(name, declared, self._note)
            else:
                taken.add(name.lower())
                self._scalars[name] = ScalarColumn(
                    name, values, declared, self._note, settled=there.get(name)
                )
        self._node = node

    def _find_columns(self, node: Any, expected: Iterable[str]) -> dict[str, Any]:
        """Take over what an earlier process has made; give the types of the columns in tables."""
        types: dict[str, Any] = {}
        stand_ins: dict[str, str] = dict(node.metadata.get(STAND_INS, {}))
        names: dict[str, str] = {key: name for name, key in stand_ins.items()}
        for key, part in patiently(lambda: dict(node.items())).items():
            name = str(names.get(key, key))
            ours = name in expected and name not in self._refused
            if part.structure_family == "array" and ours:
                column = ArrayColumn(name, self._data_keys.get(name, {}), self._note)
                column.key = key
                column.resume(part, self._n_written, self._shapes.get(name, ()))
                self._arrays[name] = column
            elif part.structure_family == "table":
                schema = part.structure().arrow_schema_decoded
                types.update(zip(schema.names, schema.types, strict=True))
                self._tables[name] = _Table(part, schema.names, self._n_written, unsure=True)
        return types

    def _write(self, rows: Sequence[Document]) -> None:
        columns = _columns(rows, self._keys)
        if unknown := rows[0]["data"].keys() - set(self._keys):
            self._note(f"The data keys {sorted(unknown)} came late and are not stored.")
        # The arrays come first: a reader takes as many rows as the table has.
        for name in list(self._arrays):
            try:
                self._write_array(name, columns[name])
            except Exception as error:
                # One key that the server refuses must not cost the run.
                del self._arrays[name]
                self._refused.add(name)
                self._lost.append(error)
                self.notes.append(
                    f"Stream {self._name!r}: the data key {name!r} could not be stored further: "
                    f"{error}"
                )
        self._write_shapes()
        self._create_tables()
        for table in self._tables.values():
            table.append(
                pyarrow.table({n: self._scalars[n].arrow(columns[n]) for n in table.names})
            )

    def _write_array(self, name: str, values: Sequence[Any]) -> None:
        column = self._arrays[name]
        write = functools.partial(column.write, self._node, values, self._access_tags)
        # What makes the node has had patience with a server that cannot.
        made = column.node is not None
        patiently(write, proven=made, refused_after=0.0)
        if not made and column.key != name:
            self._note(
                f"The server could not make {name!r}: the data key stands in {column.key!r}."
            )
            told = {STAND_INS: {name: column.key}}
            patiently(lambda: self._node.update_metadata(told, drop_revision=True))

    def _write_shapes(self) -> None:
        padded = {name: column for name, column in self._arrays.items() if column.changed}
        if padded:
            shapes = {name: column.row_shapes() for name, column in padded.items()}
            told = {ROW_SHAPES: shapes}
            update = functools.partial(self._node.update_metadata, told, drop_revision=True)
            patiently(update, proven=True)

    def _create_tables(self) -> None:
        names = list(self._scalars)
        parts = [names[i : i + MAX_TABLE_COLUMNS] for i in range(0, len(names), MAX_TABLE_COLUMNS)]
        for number, part in enumerate(parts):
            key = "internal" if len(parts) == 1 else f"internal_{number}"
            if key in self._tables:
                continue
            make = functools.partial(
                self._node.create_appendable_table,
                schema=pyarrow.schema([(name, self._scalars[name].type) for name in part]),
                key=key,
                metadata=truncate_json_overflow(
                    {name: self._data_keys[name] for name in part if name in self._data_keys}
                ),
                access_tags=self._access_tags,
            )
            node, _existed = existing_or_new(self._node, key, make)
            self._tables[key] = _Table(node, part)

    def _note(self, text: str) -> None:
        note = f"Stream {self._name!r}: {text}"
        if note not in self.notes:
            self.notes.append(note)
            logger.warning("%s", note)


def _columns(rows: Sequence[Document], keys: Iterable[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "seq_num": [row["seq_num"] for row in rows],
        "time": [row["time"] for row in rows],
    }
    for key in keys:
        columns[key] = [row["data"].get(key) for row in rows]
        columns[f"ts_{key}"] = [row["timestamps"].get(key) for row in rows]
    return columns


def _portion(rows: list[Document]) -> list[Document]:
    """Give as many rows as a request of a bearable size takes."""
    size = sum(np.asarray(value).nbytes for value in rows[0]["data"].values() if is_array(value))
    return rows[: max(1, min(5000, _REQUEST_BYTES // max(size, 1)))]


def _any_array(values: Iterable[Any]) -> bool:
    return any(is_array(value) for value in values)


def _is_column_name(name: str, taken: set[str]) -> bool:
    """Tell whether the server takes a name for a column; it does not tell upper from lower case."""
    try:
        is_safe_identifier(name, COLUMN_NAME_PATTERN)
    except UnsafeIdentifier:
        return False
    return name.lower() not in taken
