"""One descriptor of the stream that carries patterns: where in its events everything stands."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..documents import Independent, independents
from ..errors import CMFError, DataKeyError, PatternError
from .source import Source
from .values import numbers, scalar

__all__ = ["Stream", "open_stream"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Doc = Mapping[str, Any]
#: Data keys of the stream, values and keys of the configuration, the start document, and data keys
#: of other streams: where a number may stand.
_Places = tuple[Doc, Mapping[str, tuple[Any, Doc]], Doc, set[str]]


@dataclass
class Stream:
    """What one descriptor says.

    Attributes
    ----------
    run, name : str
        Its run and its name.
    descriptor : mapping
        The document.
    variables : tuple of Independent
        What weights are drawn against.
    constants : dict
        Values of those that stay the same in the run.
    elsewhere : set of str
        Those that are read in another stream of the run.
    key, x_key, errors_key : str
        Data keys of the pattern, of its axis and of its errors; "" where it is in no event.
    doubt : str
        Why there are no errors though a data key was given.
    monitor : str
        Name of the monitor; "" where there is none.
    x : ndarray (F,) or None
        The axis, where it is in no event.
    in_files : frozenset of str
        Those of the keys whose values come as stream datums.
    declared : tuple of int
        The shape of the pattern, with the number of collections of an event before, where its
        values come as stream datums.
    has_events : bool
        Whether a pattern is not complete without its event.
    fault : CMFError or None
        Why nothing in this stream can be used.
    reported : bool
        Whether that has been said.
    """

    run: str
    name: str
    descriptor: Doc
    variables: tuple[Independent, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    elsewhere: AbstractSet[str] = frozenset()
    key: str = ""
    x_key: str = ""
    errors_key: str = ""
    doubt: str = ""
    monitor: str = ""
    x: Array | None = None
    x_name: str = "index"
    x_units: str = ""
    in_files: frozenset[str] = frozenset()
    declared: tuple[int, ...] = ()
    has_events: bool = True
    fault: CMFError | None = None
    reported: bool = False


def open_stream(source: Source, start: Doc, descriptor: Doc, others: Iterable[str]) -> Stream:
    """Find out where in the events of a descriptor everything stands.

    Parameters
    ----------
    source : Source
        What the user says.
    start, descriptor : mapping
        The documents.
    others : iterable of str
        Data keys of the run's other streams, as far as they are known.

    Returns
    -------
    Stream
        With a `Stream.fault` where it cannot be used.
    """
    stream = Stream(start["uid"], str(descriptor.get("name", "primary")), descriptor)
    try:
        keys = descriptor["data_keys"]
        stream.key = _find(source.pattern, keys, "pattern", source.stream)
        configuration = _configuration(descriptor)
        _find_errors(stream, source, keys)
        _find_variables(stream, source, (keys, configuration, start, set(others)))
        if isinstance(source.x, str):
            _find_axis(stream, source.x, keys, configuration, start, source.stream)
        elif source.x is not None:
            stream.x, stream.x_name = source.x, "x"
        _find_files(stream, keys)
    except CMFError as error:
        stream.fault = error
    except Exception as error:
        fault = f"the descriptor cannot be read: {type(error).__name__}: {error}"
        stream.fault = PatternError(fault)
    return stream


def _find_files(stream: Stream, keys: Doc) -> None:
    def in_file(key: str) -> bool:
        return str((keys[key] or {}).get("external", "")).startswith("STREAM:")

    fields = {variable.field for variable in stream.variables}
    fields |= {stream.monitor}
    needed = {stream.key, stream.x_key, stream.errors_key, *fields} & keys.keys()
    stream.in_files = frozenset(key for key in needed if in_file(key))
    if stream.key in stream.in_files:
        stream.declared = tuple(keys[stream.key].get("shape") or ())
    # Where all is in files a flyer may send no event at all; only the time is nowhere else.
    stream.has_events = "time" in fields or not all(map(in_file, keys))


def _find_errors(stream: Stream, source: Source, keys: Doc) -> None:
    """Find the errors; without them patterns are used all the same, and it is told why."""
    if source.errors is None:
        return
    try:
        stream.errors_key = _find(source.errors, keys, "errors", source.stream)
    except DataKeyError as error:
        stream.doubt = str(error).removeprefix("errors: ")


def _find_axis(
    stream: Stream,
    wanted: str,
    keys: Doc,
    configuration: Mapping[str, tuple[Any, Doc]],
    start: Doc,
    name: str,
) -> None:
    if wanted in start and wanted not in keys and wanted not in configuration:
        stream.x, stream.x_name = _axis(start[wanted], wanted), wanted
        return
    key = _find(wanted, {**configuration, **keys}, "x", name)
    stream.x_name = key
    value, data_key = (None, keys[key]) if key in keys else configuration[key]
    stream.x_units = str((data_key or {}).get("units") or "")
    if key in keys:
        stream.x_key = key
    else:
        stream.x = _axis(value, key)


def _axis(value: Any, key: str) -> Array:
    axis = np.squeeze(numbers(value, key))
    if axis.ndim != 1:
        raise PatternError(f"{key!r}: expected an axis of shape (F,), got shape {axis.shape}")
    return axis


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


def _find_variables(stream: Stream, source: Source, places: "_Places") -> None:
    """Find the independent variables and the monitor, and the values that stay the same."""
    data_keys, _, start, _ = places
    elsewhere: set[str] = set()
    constants: dict[str, float] = {}
    units: dict[str, str] = {}
    dimensions: list[list[str]] = []
    for fields in _dimensions(source, start):
        found = []
        for wanted in fields:
            name = wanted if source.independent is None else _full_name(wanted, places)
            unit = "s" if name == "time" else _place(name, places, constants, elsewhere)
            if unit is None:
                _tell_missing(name, source, data_keys)
            else:
                units[name] = unit
                found.append(name)
        dimensions.append(found)
    variables = independents(dimensions)
    stream.variables = tuple(
        Independent(v.field, v.key, units[v.field], v.dimension) for v in variables
    )
    stream.constants, stream.elsewhere = constants, elsewhere
    if source.monitor is not None:
        stream.monitor = _full_name(source.monitor, places)
        if _place(stream.monitor, places, constants, elsewhere) is None:
            # Not the error of another kind of scan: the patterns are there.
            raise PatternError(
                f"monitor: no data key {source.monitor!r} in stream {source.stream!r}, "
                f"configuration or start document; there are {sorted(data_keys)}"
            )


def _place(
    name: str, places: "_Places", constants: dict[str, float], elsewhere: set[str]
) -> str | None:
    """Give the unit of a number, None where it is nowhere.

    Its value is noted where it stays the same, its name where it is in another stream.
    """
    data_keys, configuration, start, others = places
    if name in data_keys:
        return str((data_keys[name] or {}).get("units") or "")
    if name in configuration or name in start:
        value, key = configuration.get(name, (start.get(name), {}))
        constants[name] = scalar(value)
        return str(key.get("units") or "")
    if name in others:
        elsewhere.add(name)
        return ""
    return None


def _full_name(wanted: str, places: "_Places") -> str:
    """Give the exact name, else the one that ends in it, in the first place that has any."""
    if wanted == "time" or any(wanted in place for place in places):
        return wanted
    for place in places:
        found = [name for name in place if name.endswith(wanted)]
        if len(found) == 1:
            return found[0]
    return wanted


def _tell_missing(name: str, source: Source, data_keys: Iterable[str]) -> None:
    logger.warning(
        "independent: no data key %r in stream %r, configuration or start document; there are %s",
        name,
        source.stream,
        sorted(data_keys),
    )


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
