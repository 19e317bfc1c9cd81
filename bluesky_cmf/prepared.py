"""A pattern as it goes into the fit, with what its counting noise has become on the way."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .resampling import Resampling

__all__ = ["Noise", "Prepared"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Noise:
    """The noise of a prepared pattern, as a linear function of the noise of the raw one.

    To first order it is ``J e``, where e is the noise of the F measured points, independent of each
    other, and ``J = scale (1 - sum_r P_r Q_r^T) A``: A is the `Resampling`, and each outer product
    is one step that refers all points to some of them, as normalising by the maximum does.

    Attributes
    ----------
    resampling : Resampling
        A, (G, F).
    raw : ndarray (F,)
        Variances of the measured points.
    scale : float
        Factor of all points.
    steps : tuple of (ndarray (G,), ndarray (G,))
        P_r and Q_r.
    """

    resampling: Resampling
    raw: Array
    scale: float = 1.0
    steps: tuple[tuple[Array, Array], ...] = ()

    def scaled(self, factor: float) -> "Noise":
        """Give the noise after all points were multiplied by a number."""
        return replace(self, scale=self.scale * factor)

    def referred(self, to: Array, weights: Array) -> "Noise":
        """Give the noise of ``z - to (weights · z)``, where z is the pattern so far."""
        left = weights - sum((float(P @ weights) * Q for P, Q in self.steps), np.zeros(len(to)))
        return replace(self, steps=(*self.steps, (to, left)))

    def variance(self) -> Array:
        """Give the variance of each point of the prepared pattern, (G,)."""
        variance = self.resampling.spread(self.raw)
        # The raw noise of each Q·(A e), and what it has in common with each point.
        raw = [self._raw(Q) for _, Q in self.steps]
        for (P, _), u in zip(self.steps, raw, strict=True):
            variance = variance - 2.0 * P * self.resampling(self.raw * u)
        for (P, _), u in zip(self.steps, raw, strict=True):
            for (other, _), v in zip(self.steps, raw, strict=True):
                variance = variance + P * other * float((u * v) @ self.raw)
        # What cancels exactly may be left a little below zero.
        variance = np.maximum(variance, 0.0) * self.scale**2
        return variance

    def covariance(self, vectors: Array) -> Array:
        """Give the covariance (K, K) of ``vectors`` (K, G) times the prepared pattern."""
        vectors = np.asarray(vectors, dtype=float)
        left = vectors
        for P, Q in self.steps:
            left = left - np.outer(vectors @ P, Q)
        pulled = self.resampling.pulled_back(left)
        spread = pulled * (np.sqrt(self.raw[self.resampling.points]) * self.scale)
        covariance: Array = spread @ spread.T
        return covariance

    def _raw(self, weights: Array) -> Array:
        """Give what a weighted sum (G,) of the resampled points takes of each measured one."""
        taken = np.zeros(len(self.raw))
        taken[self.resampling.points] = self.resampling.pulled_back(weights[None])[0]
        return taken


@dataclass(frozen=True, eq=False)
class Prepared:
    """What `Preprocess.prepare` makes of a pattern.

    Attributes
    ----------
    values : ndarray (G,)
        The pattern that is fitted.
    variance : ndarray (G,) or None
        Variance of each value from counting noise, to first order; None where the noise of the
        raw pattern is not known. Values have noise in common where they were interpolated,
        or normalised by their maximum or area: `covariance` tells.
    doubt : str
        Why the noise is not known although it was given; "" where nothing is wrong with it.
    """

    values: Array
    variance: Array | None = None
    doubt: str = ""
    noise: Noise | None = None

    @property
    def covariance(self) -> Callable[[Array], Array] | None:
        """What gives the covariance (K, K) of ``vectors @ values`` for vectors (K, G).

        To first order, with what the steps correlate carried exactly, in float64; None where the
        noise is not known.
        """
        return None if self.noise is None else self.noise.covariance
