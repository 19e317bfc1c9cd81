"""One run on its way into Tiled: TiledWriter's layout, with rows written in batches.

TiledWriter keeps whole batches to itself and writes pages row by row, so it stores the metadata
and the external files here, while the rows of events are written by this module, through Tiled's
public client: arrays as arrays that grow, scalars as one table a stream.
"""

import copy
import functools
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow  # type: ignore[import-untyped]
from bluesky_tiled_plugins import TiledWriter
from bluesky_tiled_plugins.utils import truncate_json_overflow
from bluesky_tiled_plugins.writing.tiled_writer import (
    MAX_TABLE_COLUMNS,
    RunNormalizer,
    concatenate_stream_datums,
)
from event_model import DocumentNames
from tiled.adapters.sql import COLUMN_NAME_PATTERN, is_safe_identifier
from tiled.utils import UnsafeIdentifier

from ..errors import CatalogError
from .patience import existing_or_new, patiently
from .routing import Document, is_array, unpack_event_page
from .tiled_columns import ROW_SHAPES, STAND_INS, ArrayColumn, ScalarColumn

__all__ = ["TiledRun", "open_tiled_run", "plain_node"]

logger = logging.getLogger(__name__)

#: The entry of a run's metadata that says which writer it belongs to.
CLAIM = "_claim"
#: TiledWriter's entry of a stream's metadata for changes of its configuration.
_UPDATES = "_config_updates"
#: Names that the layout needs for itself.
_RESERVED = frozenset({"time", "seq_num"})
#: Characters that the server cannot have in the address of a data key.
_UNNAMEABLE = re.compile(r"""[./?#'"\\]""")
#: The most that one request carries.
_REQUEST_BYTES = 8 * 2**20
#: Seconds that the first rows of a stream are held back: Zarr's chunks are as long as the first
#: batch, and a file for each event is slow.
_FIRST_BATCH = 0.75


def plain_node(node: Any) -> Any:
    """Give a Tiled node as the plain container that it is, without Bluesky's views."""
    return getattr(node, "base", node)


def open_tiled_run(
    client: Any, start: Document, claim: str, state: Mapping[str, Any] | None = None
) -> "TiledRun":
    """Store a start document in a Tiled container and give the run that takes the rest.

    Parameters
    ----------
    client
        The container of runs.
    start
        The start document.
    claim
        Says whose the run is: one that is there with the same claim is gone on with.
    state
        What `TiledRun.state` gave, to go on from there.

    Raises
    ------
    CatalogError
        If the run is there and somebody else's.
    Exception
        Whatever the server answered.
    """
    run = patiently(lambda: _open_tiled_run(client, start, claim))
    if state is not None:
        run.resume(state)
    return run


def _open_tiled_run(client: Any, start: Document, claim: str) -> "TiledRun":
    opened: list[TiledRun] = []

    def normalizer(**options: Any) -> TiledRun:
        opened.append(TiledRun(client, start, **options))
        return opened[0]

    TiledWriter(_Runs(client, claim), normalizer=normalizer, batch_size=1)("start", start)
    (run,) = opened
    if run.refusal is not None:
        raise run.refusal
    return run


class TiledRun(RunNormalizer):  # type: ignore[misc]
    """Takes the documents of one run: rows are kept for `flush`, the rest goes to TiledWriter.

    Parameters
    ----------
    client
        The container of runs.
    start
        The start document of this run.
    **options
        What TiledWriter gives its normalizer.
    """

    def __init__(self, client: Any, start: Document, **options: Any) -> None:
        super().__init__(**options)
        self.refusal: Exception | None = None
        self.lost: list[Exception] = []
        self._uid = str(start["uid"])
        self._access_tags = start.get("tiled_access_tags")
        self._client = client
        self._streams: dict[str, _Stream] = {}
        self._stream_of: dict[str, _Stream] = {}
        self._plain: set[str] = set()
        self._names: dict[str, dict[str, str]] = {}
        self._files: dict[str, Any] = {}
        self._writer: Any = None
        #: All that was taken but for plain rows: a run can be gone on with from these and them.
        self._history: list[tuple[str, Document]] = []
        self._before: Mapping[str, Mapping[str, Any]] = {}

    def __call__(self, name: str, doc: Document, validate: bool = False) -> Any:
        """Take one document; what the server says to the start document is kept in `refusal`."""
        if name in ("event", "event_page") and doc["descriptor"] in self._plain:
            return super().__call__(name, doc, validate=validate)
        if name != "start":
            # As it came: what takes old references to files apart changes them.
            kept = doc if name in ("event", "event_page") else copy.deepcopy(doc)
            taken = super().__call__(name, doc, validate=validate)
            self._history.append((name, kept))
            return taken
        try:
            return super().__call__(name, doc, validate=validate)
        except Exception as error:
            # TiledWriter would warn of another cause than this one.
            self.refusal = error
            return name, doc

    def subscribe(self, func: Any, name: str = "all") -> Any:
        """Take TiledWriter's part of the work, and remember who does it."""
        self._writer = func
        return super().subscribe(func, name)

    def state(self) -> dict[str, Any]:
        """Give, as plain data, what `resume` needs in another process."""
        streams = {name: stream.state() for name, stream in self._streams.items()}
        return {"history": list(self._history), "streams": streams}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where another process had to stop; nothing that is stored is stored again."""
        self._before = state["streams"]
        for name, doc in state["history"]:
            self(name, doc)
        for name, before in self._before.items():
            for row in before["rows"]:
                self._streams[name].append(row)

    def descriptor(self, doc: Document) -> None:
        """Announce a stream, or a change of its configuration."""
        keys = doc["data_keys"]
        unnameable = {key: _UNNAMEABLE.sub("_", key) for key in keys if _UNNAMEABLE.search(key)}
        if unnameable:
            self._names[doc["uid"]] = unnameable
            self.notes += [f"Renamed data_key {a!r} to {b!r}" for a, b in unnameable.items()]
            doc = _with_names(doc, unnameable)
        elif not _RESERVED & set(keys) and not any("external" in key for key in keys.values()):
            self._plain.add(doc["uid"])
        super().descriptor(doc)

    def event(self, doc: Document) -> None:
        """Keep a row; one that refers to files is taken apart first."""
        if doc["descriptor"] in self._plain:
            self._stream_of[doc["descriptor"]].append(doc)
        else:
            names = self._names.get(doc["descriptor"], {})
            super().event(_with_names(doc, names) if names else doc)

    def event_page(self, doc: Document) -> None:
        """Keep the rows of a page."""
        for event in unpack_event_page(doc):
            self.event(event)

    def emit(self, name: Any, doc: Any) -> None:
        """Send a document on to TiledWriter, but for rows and references to files."""
        if name == DocumentNames.event:
            self._stream_of[doc["descriptor"]].append(doc)
            return
        if name == DocumentNames.stream_datum:
            self._refer(doc)
            return
        if name == DocumentNames.stop:
            self.flush(force=True)
            notes = [note for stream in self._streams.values() for note in stream.notes]
            doc["_run_normalizer_notes"] = [*doc.get("_run_normalizer_notes", ()), *notes]
        send = super().emit
        if name in (DocumentNames.descriptor, DocumentNames.stop):
            patiently(lambda: send(name, copy.copy(doc)))
        else:
            send(name, doc)
        if name == DocumentNames.descriptor:
            self._stream_of[doc["uid"]] = self._stream(doc)
        elif name == DocumentNames.stop:
            for stream in self._streams.values():
                stream.close()

    def flush(self, *, force: bool) -> bool:
        """Write the rows; without `force` a new stream's first ones wait for company."""
        for files in list(self._files):
            self._register(self._files.pop(files))
        waits = [stream.flush(force=force) for stream in self._streams.values()]
        return any(waits)

    def _refer(self, doc: Any) -> None:
        """Keep a reference to files, joined to the one before where it goes on from there."""
        before = self._files.pop(doc["stream_resource"], None)
        if before is not None:
            try:
                doc = concatenate_stream_datums(before, doc)
            except ValueError:
                self._register(before)
        self._files[doc["stream_resource"]] = doc

    def _register(self, doc: Any) -> None:
        """Tell the server of files, as often as it takes, and count their frames once."""
        writer = self._writer
        node, files = patiently(
            lambda: writer.get_sres_node(doc["stream_resource"], doc["descriptor"])
        )
        patch = files.consume_stream_datum(doc)
        update = writer._update_data_source_for_node
        patiently(lambda: update(node, files.get_data_source(), patch), proven=True)

    def _stream(self, descriptor: Document) -> "_Stream":
        name = str(descriptor["name"])
        if name not in self._streams:
            self._streams[name] = _Stream(
                lambda: plain_node(plain_node(self._client[self._uid])[name]),
                name,
                descriptor["data_keys"],
                self._access_tags,
                self.lost,
                whole=descriptor["uid"] not in self._plain,
                before=self._before.get(name, {}),
            )
        return self._streams[name]


class _Runs:
    """The container of runs as TiledWriter sees it: what it makes there bears a claim."""

    def __init__(self, client: Any, claim: str) -> None:
        self._client = client
        self._claim = claim

    def include_data_sources(self) -> "_Runs":
        return _Runs(self._client.include_data_sources(), self._claim)

    def create_container(self, *, key: str, metadata: Mapping[str, Any], **more: Any) -> Any:
        claimed = {**metadata, CLAIM: self._claim}
        node, existed = existing_or_new(
            self._client,
            key,
            lambda: self._client.create_container(key=key, metadata=claimed, **more),
        )
        if existed and node.metadata.get(CLAIM) != self._claim:
            raise CatalogError(
                f"The catalog has a run with the uid {key} that somebody else has stored. Store "
                "each run once."
            )
        return _Container(node)


class _Container:
    """A container as TiledWriter sees it: what it makes there a second time is what is there."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    @property
    def base(self) -> "_Container":
        return _Container(self._node.base)

    def create_container(self, *, key: str, **more: Any) -> "_Container":
        make = functools.partial(self._node.create_container, key=key, **more)
        return _Container(existing_or_new(self._node, key, make)[0])

    def new(self, *, key: str, **more: Any) -> Any:
        return existing_or_new(self._node, key, lambda: self._node.new(key=key, **more))[0]

    def update_metadata(self, *, metadata: Mapping[str, Any], **more: Any) -> None:
        updates = metadata.get(_UPDATES)
        if updates:
            # A change of configuration that comes a second time was stored by another process.
            once = {update["uid"]: update for update in updates}
            metadata = {**metadata, _UPDATES: list(once.values())}
        self._node.update_metadata(metadata=metadata, **more)


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
        return max(0, len(self.node.read(self.names[:1])) - self.n_rows)


class _Stream:
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
    whole
        Whether all of its rows come again where the run is gone on with in another process.
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
        whole: bool,
        before: Mapping[str, Any],
    ) -> None:
        self.notes: list[str] = list(before.get("notes", ()))
        self._find_node = find_node
        self._name = name
        self._data_keys = data_keys
        self._access_tags = access_tags
        self._lost = lost
        self._whole = whole
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
        if self._whole:
            return {"rows": [], "written": 0, "notes": list(self.notes)}
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


def _with_names(value: Any, names: Mapping[str, str]) -> Any:
    """Rename data keys in a descriptor or an event, wherever they stand."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {names.get(key, key): _with_names(part, names) for key, part in value.items()}
    if isinstance(value, list) and not all(isinstance(part, (int, float)) for part in value):
        return [_with_names(part, names) for part in value]
    return value


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
