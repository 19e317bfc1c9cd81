"""The watch over the residuals of one dataset: what was told is not told again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .alarm import Alarm
from .noise import Noise
from .places import Places, onset, places_of, proportional
from .recent import Recent
from .scan import SPANS, WIDTHS, Scan

__all__ = ["Watch"]

Array = npt.NDArray[np.float64]
Covariance = Callable[[Array], Array]

#: Logarithm of the probability, for one pattern, from which on something is told: 1 in 20,000.
_RARE = float(np.log(5e-5))
#: Fewest points: structure in less cannot be told from noise.
_FEWEST = 64
#: Patterns that are looked at together, and most that are remembered.
_TOGETHER, _REMEMBERED = 4, 64
#: So many patterns for each free component are explained by anything.
_FEWEST_PER_FREE = 3
#: Ranges that are told.
_MOST_RANGES = 5
#: What a new place has to come to, as a part of what was told before.
_PART = 0.25
#: A structure is gone when it sinks below so many standard deviations, over so many patterns.
_GONE, _GONE_SPAN = 2.0, 4
#: Patterns before something is looked at again that was found to be nothing new.
_PAUSE = 8
#: Alarms that may follow each other at once; then each waits twice as long as the one before.
_AT_ONCE = 3
#: How far a point may stand out of its neighbours: what does, in one pattern, is no line.
_SPIKE = 4.0


@dataclass
class _Told:
    """What was told, and whether it is still there."""

    mask: npt.NDArray[np.bool_]
    template: Array
    keep: float
    sum: float = 0.0
    variance: float = 0.0
    age: int = 0

    def gone(self, residuals: Array) -> bool:
        """Take in standardised residuals (M, F); tell whether it is there no more."""
        for value in residuals @ self.template:
            self.sum = self.keep * self.sum + float(value)
            self.variance = self.keep**2 * self.variance + 1.0
            self.age += 1
        settled = self.age * (1.0 - self.keep) >= 1.0
        return settled and self.sum < _GONE * self.variance**0.5


class Watch:
    """Look at each pattern for structure that the components do not explain.

    The residual of each pattern is divided by its noise; what the components that take part in
    its fit could explain of it, in least squares weighted by the noise, is projected out: that
    accounts for the degrees of freedom that their weights have cost, and for the fit having been
    weighted otherwise. Sums of it in windows of several widths, over the last patterns, are
    tested (`Scan`). By chance there is at most one alarm in 10,000 patterns.

    Something is told once, and again only when it had gone, or at other places that do not go
    up and down with those that were told. Where components are free, what they explain by now of
    earlier patterns is not held against them.

    Parameters
    ----------
    x : ndarray (F,)
        The axis.
    """

    def __init__(self, x: Array) -> None:
        self._x = np.asarray(x, dtype=float)
        self._noise, self._scan = Noise(), Scan(len(x))
        self._recent = Recent(_REMEMBERED)
        self._changed = False
        self.reset()
        self._changed = False

    def reset(self) -> None:
        """Begin anew: the model is another one now."""
        self._changed = True
        self._first: int | None = None
        self._told: _Told | None = None
        self._next = self._alarms = 0
        self._calm()

    def look(
        self,
        patterns: Array,
        weights: Array,
        components: Array,
        *,
        first: int,
        free: Sequence[bool],
        variances: Sequence[Array | None] | None = None,
        covariance: Covariance | None = None,
    ) -> list[Alarm]:
        """Look at the next patterns.

        Parameters
        ----------
        patterns : ndarray (M, F)
            What was measured.
        weights : ndarray (M, K)
            Of the components, at the refit that took the patterns in.
        components : ndarray (K, F)
            As of that refit.
        first : int
            Number of the first of these patterns, from 1 on.
        free : sequence of bool
            Which of the components are not held.
        variances : sequence of ndarray (F,) or None, optional
            Variance of the values of each pattern; where it is None, the noise is estimated from
            the residual.
        covariance : callable, optional
            Covariance of ``vectors @ pattern``, (L, L), for vectors (L, F), of the last of the
            patterns that have a variance: neighbours that were interpolated are correlated.

        Returns
        -------
        list of Alarm
            Without words; most often empty.
        """
        M, F = patterns.shape
        if F < _FEWEST:
            return []
        known = list(variances) if variances is not None else [None] * M
        skipped = max(0, min(M, _FEWEST_PER_FREE * sum(free) + 1 - first))
        found: list[Alarm] = []
        for begin in range(skipped, M, _TOGETHER):
            rows = slice(begin, min(M, begin + _TOGETHER))
            found += self._look(
                np.asarray(patterns[rows], dtype=float),
                np.asarray(weights[rows], dtype=float),
                np.asarray(components, dtype=float),
                first + begin,
                np.asarray(free, dtype=bool),
                known[rows],
                covariance,
            )
        return found

    def _look(
        self,
        patterns: Array,
        weights: Array,
        components: Array,
        first: int,
        free: npt.NDArray[np.bool_],
        variances: list[Array | None],
        covariance: Covariance | None,
    ) -> list[Alarm]:
        if self._first is None:
            self._first = first
        active = (weights > 0) | free
        fits = weights @ components
        sigma, skew = self._noise.of(patterns, fits, variances)
        residuals = _standardised(patterns - fits, sigma, components, active)
        estimated = variances[-1] is None
        if estimated:
            self._scan.measure(residuals)
        elif covariance is not None:
            self._scan.given(covariance, sigma[-1])
        found: list[Alarm] = []
        start, count = 0, len(patterns)
        while start < count:
            rest = residuals[start:]
            sums, variance = self._scan.added(rest)
            seen = self._scan.look(self._unmasked(sums), variance, skew[start:])
            hits = np.flatnonzero(seen.log_p < _RARE)
            stop = int(hits[0]) + 1 if len(hits) else len(rest)
            rows = slice(start, start + stop)
            self._scan.keep(sums[:, stop - 1], variance[:, stop - 1])
            self._recent.add(
                pattern=patterns[rows], sigma=sigma[rows], z=residuals[rows], active=active[rows]
            )
            start, number = start + stop, first + start + stop - 1
            if len(hits) and number >= self._next:
                alarm = self._judged(number, components, free, skew[start - 1], estimated)
                found += [] if alarm is None else [alarm]
            elif self._told is not None and self._told.gone(rest[:stop]):
                self._told = None
                self._calm()
        return found

    # --- what stands out -------------------------------------------------------------------

    def _judged(
        self,
        number: int,
        components: Array,
        free: npt.NDArray[np.bool_],
        skew: Array,
        estimated: bool,
    ) -> Alarm | None:
        """Look closer at what stands out; give an alarm where it is something new."""
        if free.any():
            self._again(components, free)
        sums = self._unmasked(self._scan.sums[:, None])
        seen = self._scan.look(sums, self._scan.variance[:, None], skew[None])
        if seen.log_p[0] >= _RARE:
            self._next = number + _PAUSE
            return None
        width = int(seen.width[0])
        places = self._places(sums[int(seen.span[0]), 0], self._scan.variance[seen.span[0]], width)
        since = onset(self._recent.table("z") @ places.template)
        left, total = self._left(since)
        share = float(left[places.template > 0].sum()) / total
        if self._told is not None and not self._is_new(places, share, left, total):
            self._next = number + _PAUSE
            return None
        self._alarms += 1
        # Where little is explained, new places turn up all the time.
        wait = _PAUSE * 2 ** (self._alarms - _AT_ONCE) if self._alarms > _AT_ONCE else 0
        self._next = number + wait
        self._remember(places, SPANS[int(seen.span[0])])
        since += number + 1 - len(self._recent)
        return Alarm(
            ranges=tuple(
                (float(self._x[first]), float(self._x[last]))
                for first, last in places.runs[:_MOST_RANGES]
            ),
            since=since,
            n_patterns=number,
            significance=deviations(float(seen.log_p[0])),
            share=max(0.0, share),
            from_first=since == self._first and not self._changed,
            estimated=estimated,
            n_places=len(places.runs),
            residual=np.maximum(left, 0.0),
        )

    def _places(self, sums: Array, variance: float, width: int) -> Places:
        z, begins = self._scan.map(sums, variance, width)
        return places_of(z, begins, WIDTHS[width], len(self._x))

    def _left(self, since: int) -> tuple[Array, float]:
        """Give the mean of what is left since then, (F,), and the mean sum of the patterns."""
        left = self._recent.table("z")[since:] * self._recent.table("sigma")[since:]
        total = float(self._recent.table("pattern")[since:].sum(axis=1).mean())
        return left.mean(axis=0), max(total, 1e-300)

    def _is_new(self, places: Places, share: float, left: Array, total: float) -> bool:
        """Tell whether something is no part, and no small part, of what was told."""
        told = self._told
        if told is None:
            return True
        residuals = self._recent.table("z")
        if proportional(residuals @ told.template, residuals @ places.template):
            # Another line of the same phase: it will not be looked at again.
            told.mask |= places.mask
            return False
        return share >= _PART * float(left[told.template > 0].sum()) / total

    def _remember(self, places: Places, span: int) -> None:
        """Note what was told: with what was told before, where that is still there."""
        mask, template = places.mask, places.template
        if self._told is not None:
            mask = mask | self._told.mask
            template = template + self._told.template
            template = template / np.linalg.norm(template)
        span = max(span, _GONE_SPAN)
        self._told = _Told(mask, template, keep=(span - 1) / (span + 1))

    def _unmasked(self, sums: Array) -> Array:
        """Leave what was told out of sums (S, M, F)."""
        return sums if self._told is None else sums * ~self._told.mask

    def _again(self, components: Array, free: npt.NDArray[np.bool_]) -> None:
        """Fit the last patterns with the components of today."""
        patterns, sigma = self._recent.table("pattern"), self._recent.table("sigma")
        active = (self._recent.table("active") > 0) | free
        parts = [
            _standardised(patterns[rows], sigma[rows], components, active[rows])
            for rows in (slice(n, n + _TOGETHER) for n in range(0, len(patterns), _TOGETHER))
        ]
        self._recent.replace("z", np.concatenate(parts))
        self._scan.sum_up(self._recent.table("z"))

    def _calm(self) -> None:
        """Forget the past: what was told is gone, or the model another one."""
        self._scan.forget()
        self._recent.forget()


def deviations(log_p: float) -> float:
    """Give the standard deviations that a normal variable exceeds so rarely."""
    z = 0.0
    for _ in range(20):
        # From the leading terms of the tail, which the last one corrects.
        z = max(-2.0 * log_p - 2.0 * np.log(max(z, 0.5) * np.sqrt(2.0 * np.pi)), 0.0) ** 0.5
    return float(z)


def _standardised(
    patterns: Array, sigma: Array, components: Array, active: npt.NDArray[np.bool_]
) -> Array:
    """Give what components cannot explain of patterns (M, F), in units of the noise, (M, F).

    Parameters
    ----------
    patterns : ndarray (M, F)
        Patterns, or what a fit by the same components has left of them.
    sigma : ndarray (M, F)
        The noise.
    components : ndarray (K, F)
        Components.
    active : ndarray (M, K)
        Which of them take part in each pattern.
    """
    z = patterns / sigma
    scaled = components / sigma[:, None]
    scaled *= active[..., None]
    gram = scaled @ scaled.transpose(0, 2, 1)
    diagonal = np.einsum("mkk->mk", gram)
    # A component that takes no part, has no shape, or is the same as another one.
    diagonal += np.where(diagonal > 0, 1e-10 * diagonal, 1.0)
    weights = np.linalg.solve(gram, scaled @ z[..., None])
    z -= (weights.transpose(0, 2, 1) @ scaled)[:, 0]
    neighbours = np.maximum(z[:, :-2], z[:, 2:])
    np.minimum(z[:, 1:-1], np.maximum(neighbours, 0.0) + _SPIKE, out=z[:, 1:-1])
    return z
