"""`Intake`: documents of any number of runs in, patterns out."""

import logging
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from event_model import bulk_datum_to_datum_page, bulk_events_to_event_pages

from ..documents import is_analysis
from ..errors import CMFError, PatternError
from .files import Files
from .items import Arrival, Closed, Opened, Refused
from .joining import Joining, Row
from .reading import arrival_of, waits
from .source import Source
from .streams import Stream, open_stream
from .values import scalar

__all__ = ["Intake"]

logger = logging.getLogger(__name__)

Doc = Mapping[str, Any]
Item = Opened | Arrival | Refused | Closed

#: The most events that wait for a datum, and behind one that does.
_MOST_HELD = 100
#: The most runs and descriptors of others that are remembered, so as to speak of each once.
_MOST_STRANGERS = 10_000


class Intake:
    """Turn documents of any number of interleaved runs into what the fit needs.

    Iterating over ``intake(name, doc)`` gives `Opened`, `Arrival`, `Refused` and `Closed`; the
    documents themselves are left as they are. Runs that are analyses themselves are passed over.
    One thread at a time; all of it is bookkeeping, no file is opened.

    Parameters
    ----------
    source : Source
        Where patterns stand.
    files : Files
        What is known of files that documents refer to.
    remember : bool
        Know an event that came before also when its run is over, until `forget`.
    skip : callable
        Tells by the start document which runs are passed over.
    """

    def __init__(
        self,
        source: Source,
        *,
        files: Files,
        remember: bool = False,
        skip: Callable[[Doc], bool],
    ) -> None:
        self.source = source
        self._files, self._remember, self._skip = files, remember, skip
        self._starts: dict[str, Doc] = {}
        self._skipped: set[str] = set()
        self._streams: dict[str, Stream] = {}
        self._joining: dict[str, Joining] = {}
        #: Events of a run whose datum has not come yet, and those after them, by run.
        self._held: dict[str, list[Doc]] = {}
        self._seen: dict[str, set[str]] = {}
        #: The run of every other descriptor and its keys that patterns may be drawn against, and
        #: what was read there last.
        self._others: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._readings: dict[str, dict[str, float]] = {}
        #: Stream datums whose resource has not come yet, by its uid.
        self._early: dict[str, list[Doc]] = {}
        #: Runs and descriptors that are known to be none of ours, the oldest first.
        self._strangers: dict[str, None] = {}
        self._takers: Mapping[str, Callable[[Doc], Iterable[Item]]] = {
            "start": self._start,
            "descriptor": self._descriptor,
            "event": self._event,
            "event_page": self._page,
            "bulk_events": self._bulk_events,
            "resource": self._note(files.resource),
            "datum": self._note(files.datum),
            "datum_page": self._note(files.datum_page),
            "bulk_datum": self._note(lambda doc: files.datum_page(bulk_datum_to_datum_page(doc))),
            "stream_resource": self._stream_resource,
            "stream_datum": self._stream_datum,
            "stop": self._stop,
        }

    def __call__(self, name: str, doc: Doc) -> Iterable[Item]:
        """Take one document; kinds that are not known are passed over."""
        taker = self._takers.get(name)
        return () if taker is None else taker(doc)

    def rest(self) -> Iterator[Item]:
        """Account for what still waits in the runs that are open, for an end without `stop`."""
        for run in self._starts:
            yield from self._waiting(run)

    def forget(self) -> None:
        """Forget the events of runs that are over."""
        self._seen = {run: uids for run, uids in self._seen.items() if run in self._starts}

    # --- runs ------------------------------------------------------------------------------

    def _start(self, doc: Doc) -> Iterator[Item]:
        run = doc["uid"]
        if is_analysis(doc) or run in self._starts:
            self._pass_over(run)
            return
        self._starts[run] = doc
        self._seen.setdefault(run, set())
        self._readings[run] = {}
        if self._skips(doc):
            self._skipped.add(run)
            logger.info("run %s is passed over, as its start document says", run[:8])
        else:
            yield Opened(run, doc)

    def _pass_over(self, uid: str) -> None:
        self._strangers[uid] = None
        if len(self._strangers) > _MOST_STRANGERS:
            del self._strangers[next(iter(self._strangers))]

    def _skips(self, start: Doc) -> bool:
        try:
            return bool(self._skip(start))
        except Exception:
            logger.exception("skip raised on run %s, which is not passed over", start["uid"][:8])
            return False

    def _stop(self, doc: Doc) -> Iterator[Item]:
        run = doc["run_start"]
        if run not in self._starts:
            self._strangers.pop(run, None)
            return
        streams = {uid: stream for uid, stream in self._streams.items() if stream.run == run}
        if not streams:
            logger.info("run %s had no stream %r", run[:8], self.source.stream)
        for stream in streams.values():
            if stream.fault is not None and not stream.reported:
                yield self._refused(stream, 0, stream.fault)
        yield from self._waiting(run)
        self._forget_run(run, streams)
        if run in self._skipped:
            self._skipped.discard(run)
        else:
            yield Closed(run, _exit_status(doc), str(doc.get("reason") or ""))

    def _waiting(self, run: str) -> Iterator[Item]:
        """Account for what still waits for a file, or for its event."""
        for event in self._held.pop(run, ()):
            yield from self._taken(self._streams[event["descriptor"]], event)
        yield from self._never_named(run)
        for joining in [j for j in self._joining.values() if j.stream.run == run]:
            yield from self._unjoined(joining)

    def _unjoined(self, joining: Joining) -> Iterator[Item]:
        stream = joining.stream
        for row in joining.rest():
            missing = sorted(stream.in_files - row.values.keys() - {stream.errors_key})
            if missing:
                error = PatternError(f"no frame of {', '.join(map(repr, missing))} came for it")
                yield self._refused(stream, row.seq_num, error)
            else:
                # It was measured, only its event did not come (an aborted scan), or its errors.
                yield from self._arrived(stream, row)

    def _forget_run(self, run: str, streams: Iterable[str]) -> None:
        for uid in streams:
            del self._streams[uid]
            self._joining.pop(uid, None)
        del self._starts[run], self._readings[run]
        if not self._remember:
            del self._seen[run]
        self._others = {uid: known for uid, known in self._others.items() if known[0] != run}
        self._files.forget(run, last=not self._starts)

    def _descriptor(self, doc: Doc) -> Iterable[Item]:
        run = doc["run_start"]
        start = self._starts.get(run)
        if start is None:
            if run not in self._strangers:
                logger.warning("a descriptor of the unknown run %s is passed over", str(run)[:8])
            # Its events are no surprise any more.
            self._pass_over(run)
            self._pass_over(doc["uid"])
        elif doc.get("name", "primary") == self.source.stream:
            stream = open_stream(self.source, start, doc, self._readings[run])
            self._streams[doc["uid"]] = stream
            if stream.in_files:
                self._joining[doc["uid"]] = Joining(stream)
        else:
            source = self.source
            wanted = (*(source.independent or ()), *filter(None, [source.monitor]))
            keys = tuple(key for key in doc["data_keys"] if key.endswith(wanted))
            self._others[doc["uid"]] = run, keys
            for key in keys:
                self._readings[run].setdefault(key, math.nan)
        return ()

    # --- events ----------------------------------------------------------------------------

    def _event(self, doc: Doc) -> Iterator[Item]:
        uid = doc["descriptor"]
        stream = self._streams.get(uid)
        if stream is None:
            self._elsewhere(doc)
        elif stream.fault is not None:
            # Where the stream has no such data key, its events are no patterns: once is enough.
            if stream.key or not stream.reported:
                yield self._refused(stream, _seq_num(doc), stream.fault)
            stream.reported = True
        elif stream.run in self._held or waits(stream, doc, self._files):
            yield from self._hold(stream, doc)
        else:
            yield from self._taken(stream, doc)

    def _elsewhere(self, doc: Doc) -> None:
        """Keep the readings of other streams, and say once what belongs to nothing."""
        uid = doc["descriptor"]
        if uid in self._others:
            run, keys = self._others[uid]
            for key in keys:
                if key in doc["data"]:
                    self._readings[run][key] = scalar(doc["data"][key])
        elif uid not in self._strangers:
            self._pass_over(uid)
            logger.warning("an event of the unknown descriptor %s is passed over", str(uid)[:8])

    def _page(self, doc: Doc) -> Iterator[Item]:
        for event in _events_of(doc):
            yield from self._event(event)

    def _bulk_events(self, doc: Doc) -> Iterator[Item]:
        for page in bulk_events_to_event_pages(doc):
            yield from self._page(page)

    def _taken(self, stream: Stream, doc: Doc) -> Iterator[Item]:
        """Take an event of the stream that carries patterns."""
        seq_num = _seq_num(doc)
        if stream.in_files and not stream.in_files <= (doc.get("data") or {}).keys():
            if stream.has_events:
                joining = self._joining[stream.descriptor["uid"]]
                for row in joining.event(doc, seq_num):
                    yield from self._arrived(stream, row)
        else:
            yield from self._arrived(stream, Row(seq_num, doc))

    def _arrived(self, stream: Stream, row: Row) -> Iterator[Item]:
        try:
            uid = row.uid if row.event is None else row.event.get("uid")
            self._remember_uid(stream.run, uid)
            arrival = arrival_of(stream, row, self._files, self._readings[stream.run])
        except CMFError as error:
            yield self._refused(stream, row.seq_num, error)
        except Exception as error:
            fault = PatternError(f"the event cannot be read: {type(error).__name__}: {error}")
            yield self._refused(stream, row.seq_num, fault)
        else:
            if stream.run in self._skipped:
                yield self._refused(stream, row.seq_num, PatternError("its run is passed over"))
            else:
                yield arrival

    def _remember_uid(self, run: str, uid: str | None) -> None:
        seen = self._seen[run]
        if uid in seen:
            raise PatternError(f"the event {uid} came before")
        if uid is not None:
            seen.add(uid)

    def _refused(self, stream: Stream, seq_num: int, error: CMFError) -> Refused:
        skipped = stream.run in self._skipped
        return Refused(stream.run, seq_num, error, stream.variables, skipped)

    # --- files -----------------------------------------------------------------------------

    def _hold(self, stream: Stream, doc: Doc) -> Iterator[Item]:
        """Keep an event until its datum comes; not for ever, for others wait behind it."""
        held = self._held.setdefault(stream.run, [])
        held.append(doc)
        if len(held) > _MOST_HELD:
            yield from self._taken(self._streams[held[0]["descriptor"]], held.pop(0))
            yield from self._released(stream.run)

    def _note(self, note: Callable[[Doc], None]) -> Callable[[Doc], Iterator[Item]]:
        def take(doc: Doc) -> Iterator[Item]:
            note(doc)
            for run in list(self._held):
                yield from self._released(run)

        return take

    def _released(self, run: str) -> Iterator[Item]:
        """Take the events that were held, up to the first one that still waits."""
        events = self._held[run]
        while events:
            stream = self._streams[events[0]["descriptor"]]
            if waits(stream, events[0], self._files):
                break
            yield from self._taken(stream, events.pop(0))
        if not events:
            del self._held[run]

    def _stream_resource(self, doc: Doc) -> Iterator[Item]:
        self._files.stream_resource(doc)
        for datum in self._early.pop(doc["uid"], ()):
            yield from self._stream_datum(datum)

    def _stream_datum(self, doc: Doc) -> Iterator[Item]:
        joining = self._joining.get(doc["descriptor"])
        if joining is None:
            return
        if self._files.data_key(doc["stream_resource"]) is None:
            self._early.setdefault(doc["stream_resource"], []).append(doc)
            return
        for row in joining.values(doc, self._files):
            if row.again:
                error = PatternError(f"the frame {row.uid} came before")
                yield self._refused(joining.stream, row.seq_num, error)
            else:
                yield from self._arrived(joining.stream, row)

    def _never_named(self, run: str) -> Iterator[Item]:
        """Account for frames in files that no document has named."""
        for uid, datums in list(self._early.items()):
            joining = self._joining.get(datums[0]["descriptor"])
            if joining is None or joining.stream.run != run:
                continue
            del self._early[uid]
            if joining.stream.has_events:
                continue  # Their events are accounted for.
            for datum in datums:
                for number in range(datum["seq_nums"]["start"], datum["seq_nums"]["stop"]):
                    error = PatternError(f"its frame is in a file that no document names: {uid!r}")
                    yield self._refused(joining.stream, int(number), error)


def _events_of(page: Doc) -> Iterator[Doc]:
    """Give the events of a page; where a column is missing or short, they lack its values."""
    told = {key: page[key] for key in ("uid", "seq_num", "time") if page.get(key) is not None}
    data, filled = page.get("data") or {}, page.get("filled") or {}
    for n in range(max(map(len, (*told.values(), *data.values())), default=0)):
        event = {key: column[n] for key, column in told.items() if n < len(column)}
        event["descriptor"] = page["descriptor"]
        event["data"] = {key: column[n] for key, column in data.items() if n < len(column)}
        event["filled"] = {
            key: flags[n] if isinstance(flags, (list, tuple)) and n < len(flags) else flags
            for key, flags in filled.items()
        }
        yield event


def _seq_num(event: Doc) -> int:
    try:
        return operator.index(event["seq_num"])
    except (KeyError, TypeError):
        number = scalar(event.get("seq_num"))
        return int(number) if number.is_integer() else 0


def _exit_status(stop: Doc) -> str:
    status = stop.get("exit_status", "success")
    return status if status in ("success", "abort", "fail") else "fail"
