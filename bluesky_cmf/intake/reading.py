"""What one event holds: its pattern, what belongs to it, and where that is to be read."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import CMFError, PatternError
from .files import Files
from .items import Arrival, Reference
from .joining import Row
from .streams import Stream
from .values import numbers, scalar

__all__ = ["arrival_of", "waits"]

Doc = Mapping[str, Any]


def arrival_of(stream: Stream, row: Row, files: Files, readings: Mapping[str, float]) -> Arrival:
    """Take out of an event what the fit needs.

    Parameters
    ----------
    stream : Stream
        Where in the event everything stands.
    row : Row
        The event, with its values in files.
    files : Files
        What is known of the files that it refers to.
    readings : mapping
        What was read last in other streams of the run.

    Raises
    ------
    PatternError
        Where there is no pattern in it, or no axis though there should be one.
    """
    event = row.event or {}
    measured = scalar(event.get("time", math.nan))
    errors, doubt = _errors(stream, row, files)
    return Arrival(
        run=stream.run,
        stream=stream.name,
        seq_num=row.seq_num,
        time=measured,
        pattern=_value(stream, row, stream.key, files),
        x=_value(stream, row, stream.x_key, files) if stream.x_key else stream.x,
        x_name=stream.x_name,
        x_units=stream.x_units,
        variables=stream.variables,
        values={
            v.field: measured if v.field == "time" else _number(stream, row, v.field, readings)
            for v in stream.variables
        },
        declared=stream.declared,
        errors=errors,
        doubt=doubt,
        monitor=_number(stream, row, stream.monitor, readings) if stream.monitor else None,
    )


def waits(stream: Stream, doc: Doc, files: Files) -> bool:
    """Tell whether a datum of an event has not come yet."""
    data = doc.get("data") or {}
    return any(
        key in data and _in_file(stream, doc, key) and files.value(data[key], key) is None
        for key in (stream.key, stream.x_key, stream.errors_key)
    )


def _value(stream: Stream, row: Row, key: str, files: Files) -> Any:
    """Give the numbers of a data key, or where they are to be read."""
    if key in row.values:
        return row.values[key]
    event = row.event or {}
    if key not in event["data"]:
        raise PatternError(f"no value for data key {key!r} in the event")
    value = event["data"][key]
    if not _in_file(stream, event, key):
        return numbers(value, key)
    reference = files.value(value, key)
    if reference is None:
        raise PatternError(f"{key!r} is in a file that no document names: {value!r}")
    return reference


def _errors(stream: Stream, row: Row, files: Files) -> tuple[Any, str]:
    """Give the standard errors, or why there are none: the pattern is used without them."""
    key = stream.errors_key
    if not key:
        return None, stream.doubt
    if row.event is None and key not in row.values:
        return None, f"no frame of {key!r} came for the pattern"
    try:
        return _value(stream, row, key, files), ""
    except CMFError as error:
        return None, str(error)


def _number(
    stream: Stream, row: Row, name: str, readings: Mapping[str, float]
) -> "float | Reference":
    """Give a single number, wherever it stands; NaN where there is none."""
    event = row.event or {}
    if name in row.values:
        return row.values[name]
    if name in event.get("data", ()):
        return scalar(event["data"][name])
    if name in stream.elsewhere:
        return readings.get(name, math.nan)
    return stream.constants.get(name, math.nan)


def _in_file(stream: Stream, event: Doc, key: str) -> bool:
    """Tell whether an event has the name of a datum in the place of the value."""
    if not isinstance(event["data"].get(key), str):
        return False
    filled = event.get("filled") or {}
    if key in filled:
        return not filled[key]
    return bool((stream.descriptor["data_keys"].get(key) or {}).get("external"))
