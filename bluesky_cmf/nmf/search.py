"""Look for a better fit between events, in small steps: from the fit that stands, and elsewhere."""

import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .alarm import Alarm
from .deadline import Deadline
from .exploring import MARGIN, Exploration
from .factorization import Factorization
from .results import relative
from .sample import Sample, choose_rows
from .sweeps import Sweeps

if TYPE_CHECKING:
    from .fit import Fit

__all__ = ["ELSEWHERE_GROWTH", "FINALISTS", "Search"]

#: How many of the starts go on.
FINALISTS = 3
#: Growth of the data that makes it worth following the fit anew in idle time, before anything
#: else; and that makes what was begun earlier not worth going on with.
_OUTDATED, _STALE = 1.002, 1.02
#: Growth of the data that makes it worth trying other starts beside events, where nothing jumps.
ELSEWHERE_GROWTH = 1.5
#: Rows that set the standard for those that come after a search.
_LATEST = 64

#: Work in small steps: None while it goes on, factors where there are some to be compared.
Steps = Generator[Factorization | None, None, None]


@dataclass(frozen=True)
class _Ground:
    """A sample, and the objectives to beat: on it, and on all rows.

    There were ``until`` rows when it had been found what is to be beaten.
    """

    sample: Sample
    until: int
    found: float
    before: float


class Search:
    """What goes on between events for a fit: a search without end, that rows may join.

    It goes in rounds. First sweeps over some of the rows follow the fit from where it stands, and
    what they lead to is held against it on all of them. Half of the rows are those that are
    explained worst; where these lead nowhere, and in idle time, each row counts for those that it
    stands for. Then other starts are tried in the same way, all for a few sweeps, the best of them
    for more: in idle time, and beside events where following has left a jump, or the data have
    grown much.

    Parameters
    ----------
    fit : Fit
        What is to be improved.

    Attributes
    ----------
    alarm : Alarm
        Whether steps are to go with events.
    settled : bool
        Whether the search has come to its end for the rows so far.
    """

    def __init__(self, fit: "Fit") -> None:
        self.alarm, self.settled = Alarm(fit.growth), False
        self._fit, self._exploration = fit, Exploration(fit)
        #: What is under way from where the fit stands, and from elsewhere; where that may begin.
        self._near: Steps | None = None
        self._far: Steps | None = None
        self._ground: _Ground | None = None
        #: Rows when each of them was begun, and in the last search elsewhere that came to its end.
        self._near_rows = self._far_rows = self._tried_rows = 0
        #: Whether the fit is followed once more, for a jump that following it has left.
        self._again = False
        self._step_work, self._portion = fit.step_work, 1
        self._idle = False
        #: Largest part of the objective that was gained at once in the round.
        self._gain = 0.0

    def improve(self, deadline: Deadline) -> bool:
        """Look for a better fit until the deadline; tell whether one was found and taken."""
        fit = self._fit
        adopted = False
        if not fit.sampled:
            adopted = self._exploration.improve(deadline)
            self.settled = self._exploration.settled
            return adopted
        # Its time is over, and what it had begun takes memory.
        self._exploration.drop()
        while not self.settled and not deadline.passed:
            adopted = self.step(idle=True) or adopted
        return adopted

    def due(self, left: float) -> bool:
        """Take in what is left of the newest row; tell whether a step is to go with the event."""
        n = len(self._fit.X)
        if self.alarm.raised(n, left):
            # What was begun before may know nothing of what has raised the alarm.
            self._drop_before(math.inf if self.alarm.jumped else n / _STALE)
        return self.alarm.on

    def drop(self) -> None:
        """Begin anew at the next step."""
        self._exploration.drop()
        self._drop_before(math.inf)

    def _drop_before(self, n: float) -> None:
        """Forget what was begun when there were fewer than ``n`` rows."""
        self._again = False
        if self._near_rows < n:
            self._near = None
        if self._far_rows < n:
            self._far = None
        if self._ground is not None and self._ground.sample.n < n:
            self._ground = None

    def step(self, *, idle: bool = False) -> bool:
        """Take one small step of a round; tell whether it has led to a better fit.

        In idle time the fit that stands is followed first, wherever the round has been; a step
        that goes with an event goes on where the round is.
        """
        fit, self._idle = self._fit, idle
        self._step_work = fit.idle_step_work if idle else fit.step_work
        self._portion = 1 if idle else fit.portion
        try:
            challenger = next(self._chosen(idle=idle), None)
        except BaseException:
            # What has raised would neither go on nor end.
            self.drop()
            raise
        if challenger is None:
            return False
        before = fit.objective
        adopted = fit.take(challenger)
        if adopted and before > 0:
            self._gain = max(self._gain, 1 - fit.objective / before)
        return adopted

    def _chosen(self, *, idle: bool) -> Steps:
        """Tell what to go on with."""
        n, ground = len(self._fit.X), self._ground
        if idle and n > _STALE * self._near_rows:
            self._near = None
        if self._near is None and not (idle and n > _OUTDATED * self._near_rows):
            if self._far is None and ground is not None and n <= _STALE * ground.until:
                self._far, self._ground = self._elsewhere(ground), None
            if self._far is not None:
                return self._far
        if self._near is None:
            self._near = self._follow()
        return self._near

    def _follow(self) -> Steps:
        """Sweep over some rows from the fit that stands, and hold the end against it."""
        fit = self._fit
        self._near_rows = n = len(fit.factors)
        before = fit.objective
        sample = yield from self._sample(n, n_worst=fit.sample // 2)
        yield None
        fair = fit.weighs_rows and self._idle
        own = yield from self._descended(sample, emphatic=True, fair=fair)
        won = yield from self._challenge(own.H)
        if not won and not fair and len(sample.data) < n:
            # Where data are not quite as the model has them, what is explained worst misleads.
            if not fit.weighs_rows:
                spread = yield from self._sample(n, n_worst=0)
                sample = replace(spread, data=sample.data)
                yield None
            own = yield from self._descended(sample, emphatic=False, fair=True)
            yield from self._challenge(own.H)
        if n > _STALE * self._far_rows:
            self._far = None
        self._near = None
        jumped = self.alarm.exceeded(self._left(len(fit.factors)))
        self._again = jumped and not self._again
        if self._again:
            # What leaves so much may have come since these rows were chosen.
            self._far = self._ground = None
            return
        self._ground = _Ground(sample, len(fit.X), own.curve[-1], before)
        if not jumped and n <= ELSEWHERE_GROWTH * self._tried_rows:
            # Only idle time has more to do.
            self._rest(n)

    def _elsewhere(self, ground: _Ground) -> Steps:
        """Try other starts on some rows, and hold the end of the best against the fit."""
        fit, sample = self._fit, ground.sample
        self._far_rows = sample.n
        third = max(1, fit.trial_sweeps // 3)
        trials: list[Sweeps] = []
        for start in fit.starts(sample.data, fit.factors.H, draws=fit.few_draws):
            yield None
            if start is not None:
                trial = yield from fit.begun(sample.fair, start, held=sample.held)
                trials.append(trial)
                yield None
                yield from _sweep_on(trials[-1], third)
        for count in (FINALISTS, 1):
            trials = sorted(trials, key=lambda trial: trial.curve[-1])[:count]
            for trial in trials:
                yield from _sweep_on(trial, third)
        best = trials[0]
        if best.curve[-1] < (1 - MARGIN) * ground.found:
            yield from _sweep_on(best, fit.trial_sweeps)
            yield from self._challenge(best.H)
        self._far, self._tried_rows = None, sample.n
        self.settled = sample.n == len(fit.X) and fit.objective >= (1 - MARGIN) * ground.before
        self._rest(sample.n)

    def _rest(self, n: int) -> None:
        """End what goes with events, after a round over the first ``n`` rows."""
        # The standard is set by what was searched: what has come since may be unexplained.
        self.alarm.quiet(n, self._left(n), gain=self._gain)
        self._gain = 0.0

    def _left(self, n: int) -> float:
        """Tell how much is left of the latest of the first ``n`` rows."""
        return self._fit.factors.unexplained(max(0, n - _LATEST), n)

    def _sample(self, n: int, *, n_worst: int) -> Generator[None, None, Sample]:
        """Choose some of ``n`` rows, so many for what is left of them, and copy them."""
        fit = self._fit
        factors, norms = fit.factors, fit.X.norms

        def left(start: int, stop: int) -> torch.Tensor:
            return relative(factors.squared.tensor(start, stop)[:, 0], norms[start:stop])

        rows, weights = yield from choose_rows(left, n, fit.sample, n_worst)
        yield None
        data = yield from fit.some(rows, work=lambda: self._step_work)
        weighed = fit.weighs_rows and len(rows) < n
        fair = fit.weighted(data, weights) if weighed else data
        return Sample(n, data, fair, fit.held_of(rows))

    def _descended(
        self, sample: Sample, *, emphatic: bool, fair: bool
    ) -> Generator[None, None, Sweeps]:
        """Sweep over a sample from the fit that stands, and give where that ends.

        Where much has changed, rows that are explained worst lead on faster where they count for
        more than their number: ``emphatic``. What fits all rows best is found where each counts
        for what it stands for: ``fair``. Of both, the better end is taken.
        """
        fit, ends = self._fit, list[Sweeps]()
        if emphatic:
            end = yield from fit.begun(sample.data, fit.factors.H, held=sample.held)
            ends.append(end)
            yield None
            yield from _sweep_on(ends[-1], fit.trial_sweeps)
            if sample.fair is not sample.data:
                ends[-1] = yield from fit.begun(sample.fair, ends[-1].H, held=sample.held)
                yield None
                yield from _sweep_on(ends[-1], max(1, fit.trial_sweeps // 3))
        if fair:
            end = yield from fit.begun(sample.fair, fit.factors.H, held=sample.held)
            ends.append(end)
            yield None
            yield from _sweep_on(ends[-1], fit.trial_sweeps)
        return min(ends, key=lambda end: end.curve[-1])

    def _challenge(self, H: torch.Tensor) -> Generator[Factorization | None, None, bool]:
        """Hold components against the fit that stands, on all the data; tell whether they won."""
        fit = self._fit
        matched = fit.matched(H)
        yield None
        challenger = fit.new_challenger(matched)
        yield None
        known = len(fit.factors)
        while True:
            portion, n = self._portion, len(fit.factors)
            # Rows may arrive in the meantime, but not faster than they are taken in.
            challenger.follow(max(1, portion * self._step_work // H.numel(), 2 * (n - known)))
            if len(challenger) >= n:
                break
            known = n
            yield from itertools.repeat(None, portion)
        fit.settle(challenger)
        yield challenger
        return fit.factors is challenger


def _sweep_on(state: Sweeps, count: int) -> Generator[None, None, None]:
    """Sweep, one by one."""
    for _ in range(count):
        state.sweep(1)
        yield None
