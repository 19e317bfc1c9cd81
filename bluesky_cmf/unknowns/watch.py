"""The watch over the residuals of one dataset: what was told is not told again."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from .alarm import Alarm
from .noise import Noise
from .places import Places, beside, onset, places_of
from .recent import Recent
from .scan import SPANS, WIDTHS, Covariance, Scan

__all__ = ["REMEMBERED", "Watch"]

Array = npt.NDArray[np.float64]

#: Most patterns that are remembered, to look back at.
REMEMBERED = 64

#: Logarithm of the probability, for one pattern, from which on something is told: 1 in 20,000.
_RARE = float(np.log(5e-5))
#: Fewest points: structure in less cannot be told from noise.
_FEWEST = 64
#: Patterns that are looked at together.
_TOGETHER = 4
#: So many patterns for each free component are explained by anything.
_FEWEST_PER_FREE = 3
#: Patterns between two looks at the sums of the longest spans.
_LOOKED_AT_EVERY = (4, 8)
#: Ranges that are told.
_MOST_RANGES = 5
#: What is told comes to so much of the intensity, at least.
_LEAST_SHARE = 1e-4
#: What a new place has to come to, as a part of what was told before.
_PART = 0.15
#: A structure is gone when it sinks below so many standard deviations, over so many patterns.
_GONE, _GONE_SPAN = 2.0, 4
#: Patterns before it is looked at again what stands out, and for how many something has to
#: stand where a free component may take it up.
_PAUSE = 8
#: Alarms that may follow each other so soon; then each waits twice as long as the one before.
_AT_ONCE = 3
#: Patterns that a structure lasts, at least, to be worth a component; and how clearly it does so.
_LASTING, _CLEARLY = 3, 2.0
#: How far a point may stand out of twice its neighbours: what does, in one pattern, is no line.
_SPIKE = 4.0


@dataclass(frozen=True)
class _Taken:
    """Patterns with their noise, its skewness and what is left of them, all (M, F)."""

    patterns: Array
    sigma: Array
    skew: Array
    z: Array
    #: What they were fitted with, (M, K, F).
    components: Array
    #: Whether the noise of the last one was estimated.
    estimated: bool


@dataclass(frozen=True)
class _Candidate:
    """What stands out: where, how clearly, in how many of the last patterns, and how much."""

    places: Places
    log_p: float
    span: int
    n_patterns: int
    #: Whether these are all that are remembered.
    or_before: bool
    left: Array
    share: float
    #: The share of what was told before, in the same patterns.
    told: float


@dataclass
class _Told:
    """What was told, and whether it is still there."""

    mask: npt.NDArray[np.bool_]
    templates: tuple[Array, ...]
    keep: float
    sum: float = 0.0
    variance: float = 0.0
    age: int = 0

    @classmethod
    def of(cls, found: _Candidate, before: "_Told | None") -> "_Told":
        """Note what is told now, with what was told before and is still there."""
        span = max(found.span, _GONE_SPAN)
        keep, places = (span - 1) / (span + 1), found.places
        if before is None:
            return cls(places.mask, (places.template,), keep)
        templates = (*before.templates, places.template)
        return cls(places.mask | before.mask, templates, keep)

    def gone(self, residuals: Array) -> bool:
        """Take in standardised residuals (M, F); tell whether all of it is there no more."""
        template = np.sum(self.templates, axis=0)
        for value in residuals @ (template / np.linalg.norm(template)):
            self.sum = self.keep * self.sum + float(value)
            self.variance = self.keep**2 * self.variance + 1.0
            self.age += 1
        settled = self.age * (1.0 - self.keep) >= 1.0
        return settled and self.sum < _GONE * self.variance**0.5


@dataclass
class _Pending:
    """What was told and may pass, and how strong it was in the patterns after."""

    alarm: Alarm
    template: Array
    after: list[float] = field(default_factory=list)


class Watch:
    """Look at each pattern for structure that the components do not explain.

    The residual of each pattern is divided by its noise; what the components could explain of it,
    in least squares weighted by the noise, is projected out: that accounts for the degrees of
    freedom that their weights have cost, and for the fit having been weighted otherwise. Sums of
    it in windows of several widths, over the last patterns, are tested (`Scan`). By chance there
    is at most one alarm in 10,000 patterns.

    Something is told once, and again only when it had gone, or at other places that do not go
    up and down with those that were told. Where components are free it is told only if it is still
    not explained after some patterns, by the components of then.

    Parameters
    ----------
    x : ndarray (F,)
        The axis.

    Attributes
    ----------
    lasting : list of Alarm
        Those that were there in three patterns at least, and no mishap of one, until somebody
        takes them; with what is left of all patterns since.
    """

    def __init__(self, x: Array) -> None:
        self._x = np.asarray(x, dtype=float)
        self.lasting: list[Alarm] = []
        self._noise, self._scan = Noise(), Scan(len(x))
        self._recent = Recent(REMEMBERED)
        self._changed = False
        self.reset()
        self._changed = False

    def reset(self) -> None:
        """Begin anew: the model is another one now."""
        self._changed = True
        self._told: _Told | None = None
        self._next = self._alarms = 0
        self._pending: list[_Pending] = []
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
        passed: int = 0,
    ) -> list[Alarm]:
        """Look at the next patterns.

        Parameters
        ----------
        patterns : ndarray (M, F)
            What was measured.
        weights : ndarray (M, K)
            Of the components, at the refit that took the patterns in.
        components : ndarray (K, F) or (M, K, F)
            As of that refit; for each pattern, where they are stretched.
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
        passed : int, optional
            So many of the first are remembered and not looked at, which saves half the time: what
            goes on is found in those after them, and looked back at.

        Returns
        -------
        list of Alarm
            Without words; most often empty.
        """
        M, F = patterns.shape
        if F < _FEWEST:
            return []
        known: list[Array | None] = [None] * M if variances is None else list(variances)
        shapes = np.asarray(components, dtype=float)
        begins = _FEWEST_PER_FREE * sum(free) + 1
        skipped = max(0, min(M, begins - first))
        passed = max(skipped, min(M, passed))
        found: list[Alarm] = []
        for begin, end in _blocks(skipped, passed, M):
            rows = slice(begin, end)
            taken = self._taken(
                np.asarray(patterns[rows], dtype=float),
                np.asarray(weights[rows], dtype=float),
                np.broadcast_to(shapes, (M, *shapes.shape[-2:]))[rows],
                known[rows],
                covariance,
            )
            if begin < passed:
                self._scan.keep(*self._scan.after(taken.z))
                self._remember(taken, slice(None), first + end - 1)
            else:
                found += self._look(taken, first + begin, begins=begins)
        return found

    def _taken(
        self,
        patterns: Array,
        weights: Array,
        components: Array,
        variances: list[Array | None],
        covariance: Covariance | None,
    ) -> _Taken:
        """Divide what is left of patterns by its noise, which is learnt meanwhile."""
        fits = (weights[:, None] @ components)[:, 0]
        disturbed, estimated = self._told is not None, variances[-1] is None
        sigma, skew = self._noise.of(patterns, fits, variances, disturbed=disturbed)
        z = _standardised(patterns - fits, sigma, components)
        if estimated and not disturbed:
            self._scan.measure(z)
        elif not estimated and covariance is not None:
            self._scan.given(covariance, sigma[-1])
        return _Taken(patterns, sigma, skew, z, components, estimated)

    def _look(self, taken: _Taken, first: int, *, begins: int) -> list[Alarm]:
        """Look at patterns from number ``first`` on; those before ``begins`` never were."""
        found: list[Alarm] = []
        start, count = 0, len(taken.z)
        while start < count:
            rest = taken.z[start:]
            sums, variance = self._scan.added(rest)
            n_spans = _spans_due(first + start, len(rest))
            seen = self._scan.look(
                self._unmasked(sums[:n_spans]), variance[:n_spans], taken.skew[start:]
            )
            hits = np.flatnonzero(seen.log_p < _RARE)
            stop = int(hits[0]) + 1 if len(hits) else len(rest)
            self._scan.keep(sums[:, stop - 1], variance[:, stop - 1])
            rows, start = slice(start, start + stop), start + stop
            number = first + start - 1
            judged = len(hits) > 0 and number >= self._next
            self._remember(taken, rows, number, leaves=not judged)
            if judged:
                alarm = self._judged(taken, start - 1, number, begins)
                found += [] if alarm is None else [alarm]
        return found

    def _remember(self, taken: _Taken, rows: slice, number: int, *, leaves: bool = True) -> None:
        """Keep patterns up to a number, and see what they say of what was told.

        Unless it ``leaves``, what was told is not taken for gone.
        """
        z = taken.z[rows]
        self._recent.add(pattern=taken.patterns[rows], sigma=taken.sigma[rows], z=z)
        self._wait_for(z, number)
        if leaves and self._told is not None and self._told.gone(z):
            self._told = None
            self._calm()

    # --- what stands out -------------------------------------------------------------------

    def _judged(self, taken: _Taken, row: int, number: int, begins: int) -> Alarm | None:
        """Look closer at what stands out; give an alarm where it is something new."""
        self._next = number + _PAUSE
        may_change = begins > 1
        if may_change:
            self._again(taken.components[row])
        candidate = self._candidate(taken.skew[row])
        if candidate is None or candidate.share < max(_LEAST_SHARE, _PART * candidate.told):
            return None
        if may_change and candidate.n_patterns < _PAUSE:
            # A free component may take it up in the next patterns.
            return None
        self._alarms += 1
        # Where little is explained, new places turn up all the time.
        self._next = number + _PAUSE * 2 ** max(0, self._alarms - _AT_ONCE)
        self._told = _Told.of(candidate, self._told)
        runs, since = candidate.places.runs, number + 1 - candidate.n_patterns
        # The very first are not looked at where components are free: it is in them as well.
        from_first = since == begins and not self._changed
        alarm = Alarm(
            ranges=tuple(
                (float(self._x[first]), float(self._x[last])) for first, last in runs[:_MOST_RANGES]
            ),
            since=1 if from_first else since,
            n_patterns=number,
            significance=deviations(candidate.log_p),
            share=max(0.0, candidate.share),
            from_first=from_first,
            or_before=candidate.or_before and not from_first,
            estimated=taken.estimated,
            n_places=len(runs),
            residual=np.maximum(candidate.left, 0.0),
        )
        self._pending.append(_Pending(alarm, candidate.places.template))
        self._wait_for(np.zeros((0, len(self._x))), number)
        return alarm

    def _candidate(self, skew: Array) -> _Candidate | None:
        """Give what stands out of the last patterns, beside what was told."""
        everything, sigma = self._recent.table("z"), self._recent.table("sigma")
        residuals, told = everything, self._told
        if told is not None:
            residuals = beside(everything, sigma, told.templates)
            residuals[:, told.mask] = 0.0
        sums, variance = self._scan.summed(residuals)
        seen = self._scan.look(sums[:, None], variance[:, None], skew[None])
        if seen.log_p[0] >= _RARE:
            return None
        span, width = int(seen.span[0]), int(seen.width[0])
        z, begins = self._scan.map(sums[span], float(variance[span]), width)
        places = places_of(z, begins, WIDTHS[width], len(self._x))
        since = onset(residuals @ places.template)
        left = (residuals[since:] * sigma[since:]).mean(axis=0)
        total = max(float(self._recent.table("pattern")[since:].sum(axis=1).mean()), 1e-300)
        before = 0.0
        if told is not None:
            rest = (everything[since:] * sigma[since:])[:, np.any(told.templates, axis=0)]
            before = float(rest.mean(axis=0).sum()) / total
        return _Candidate(
            places,
            log_p=float(seen.log_p[0]),
            span=SPANS[span],
            n_patterns=len(residuals) - since,
            or_before=since == 0,
            left=left,
            share=float(left[places.template > 0].sum()) / total,
            told=before,
        )

    def _wait_for(self, residuals: Array, number: int) -> None:
        """See what lasts of what was told, with the next residuals (M, F), up to a pattern."""
        for pending in list(self._pending):
            pending.after += (residuals @ pending.template).tolist()
            n_patterns = number - pending.alarm.since + 1
            if n_patterns < _LASTING:
                continue
            self._pending.remove(pending)
            if sum(pending.after) >= _CLEARLY * len(pending.after) ** 0.5:
                rows = slice(-min(n_patterns, len(self._recent)), None)
                left = self._recent.table("z")[rows] * self._recent.table("sigma")[rows]
                mean = np.maximum(left.mean(axis=0), 0.0)
                self.lasting.append(replace(pending.alarm, residual=mean))

    def _unmasked(self, sums: Array) -> Array:
        """Leave what was told out of sums (S, M, F)."""
        return sums if self._told is None else sums * ~self._told.mask

    def _again(self, components: Array) -> None:
        """Fit the last patterns with the components of today."""
        patterns, sigma = self._recent.table("pattern"), self._recent.table("sigma")
        shapes = np.broadcast_to(components, (len(patterns), *components.shape))
        self._recent.replace("z", _standardised(patterns, sigma, shapes))
        self._scan.keep(*self._scan.summed(self._recent.table("z")))

    def _calm(self) -> None:
        """Forget the past: what was told is gone, or the model another one."""
        self._scan.forget()
        self._recent.forget()


def _blocks(skipped: int, passed: int, count: int) -> list[tuple[int, int]]:
    """Cut patterns into one block that is passed, where there is any, and those looked at."""
    looked = [(begin, min(count, begin + _TOGETHER)) for begin in range(passed, count, _TOGETHER)]
    return [(skipped, passed), *looked] if skipped < passed else looked


def _spans_due(first: int, count: int) -> int:
    """Tell how many of the spans to look at: those of many patterns change little with one."""
    last = first + count - 1
    due = (every for every in _LOOKED_AT_EVERY if last // every > (first - 1) // every)
    return len(SPANS) - len(_LOOKED_AT_EVERY) + sum(1 for _ in due)


def deviations(log_p: float) -> float:
    """Give the standard deviations that a normal variable exceeds so rarely."""
    z = 0.0
    for _ in range(20):
        # From the leading terms of the tail, which the last one corrects.
        z = max(-2.0 * log_p - 2.0 * np.log(max(z, 0.5) * np.sqrt(2.0 * np.pi)), 0.0) ** 0.5
    return float(z)


def _standardised(patterns: Array, sigma: Array, components: Array) -> Array:
    """Give what components cannot explain of patterns (M, F), in units of the noise, (M, F).

    Parameters
    ----------
    patterns : ndarray (M, F)
        Patterns, or what a fit by the same components has left of them.
    sigma : ndarray (M, F)
        The noise.
    components : ndarray (M, K, F)
        Components.
    """
    z = patterns / sigma
    for row, noise, shapes in zip(z, sigma, components, strict=True):
        scaled = shapes / noise
        gram = scaled @ scaled.T
        diagonal = np.einsum("kk->k", gram)
        # A component that has no shape, or is the same as another one.
        diagonal += np.where(diagonal > 0, 1e-10 * diagonal, 1.0)
        row -= np.linalg.solve(gram, scaled @ row) @ scaled
    neighbours = np.maximum(z[:, :-2], z[:, 2:])
    np.maximum(neighbours, 0.0, out=neighbours)
    neighbours *= 2.0
    neighbours += _SPIKE
    np.minimum(z[:, 1:-1], neighbours, out=z[:, 1:-1])
    return z
