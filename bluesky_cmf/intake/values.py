"""Numbers out of documents, whatever form they come in."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PatternError

__all__ = ["numbers", "plain", "scalar"]

Array = npt.NDArray[Any]


def numbers(value: Any, key: str) -> Array:
    """Copy an array of numbers out of a document.

    Raises
    ------
    PatternError
        Where it is something else, or nothing.
    """
    try:
        array = plain(value)
    except ValueError as error:
        raise PatternError(f"{key!r} is not an array of numbers: {error}") from error
    if not array.ndim or not array.size or array.dtype.kind not in "fiu":
        raise PatternError(
            f"{key!r}: expected numbers of shape (F,), got {array.dtype} of shape {array.shape}"
        )
    return array


def plain(value: Any) -> Array:
    """Copy an array; what is masked in it is no number."""
    if isinstance(value, np.ma.MaskedArray):
        return np.ma.filled(np.ma.asarray(value, dtype=float), np.nan)
    return np.array(value)


def scalar(value: Any) -> float:
    """Give a number as a float; NaN says that it is none."""
    try:
        array = np.asarray(value)
    except ValueError:
        return math.nan
    is_number = array.size == 1 and array.dtype.kind in "fiub"
    return float(array.reshape(-1)[0]) if is_number else math.nan
