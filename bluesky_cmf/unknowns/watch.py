"""The watch over the residuals of one dataset: what was told is not told again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .alarm import Alarm
from .noise import Noise
from .places import Places, beside, onset, places_of
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
    templates: tuple[Array, ...]
    share: float
    keep: float
    sum: float = 0.0
    variance: float = 0.0
    age: int = 0

    @classmethod
    def of(cls, places: Places, share: float, span: int, before: "_Told | None") -> "_Told":
        """Note what is told now, with what was told before and is still there."""
        span = max(span, _GONE_SPAN)
        keep = (span - 1) / (span + 1)
        if before is None:
            return cls(places.mask, (places.template,), share, keep)
        templates = (*before.templates, places.template)
        return cls(places.mask | before.mask, templates, max(share, before.share), keep)

    def gone(self, residuals: Array) -> bool:
        """Take in standardised residuals (M, F); tell whether all of it is there no more."""
        template = np.sum(self.templates, axis=0)
        for value in residuals @ (template / np.linalg.norm(template)):
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
        self._next = number + _PAUSE
        if free.any():
            self._again(components, free)
        residuals, sigma = self._recent.table("z"), self._recent.table("sigma")
        told = self._told
        if told is not None:
            residuals = beside(residuals, sigma, told.templates)
            residuals[:, told.mask] = 0.0
        sums, variance = self._scan.summed(residuals)
        seen = self._scan.look(sums[:, None], variance[:, None], skew[None])
        if seen.log_p[0] >= _RARE:
            return None
        span, width = int(seen.span[0]), int(seen.width[0])
        z, begins = self._scan.map(sums[span], variance[span], width)
        places = places_of(z, begins, WIDTHS[width], len(self._x))
        since = onset(residuals @ places.template)
        left = (residuals[since:] * sigma[since:]).mean(axis=0)
        total = max(float(self._recent.table("pattern")[since:].sum(axis=1).mean()), 1e-300)
        share = float(left[places.template > 0].sum()) / total
        if told is not None and share < _PART * told.share:
            return None
        self._alarms += 1
        # Where little is explained, new places turn up all the time.
        wait = _PAUSE * 2 ** (self._alarms - _AT_ONCE) if self._alarms > _AT_ONCE else 0
        self._next = number + wait
        self._told = _Told.of(places, share, SPANS[span], told)
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
        self._scan.keep(*self._scan.summed(self._recent.table("z")))

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
