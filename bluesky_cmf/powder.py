"""The powder pattern of a crystal on an axis of 2θ or q."""

import logging
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .axes import farthest, likelier
from .crystals import Crystal, powder_reflections
from .errors import AxisError, InputError
from .profiles import Width, gaussian_and_lorentzian

__all__ = ["Powder"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

#: Wavelengths in Å: below, they are in nm or are energies in MeV, above, they are energies.
_SHORTEST, _LONGEST = 0.05, 5.0
#: Places at which widths are compared.
_PLACES = 256
#: Lines as many widths beyond the ends of an axis still reach into it.
_REACH = 50.0
#: The scale is set by lines down to this spacing in Å, and this share of the way to 2θ = 180°.
_SCALE_SPACING, _SCALE_SINE = 1.0, 0.95


@dataclass(frozen=True, eq=False)
class Powder:
    """A crystal's powder on an axis.

    The area of a line is m |F|² times the Lorentz-polarisation factor. On ``"two_theta"`` that is
    (1 + cos² 2θ) / (sin² θ cos θ) (International Tables for Crystallography, Vol. C, 6.2: an
    unpolarised beam, no monochromator). On ``"q"`` it is 1/q², times (1 + cos² 2θ) / 2 where a
    wavelength is given; without one the data are taken as corrected for polarisation. As
    dq/d2θ = 2π cos θ/λ, a pattern has the same height on both axes, which is how azimuthal
    integration gives it. Absorption, texture and anomalous dispersion are left out.

    Attributes
    ----------
    crystal : Crystal
        The structure.
    axis : str
        ``"two_theta"`` in degrees or ``"q"`` in 1/Å.
    wavelength : float, optional
        In Å; needed on ``"two_theta"``.
    width : Width, optional
        Width of the lines; None where it is yet to be fitted.
    """

    crystal: Crystal
    axis: Literal["two_theta", "q"] = "two_theta"
    wavelength: float | None = None
    width: Width | None = None

    def __post_init__(self) -> None:
        self.check_axis(self.axis, self.wavelength)

    @staticmethod
    def check_axis(axis: object, wavelength: object) -> None:
        """Refuse an axis that is neither, or a wavelength that is missing or not in Å.

        Raises
        ------
        InputError
            Where it is so.
        """
        if axis not in ("two_theta", "q"):
            raise InputError(f"axis: expected 'two_theta' or 'q', got {axis!r}")
        if wavelength is not None:
            _check_wavelength(wavelength)
        elif axis == "two_theta":
            raise InputError(
                "wavelength: expected the wavelength of the measurement in angstrom, got None; "
                "an axis of 'q' needs none"
            )

    @property
    def unit(self) -> str:
        """Unit of the axis."""
        return "degrees" if self.axis == "two_theta" else "1/angstrom"

    def lines(self) -> tuple[Array, Array]:
        """Give the lines down to a spacing of 1 Å: places and areas; the strongest is 100.

        Raises
        ------
        InputError
            Where there is none.
        """
        positions, areas = self._within(0.0, self._scale_end)
        return positions, areas * self._scale

    @property
    def _scale_end(self) -> float:
        """Where on the axis the lines end that set the scale."""
        if self.axis == "q":
            return 2 * np.pi / _SCALE_SPACING
        sine = min(_SCALE_SINE, self._wavelength / 2 / _SCALE_SPACING)
        return float(np.degrees(2 * np.arcsin(sine)))

    @cached_property
    def _scale(self) -> float:
        """What brings the strongest line, among those that set the scale, to 100."""
        _, areas = self._within(0.0, self._scale_end)
        if not len(areas):
            raise InputError(
                "path: expected a crystal with lines down to a spacing of 1 angstrom at this "
                "wavelength, got none: a cell too small, or occupancies of zero"
            )
        return 100 / float(areas.max())

    def reflections(self, low: float, high: float) -> tuple[Array, Array]:
        """Give the lines on a part of the axis.

        Parameters
        ----------
        low, high : float
            The part, in the axis' unit.

        Returns
        -------
        positions, intensities : ndarray (L,)
            Places and areas of the lines; the strongest one there is 100.
        """
        self._check_range(low, high, "x_min, x_max", farthest(self.axis))
        positions, areas = self._within(low, high)
        return positions, areas * (100 / areas.max(initial=1e-300))

    def on(self, x: Array, *, width: Width, what: str) -> Array:
        """Give the pattern on an axis.

        Parameters
        ----------
        x : ndarray (F,)
            An increasing axis in degrees or 1/Å.
        width : Width
            Width of the lines.
        what : str
            What the message calls the pattern.

        Returns
        -------
        ndarray (F,)
            Sum of the lines' profiles. The highest point of the crystal's whole pattern (down to
            a spacing of 1 Å) is 1, whatever the axis, as it is of components that are free.

        Raises
        ------
        AxisError
            Where the axis leaves 0 to 180 degrees or 0 to 60 1/Å (or to 4π/λ), no line is on it,
            or its steps are wider than the lines. An axis that is likelier in another unit is
            logged as a warning, see `bluesky_cmf.axes.likelier`.
        """
        gaussian, lorentzian = self.shapes(x, width=width, what=what)
        pattern: Array = ((1 - width.eta) * gaussian + width.eta * lorentzian) / self._height(width)
        return pattern

    def shapes(self, x: Array, *, width: Width, what: str) -> tuple[Array, Array]:
        """Give the pattern with Gaussian and with Lorentzian lines; as `on` does."""
        self._check(x, what)
        widest = float(width.at(self._argument(x[[0, -1]])).max())
        step = float(np.median(np.diff(x))) if len(x) > 1 else 0.0
        if step > widest * (1 + 1e-9):
            raise AxisError(
                f"{what}: expected an axis with steps finer than its lines, got steps of "
                f"{step:.4g} and lines {widest:.4g} {self.unit} wide; give the width that lines "
                "have on this axis"
            )
        reach = _REACH * widest
        positions, areas = self._within(max(0.0, x[0] - reach), x[-1] + reach)
        if not ((positions >= x[0]) & (positions <= x[-1])).any():
            raise AxisError(
                f"{what} has no line from {x[0]:.6g} to {x[-1]:.6g}; expected an axis of "
                f"{self.axis} in {self.unit} that some lines are on{self._doubt(x)}"
            )
        self._warn_once(x, what)
        widths = width.at(self._argument(positions))
        return gaussian_and_lorentzian(x, positions, areas * self._scale, widths)

    def _height(self, width: Width) -> float:
        """Height of the pattern, among the lines that set the scale: it is that of one of them."""
        positions, areas = self._within(0.0, self._scale_end)
        t = self._argument(positions)
        # Beyond the data's axis, U, V and W need not give a width.
        given = (width.u * t + width.v) * t + width.w > 0
        if not given.any():
            return 1.0
        positions, areas = positions[given], areas[given] * self._scale
        gaussian, lorentzian = gaussian_and_lorentzian(
            positions, positions, areas, width.at(t[given])
        )
        return float(((1 - width.eta) * gaussian + width.eta * lorentzian).max())

    def narrowest(self, x: Array) -> float:
        """Give the least full width at half maximum that a line on an axis (F,) can have."""
        if self.width is None:
            raise InputError("width: expected the width of the lines, got None")
        # What it depends on goes one way along the axis, and the width has one minimum at most.
        places = np.linspace(float(x[0]), float(x[-1]), _PLACES)
        return float(self.width.at(self._argument(places)).min())

    def _check(self, x: Array, what: str) -> None:
        if x.ndim != 1 or not len(x) or x.dtype.kind not in "fiu" or not (x[1:] > x[:-1]).all():
            raise AxisError(
                f"{what}: expected an axis (F,) of numbers that increase throughout, "
                f"got {x.dtype} of shape {x.shape}"
            )
        top = farthest(self.axis, self.wavelength)
        self._check_range(float(x[0]), float(x[-1]), what, top)

    def _doubt(self, x: Array) -> str:
        """Say in which unit the axis would be likelier; "" where there is none."""
        other = likelier(self.axis, self.wavelength, *self.lines(), float(x[0]), float(x[-1]))
        return "" if other is None else f"; this range looks like {other}"

    @cached_property
    def _doubted(self) -> dict[tuple[float, float], str]:
        """Ends of the axes that were looked at, and what was found."""
        return {}

    def _warn_once(self, x: Array, what: str) -> None:
        ends = (float(x[0]), float(x[-1]))
        if ends in self._doubted:
            return
        self._doubted[ends] = self._doubt(x)
        if self._doubted[ends]:
            logger.warning(
                "%s has none of its strong lines from %.6g to %.6g %s%s",
                *(what, *ends, self.unit, self._doubted[ends]),
            )

    def _check_range(self, low: float, high: float, what: str, top: float) -> None:
        if not 0 <= low <= high <= top:
            raise AxisError(
                f"{what}: expected an axis of {self.axis} in {self.unit}, from 0 to {top:.5g}, got "
                f"{low:.6g} to {high:.6g}; give axis='two_theta' or 'q', as the data's axis is, "
                "and crop what lies beyond (Preprocess(roi=…))"
            )

    def _within(self, low: float, high: float) -> tuple[Array, Array]:
        """Lines on a part of the axis: places and areas, without a scale."""
        if self.axis == "q":
            positions, areas = self._lines(low / (2 * np.pi), high / (2 * np.pi))
            return 2 * np.pi * positions, areas
        sines = np.sin(np.radians(np.minimum([low, high], 180.0)) / 2)
        inverse, areas = self._lines(*(2 * sines / self._wavelength))
        positions = np.degrees(2 * np.arcsin(np.minimum(inverse * self._wavelength / 2, 1.0)))
        return positions, areas

    def _lines(self, low: float, high: float) -> tuple[Array, Array]:
        """Lines with 1/d from low to high: 1/d in 1/Å and area, without a scale."""
        if self.wavelength is not None:
            # A line that is scattered straight back has no finite Lorentz factor.
            high = min(high, 2 / self.wavelength * (1 - 1e-9))
        inverse, strengths = powder_reflections(self.crystal, low, high)
        return inverse, strengths * self._factor(inverse)

    def _factor(self, inverse: Array) -> Array:
        """Lorentz-polarisation factor."""
        factor: Array
        if self.wavelength is None:
            factor = 1 / inverse**2
            return factor
        sine2 = (inverse * self.wavelength / 2) ** 2
        polarisation = 1 + (1 - 2 * sine2) ** 2
        if self.axis == "q":
            factor = polarisation / 2 / inverse**2
        else:
            factor = polarisation / (sine2 * np.sqrt(1 - sine2))
        return factor

    def _argument(self, positions: Array) -> Array:
        """Give what the width depends on: tan θ or q."""
        if self.axis == "q":
            return positions
        # tan 90° is finite in floating point, and squares to more than a width can be.
        tangents: Array = np.tan(np.radians(np.minimum(positions, 179.0)) / 2)
        return tangents

    @property
    def _wavelength(self) -> float:
        if self.wavelength is None:
            raise InputError("wavelength: expected a wavelength in angstrom, got None")
        return self.wavelength


def _check_wavelength(wavelength: object) -> None:
    if isinstance(wavelength, bool) or not isinstance(wavelength, Real):
        raise InputError(
            f"wavelength: expected a number in angstrom, got {type(wavelength).__name__}"
        )
    if not _SHORTEST <= float(wavelength) <= _LONGEST:
        raise InputError(
            f"wavelength: expected angstrom, from {_SHORTEST:g} to {_LONGEST:g}, got "
            f"{float(wavelength):g}; 1 nm is 10 angstrom, and 12.398 divided by the energy in "
            "keV is the wavelength in angstrom"
        )
