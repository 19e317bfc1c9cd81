"""One run on its way into databroker's document store, and out of it."""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import event_model
import numpy as np

from .patience import patiently
from .routing import Document, is_array, unpack_event_page

__all__ = ["BrokerReading", "BrokerRun", "broker_documents"]

#: What one page of events holds. The server of ``databroker.temp()`` lives in this process and
#: keeps the interpreter while it takes a page to pieces.
_PAGE_BYTES = 256 * 2**10
_PAGE_ROWS = 250


class BrokerRun:
    """Sends the documents of one run, its events in pages.

    A document is sent again until it is answered. Where an answer is lost it comes twice: a
    database with databroker's unique indexes passes over the second one, and one without them, as
    that of ``databroker.temp()`` is, keeps both.

    Parameters
    ----------
    catalog
        The client of the databroker catalog.
    start
        The start document, sent at once.
    before
        What `state` gave, to go on from there in another process.
    """

    def __init__(
        self, catalog: Any, start: Document, before: Mapping[str, Any] | None = None
    ) -> None:
        self._catalog = catalog
        self.lost: list[Exception] = []
        self._rows: dict[str, list[Document]] = {}
        if before is None:
            self._send("start", start)
        else:
            self._rows = {uid: list(rows) for uid, rows in before["rows"].items()}

    def state(self) -> dict[str, Any]:
        """Give, as plain data, the rows that wait: what else was taken is sent."""
        return {"rows": {uid: list(rows) for uid, rows in self._rows.items() if rows}}

    def __call__(self, name: str, doc: Document) -> None:
        """Send one document; events wait for company."""
        if name == "event":
            self._rows.setdefault(doc["descriptor"], []).append(doc)
        elif name == "event_page":
            self._rows.setdefault(doc["descriptor"], []).extend(unpack_event_page(doc))
        else:
            if name == "stop":
                self.flush(force=True)
            self._send(name, doc)

    def flush(self, *, force: bool) -> bool:
        """Send the events that wait; nothing is left."""
        for rows in self._rows.values():
            step = _rows_of_a_page(rows)
            while rows:
                self._send("event_page", event_model.pack_event_page(*rows[:step]))
                # Not before: what waits is asked for any time.
                del rows[:step]
        return False

    def _send(self, name: str, doc: Document) -> None:
        # The server calls everything that the database refuses an internal error.
        patiently(lambda: self._catalog.post_document(name, doc), refused_after=0.0)


def _rows_of_a_page(rows: list[Document]) -> int:
    if not rows:
        return 1
    size = sum(np.asarray(value).nbytes for value in rows[0]["data"].values() if is_array(value))
    return max(1, min(_PAGE_ROWS, _PAGE_BYTES // max(size, 1)))


def broker_documents(run: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the documents of a run as databroker keeps them, with arrays as arrays.

    Parameters
    ----------
    run
        The run's client.

    Yields
    ------
    name, doc
        In the order of their times; pages come as single events. Data in files come as
        references, with the resource and datum documents.
    """
    descriptors: dict[str, dict[str, Any]] = {}
    last: dict[str, Document] = {}
    for name, doc in _once_each(_single_documents(run)):
        if name == "stop":
            yield name, doc
            return
        if name == "descriptor":
            descriptors[doc["uid"]] = doc
        if name == "event":
            descriptor = descriptors[doc["descriptor"]]
            doc = _with_arrays(doc, descriptor["data_keys"])
            last[str(descriptor["name"])] = doc
        yield name, doc
    for event in _last_page(run, descriptors, last):
        yield "event", event


class BrokerReading:
    """Reads a run that may still grow: each time what is new.

    Parameters
    ----------
    run
        The run's client, as just looked up.

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
        self._run = run
        self._streams: dict[str, str] = {}
        #: How many events of each stream were given, and which other documents. An event of the
        #: last page has no uid yet: rows are known by their number.
        self._n_events: Counter[str] = Counter()
        self._given: set[str] = set()

    def news(self, *, last: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        """Give what has come since; what this raises, or leaves, comes the next time."""
        del last  # There is no half of a row here that would wait for the other.
        run = self._run.refresh()
        extent = 1 + sum(1 + run[stream]["data"]["time"].shape[0] for stream in run)
        if extent == self.extent and not run.metadata.get("stop"):
            return
        rows: Counter[str] = Counter()
        for name, doc in broker_documents(run):
            if name == "event":
                stream = self._streams[doc["descriptor"]]
                rows[stream] += 1
                if rows[stream] <= self._n_events[stream]:
                    continue
                self._n_events[stream] += 1
            elif not self._is_new(name, doc):
                continue
            self.finished = name == "stop"
            yield name, doc
        self.extent = extent

    def _is_new(self, name: str, doc: Document) -> bool:
        key = f"{name} {doc['datum_id'] if name == 'datum' else doc['uid']}"
        if name == "descriptor":
            self._streams[doc["uid"]] = str(doc["name"])
        new = key not in self._given
        self._given.add(key)
        return new


def _single_documents(run: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, page in run.documents():
        if name == "event_page":
            for event in unpack_event_page(_plain(page)):
                yield "event", dict(event)
        elif name == "datum_page":
            for datum in event_model.unpack_datum_page(_plain(page)):
                yield "datum", dict(datum)
        else:
            yield name, _plain(page)


def _once_each(
    documents: Iterator[tuple[str, dict[str, Any]]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Leave out what a database without unique indexes has twice."""
    given: set[tuple[str, str]] = set()
    for name, doc in documents:
        key = name, str(doc["datum_id"] if name == "datum" else doc["uid"])
        if key not in given:
            given.add(key)
            yield name, doc


def _last_page(
    run: Any, descriptors: Mapping[str, dict[str, Any]], last: Mapping[str, Document]
) -> list[dict[str, Any]]:
    """Read the events that databroker keeps back of a run without stop: its last page."""
    newest = {str(descriptor["name"]): descriptor for descriptor in descriptors.values()}
    events: list[dict[str, Any]] = []
    for stream, descriptor in newest.items():
        before = last.get(stream, {"time": -np.inf, "seq_num": 0})
        data = run[stream]["data"]
        # Rows are asked for by number: the run may grow while it is read.
        n_rows = data["time"].shape[0]
        times = np.asarray(data["time"][:n_rows])
        first = int(np.searchsorted(times, before["time"], side="right"))
        columns = {key: data[key][first:n_rows] for key in data if key != "time"}
        for row, time in enumerate(times[first:].tolist()):
            values = {key: _element(column[row]) for key, column in columns.items()}
            events.append(
                {
                    "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{descriptor['uid']}/{time!r}")),
                    "descriptor": descriptor["uid"],
                    "seq_num": int(before["seq_num"]) + 1 + row,
                    "time": time,
                    "data": values,
                    "timestamps": dict.fromkeys(values, time),
                    "filled": {},
                }
            )
    return sorted(events, key=lambda event: float(event["time"]))


def _element(value: Any) -> Any:
    value = np.asarray(value)
    return value.copy() if value.ndim else value.item()


def _with_arrays(event: Document, data_keys: Mapping[str, Any]) -> dict[str, Any]:
    data = {key: _value(value, data_keys.get(key, {})) for key, value in event["data"].items()}
    return {**event, "data": data}


def _value(value: Any, declared: Mapping[str, Any]) -> Any:
    """Undo what JSON did: arrays became lists, and NaN became null."""
    if isinstance(value, list):
        dtype = declared.get("dtype_numpy")
        array = np.asarray(value)
        if array.dtype == object:
            array = np.asarray(value, dtype=float)
        return array.astype(dtype) if isinstance(dtype, str) else array
    if value is None and declared.get("dtype") == "number":
        return float("nan")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if type(value) is tuple else value
