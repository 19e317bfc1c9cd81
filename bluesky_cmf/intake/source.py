"""Where patterns stand in the documents, as the user says it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .values import plain

__all__ = ["Source", "as_source"]

Array = npt.NDArray[Any]


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
    errors : str or None
        Data key of the patterns' standard errors, as that of the pattern.
    monitor : str or None
        Data key of the monitor, in the event, the configuration or the start document.
    """

    pattern: str
    x: str | Array | None
    independent: tuple[str, ...] | None
    stream: str
    errors: str | None = None
    monitor: str | None = None


def as_source(
    pattern: str,
    *,
    x: str | npt.ArrayLike | None,
    independent: Any,
    stream: str,
    errors: str | None = None,
    monitor: str | None = None,
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
    return Source(pattern, axis, independent, stream, errors, monitor)


def _names(independent: Any) -> tuple[str, ...]:
    names = (independent,) if isinstance(independent, str) else independent
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in (*names,)):
        raise InputError(f"independent: expected data keys, got {independent!r}")
    return tuple(names)


def _axis(x: npt.ArrayLike) -> Array:
    try:
        axis = plain(x)
        if axis.ndim != 1 or axis.dtype.kind not in "fiu":
            raise ValueError(f"{axis.dtype} of shape {axis.shape}")
    except ValueError as error:
        raise InputError(f"x: expected a data key or numbers (F,), got {error}") from error
    axis = axis.astype(float)
    rises, falls = (axis[1:] > axis[:-1]).all(), (axis[1:] < axis[:-1]).all()
    if not np.isfinite(axis).all() or not (rises or falls):
        raise InputError("x: expected finite numbers that increase or decrease throughout")
    return axis
