"""Which documents carry patterns, and what is taken out of them."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from event_model import unpack_event_page

from .documents import Independent, independents, is_analysis
from .errors import CMFError, DataKeyError, InputError, PatternError

__all__ = ["Arrival", "Closed", "Intake", "Opened", "Refused", "Source", "as_source"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Doc = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where patterns stand in the documents.

    Attributes
    ----------
    pattern : str
        Data key: exact, or the one key that ends in it.
    x : str, ndarray (F,) or None
        Axis: a data key (event, configuration or start document), an array, or the index.
    independent : tuple of str or None
        What weights are drawn against; None: the dimensions in the start document's hints.
    stream : str
        Name of the stream.
    """

    pattern: str
    x: str | Array | None
    independent: tuple[str, ...] | None
    stream: str


@dataclass(frozen=True)
class Opened:
    """A raw run has started."""

    run: str
    start: Doc


@dataclass(frozen=True)
class Arrival:
    """One pattern as it was measured: copies, so that nobody else can change them."""

    run: str
    stream: str
    seq_num: int
    time: float
    pattern: Array
    x: Array | None
    x_name: str
    x_units: str
    variables: tuple[Independent, ...]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Refused:
    """A pattern that cannot be used, and why."""

    run: str
    seq_num: int
    error: CMFError
    variables: tuple[Independent, ...] = ()


@dataclass(frozen=True)
class Closed:
    """A raw run has stopped."""

    run: str
    exit_status: str
    reason: str


@dataclass
class _Stream:
    """One descriptor of the stream that carries patterns."""

    run: str
    descriptor: Doc
    variables: tuple[Independent, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    key: str = ""
    x_key: str = ""
    x: Array | None = None
    x_name: str = "index"
    x_units: str = ""
    fault: CMFError | None = None
    reported: bool = False


@dataclass
class Intake:
    """Turn documents of any number of interleaved runs into what the fit needs.

    Iterating over ``intake(name, doc)`` gives `Opened`, `Arrival`, `Refused` and `Closed`; the
    documents themselves are left as they are. Runs that are analyses themselves are passed over.

    Attributes
    ----------
    source : Source
        Where patterns stand.
    remember : bool
        Know an event that came before also when its run is over, until `forget`.
    """

    source: Source
    remember: bool = False
    _starts: dict[str, Doc] = field(default_factory=dict)
    _streams: dict[str, _Stream] = field(default_factory=dict)
    _seen: dict[str, set[str]] = field(default_factory=dict)

    def __call__(self, name: str, doc: Doc) -> Iterator[Opened | Arrival | Refused | Closed]:
        """Take one document."""
        if name == "event":
            yield from self._event(doc)
        elif name == "event_page":
            yield from self._page(doc)
        elif name == "descriptor":
            self._descriptor(doc)
        elif name == "start":
            yield from self._start(doc)
        elif name == "stop":
            yield from self._stop(doc)

    def forget(self) -> None:
        """Forget the events of runs that are over."""
        self._seen = {run: uids for run, uids in self._seen.items() if run in self._starts}

    def _start(self, doc: Doc) -> Iterator[Opened]:
        if not is_analysis(doc) and doc["uid"] not in self._starts:
            self._starts[doc["uid"]] = doc
            self._seen.setdefault(doc["uid"], set())
            yield Opened(doc["uid"], doc)

    def _stop(self, doc: Doc) -> Iterator[Refused | Closed]:
        run = doc["run_start"]
        if self._starts.pop(run, None) is None:
            return
        streams = [stream for stream in self._streams.values() if stream.run == run]
        if not streams:
            logger.info("run %s had no stream %r", run[:8], self.source.stream)
        for stream in streams:
            if stream.fault is not None and not stream.reported:
                yield Refused(run, 0, stream.fault, stream.variables)
        self._streams = {uid: s for uid, s in self._streams.items() if s.run != run}
        if not self.remember:
            del self._seen[run]
        yield Closed(run, _exit_status(doc), str(doc.get("reason") or ""))

    def _descriptor(self, doc: Doc) -> None:
        start = self._starts.get(doc["run_start"])
        if start is not None and doc.get("name", "primary") == self.source.stream:
            self._streams[doc["uid"]] = _open_stream(self.source, start, doc)

    def _page(self, doc: Doc) -> Iterator[Arrival | Refused]:
        stream = self._streams.get(doc["descriptor"])
        if stream is None:
            return
        rows = 0
        for event in unpack_event_page(doc):
            rows += 1
            yield from self._event(event)
        # Columns of unequal length: what is cut off was measured all the same.
        columns = (doc["seq_num"], doc["time"], doc["uid"], *doc["data"].values())
        for _ in range(rows, max(map(len, columns))):
            error = PatternError("the columns of the event_page differ in length")
            yield Refused(stream.run, 0, error, stream.variables)

    def _event(self, doc: Doc) -> Iterator[Arrival | Refused]:
        stream = self._streams.get(doc["descriptor"])
        if stream is None:
            return
        number = doc.get("seq_num")
        seq_num = number if isinstance(number, int) else 0
        if stream.fault is not None:
            # Where the stream has no such data key, its events are no patterns: once is enough.
            if stream.key or not stream.reported:
                yield Refused(stream.run, seq_num, stream.fault, stream.variables)
            stream.reported = True
            return
        try:
            self._remember(stream.run, doc.get("uid"))
            yield self._arrival(stream, doc, seq_num)
        except CMFError as error:
            yield Refused(stream.run, seq_num, error, stream.variables)
        except Exception as error:
            fault = PatternError(f"the event cannot be read: {type(error).__name__}: {error}")
            yield Refused(stream.run, seq_num, fault, stream.variables)

    def _remember(self, run: str, uid: str | None) -> None:
        seen = self._seen[run]
        if uid in seen:
            raise PatternError(f"the event {uid} came before")
        if uid is not None:
            seen.add(uid)

    def _arrival(self, stream: _Stream, doc: Doc, seq_num: int) -> Arrival:
        data = doc["data"]
        if stream.key not in data:
            raise PatternError(f"no value for data key {stream.key!r} in the event")
        if not (doc.get("filled") or {}).get(stream.key, True):
            raise PatternError(f"{stream.key!r} is kept in an external file: {data[stream.key]!r}")
        x = _numbers(data.get(stream.x_key), stream.x_key) if stream.x_key else stream.x
        measured = float(doc["time"])
        values = {v.field: stream.constants.get(v.field, math.nan) for v in stream.variables}
        for name in values:
            if name == "time":
                values[name] = measured
            elif name in data:
                values[name] = _scalar(data[name])
        return Arrival(
            run=stream.run,
            stream=str(stream.descriptor.get("name", "primary")),
            seq_num=seq_num,
            time=measured,
            pattern=_numbers(data[stream.key], stream.key),
            x=x,
            x_name=stream.x_name,
            x_units=stream.x_units,
            variables=stream.variables,
            values=values,
        )


def _exit_status(stop: Doc) -> str:
    status = stop.get("exit_status", "success")
    return status if status in ("success", "abort", "fail") else "fail"


def _open_stream(source: Source, start: Doc, descriptor: Doc) -> _Stream:
    stream = _Stream(start["uid"], descriptor)
    try:
        keys = descriptor["data_keys"]
        stream.key = _find(source.pattern, keys, "pattern", source.stream)
        if str((keys[stream.key] or {}).get("external", "")).startswith("STREAM:"):
            raise PatternError(f"{stream.key!r} is kept in external files, not in the events")
        configuration = _configuration(descriptor)
        stream.variables, stream.constants = _variables(source, start, descriptor, configuration)
        if isinstance(source.x, str):
            _find_axis(stream, source.x, keys, configuration, start, source.stream)
        elif source.x is not None:
            stream.x, stream.x_name = source.x, "x"
    except CMFError as error:
        stream.fault = error
    except Exception as error:
        fault = f"the descriptor cannot be read: {type(error).__name__}: {error}"
        stream.fault = PatternError(fault)
    return stream


def _find_axis(
    stream: _Stream,
    wanted: str,
    keys: Doc,
    configuration: Mapping[str, tuple[Any, Doc]],
    start: Doc,
    name: str,
) -> None:
    if wanted in start and wanted not in keys and wanted not in configuration:
        stream.x, stream.x_name = _numbers(start[wanted], wanted), wanted
        return
    key = _find(wanted, {**configuration, **keys}, "x", name)
    stream.x_name = key
    value, data_key = (None, keys[key]) if key in keys else configuration[key]
    stream.x_units = str((data_key or {}).get("units") or "")
    if key in keys:
        stream.x_key = key
    else:
        stream.x = _numbers(value, key)


def _find(wanted: str, keys: Mapping[str, Any], argument: str, stream: str) -> str:
    """Find a data key: exact, else the one that ends in ``wanted``."""
    if wanted in keys:
        return wanted
    found = [key for key in keys if key.endswith(wanted)]
    if len(found) == 1:
        return found[0]
    there = (
        f"{len(found)} keys end in it: {sorted(found)}" if found else f"there are {sorted(keys)}"
    )
    raise DataKeyError(f"{argument}: no data key {wanted!r} in stream {stream!r}; {there}")


def _configuration(descriptor: Doc) -> dict[str, tuple[Any, Doc]]:
    """Gather the configuration values of all devices, with their data keys."""
    found: dict[str, tuple[Any, Doc]] = {}
    for device in (descriptor.get("configuration") or {}).values():
        for key, value in ((device or {}).get("data") or {}).items():
            found[key] = (value, (device.get("data_keys") or {}).get(key, {}))
    return found


def _variables(
    source: Source, start: Doc, descriptor: Doc, configuration: Mapping[str, tuple[Any, Doc]]
) -> tuple[tuple[Independent, ...], dict[str, float]]:
    """Find the independent variables, and the values of those that stay the same in the run."""
    constants: dict[str, float] = {}
    units: dict[str, str] = {"time": "s"}
    dimensions: list[list[str]] = []
    for fields in _dimensions(source, start):
        found = []
        for name in fields:
            if name == "time":
                found.append(name)
            elif name in descriptor["data_keys"]:
                units[name] = str((descriptor["data_keys"][name] or {}).get("units") or "")
                found.append(name)
            elif name in configuration or name in start:
                value, key = configuration.get(name, (start.get(name), {}))
                units[name], constants[name] = str(key.get("units") or ""), _scalar(value)
                found.append(name)
            else:
                logger.warning(
                    "independent: no data key %r in stream %r, configuration or start document; "
                    "there are %s",
                    name,
                    source.stream,
                    sorted(descriptor["data_keys"]),
                )
        dimensions.append(found)
    variables = independents(dimensions)
    named = (Independent(v.field, v.key, units[v.field], v.dimension) for v in variables)
    return tuple(named), constants


def _dimensions(source: Source, start: Doc) -> Sequence[Sequence[str]]:
    if source.independent is not None:
        return [[name] for name in source.independent]
    hints = start.get("hints") or {}
    try:
        hinted = [([*fields], stream) for fields, stream in hints.get("dimensions") or []]
        if not all(isinstance(name, str) for fields, _ in hinted for name in fields):
            raise TypeError("fields are names")
    except (AttributeError, TypeError, ValueError) as error:
        logger.warning("run %s: hints that cannot be read: %r (%s)", start["uid"], hints, error)
        return []
    return [fields for fields, stream in hinted if stream == source.stream]


def _numbers(value: Any, key: str) -> Array:
    """Copy an array of numbers out of a document."""
    try:
        array = np.array(value)
    except ValueError as error:
        raise PatternError(f"{key!r} is not an array of numbers: {error}") from error
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "fiu":
        raise PatternError(
            f"{key!r}: expected numbers of shape (F,), got {array.dtype} of shape {array.shape}"
        )
    return array


def _scalar(value: Any) -> float:
    """Give a number as a float; NaN says that it is none."""
    try:
        array = np.asarray(value)
    except ValueError:
        return math.nan
    is_number = array.size == 1 and array.dtype.kind in "fiub"
    return float(array.reshape(-1)[0]) if is_number else math.nan


def as_source(
    pattern: str, *, x: str | npt.ArrayLike | None, independent: Any, stream: str
) -> Source:
    """Check what the user says of where patterns stand.

    Raises
    ------
    InputError
        Where an argument is of the wrong kind.
    """
    for argument, value in (("pattern", pattern), ("stream", stream)):
        if not isinstance(value, str) or not value:
            raise InputError(f"{argument}: expected a name, got {value!r}")
    if independent is not None:
        independent = _names(independent)
    axis: str | Array | None = x if isinstance(x, str) or x is None else _axis(x)
    if axis is not None and not len(axis):
        raise InputError("x: expected a data key or numbers (F,), got nothing")
    return Source(pattern, axis, independent, stream)


def _names(independent: Any) -> tuple[str, ...]:
    names = (independent,) if isinstance(independent, str) else independent
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in (*names,)):
        raise InputError(f"independent: expected data keys, got {independent!r}")
    return tuple(names)


def _axis(x: npt.ArrayLike) -> Array:
    try:
        axis = np.array(x)
        if axis.ndim != 1 or axis.dtype.kind not in "fiu":
            raise ValueError(f"{axis.dtype} of shape {axis.shape}")
    except ValueError as error:
        raise InputError(f"x: expected a data key or numbers (F,), got {error}") from error
    axis = axis.astype(float)
    rises, falls = (axis[1:] > axis[:-1]).all(), (axis[1:] < axis[:-1]).all()
    if not np.isfinite(axis).all() or not (rises or falls):
        raise InputError("x: expected finite numbers that increase or decrease throughout")
    return axis
