"""A stored run's documents from a Tiled server, read stream by stream in chunks of rows.

This needs no document exporter on the server, keeps the arrays' types, and holds no more of a
run in memory than its tables and a chunk of each stream's arrays. A run that grows can be read
again and again, each time what is new.
"""

import logging
import time
import uuid
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bluesky_tiled_plugins.exporters import build_descriptor_docs

from .patience import is_outage
from .tiled_columns import ROW_SHAPES, STAND_INS
from .tiled_nodes import plain_node, read_frame
from .tiled_parts import CHUNK_ROWS, StoredColumn, completed, read_columns, read_table

__all__ = ["TiledReading", "tiled_documents"]

logger = logging.getLogger(__name__)

#: Seconds that the first rows of a growing stream wait for a data key that is not there before it
#: is left out; for one in files they wait until the run has ended.
_SETTLING = 30.0

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
    return TiledReading(run).news(last=True)


class TiledReading:
    """Reads a run that may still grow: each time what is new.

    Parameters
    ----------
    run
        The run's node, as just looked up.

    Attributes
    ----------
    finished
        Whether the stop document was given.
    extent
        How much of the run has been seen: a number that grows with it.
    """

    def __init__(self, run: Any) -> None:
        self.finished = False
        self.extent = 0
        self._run = plain_node(run)
        self._fresh = True
        self._streams: Any = None
        self._started = False
        self._tails: dict[str, _StreamTail] = {}

    def news(self, *, last: bool) -> Iterator[_Named]:
        """Give what has come since; what this raises, or leaves, comes the next time.

        Parameters
        ----------
        last
            Whether this is the last look: what waits for more is given as it is.
        """
        if not self._fresh:
            self._run.refresh()
        self._fresh = False
        # Before the streams: once there is a stop document, there is no row to come.
        metadata = _plain(self._run.metadata)
        finished = "stop" in metadata
        if not self._started:
            self._started = True
            yield "start", metadata["start"]
        if not self._tails:
            self._streams = _streams_of(self._run)
        for name in self._streams:
            if name not in self._tails:
                self._tails[name] = _StreamTail(name, metadata["start"]["uid"])
        for tail in self._tails.values():
            tail.look(self._streams, finished=finished, last=last)
        self.extent = sum(1 + tail.extent for tail in self._tails.values())
        yield from _in_order(self._tails.values())
        if finished:
            self.finished = True
            yield "stop", metadata["stop"]


def _streams_of(run: Any) -> Any:
    """Give the container of streams; old runs have one more level."""
    if "streams" in run:
        inner = run["streams"]
        if not any(spec.name == "BlueskyEventStream" for spec in inner.specs):
            return plain_node(inner)
    return run


def _in_order(tails: Iterable["_StreamTail"]) -> Iterator[_Named]:
    """Merge what the streams have, by time; what is not taken stays with its stream."""
    while True:
        ready = [(head, tail) for tail in tails if (head := tail.head()) is not None]
        if not ready:
            return
        _, tail = min(ready, key=lambda found: float(found[0][1]["time"]))
        yield tail.pop()


class _StreamTail:
    """The rows and descriptors of one stream that were not given yet.

    Attributes
    ----------
    extent
        A number that grows with what the catalog has of the stream.
    """

    def __init__(self, name: str, run_uid: str) -> None:
        self.extent = 0
        self._name, self._run_uid = name, run_uid
        self._where = f"{run_uid}/{name}"
        self._queue: deque[_Named] = deque()
        self._descriptors: list[dict[str, Any]] = []
        self._n_descriptors = 0
        #: The data keys that events have, once that is settled.
        self._keys: frozenset[str] | None = None
        self._unsettled_since: float | None = None
        self._waits_for: set[str] = set()
        self._table: Mapping[str, Sequence[Any]] = {}
        self._columns: list[StoredColumn] = []
        self._n_given = self._n_whole = 0
        self._ends = False
        #: Tells by one small request how many rows there may be.
        self._pulse: Callable[[], int] | None = None

    def head(self) -> _Named | None:
        """Give what comes next, without taking it; None where nothing has come."""
        if not self._queue and self._n_given < self._n_whole:
            self._read_rows()
        if not self._queue and self._ends:
            self._announce(float("inf"))
        return self._queue[0] if self._queue else None

    def pop(self) -> _Named:
        """Take what comes next."""
        return self._queue.popleft()

    def look(self, streams: Any, *, finished: bool, last: bool) -> None:
        """Find out which rows are whole now."""
        self._ends = finished or last
        if not self._ends and self._is_still():
            return
        # The table is read before anything else: a run that is being written has its arrays, and
        # the shapes of their rows, before the rows of the table.
        table, counted = read_table(plain_node(streams[self._name]))
        node = plain_node(streams[self._name])
        metadata = _plain(node.metadata)
        declared = metadata["data_keys"]
        columns: list[StoredColumn] = []
        if table or all("external" in key for key in declared.values()):
            columns, missing = read_columns(
                node, metadata, table, growing=not finished, known=self._keys
            )
            n_events = len(table.get("seq_num", ()))
            self.extent = n_events + sum(column.n_rows for column in columns)
            if not self._is_settled(declared, columns, missing, finished and n_events > 0):
                return
        elif self._ends:
            self._keys = frozenset(declared)
        self._take(metadata, table, columns, finished)
        in_files = any(column.external for column in columns)
        behind = self._n_whole < len(table.get("seq_num", ()))
        own = [column.key for column in columns if column.key not in table]
        stand_ins = metadata.get(STAND_INS, {})
        keys = [str(stand_ins.get(key, key)) for key in own]
        self._pulse = None if in_files or behind else _pulse(node, keys, counted)

    def _is_still(self) -> bool:
        """Tell whether there cannot be more rows than before."""
        return self._pulse is not None and self._pulse() <= self._n_whole

    def _is_settled(
        self,
        declared: Mapping[str, Any],
        columns: Sequence[StoredColumn],
        missing: Mapping[str, Exception | None],
        complete: bool,
    ) -> bool:
        """Tell whether it is clear which data keys the events have, and all of them are there."""
        if self._keys is not None:
            return self._ends or not missing
        empty = [column.key for column in columns if not column.n_rows]
        if not self._ends and (empty or not self._has_waited(declared, missing)):
            return False
        if complete:
            missing = {**missing, **dict.fromkeys(empty)}
        self._keys = frozenset(column.key for column in columns) - missing.keys()
        for key, reason in missing.items():
            if reason is None:
                logger.warning("The data key %r is not in the catalog and is left out.", key)
            else:
                logger.warning(
                    "The data key %r is in files that the server cannot read and is left out: %s",
                    key,
                    reason,
                )
        return True

    def _has_waited(
        self, declared: Mapping[str, Any], missing: Mapping[str, Exception | None]
    ) -> bool:
        """Tell whether the keys that are missing have had their time; files have all of it."""
        if not missing:
            return True
        now = time.monotonic()
        if self._unsettled_since is None:
            self._unsettled_since = now
        for key, reason in missing.items():
            if "external" in declared[key]:
                self._wait_for_file(key, reason)
                return False
        return now - self._unsettled_since > _SETTLING

    def _wait_for_file(self, key: str, reason: Exception | None) -> None:
        if reason is not None and key not in self._waits_for:
            self._waits_for.add(key)
            logger.warning(
                "The data key %r of stream %r is in files that the server cannot read now (%s): "
                "events wait until it can, or until the run has ended.",
                key,
                self._name,
                reason,
            )

    def _take(
        self,
        metadata: Mapping[str, Any],
        table: Mapping[str, Sequence[Any]],
        columns: Sequence[StoredColumn],
        finished: bool,
    ) -> None:
        self._descriptors = build_descriptor_docs(
            {key: value for key, value in metadata.items() if key not in (ROW_SHAPES, STAND_INS)},
            self._name,
            run_start_uid=self._run_uid,
        )
        keys = self._keys or frozenset()
        _leave_out(self._descriptors, metadata["data_keys"].keys() - keys)
        self._table = table
        self._columns = [column for column in columns if column.key in keys]
        lengths = [column.n_rows for column in self._columns]
        if "seq_num" in table:
            lengths.append(len(table["seq_num"]))
        self._n_whole = min(lengths, default=0)
        if finished and "seq_num" in table:
            self._n_whole = len(table["seq_num"])
            self._columns = [completed(column, self._n_whole) for column in self._columns]

    def _read_rows(self) -> None:
        first = self._n_given
        stop = min([self._n_whole, *(first + column.chunk for column in self._columns)])
        stop = min(stop, first + CHUNK_ROWS)
        try:
            chunks = {column.key: column.read(first, stop) for column in self._columns}
        except Exception as error:
            if self._ends or is_outage(error) or not any(c.external for c in self._columns):
                raise
            # A file that is being written may hold more than the server was told, or be locked.
            logger.info("stream %r waits for its files: %s", self._name, error)
            self._n_whole = first
            return
        external = [column.key for column in self._columns if column.external]
        times = [float(descriptor["time"]) for descriptor in self._descriptors]
        table = self._table
        for row in range(first, stop):
            when = float(table["time"][row]) if "time" in table else times[0]
            self._announce(when)
            data = {key: chunk[row - first] for key, chunk in chunks.items()}
            event = {
                "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._where}/{row}")),
                "descriptor": self._descriptors[max(bisect_right(times, when) - 1, 0)]["uid"],
                "seq_num": int(table["seq_num"][row]) if "seq_num" in table else row + 1,
                "time": when,
                "data": data,
                "timestamps": {key: _timestamp(table, key, row, when) for key in data},
                "filled": dict.fromkeys(external, True),
            }
            self._queue.append(("event", event))
        self._n_given = stop

    def _announce(self, until: float) -> None:
        """Give each descriptor before the first event that refers to it."""
        while self._n_descriptors < len(self._descriptors):
            descriptor = self._descriptors[self._n_descriptors]
            if self._n_descriptors and descriptor["time"] > until:
                return
            self._queue.append(("descriptor", descriptor))
            self._n_descriptors += 1


def _timestamp(table: Mapping[str, Sequence[Any]], key: str, row: int, time: float) -> float:
    """Give a value's own time, or the event's where the store keeps none."""
    stamps = table.get(f"ts_{key}")
    stamp = None if stamps is None else stamps[row]
    return time if stamp is None or stamp != stamp else float(stamp)


def _pulse(node: Any, keys: Sequence[str], counted: Any) -> Callable[[], int] | None:
    """Give what counts the rows of a stream: by an array's shape, for arrays are written first.

    A stream without arrays is counted by its table, which its server has to read.
    """
    if any(node[key].structure_family == "array" for key in keys[:1]):
        return lambda: int(node[keys[0]].shape[0])
    return None if counted is None else lambda: len(read_frame(counted, ["seq_num"]))


def _leave_out(descriptors: Iterable[dict[str, Any]], unreadable: set[str]) -> None:
    for descriptor in descriptors:
        for key in unreadable:
            del descriptor["data_keys"][key]
            for keys in descriptor["object_keys"].values():
                if key in keys:
                    keys.remove(key)


def _plain(value: Any) -> Any:
    """Turn the read-only views of Tiled's client into dictionaries and lists."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ListView":
        return [_plain(part) for part in value]
    return value
