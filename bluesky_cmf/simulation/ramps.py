"""What the devices play: patterns as a function of one variable; here, computed ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputError

__all__ = ["Array", "HeatingRamp", "Ramp", "Reference", "units"]

Array = npt.NDArray[Any]

#: Angstrom; hard X-rays, as at a pair-distribution-function beamline.
_WAVELENGTH = 0.1671
#: Degrees, full width at half maximum of a reflection.
_WIDTH = 0.05
#: Counts in the strongest reflection of one exposure.
_COUNTS = 20_000.0

#: Units by the usual names of axes and variables; a file of arrays does not tell them.
_UNITS = {"two_theta": "deg", "tth": "deg", "q": "1/A", "r": "A", "temperature": "K", "time": "s"}


class Reference(NamedTuple):
    """The pattern of a known phase: its name, its axis (F,) and its intensity (F,)."""

    name: str
    x: Array
    y: Array


class Ramp(Protocol):
    """What the simulated devices play."""

    @property
    def name(self) -> str:
        """What is played."""

    @property
    def variable(self) -> str:
        """Name of the independent variable."""

    @property
    def axis(self) -> str:
        """Name of the patterns' axis."""

    @property
    def x(self) -> Array:
        """The axis, (F,), increasing."""

    @property
    def positions(self) -> Array:
        """Values of the independent variable, (N,), in the order of the ramp."""

    @property
    def references(self) -> tuple[Reference, ...]:
        """Patterns of the known phases."""

    @property
    def n_components(self) -> int:
        """How many components a fit takes to follow the ramp."""

    def pattern(self, position: float, *, shot: int = 0) -> Array:
        """Give the pattern (F,) of exposure number ``shot`` at ``position``."""


def units(name: str) -> str:
    """Give the unit of an axis or a variable by its usual name, ``""`` where it is not known."""
    return _UNITS.get(name.lower(), "")


@dataclass(frozen=True)
class _Lattice:
    """A tetragonal lattice (cubic where the axial ratio is 1), expanding with temperature."""

    #: Angstrom, at 300 K.
    a: float
    #: Relative, per kelvin.
    expansion: float
    #: Reflections and their intensities.
    lines: Mapping[tuple[int, int, int], float]

    def two_theta(self, hkl: tuple[int, int, int], temperature: float, ratio: float) -> float:
        """Give the angle of a reflection in degrees, by Bragg's law."""
        a = self.a * (1.0 + self.expansion * (temperature - 300.0))
        h, k, l = hkl  # noqa: E741 - Miller's letters
        inverse_d = np.sqrt((h * h + k * k) / a**2 + l * l / (a * ratio) ** 2)
        return float(np.degrees(2.0 * np.arcsin(_WAVELENGTH * inverse_d / 2.0)))

    def pattern(self, x: Array, temperature: float, ratio: float = 1.0) -> Array:
        """Give the pattern (F,) with the strongest line at about 1."""
        y = np.zeros_like(x)
        for hkl, intensity in self.lines.items():
            h, k, l = hkl  # noqa: E741
            # A cubic family splits into the members that the long axis tells apart.
            members = {(h, k, l), (l, h, k), (k, l, h)}
            for member in members:
                y += intensity / len(members) * _peak(x, self.two_theta(member, temperature, ratio))
        return y


def _peak(x: Array, centre: float) -> Array:
    """Give a pseudo-Voigt line of equal Gaussian and Lorentzian parts, height 1."""
    u2 = ((x - centre) / (_WIDTH / 2.0)) ** 2
    return np.asarray(0.5 * np.exp2(-u2) + 0.5 / (1.0 + u2))


_PEROVSKITE = _Lattice(
    4.01,
    0.9e-5,
    {
        (1, 0, 0): 0.25,
        (1, 1, 0): 1.0,
        (1, 1, 1): 0.45,
        (2, 0, 0): 0.4,
        (2, 1, 0): 0.15,
        (2, 1, 1): 0.4,
        (2, 2, 0): 0.25,
        (3, 1, 0): 0.2,
        (3, 1, 1): 0.15,
        (2, 2, 2): 0.1,
    },
)
_HIDDEN = _Lattice(
    5.2,
    0.8e-5,
    {(1, 1, 1): 0.6, (2, 0, 0): 1.0, (2, 2, 0): 0.7, (3, 1, 1): 0.4, (2, 2, 2): 0.3},
)


@dataclass(frozen=True)
class HeatingRamp:
    """A perovskite heated through its transition, with a reaction product nobody declared.

    Below the transition the phase is tetragonal: its reflections are split, and the splitting
    shrinks as the temperature rises. Around the transition it coexists with the cubic phase.
    Half-way up the ramp a third phase begins to grow. All reflections shift as the lattices
    expand; a smooth background lies below them, and the counts are Poisson-distributed.

    Parameters
    ----------
    n_patterns : int, default 60
        Number of temperatures N.
    n_features : int, default 2000
        Number of points F of a pattern.
    temperatures : (float, float), default (300, 595)
        First and last temperature, in kelvin.
    seed : int, default 0
        Seed of the counting noise.
    noise : bool, default True
        Whether the patterns are counted (Poisson) or exact.

    Raises
    ------
    InputError
        Where there are fewer than two patterns, or fewer than 100 points.

    Examples
    --------
    >>> ramp = HeatingRamp(n_patterns=31)
    >>> ramp.pattern(450.0).shape
    (2000,)
    >>> [reference.name for reference in ramp.references]
    ['tetragonal', 'cubic']
    """

    n_patterns: int = 60
    n_features: int = 2000
    temperatures: tuple[float, float] = (300.0, 595.0)
    seed: int = 0
    noise: bool = True

    #: What is played.
    name = "heating_ramp"
    #: Name of the independent variable, in kelvin.
    variable = "temperature"
    #: Name of the patterns' axis, in degrees.
    axis = "two_theta"
    #: Two known phases, the background, and the phase nobody declared.
    n_components = 4
    #: Name of the phase nobody declared.
    undeclared = "undeclared"

    def __post_init__(self) -> None:
        if self.n_patterns < 2:
            raise InputError(f"n_patterns must be at least 2, got {self.n_patterns}")
        if self.n_features < 100:
            raise InputError(f"n_features must be at least 100, got {self.n_features}")
        if self.temperatures[0] == self.temperatures[1]:
            raise InputError(f"temperatures must differ, got {self.temperatures}")

    @cached_property
    def x(self) -> Array:
        """Scattering angle two_theta, (F,), in degrees."""
        return np.linspace(1.5, 9.5, self.n_features)

    @cached_property
    def positions(self) -> Array:
        """Temperatures of the ramp, (N,), in kelvin."""
        return np.linspace(*self.temperatures, self.n_patterns)

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """Clean patterns of the known phases, as where there is most of each; maximum 1."""
        first, last = self.temperatures
        halfway = (first + last) / 2.0
        return (
            Reference("tetragonal", self.x, _scaled(self._phases(first)["tetragonal"])),
            Reference("cubic", self.x, _scaled(self._phases(halfway)["cubic"])),
        )

    @cached_property
    def hidden(self) -> Reference:
        """The phase nobody declared, as at the end of the ramp; maximum 1."""
        pattern = self._phases(self.temperatures[1])[self.undeclared]
        return Reference(self.undeclared, self.x, _scaled(pattern))

    def fractions(self, temperature: float) -> dict[str, float]:
        """Give the amount of each phase, from 0 to 1, at a temperature in kelvin."""
        first, last = self.temperatures
        progress = (temperature - first) / (last - first)
        cubic = float(1.0 / (1.0 + np.exp(-(progress - 0.4) / 0.04)))
        # Growth by Avrami's law with exponent 2, from half-way on.
        grown = float(1.0 - np.exp(-((max(progress - 0.5, 0.0) / 0.25) ** 2)))
        return {
            "tetragonal": (1.0 - cubic) * (1.0 - grown),
            "cubic": cubic * (1.0 - grown),
            self.undeclared: grown,
        }

    def expected(self, temperature: float) -> Array:
        """Give the counts (F,) expected at a temperature in kelvin: the pattern without noise."""
        phases = self._phases(temperature)
        amounts = self.fractions(temperature)
        total = sum(amounts[name] * pattern for name, pattern in phases.items())
        return np.asarray(_COUNTS * (total + self._background()))

    def pattern(self, position: float, *, shot: int = 0) -> Array:
        """Give the pattern of one exposure.

        Parameters
        ----------
        position : float
            Temperature in kelvin.
        shot : int, default 0
            Number of the exposure: each has noise of its own, the same at every call.

        Returns
        -------
        ndarray (F,)
            Intensity in counts.
        """
        expected = self.expected(position)
        if not self.noise:
            return expected
        rng = np.random.default_rng([self.seed, shot])
        return rng.poisson(expected).astype(np.float64)

    def _phases(self, temperature: float) -> dict[str, Array]:
        first, last = self.temperatures
        # The axial ratio falls as the square root of the distance to the transition.
        progress = np.clip((temperature - first) / (last - first), 0.0, 0.7)
        ratio = 1.0 + 0.018 * float(np.sqrt(1.0 - progress))
        return {
            "tetragonal": _PEROVSKITE.pattern(self.x, temperature, ratio),
            "cubic": _PEROVSKITE.pattern(self.x, temperature),
            self.undeclared: _HIDDEN.pattern(self.x, temperature),
        }

    def _background(self) -> Array:
        glass = 0.03 * np.exp(-(((self.x - 3.0) / 1.2) ** 2))
        return np.asarray(0.05 * np.exp(-self.x / 3.0) + glass + 0.005)


def _scaled(pattern: Array) -> Array:
    return np.asarray(pattern / pattern.max())
