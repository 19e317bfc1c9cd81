"""One run on its way into Tiled: TiledWriter's layout, with rows written in batches.

TiledWriter keeps whole batches to itself and writes pages row by row, so it stores the metadata
and the external files here, while the rows of events are written by this module, through Tiled's
public client: arrays as arrays that grow, scalars as one table a stream.
"""

import copy
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from bluesky_tiled_plugins import TiledWriter
from bluesky_tiled_plugins.writing.tiled_writer import (
    ExternalEventDataReference,
    RunNormalizer,
    concatenate_stream_datums,
)
from event_model import DocumentNames

from .patience import patiently
from .routing import Document, unpack_event_page
from .tiled_nodes import ClaimedRuns, plain_node
from .tiled_stream import Stream

__all__ = ["TiledRun", "open_tiled_run"]

logger = logging.getLogger(__name__)

#: Names that the layout needs for itself.
_RESERVED = frozenset({"time", "seq_num"})
#: Characters that the server cannot have in the address of a data key.
_UNNAMEABLE = re.compile(r"""[./?#'"\\]""")


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

    TiledWriter(ClaimedRuns(client, claim), normalizer=normalizer, batch_size=1)("start", start)
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
        self._streams: dict[str, Stream] = {}
        self._stream_of: dict[str, Stream] = {}
        self._plain: set[str] = set()
        self._names: dict[str, dict[str, str]] = {}
        self._writer: Any = None
        #: Descriptors and resources as they came, and the references to files that were made.
        self._history: list[tuple[str, Document]] = []
        self._resources: dict[str, Any] = {}
        #: The frames that the server has still to be told of, and those that it knows.
        self._files: list[Any] = []
        self._registered: list[Any] = []
        self._before: Mapping[str, Mapping[str, Any]] = {}

    def __call__(self, name: str, doc: Document, validate: bool = False) -> Any:
        """Take one document; what the server says to the start document is kept in `refusal`."""
        if name in ("descriptor", "resource"):
            # As it came: what takes old references to files apart changes them.
            kept = copy.deepcopy(doc)
            taken = super().__call__(name, doc, validate=validate)
            self._history.append((name, kept))
            return taken
        if name != "start":
            return super().__call__(name, doc, validate=validate)
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
        frames = self._next_frame_index.items()
        return {
            "history": list(self._history),
            "resources": list(self._resources.values()),
            "files": [*self._registered, *self._files],
            "datums": list(self._datum_cache.values()),
            "without_datum": [list(reference) for reference in self._ext_ref_cache],
            "frames": [[stream, key, dict(index)] for (stream, key), index in frames],
            "streams": {name: stream.state() for name, stream in self._streams.items()},
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where another process had to stop; nothing that is stored is stored again."""
        self._before = state["streams"]
        for name, doc in state["history"]:
            self(name, doc)
        for doc in state["resources"]:
            self.emit(DocumentNames.stream_resource, doc)
            self._emitted.add(doc["uid"])
        # The server is told of all frames again: who counts them begins with nothing.
        self._files = list(state["files"])
        self._datum_cache = {doc["datum_id"]: doc for doc in state["datums"]}
        self._ext_ref_cache = [
            ExternalEventDataReference(*reference) for reference in state["without_datum"]
        ]
        self._next_frame_index.update(
            {(stream, key): index for stream, key, index in state["frames"]}
        )
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
            # Not before `flush`: a document that is taken has been taken as a whole.
            _join(self._files, doc, self._data_key)
            return
        if name == DocumentNames.stream_resource:
            self._resources[doc["uid"]] = copy.deepcopy(doc)
        if name == DocumentNames.stop:
            # What had to wait for its datum is among the files by now.
            self._ext_ref_cache = []
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
        while self._files:
            self._register(self._files[0])
            _join(self._registered, self._files.pop(0), self._data_key)
        waits = [stream.flush(force=force) for stream in self._streams.values()]
        return any(waits)

    def _data_key(self, doc: Any) -> str:
        return str(self._resources[doc["stream_resource"]]["data_key"])

    def _register(self, doc: Any) -> None:
        """Tell the server of files, as often as it takes, and count their frames once."""
        writer = self._writer
        node, files = patiently(
            lambda: writer.get_sres_node(doc["stream_resource"], doc["descriptor"])
        )
        patch = files.consume_stream_datum(doc)
        update = writer._update_data_source_for_node
        patiently(lambda: update(node, files.get_data_source(), patch), proven=True)

    def _stream(self, descriptor: Document) -> "Stream":
        name = str(descriptor["name"])
        if name not in self._streams:
            self._streams[name] = Stream(
                lambda: plain_node(plain_node(self._client[self._uid])[name]),
                name,
                descriptor["data_keys"],
                self._access_tags,
                self.lost,
                before=self._before.get(name, {}),
            )
        return self._streams[name]


def _join(pieces: list[Any], doc: Any, data_key: Callable[[Any], str]) -> None:
    """Add frames to those before them of their data key, or after them where these end."""
    for i in reversed(range(len(pieces))):
        if data_key(pieces[i]) == data_key(doc):
            try:
                pieces[i] = concatenate_stream_datums(pieces[i], doc)
            except ValueError:
                break
            return
    pieces.append(doc)


def _with_names(value: Any, names: Mapping[str, str]) -> Any:
    """Rename data keys in a descriptor or an event, wherever they stand."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {names.get(key, key): _with_names(part, names) for key, part in value.items()}
    if isinstance(value, list) and not all(isinstance(part, (int, float)) for part in value):
        return [_with_names(part, names) for part in value]
    return value
