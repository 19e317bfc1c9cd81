"""How large the noise of each point of a residual is: given, or told by its neighbours."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["Noise"]

Array = npt.NDArray[np.float64]

#: Median of the modulus of a standard normal variable.
_MEDIAN = 0.6744897501960817
#: Points of a stretch whose noise is one number, at least, and most stretches.
_STRETCH, _MOST_STRETCHES = 128, 16
#: Patterns over which an estimate is averaged; after as many, only every so-manieth adds to it.
_MEMORY, _EVERY = 16, 8
#: How far apart the points are of which differences are taken, and how many are summed to learn
#: what their neighbours have in common.
_APART, _SUMMED = 4, 4
#: What is added to the intensity, as a part of the largest: where nothing is, noise is not zero.
_PEDESTAL = 1e-4
#: The least noise, as a part of the largest intensity: what rounding in the fit may leave.
_LEAST = 1e-6
#: Relative error of the noise of a stretch, from one pattern.
_DOUBT = 0.15
#: Part of the points that are zero where counts are sparse.
_SPARSE = 0.2
_TINY = 1e-300


class Noise:
    """The standard deviation of each point, of one pattern after the other.

    Where the variance of a pattern is given it is taken, but for its own fluctuation: a variance
    that was made of the counts is small where they happen to be few, and what is divided by it
    is biased. How far it follows the residual is regressed, stretch by stretch, and taken back.

    Where none is given, the noise is estimated from second differences of the residual, of points
    that are 4 apart: the median of their moduli, which lines move little, stretch by stretch of the
    axis, in units of the root of the fitted intensity (counting noise). Twice it may turn out
    larger: for points of like intensity (other noise), and for sums of 4 neighbours (which
    interpolation and pixel splitting correlate). It is averaged over the last patterns, and never
    smaller for one of them: a pattern that a free component reproduces with its noise leaves none.
    Where a fifth of a pattern is zero it was counted, and one count is the least it holds.
    """

    def __init__(self) -> None:
        self._seen = self._averaged = 0
        self._shape = self._gain = np.zeros(0)
        self._levels: list[Array] = []

    def of(
        self,
        patterns: Array,
        fits: Array,
        variances: Sequence[Array | None],
        *,
        disturbed: bool = False,
    ) -> tuple[Array, Array]:
        """Give the noise of some patterns and how skew it is.

        Parameters
        ----------
        patterns, fits : ndarray (M, F)
            What was measured, and its reconstruction.
        variances : sequence of ndarray (F,) or None
            Variance of the values of each pattern, where it is known.
        disturbed : bool
            Whether something is left of them that is no noise: they are not learnt from, then.

        Returns
        -------
        sigma : ndarray (M, F)
            Standard deviations.
        skew : ndarray (M, F)
            Skewness of each point, as if its noise were that of counting; at most 1 unless it is.
        """
        pedestal = _PEDESTAL * np.maximum(patterns.max(axis=1), _TINY)[:, None]
        expected = np.maximum(fits, 0.0)
        expected += pedestal
        sigma = np.empty_like(patterns)
        given = [m for m, variance in enumerate(variances) if variance is not None]
        if given:
            known = np.stack([v for v in variances if v is not None])
            sigma[given] = np.sqrt(_calmed(known, patterns[given] - fits[given], expected[given]))
        others = [m for m, variance in enumerate(variances) if variance is None]
        if others:
            sigma[others] = self._estimated(
                patterns[others] - fits[others], expected[others], disturbed=disturbed
            )
        np.maximum(sigma, pedestal * (_LEAST / _PEDESTAL), out=sigma)
        skew = np.minimum(sigma / expected, 1.0)
        for m, pattern in enumerate(patterns):
            if np.count_nonzero(pattern) < (1.0 - _SPARSE) * len(pattern):
                _count(pattern, expected[m], variances[m], sigma[m], skew[m])
        return sigma, skew

    def _estimated(self, left: Array, expected: Array, *, disturbed: bool) -> Array:
        root = np.sqrt(expected)
        # What is explained to rounding has no noise of its own.
        least = _LEAST * expected.max(axis=1, keepdims=True)
        size = np.maximum(_sizes(left), least) / root
        if self._seen < _MEMORY or not disturbed:
            self._learn(left, root, size)
        size /= self._shape
        # A pattern that is noisier than the others (shorter, or scaled) is taken as it is.
        own = np.maximum(_medians(size[:, ::2]) / _MEDIAN, 1.0)
        root *= self._shape
        # What few patterns tell of a stretch is uncertain, and too small as often as too large.
        own *= 1.0 + _DOUBT / self._averaged**0.5
        root *= own[:, None]
        root *= self._gain
        return root

    def _learn(self, left: Array, root: Array, size: Array) -> None:
        """Average what the patterns tell of the noise, each at first, and some later on."""
        n = size.shape[1]
        if len(self._shape) != n:
            self._seen = self._averaged = 0
        first = self._seen < _MEMORY
        due = self._seen // _EVERY != (self._seen + len(size)) // _EVERY
        self._seen += len(size)
        if not (first or due):
            return
        if not first:
            left, root, size = left[-1:], root[-1:], size[-1:]
        length = _length(n)
        level = _levels(size, length)
        shape = _drawn_out(level, n, length)
        order = np.argsort(root, axis=1)
        # Points of like intensity: lines, whose noise may be another one than counting has.
        sorted_ = np.take_along_axis(size / shape, order, axis=1)
        factor = np.maximum(_levels(sorted_, length), 1.0)
        shape *= root
        gain = np.maximum(_gains(left / shape, length), 1.0)
        if not self._averaged:
            self._levels = [np.zeros(found.shape[1]) for found in (level, factor, gain)]
        self._averaged = min(self._averaged + len(size), max(_MEMORY, len(size)))
        share = len(size) / self._averaged
        for known, found in zip(self._levels, (level, factor, gain), strict=True):
            known += share * (found.mean(axis=0) - known)
        level_, factor_, gain_ = self._levels
        self._shape = _drawn_out(level_[None], n, length)[0]
        self._shape[order[-1]] *= np.repeat(factor_, length)[:n]
        self._gain = _drawn_out(gain_[None], n, length)[0]


def _count(
    pattern: Array, expected: Array, variance: Array | None, sigma: Array, skew: Array
) -> None:
    """Correct noise and skewness, all (F,), of a pattern that was counted and is mostly zero."""
    quantum = pattern.min(where=pattern > 0, initial=pattern.max())
    counted = np.sqrt(quantum * expected)
    if variance is None:
        np.maximum(sigma, counted, out=sigma)
    elif variance.mean() < 2.0 * quantum * np.maximum(pattern, quantum).mean():
        # It was made of these counts, and says of a zero what it says of a one.
        sigma[:] = counted
    np.maximum(skew, quantum / sigma, out=skew)


def _sizes(left: Array, apart: int = _APART) -> Array:
    """Give moduli (M, F) of second differences, of the variance of the values if it is white."""
    size = np.empty_like(left)
    inner = size[:, apart:-apart]
    np.abs(_second_difference(left, apart), out=inner)
    size[:, :apart], size[:, -apart:] = inner[:, :apart], inner[:, -apart:]
    return size


def _gains(z: Array, length: int) -> Array:
    """By how much sums of neighbours vary more than independent ones, in each stretch, (M, B)."""
    sums = np.cumsum(z, axis=1)
    sums[:, _SUMMED:] -= sums[:, :-_SUMMED].copy()
    found: Array = _levels(_sizes(sums, 2 * _SUMMED), length) / np.sqrt(_SUMMED)
    return found


def _second_difference(values: Array, apart: int) -> Array:
    """Give second differences (M, F - 2 a) of the variance that the values have, if it is white."""
    found: Array = values[:, : -2 * apart] + values[:, 2 * apart :]
    found -= 2.0 * values[:, apart:-apart]
    found /= np.sqrt(6.0)
    return found


def _length(n: int) -> int:
    return min(n, max(_STRETCH, -(-n // _MOST_STRETCHES)))


def _stretches(values: Array, length: int) -> Array:
    """Cut rows (M, F) into stretches (M, B, length); the last one reaches back."""
    n = values.shape[1]
    count = -(-n // length)
    if n == count * length:
        return values.reshape(len(values), count, length)
    first = np.minimum(np.arange(count) * length, n - length)
    return values[:, first[:, None] + np.arange(length)]


def _levels(size: Array, length: int) -> Array:
    """Estimate the standard deviation in each stretch, (M, B), from the moduli (M, F).

    By the median, which lines do not move; where counts are so few that most differences vanish
    it says too little, and the root of the mean square is heeded too, with its outliers cut.
    """
    cut = _stretches(size, length)
    middle = _medians(cut) / _MEDIAN
    cap = np.where(middle > 0, 5.0 * middle, np.inf)[..., None]
    square = np.sqrt(np.mean(np.minimum(cut, cap) ** 2, axis=2))
    found: Array = np.where(middle > 0, np.maximum(middle, 0.7 * square), square)
    # A stretch where nothing ever moved is no measure of its noise.
    return np.maximum(found, 0.3 * np.median(found, axis=1, keepdims=True))


def _medians(values: Array) -> Array:
    """Give the medians along the last axis; the upper one of two, which is all numpy sorts for."""
    half = values.shape[-1] // 2
    found: Array = np.partition(values, half, axis=-1)[..., half]
    return found


@lru_cache(maxsize=8)
def _places(n: int, length: int) -> tuple[npt.NDArray[np.intp], Array]:
    """Between which stretches each of n points lies, and how far on the way."""
    count = -(-n // length)
    centres = np.minimum(np.arange(count) * length, n - length) + (length - 1) / 2.0
    low = np.clip(np.searchsorted(centres, np.arange(n)) - 1, 0, count - 2)
    # Before the first centre and beyond the last one, it goes on as it went.
    return low, (np.arange(n) - centres[low]) / (centres[low + 1] - centres[low])


def _drawn_out(level: Array, n: int, length: int) -> Array:
    """Interpolate the logarithm of what holds for stretches (M, B) to the points, (M, n)."""
    level = np.log(np.maximum(level, _TINY))
    if level.shape[1] == 1:
        return np.repeat(np.exp(level), n, axis=1)
    low, part = _places(n, length)
    found: Array = level[:, low]
    found += (level[:, low + 1] - found) * part
    np.exp(found, out=found)
    return found


def _calmed(variance: Array, left: Array, expected: Array) -> Array:
    """Take the part of given variances (M, F) back that follows the noise of the pattern."""
    n = left.shape[1]
    length = _length(n)
    mean = variance.mean(axis=1, keepdims=True)
    ratio = mean / expected.mean(axis=1, keepdims=True)
    moved = _second_difference(variance - ratio * expected, 1)
    noise = _second_difference(left, 1)
    weight = 1.0 / np.maximum(variance[:, 1:-1], 1e-6 * mean + _TINY)
    both, alone = np.zeros_like(left), np.zeros_like(left)
    np.multiply(weight, noise, out=alone[:, 1:-1])
    np.multiply(alone[:, 1:-1], moved, out=both[:, 1:-1])
    alone[:, 1:-1] *= noise
    slope = _stretches(both, length).sum(axis=2)
    slope /= np.maximum(_stretches(alone, length).sum(axis=2), _TINY)
    calmed: Array = variance - _drawn_out(np.maximum(slope, 0.0), n, length) * left
    return np.maximum(calmed, 0.1 * variance)
