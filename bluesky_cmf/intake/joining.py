"""Events, and the values in files that belong to them, brought together by ``seq_num``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .files import Files
from .items import Reference
from .streams import Stream

__all__ = ["Joining", "Row"]

Doc = Mapping[str, Any]


@dataclass
class Row:
    """One event: its document, which a flyer may leave out, and its values in files."""

    seq_num: int
    event: Doc | None = None
    values: dict[str, Reference] = field(default_factory=dict)
    #: Known by it, where there is no event.
    uid: str = ""
    #: Its frame came before: there is nothing to be joined.
    again: bool = False


@dataclass
class Joining:
    """The rows of one descriptor that are not complete yet.

    A value that comes again before its event, as when a plan is rewound, begins another row.
    """

    stream: Stream
    _waiting: dict[int, list[Row]] = field(default_factory=dict)
    _seen: set[tuple[str, int]] = field(default_factory=set)

    def event(self, doc: Doc, seq_num: int) -> Iterator[Row]:
        """Take an event; give its row if it is complete by now."""
        rows = self._waiting.setdefault(seq_num, [])
        row = next((row for row in rows if row.event is None), None)
        if row is None:
            row = Row(seq_num)
            rows.append(row)
        row.event = doc
        yield from self._complete(row)

    def values(self, doc: Doc, files: Files) -> Iterator[Row]:
        """Take a stream datum; give the rows that it completes."""
        key = files.data_key(doc["stream_resource"])
        if key not in self.stream.in_files:
            return
        numbers, indices = doc["seq_nums"], doc["indices"]
        shift = int(numbers["start"]) - int(indices["start"])
        if numbers["stop"] - numbers["start"] != indices["stop"] - indices["start"]:
            # Not every source of documents numbers events: the first frame is that of the first.
            shift = 1
        for value in files.frames(doc, self.stream.descriptor):
            seq_num = value.index + shift
            frame = (doc["stream_resource"], value.index)
            if frame in self._seen:
                if key == self.stream.key:
                    yield Row(seq_num, uid="/".join(map(str, frame)), again=True)
                continue
            self._seen.add(frame)
            rows = self._waiting.setdefault(seq_num, [])
            row = next((row for row in rows if key not in row.values), None)
            if row is None:
                row = Row(seq_num)
                rows.append(row)
            row.values[key] = value
            row.uid = row.uid or f"{doc['stream_resource']}/{value.index}"
            yield from self._complete(row)

    def rest(self) -> Iterator[Row]:
        """Give what is still incomplete at the end of the run, in order."""
        for seq_num in sorted(self._waiting):
            yield from self._waiting[seq_num]
        self._waiting.clear()

    def _complete(self, row: Row) -> Iterator[Row]:
        if row.event is None and self.stream.has_events:
            return
        if self.stream.in_files - row.values.keys():
            return
        rows = self._waiting[row.seq_num]
        rows.remove(row)
        if not rows:
            del self._waiting[row.seq_num]
        yield row
