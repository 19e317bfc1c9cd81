"""An axis in the wrong unit: what can be told by its range, and by where a crystal's lines are."""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["farthest", "likelier"]

Array = npt.NDArray[Any]

#: Largest q in 1/Å that is measured: beyond it, an axis is in 1/nm or in degrees.
_LARGEST_Q = 60.0
#: A wavelength may be rounded.
_SLACK = 1.01
#: Lines of this share of the strongest one's 100 are strong ones.
_STRONG = 10.0
#: Share of the strong lines that another unit has to bring onto the axis.
_MOST = 0.5


def farthest(axis: Literal["two_theta", "q"], wavelength: float | None = None) -> float:
    """Give the end of all that is measured: 180°, or 60 1/Å, or 4π/λ (and 1 %) where λ is known.

    An axis that goes beyond it is in another unit for certain.
    """
    if axis == "two_theta":
        return 180.0
    return _LARGEST_Q if wavelength is None else min(_LARGEST_Q, _SLACK * 4 * math.pi / wavelength)


def likelier(
    axis: Literal["two_theta", "q"],
    wavelength: float | None,
    positions: Array,
    strengths: Array,
    low: float,
    high: float,
) -> str | None:
    """Tell whether the ends of an axis make more sense in another unit.

    A range alone does not tell: 0.1 to 0.4 may be 2θ in radians, q in 1/Å, or degrees at a
    small-angle beamline. So the lines decide. The range looks like another unit where it holds no
    strong line of the crystal as it is declared, but in the other unit the strongest one and at
    least half of the strong ones. A measurement of weak lines alone may look so, which is why
    nothing is refused for it.

    Parameters
    ----------
    axis : {"two_theta", "q"}
        What the axis is declared as: degrees, or 1/Å.
    wavelength : float or None
        In Å.
    positions, strengths : ndarray (L,)
        The crystal's lines on the declared axis; the strongest is 100.
    low, high : float
        Ends of the axis.

    Returns
    -------
    str or None
        The other unit.

    Examples
    --------
    >>> lines = np.array([12.0, 15.0, 22.0]), np.array([40.0, 100.0, 30.0])
    >>> likelier("two_theta", 0.5, *lines, 0.17, 0.52)
    '2θ in radians'
    >>> likelier("two_theta", 0.5, *lines, 10, 30) is None
    True
    """
    strong = strengths >= _STRONG
    positions, strengths = positions[strong], strengths[strong]

    def held(places: Array) -> Array:
        inside: Array = (places >= low) & (places <= high)
        return inside

    if not len(positions) or held(positions).any():
        return None
    for name, places in _readings(axis, wavelength, positions):
        inside = held(places)
        if inside[strengths.argmax()] and inside.mean() >= _MOST:
            return name
    return None


def _readings(
    axis: Literal["two_theta", "q"], wavelength: float | None, positions: Array
) -> list[tuple[str, Array]]:
    """Give the places of lines in the other units."""
    if axis == "two_theta" and wavelength is not None:
        q = 4 * np.pi * np.sin(np.radians(positions) / 2) / wavelength
        return [
            ("2θ in radians", np.radians(positions)),
            ("q in 1/angstrom", q),
            ("q in 1/nm", 10 * q),
        ]
    readings = [("q in 1/nm", 10 * positions)]
    if wavelength is not None:
        sines = np.minimum(positions * wavelength / (4 * np.pi), 1.0)
        angles = 2 * np.arcsin(sines)
        readings += [("2θ in degrees", np.degrees(angles)), ("2θ in radians", angles)]
    return readings
