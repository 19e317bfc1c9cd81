"""What stands out of the noise: in windows of several widths, over several spans of patterns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SPANS", "WIDTHS", "Covariance", "Found", "Scan"]

Array = npt.NDArray[np.float64]
Covariance = Callable[[Array], Array]

#: About how many of the last patterns are summed, and how many points. Exponential sums are
#: broad: between two of these spans a tenth is lost of what the right one would show.
SPANS = (1, 4, 16, 64)
WIDTHS = (2, 4, 8, 16, 32, 64)

#: Exceedances are counted from here on, in standard deviations; what they come to by chance, for
#: each window, and their variance: of white noise, and with its skewness (Edgeworth's first term).
_FROM = 2.0
_MEAN, _MEAN_SKEW = 0.008491, 0.017997
_VARIANCE, _VARIANCE_SKEW = 0.005770, 0.017997
#: Where counts are sparse, a window that holds one exceeds: its variance is bounded by 1.
_VARIANCE_SPARSE = 0.003
#: Widest window whose noise is measured; narrower axes do not hold enough of the wider ones.
_WIDEST_MEASURED = 16
#: Patterns over which it is averaged; after as many it is measured at every so-manieth.
_MEMORY, _EVERY = 16, 8
_MEDIAN = 0.6744897501960817


@dataclass(frozen=True)
class Found:
    """The most significant sums of some patterns.

    Attributes
    ----------
    log_p : ndarray (M,)
        Logarithm of the probability that noise alone reaches as much, at all of the places, widths
        and spans that were looked at.
    span, width : ndarray (M,)
        Numbers of the span and of the width where it does.
    """

    log_p: Array
    span: npt.NDArray[np.intp]
    width: npt.NDArray[np.intp]


class Scan:
    """Sums of standardised residuals, weighted down exponentially with their age.

    Two statistics, of the same sums: the largest of all, for a strong line; and in each map what
    lies above 2 standard deviations, added up, for many weak lines (a sum of exceedances, in the
    spirit of Donoho and Jin's higher criticism, doi:10.1214/009053604000000265). Both are of the
    upper side alone. The largest sum is judged by Bernstein's inequality, which holds for counts
    however few they are; the exceedances as a gamma variable of their mean and variance.

    Parameters
    ----------
    n_points : int
        F.
    """

    def __init__(self, n_points: int) -> None:
        self._widths = tuple(w for w in WIDTHS if w <= max(2, n_points // 16))
        self._keep = np.array([(span - 1) / (span + 1) for span in SPANS])
        self._gain = np.ones(len(self._widths))
        self._measured = 0
        self._points = np.array(WIDTHS, dtype=float)[:, None, None]
        self._counted = self._points * np.array(SPANS)[:, None]
        self.sums, self.variance = np.zeros((len(SPANS), n_points)), np.zeros(len(SPANS))

    def forget(self) -> None:
        """Begin anew."""
        self.keep(np.zeros_like(self.sums), np.zeros_like(self.variance))

    def summed(self, residuals: Array) -> tuple[Array, Array]:
        """Give sums (S, F), and their variance (S,), of some patterns (N, F) and no others."""
        age = np.arange(len(residuals))[::-1]
        factors = self._keep[:, None] ** age
        return factors @ residuals, (factors**2).sum(axis=1)

    def added(self, residuals: Array) -> tuple[Array, Array]:
        """Give the sums (S, M, F), and their variance (S, M), after each of the patterns (M, F)."""
        keep = self._keep[:, None]
        if len(residuals) == 1:
            sums = self.sums * keep
            sums += residuals
            return sums[:, None], (self.variance[:, None] * keep**2 + 1.0)
        age = np.arange(len(residuals))
        lag = age[:, None] - age
        # 0 ** 0 is 1: the shortest span holds the newest pattern alone.
        factors = np.where(lag >= 0, keep[..., None] ** np.maximum(lag, 0), 0.0)
        past = keep ** (age + 1)
        sums = factors @ residuals + past[..., None] * self.sums[:, None]
        return sums, (factors**2).sum(axis=2) + past**2 * self.variance[:, None]

    def after(self, residuals: Array) -> tuple[Array, Array]:
        """Give the sums (S, F), and their variance (S,), after all of the patterns (M, F)."""
        sums, variance = self.summed(residuals)
        past = self._keep ** len(residuals)
        sums += past[:, None] * self.sums
        return sums, variance + past**2 * self.variance

    def keep(self, sums: Array, variance: Array) -> None:
        """Go on from sums (S, F) of variance (S,)."""
        self.sums, self.variance = sums, variance

    def measure(self, residuals: Array) -> None:
        """Learn by how much sums of neighbours vary more than those of independent values would.

        From second differences of windows two widths apart, of the newest of the patterns (M, F):
        interpolation and pixel splitting correlate neighbours. At first each time, later on now
        and then.
        """
        self._measured += 1
        if self._measured > _MEMORY and self._measured % _EVERY:
            return
        share = 1.0 / min(self._measured, _MEMORY)
        gain = 1.0
        for k, (width, map_) in enumerate(self._maps(residuals[-1:])):
            if width <= _WIDEST_MEASURED and map_.shape[-1] > 24:
                second = map_[..., :-8] + map_[..., 8:]
                second -= 2.0 * map_[..., 4:-4]
                np.abs(second, out=second)
                gain = max(1.0, float(np.median(second)) / (_MEDIAN * np.sqrt(6.0 * width)))
            self._gain[k] += share * (gain - self._gain[k])

    def given(self, covariance: Covariance, sigma: Array) -> None:
        """Take the same from the covariance of the values, instead of measuring it.

        Parameters
        ----------
        covariance : callable
            Gives the covariance of ``vectors @ pattern``, (L, L), for vectors (L, F).
        sigma : ndarray (F,)
            Noise of the pattern.
        """
        self._measured += 1
        if self._measured > 1 and self._measured % _EVERY:
            return
        combs = np.stack([_comb(len(sigma), width) for width in self._widths])
        variance = np.diag(covariance(combs / sigma))
        self._gain = np.sqrt(np.maximum(variance / np.abs(combs).sum(axis=1), 1.0))

    def look(self, sums: Array, variance: Array, skew: Array) -> Found:
        """Judge sums of the shortest, or of all, spans.

        Parameters
        ----------
        sums, variance : ndarray (S, M, F) and (S, M)
            As `added` gives them, or the first of them.
        skew : ndarray (M, F)
            Skewness of the points of each pattern.
        """
        n_points, n_widths = sums.shape[-1], len(self._widths)
        shape = (n_widths, *variance.shape)
        top, above, local = np.empty(shape), np.empty(shape), np.empty(shape)
        windows = np.empty((n_widths, 1, 1))
        sigma = np.sqrt(variance * self._points[:n_widths]) * self._gain[:, None, None]
        rows, spans = np.arange(len(skew)), np.arange(len(sums))[:, None]
        for k, (width, map_) in enumerate(self._maps(sums)):
            place = map_.argmax(axis=-1)
            top[k] = map_[spans, rows, place]
            local[k] = skew[rows, np.minimum(place * _step(width) + width // 2, n_points - 1)]
            least, count = _FROM * sigma[k], map_.shape[-1]
            above[k] = np.maximum(map_, least[..., None], out=map_).sum(axis=-1) - count * least
            windows[k] = count / 2.0
        top /= sigma
        above /= 2.0 * sigma
        thinned = 1.0 / np.sqrt(self._counted[:n_widths, : len(sums)])
        local *= thinned
        skewed = skew.mean(axis=1) * thinned
        spread = _VARIANCE + _VARIANCE_SKEW * skewed + _VARIANCE_SPARSE * skewed**2
        peak = _log_tail(top / np.sqrt(1.0 + local * np.maximum(top, 0.0) / 3.0))
        peak += np.log(2.0 * n_points * len(SPANS))
        crowd = _log_gamma_tail(
            above,
            windows * (_MEAN + _MEAN_SKEW * skewed),
            windows * np.minimum(spread, 1.0) * self._gain[:, None, None] ** 2,
        )
        crowd += np.log(len(SPANS) * n_widths)
        table = np.minimum(peak, crowd).reshape(-1, len(skew))
        best = table.argmin(axis=0)
        log_p = np.minimum(table[best, rows] + np.log(2.0), 0.0)
        return Found(log_p, best % len(sums), best // len(sums))

    def map(self, sums: Array, variance: float, width: int) -> tuple[Array, npt.NDArray[np.intp]]:
        """Give the sums (F,) in windows of one width, standardised, and where they begin."""
        for k, (w, map_) in enumerate(self._maps(sums[None])):
            if k == width:
                sigma = np.sqrt(variance * w) * self._gain[k]
                return map_[0] / sigma, np.arange(map_.shape[-1]) * _step(w)
        raise IndexError(width)

    def _maps(self, sums: Array) -> Iterator[tuple[int, Array]]:
        """Yield each width with the sums in windows of it, by steps of half of it."""
        following = sums[..., :-1] + sums[..., 1:]
        for width in self._widths:
            # Whoever is given a map may spoil it.
            map_, following = following, following[..., :-2:2] + following[..., 2::2]
            yield width, map_


def _step(width: int) -> int:
    return 1 if width == 2 else width // 2


def _comb(n_points: int, width: int) -> Array:
    """Give windows, up and down by turns, far enough from each other to be independent.

    What moves all of a pattern together, as its normalisation does, cancels.
    """
    place = np.arange(n_points)
    inside = place % (4 * width) < width
    return np.where(inside, np.where(place // (4 * width) % 2, -1.0, 1.0), 0.0)


def _log_tail(z: Array) -> Array:
    """Logarithm of the probability of a normal variable above z (an upper bound below 1)."""
    z = np.maximum(z, 0.0)
    # Borjesson and Sundberg, doi:10.1109/TCOM.1979.1094433.
    found: Array = -0.5 * z * z - np.log(
        (0.661 * z + 0.339 * np.sqrt(z * z + 5.51)) * np.sqrt(2 * np.pi)
    )
    return found


def _log_gamma_tail(value: Array, mean: Array, variance: Array) -> Array:
    """Logarithm of the same for a gamma variable, by Wilson and Hilferty's cube root."""
    shape = mean * mean / variance
    z = 3.0 * np.sqrt(shape) * (np.cbrt(value / mean) - 1.0 + 1.0 / (9.0 * shape))
    return _log_tail(z)
