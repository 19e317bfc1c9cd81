"""The stated rule for every doubtful pattern: what is made of it, or why it cannot be used."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import AxisError, PatternError

__all__ = ["Measured", "check_values", "oriented", "pattern_of"]

Array = npt.NDArray[Any]
Integrate = Callable[[Array], tuple[Array, ...]]


@dataclass(frozen=True, eq=False)
class Measured:
    """A pattern as it was measured.

    Attributes
    ----------
    x, y : ndarray (F,)
        The axis, increasing, and the intensities.
    variance : ndarray (F,) or None
        Variance of each intensity, where its noise is known; NaN where an error was negative.
    doubt : str
        Why it is not known though it should be.
    """

    x: Array
    y: Array
    variance: Array | None = None
    doubt: str = ""


def pattern_of(
    values: Array,
    x: Array | None,
    *,
    integrate: Integrate | None,
    collections: bool,
    errors: Array | Literal["counts"] | None = None,
) -> Measured:
    """Make a pattern of what the detector gave.

    Parameters
    ----------
    values : ndarray
        A pattern (F,), with any number of axes of length 1 before; with ``integrate`` a frame
        (rows, columns), or several of one event, whose patterns are averaged.
    x : ndarray (F,) or None
        Axis of the pattern; without one the index is it.
    integrate : callable, optional
        Gives axis and pattern of a frame, and the variance of the pattern where it knows it.
    collections : bool
        Whether the first axis counts the collections of one event, which are averaged.
    errors : ndarray or "counts", optional
        Standard errors, of the shape of ``values`` or of the pattern; or that the values are
        counts y, of which max(y, 1) is the variance: none that were counted may be one.
        Fractions of which none is above 1 are no counts: their noise is not known then.

    Raises
    ------
    PatternError
        Where the shape is another one, or a placeholder stands in the pattern's place.
    AxisError
        Where the axis neither increases nor decreases throughout.
    """
    if integrate is not None:
        return _integrated(values, integrate)
    variance = _variance(values, errors)
    doubt = _uncounted(values) if isinstance(errors, str) else ""
    if doubt:
        variance = None
    if collections:
        if variance is not None and variance.shape == values.shape:
            variance = variance.sum(axis=0) / len(values) ** 2
        values = values[0] if len(values) == 1 else values.mean(axis=0, dtype=float)
    while values.ndim > 1 and values.shape[0] == 1:
        values = values[0]
    if values.ndim > 1:
        raise PatternError(
            f"expected a pattern of shape (F,), got shape {values.shape}; frames of a 2-D "
            "detector need an integrator (LiveNMF(integrator=Integrator(…)))"
        )
    if len(values) < 2:
        raise PatternError(f"a placeholder stands in the place of the pattern: {values.tolist()}")
    if x is not None and x.ndim > 1:
        x = x.reshape(-1, x.shape[-1])[0]
    found, y = oriented(x, values)
    if variance is None:
        return Measured(found, y, None, doubt)
    if variance.size != len(y) or variance.shape[-1] != len(y):
        return Measured(found, y, None, f"shape {variance.shape} for {len(y)} points")
    # It stands in the order of the values, and of the axis that came with them.
    return Measured(found, y, oriented(x, variance.reshape(-1))[1])


def _variance(values: Array, errors: Array | Literal["counts"] | None) -> Array | None:
    if errors is None:
        return None
    if isinstance(errors, str):
        variance: Array = np.maximum(values.astype(float), 1.0)
        return variance
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(errors < 0, np.nan, errors.astype(float) ** 2)


def _uncounted(values: Array) -> str:
    """Say why values are no counts: max(y, 1) would make every error of theirs far too large."""
    top = float(values.max(initial=0.0))
    if not 0 < top <= 1 or np.array_equal(values, np.round(values)):
        return ""
    return (
        f"'counts': expected counts, got fractions up to {top:.4g}, which are normalised; give "
        "the data key of the standard errors, or the counts and Preprocess(normalize=…)"
    )


def _integrated(values: Array, integrate: Integrate) -> Measured:
    """Integrate the frames of one event, each by itself: they may lack different pixels."""
    if values.ndim < 2:
        raise PatternError(f"expected a frame of shape (rows, columns), got shape {values.shape}")
    found = [integrate(frame) for frame in values.reshape(-1, *values.shape[-2:])]
    x, y, *known = found[0]
    variance = known[0] if known else None
    if len(found) > 1:
        y = np.mean([y for _, y, *_ in found], axis=0)
    if len(found) > 1 and variance is not None:
        variance = np.sum([v for _, _, v in found], axis=0) / len(found) ** 2
    return Measured(x, y, variance)


def oriented(x: Array | None, y: Array) -> tuple[Array, Array]:
    """Give axis and pattern with the axis increasing; without an axis the index is it."""
    if x is None:
        return np.arange(len(y), dtype=float), y
    if x.shape != y.shape:
        raise PatternError(f"expected an axis as long as the pattern, got {x.size} for {y.size}")
    x = x.astype(float)
    if len(x) > 1 and x[0] > x[-1]:
        x, y = x[::-1], y[::-1]
    if not np.isfinite(x).all() or (x[1:] <= x[:-1]).any():
        raise AxisError("expected an axis that increases or decreases throughout")
    return x, y


def check_values(y: Array) -> None:
    """Refuse what holds no intensities: NaN, infinity, nothing but zeros.

    Raises
    ------
    PatternError
        With the reason.
    """
    broken = int(np.count_nonzero(~np.isfinite(y)))
    if broken:
        raise PatternError(f"NaN or infinity at {broken} of {len(y)} points")
    if not y.any():
        raise PatternError("every point is zero")
