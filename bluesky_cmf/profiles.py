"""Lines as a pattern: pseudo-Voigt profiles of unit area with a width that depends on the angle."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

__all__ = ["Width", "gaussian_and_lorentzian"]

Array = npt.NDArray[Any]

#: Lines that are drawn at a time: bounds the memory.
_LINES = 64
#: Where a Gaussian ends, in widths from its line: it is 5e-20 of its height there.
_GAUSSIAN = 4.0


@dataclass(frozen=True)
class Width:
    """Width and shape of an instrument's lines.

    The full width at half maximum Γ follows Γ² = U t² + V t + W (Caglioti, Paoletti and Ricci,
    Nuclear Instruments 3, 223, 1958), where t is tan θ on an axis of 2θ, and q on an axis of q.
    The profile is the pseudo-Voigt function η L + (1 - η) G of one Γ for both, which Thompson,
    Cox and Hastings (J. Appl. Cryst. 20, 79, 1987) take for the Voigt function.

    Attributes
    ----------
    u, v, w : float
        U, V and W in the axis' unit squared (on q: U without a unit, V in 1/Å).
    eta : float
        Share η of the Lorentzian, from 0 to 1.
    """

    u: float
    v: float
    w: float
    eta: float = 0.5

    def __post_init__(self) -> None:
        numbers = (self.u, self.v, self.w, self.eta)
        if not all(_is_number(value) for value in numbers) or not 0 <= self.eta <= 1:
            raise InputError(
                f"width: expected numbers U, V, W and a share eta from 0 to 1, got {numbers}"
            )

    @classmethod
    def of(cls, width: "float | Sequence[float] | Width") -> "Width":
        """Make a width of a number, the full width at half maximum, or of (U, V, W).

        Raises
        ------
        InputError
            Where it is neither, or not positive.
        """
        if isinstance(width, Width):
            return width
        if _is_number(width) and float(width) > 0:  # type: ignore[arg-type]
            return cls(0.0, 0.0, float(width) ** 2)  # type: ignore[arg-type]
        if isinstance(width, (tuple, list, np.ndarray)) and len(width) == 3:
            return cls(*width)
        raise InputError(
            "width: expected a positive number (the full width at half maximum in the axis' "
            f"unit), three numbers (U, V, W) or 'fit', got {width!r}"
        )

    def at(self, t: Array) -> Array:
        """Give the full width at half maximum where tan θ, or q, is ``t``.

        Raises
        ------
        InputError
            Where U, V and W give no width.
        """
        squares = (self.u * t + self.v) * t + self.w
        if (squares <= 0).any():
            raise InputError(
                f"width: expected U, V, W that give a width everywhere on the axis, got "
                f"{(self.u, self.v, self.w)}, whose U t² + V t + W is {squares.min():.3g} "
                f"at t = {t[squares.argmin()]:.4g}"
            )
        return np.sqrt(squares)

    def __str__(self) -> str:
        shape = f"eta {self.eta:.3g}"
        if self.u == self.v == 0:
            return f"width {np.sqrt(self.w):.4g}, {shape}"
        return f"width U {self.u:.4g}, V {self.v:.4g}, W {self.w:.4g}, {shape}"


def gaussian_and_lorentzian(
    x: Array, positions: Array, areas: Array, widths: Array
) -> tuple[Array, Array]:
    """Draw lines on an axis, once as Gaussians and once as Lorentzians.

    Parameters
    ----------
    x : ndarray (F,)
        The axis, increasing.
    positions, areas, widths : ndarray (L,)
        Place of each line, increasing, its area and its full width at half maximum.

    Returns
    -------
    gaussian, lorentzian : ndarray (F,)
        Sums of G = (2/Γ) √(ln 2/π) exp(-4 ln 2 (x/Γ)²) and L = (2/πΓ) / (1 + 4 (x/Γ)²), which
        have the area 1.
    """
    gaussian, lorentzian = np.zeros(len(x)), np.zeros(len(x))
    for at in range(0, len(positions), _LINES):
        part = slice(at, at + _LINES)
        places, fwhm = positions[part, None], widths[part, None]
        heights = areas[part] / widths[part]
        distances = np.square((x - places) * (2 / fwhm))
        lorentzian += heights @ (1 / (1 + distances))
        reach = _GAUSSIAN * float(fwhm.max())
        near = slice(*np.searchsorted(x, [places.min() - reach, places.max() + reach]))
        gaussian[near] += heights @ np.exp(-np.log(2) * distances[:, near])
    return 2 * np.sqrt(np.log(2) / np.pi) * gaussian, 2 / np.pi * lorentzian


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
