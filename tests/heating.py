"""Simulated ramps whose truth is known: a phase that nobody declared begins to grow."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bluesky_cmf import Phase


def lines(x: np.ndarray, centres: np.ndarray, heights: np.ndarray, fwhm: float) -> np.ndarray:
    """Pseudo-Voigt lines, half Gaussian and half Lorentzian."""
    u2 = ((x[:, None] - centres) / (fwhm / 2)) ** 2
    return (0.5 * np.exp2(-u2) + 0.5 / (1 + u2)) @ heights


@dataclass(frozen=True)
class Heating:
    """Two phases that change hands over a smooth background, and one that nobody declared."""

    seed: int = 0
    points: int = 1000
    counts: float = 5000.0
    fwhm: float = 5.0
    n: int = 60
    #: Number of the pattern, from 1 on, after which it grows by 0.2 % of the intensity a pattern.
    begins: int | None = None
    lines: int = 10
    shared: int = 0
    shares: np.ndarray | None = None

    @cached_property
    def x(self) -> np.ndarray:
        return np.arange(self.points, dtype=float)

    @cached_property
    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, 1])
        known = []
        for _ in range(2):
            centres = rng.uniform(0.03, 0.97, 12) * self.points
            shape = lines(self.x, centres, np.r_[1.0, rng.uniform(0.05, 1.0, 11)], self.fwhm)
            known.append(shape / shape.max())
        background = np.exp(-self.x / (self.points / 2)) + 0.3
        places = rng.uniform(0.03, 0.97, self.lines) * self.points
        places[: self.shared] = centres[: self.shared]
        hidden = lines(self.x, places, rng.uniform(0.2, 1.0, self.lines), self.fwhm)
        return np.stack([*known, background / background.max()]), hidden / hidden.sum()

    @property
    def components(self) -> np.ndarray:
        return self._drawn[0]

    @property
    def hidden(self) -> np.ndarray:
        return self._drawn[1]

    @cached_property
    def share(self) -> np.ndarray:
        """Part of the intensity that is the undeclared phase's, (n,)."""
        if self.shares is not None:
            return self.shares
        if self.begins is None:
            return np.zeros(self.n)
        return np.clip((np.arange(self.n) - self.begins) * 0.002, 0.0, 0.3)

    @cached_property
    def expected(self) -> np.ndarray:
        t = np.linspace(0, 1, self.n)
        weights = np.stack([1 - 0.8 * t, 0.2 + 0.8 * t, np.full(self.n, 0.07)], axis=1)
        known = self.counts * weights @ self.components
        share = self.share[:, None]
        return known * (1 - share) + known.sum(axis=1, keepdims=True) * share * self.hidden

    @cached_property
    def patterns(self) -> np.ndarray:
        return np.random.default_rng([self.seed, 2]).poisson(self.expected).astype(float)

    @property
    def at_two_percent(self) -> int:
        return int(np.flatnonzero(self.share >= 0.02 - 1e-12)[0]) + 1

    @property
    def phases(self) -> list[Phase]:
        names = ("alpha", "beta", "background")
        return [
            Phase.from_array(name, self.x, shape)
            for name, shape in zip(names, self.components, strict=True)
        ]


def least_squares(patterns: np.ndarray, components: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(components.T, patterns.T, rcond=None)[0].T
