"""Numbers out of documents, whatever form they come in."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PatternError

__all__ = ["mean_of_collections", "numbers", "scalar"]

Array = npt.NDArray[Any]


def numbers(value: Any, key: str) -> Array:
    """Copy an array of numbers out of a document.

    Raises
    ------
    PatternError
        Where it is something else, or nothing.
    """
    try:
        array = np.array(value)
    except ValueError as error:
        raise PatternError(f"{key!r} is not an array of numbers: {error}") from error
    if not array.ndim or not array.size or array.dtype.kind not in "fiu":
        raise PatternError(
            f"{key!r}: expected numbers of shape (F,), got {array.dtype} of shape {array.shape}"
        )
    return array


def scalar(value: Any) -> float:
    """Give a number as a float; NaN says that it is none."""
    try:
        array = np.asarray(value)
    except ValueError:
        return math.nan
    is_number = array.size == 1 and array.dtype.kind in "fiub"
    return float(array.reshape(-1)[0]) if is_number else math.nan


def mean_of_collections(value: Array, declared: Sequence[int]) -> Array:
    """Give the mean of the collections of one event.

    They are counted by the first axis of what a descriptor declares of values in files. The same
    values come back, to the bit, where there is one.
    """
    if not value.ndim or value.ndim != len(declared):
        return value
    mean: Array = value[0] if len(value) == 1 else value.mean(axis=0, dtype=float)
    return mean
