"""The steps before the fit that are not linear: what they make of a pattern and of its noise."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .baselines import Background
from .errors import PatternError
from .prepared import Noise

__all__ = ["divided", "normalized", "signed", "without_background"]

Array = npt.NDArray[Any]
Noisy = tuple[Array, Noise | None]


def signed(y: Array, noise: Noise | None, rule: str) -> Noisy:
    """Apply the rule for negative values: ``"reject"``, ``"clip"`` or ``"offset"``.

    Raises
    ------
    PatternError
        Where they are to be refused.
    """
    lowest = y.min(initial=0)
    if not lowest < 0:
        return y, noise
    if rule == "clip":
        return np.maximum(y, 0), noise
    if rule == "offset":
        where = np.zeros(len(y))
        where[y.argmin()] = 1.0
        lifted = y.astype(float) - float(lowest)
        return lifted, None if noise is None else noise.referred(np.ones(len(y)), where)
    raise PatternError(
        f"negative intensity at {int(np.count_nonzero(y < 0))} of {len(y)} points, the lowest "
        f"{lowest:.4g}; Preprocess(negative='clip') or 'offset' would use it"
    )


def without_background(x: Array, y: Array, noise: Noise | None, background: Background) -> Noisy:
    """Subtract the background; what falls below zero is noise about it, and set to zero.

    No value's spread grows by that, so the noise of before is an upper bound.
    """
    x, y = x.astype(float), y.astype(float)
    return np.maximum(y - background.estimate(x, y), 0.0), noise


def normalized(x: Array, y: Array, noise: Noise | None, by: str) -> Noisy:
    """Divide by the ``"max"`` or the ``"area"`` s of the pattern: dw = (dy - w ds) / s.

    Raises
    ------
    PatternError
        Where it is no positive number.
    """
    # Detectors give integers, whose sums would wrap round.
    x, y = x.astype(float), y.astype(float)
    if by == "max":
        weights = np.zeros(len(y))
        weights[y.argmax()] = 1.0
        scale = float(y.max())
    else:
        weights = _trapezoid(x)
        scale = float(np.trapezoid(y, x))
    if not 0 < scale < np.inf:
        raise PatternError(f"cannot be normalised by its {by}, which is {scale:g}")
    y = y / scale
    return y, None if noise is None else noise.referred(y, weights).scaled(1.0 / scale)


def divided(y: Array, noise: Noise | None, monitor: float | None, key: str | None) -> Noisy:
    """Divide by the value of a monitor.

    Raises
    ------
    PatternError
        Where it is no positive number.
    """
    if monitor is None:
        raise PatternError(f"cannot be normalised by the monitor {key!r}, which is missing")
    try:
        value = float(monitor)
    except (TypeError, ValueError, OverflowError):
        raise PatternError(
            f"cannot be normalised by the monitor {key!r}, which is {monitor!r}"
        ) from None
    # What is divided by still less is too large for any number, or its variance is.
    if not 1e-140 <= value < np.inf:
        raise PatternError(f"cannot be normalised by the monitor {key!r}, which is {value:g}")
    return y / value, None if noise is None else noise.scaled(1.0 / value)


def _trapezoid(x: Array) -> Array:
    """Give what each value (G,) counts for in the trapezoidal rule."""
    weights = np.zeros(len(x))
    steps = np.diff(x) / 2
    weights[1:] += steps
    weights[:-1] += steps
    return weights
