"""What a pattern file holds, and what has to hold of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PatternFileError

__all__ = ["Array", "Found", "PatternFile", "checked"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PatternFile:
    """A pattern as a file holds it.

    Attributes
    ----------
    path : Path
        The file.
    x, y : ndarray (F,)
        Axis, increasing, and intensity.
    errors : ndarray (F,) or None
        Standard errors of the intensities, where the file tells them.
    metadata : dict
        What else it says, as far as it does: ``axis`` (``"two_theta"`` or ``"q"``) and ``units``
        (``"deg"``, ``"rad"``, ``"1/angstrom"``, ``"1/nm"``), ``wavelength`` in angstrom,
        ``counting_time`` in seconds, ``title``, and ``header``, the lines before the numbers.
    """

    path: Path
    x: Array
    y: Array
    errors: Array | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Found:
    """Columns as they stand in a file, before anything is known of them."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    errors: npt.NDArray[Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def checked(path: Path, found: Found, *, allow_nan: bool = False) -> PatternFile:
    """Make a pattern of what was found, or refuse it.

    Raises
    ------
    PatternFileError
        Where the lengths differ, something is no number, or the axis goes to and fro.
    """
    x, y, errors = found.x, found.y, found.errors
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise PatternFileError(
            f"{path}: expected axis and intensity of one length, got {x.shape} and {y.shape}"
        )
    if x.dtype.kind not in "fiu" or y.dtype.kind not in "fiu":
        raise PatternFileError(f"{path}: expected numbers, got {x.dtype} and {y.dtype}")
    broken = ~np.isfinite(x) if allow_nan else ~(np.isfinite(x) & np.isfinite(y))
    if broken.any():
        raise PatternFileError(
            f"{path}: NaN or infinity among the values, at {np.count_nonzero(broken)} of {len(x)} "
            f"points, the first of them point {broken.argmax() + 1}"
        )
    if errors is not None:
        errors = _checked_errors(path, errors, y)
    if len(x) > 1 and x[0] > x[-1]:
        x, y, errors = x[::-1], y[::-1], None if errors is None else errors[::-1]
    if (x[1:] <= x[:-1]).any():
        point = int((x[1:] <= x[:-1]).argmax()) + 1
        raise PatternFileError(
            f"{path}: expected an axis that increases or decreases throughout, got {x[point - 1]:g}"
            f" followed by {x[point]:g}"
        )
    return PatternFile(
        path,
        x.astype(float),
        y.astype(float),
        None if errors is None else errors.astype(float),
        found.metadata,
    )


def _checked_errors(path: Path, errors: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if errors.shape != y.shape or errors.dtype.kind not in "fiu":
        raise PatternFileError(
            f"{path}: expected a standard error for each intensity, {y.shape}, got {errors.dtype} "
            f"of shape {errors.shape}"
        )
    # Where the intensity itself is missing nothing is known of its error.
    if not ((errors >= 0) & np.isfinite(errors) | np.isnan(y)).all():
        raise PatternFileError(
            f"{path}: expected standard errors that are finite and not negative, got "
            f"{errors[~((errors >= 0) & np.isfinite(errors))][0]:g}"
        )
    return errors
