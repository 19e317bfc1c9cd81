"""Lattices that expand: where a strain moves the points of an axis, and a pattern in between."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import AxisError, InputError

__all__ = ["AXES", "AxisKind", "Spline", "check_cover", "check_kind", "stretched"]

Array = npt.NDArray[Any]
AxisKind = Literal["q", "two_theta"]

#: Axes on which it is known where lines go.
AXES = ("q", "two_theta")
#: How far, in steps of the finer axis, the data may reach beyond a phase: rounding, no more.
_REACH = 0.5


def check_kind(what: str, axis: object, *, needed: bool) -> None:
    """Refuse an axis that is neither q nor 2θ, or, where it is needed, none at all.

    Raises
    ------
    InputError
        Where it is so.
    """
    if axis in AXES or (axis is None and not needed):
        return
    why = ", on which a strain moves the lines" if needed else ""
    raise InputError(
        f"{what}: axis: expected 'q' or 'two_theta' (in degrees){why}, got {axis!r}; say what "
        "the phase's x is"
    )


def stretched(x: Array, strain: float, axis: AxisKind) -> Array:
    """Give the axis on which an unstrained lattice has what a strained one has on ``x``.

    Parameters
    ----------
    x : ndarray (F,)
        q, in any unit, or 2θ in degrees.
    strain : float
        ε: lattice spacings d become d (1 + ε).
    axis : {"q", "two_theta"}
        Which of them it is.

    Returns
    -------
    ndarray (F,)
        q (1 + ε), or 2 arcsin(sin θ (1 + ε)): as q = 4π sin θ/λ, whatever the wavelength.
        Where there is no such angle, 180°.
    """
    if axis == "q":
        return np.asarray(x * (1.0 + strain))
    sines = np.sin(np.radians(x) / 2) * (1.0 + strain)
    return np.asarray(np.degrees(2 * np.arcsin(np.minimum(sines, 1.0))))


def check_cover(x: Array, onto: Array, *, what: str, strain: float, axis: AxisKind) -> None:
    """Refuse a phase that does not cover an axis that its strain stretches.

    Parameters
    ----------
    x : ndarray (F,)
        The phase's axis.
    onto : ndarray (G,)
        The axis of the data.
    what : str
        What the message calls the phase.
    strain : float
        Its strain.
    axis : {"q", "two_theta"}
        What both axes are.

    Raises
    ------
    AxisError
        Where it does not cover it to within half a step.
    """
    needed = stretched(onto[[0, -1]], strain, axis)
    steps = [float(np.diff(values).min()) for values in (x, onto) if len(values) > 1]
    reach = _REACH * min(steps) if len(steps) == 2 else 0.0
    if needed[0] >= x[0] - reach and needed[1] <= x[-1] + reach:
        return
    first, last = stretched(x[[0, -1]], 1 / (1 + strain) - 1, axis)
    raise AxisError(
        f"{what} covers {x[0]:.6g} to {x[-1]:.6g}, but on the data's axis from {onto[0]:.6g} to "
        f"{onto[-1]:.6g} a strain of {strain:g} asks for {needed[0]:.6g} to {needed[1]:.6g} of it; "
        f"crop the data, Preprocess(roi=({max(first, onto[0]):.6g}, {min(last, onto[-1]):.6g})), "
        "narrow strain=(lowest, highest), or give a phase that reaches farther"
    )


@dataclass(frozen=True, eq=False)
class Spline:
    """The natural cubic spline through a pattern.

    Straight lines between points would make a line of a few points as wide as it happens to lie
    between them, and change its weight with its strain.

    Parameters
    ----------
    x, y : ndarray (F,)
        Increasing axis and values.
    bends : ndarray (F,)
        Second derivatives at the points.
    """

    x: Array
    y: Array
    bends: Array

    @classmethod
    def through(cls, x: Array, y: Array) -> "Spline":
        """Fit a spline to a pattern (F,)."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        bends = np.zeros(len(x))
        if len(x) > 2:
            step = np.diff(x)
            slope = np.diff(y) / step
            bends[1:-1] = _tridiagonal(
                step[1:-1] / 6, (step[:-1] + step[1:]) / 3, slope[1:] - slope[:-1]
            )
        return cls(x, y, bends)

    def at(self, x: Array) -> Array:
        """Give values at points (G,), not negative; those beyond an end are the end's."""
        if len(self.x) == 1:
            return np.full(len(x), self.y[0])
        place = np.clip(x, self.x[0], self.x[-1])
        i = np.clip(np.searchsorted(self.x, place, side="right") - 1, 0, len(self.x) - 2)
        step = self.x[i + 1] - self.x[i]
        v = (place - self.x[i]) / step
        u = 1.0 - v
        bend = (u**3 - u) * self.bends[i] + (v**3 - v) * self.bends[i + 1]
        values = u * self.y[i] + v * self.y[i + 1] + bend * step**2 / 6
        return np.asarray(np.maximum(values, 0.0))


def _tridiagonal(beside: Array, diagonal: Array, right: Array) -> Array:
    """Solve a symmetric tridiagonal system (n,), whose diagonal dominates."""
    # Plain numbers: array elements one by one are many times slower.
    a, d, r = beside.tolist(), diagonal.tolist(), right.tolist()
    for i in range(1, len(d)):
        factor = a[i - 1] / d[i - 1]
        d[i] -= factor * a[i - 1]
        r[i] -= factor * r[i - 1]
    r[-1] /= d[-1]
    for i in range(len(d) - 2, -1, -1):
        r[i] = (r[i] - a[i] * r[i + 1]) / d[i]
    return np.array(r)
