"""Look for a better fit between events while rows are few: by sweeps over all of them."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import torch

from .deadline import Deadline
from .sweeps import NEVER, Descent, Sweeps

if TYPE_CHECKING:
    from .fit import Fit

__all__ = ["MARGIN", "MAX_SWEEPS", "Exploration"]

#: How much worse than the fit that stands a start may be after its trial and still be followed.
_PROMISING = 1.1
#: Most sweeps of a descent, and the relative decrease over 20 sweeps that ends it between events.
MAX_SWEEPS, _TOL = 2000, 1e-4
#: What another start must win by to be worth another fit; and, at the end, what the history must
#: win by: within this the data's own start is taken, so that the end does not depend on timing.
MARGIN = 2e-4
#: What following the fit that stands must gain to be worth weights for all rows.
_WORTH = 1e-5
#: Starts that are tried before the best of them is followed.
_AT_ONCE = 5
#: How far the fit that stands is followed before others are tried, in trials.
_FIRST_TRIALS = 5
#: Growth of the data since all starts were tried that makes it worth trying all again.
_GROWTH = 1.1

#: Work in small steps: each tells whether it has led to a better fit.
Steps = Generator[bool, None, None]


class Exploration:
    """What goes on between events for a fit with few rows.

    First the fit is followed from where it stands. Then starts beside it are tried, of which one
    component gives way to what the others lack, as long as these lead further. Where the data have
    grown by a tenth, starts that depend on the data alone come next, some at a time. All of it
    begins anew with each row; what is interrupted goes on where it stopped.

    Parameters
    ----------
    fit : Fit
        What is to be improved.
    """

    def __init__(self, fit: "Fit") -> None:
        self._fit = fit
        self._work: Steps | None = None
        self._deadline = NEVER
        #: Rows when the work was begun, and when all starts had been tried.
        self._begun = self._tried = 0

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be tried for the rows so far."""
        return self._work is None and self._begun == len(self._fit.X)

    def drop(self) -> None:
        """Begin anew, with all starts."""
        self._work, self._begun, self._tried = None, 0, 0

    def improve(self, deadline: Deadline) -> bool:
        """Look for a better fit until the deadline; tell whether one was found and taken."""
        n, self._deadline = len(self._fit.X), deadline
        if self._begun != n:
            self._work, self._begun = self._explored(), n
        adopted = False
        try:
            while self._work is not None and not deadline.passed:
                step = next(self._work, None)
                if step is None:
                    self._work = None
                adopted = bool(step) or adopted
        except BaseException:
            # What has raised would not go on.
            self.drop()
            raise
        finally:
            self._deadline = NEVER
        return adopted

    def _explored(self) -> Steps:
        fit, n = self._fit, len(self._fit.X)
        yield from self._followed(_TOL, max_sweeps=_FIRST_TRIALS * fit.trial_sweeps)
        yield from self._beside()
        if n > _GROWTH * self._tried:
            every = fit.starts(fit.X, fit.factors.H, draws=fit.draws)
            while not (yield from self._elsewhere(every)):
                pass
            self._tried = n
        yield from self._followed(fit.tol)

    def _followed(self, tol: float, *, max_sweeps: int = MAX_SWEEPS) -> Steps:
        """Go on from where the fit stands."""
        factors = self._fit.factors
        own = self._fit.begin(factors.H, W=factors.W.tensor())
        yield from self._to_the_end(own, tol=tol, max_sweeps=max_sweeps, margin=_WORTH)

    def _beside(self) -> Steps:
        """Try starts beside the fit that stands, as long as they lead further."""
        fit, better = self._fit, True
        while better:
            trials: list[Sweeps] = []
            for start in fit.beside(fit.X, fit.factors.H):
                yield False
                if start is not None:
                    trials.append(fit.begin(start))
            for sweeps, count in fit.cuts:
                for trial in trials:
                    yield from self._swept(trial, sweeps)
                trials = sorted(trials, key=lambda trial: trial.curve[-1])[:count]
            better = yield from self._judged(trials)

    def _elsewhere(self, starts: Iterator[torch.Tensor | None]) -> Generator[bool, None, bool]:
        """Try some starts that depend on the data alone; tell whether these were the last."""
        fit, trials = self._fit, list[Sweeps]()
        for start in starts:
            yield False
            if start is not None:
                trials.append(fit.begin(start))
                yield from self._swept(trials[-1], fit.trial_sweeps)
            if len(trials) == _AT_ONCE:
                break
        if (yield from self._judged(trials)):
            yield from self._beside()
        return len(trials) < _AT_ONCE

    def _judged(self, trials: list[Sweeps]) -> Generator[bool, None, bool]:
        """Follow the best of some trials where it promises much; tell whether it was taken."""
        best = min(trials, key=lambda trial: trial.curve[-1], default=None)
        if best is None or best.curve[-1] >= _PROMISING * self._fit.objective:
            return False
        return (yield from self._to_the_end(best, tol=_TOL, max_sweeps=MAX_SWEEPS, margin=MARGIN))

    def _swept(self, trial: Sweeps, count: int) -> Steps:
        """Go on up to so many sweeps, in all, whatever the deadlines on the way."""
        while not _ended(trial.descend(max_sweeps=count, tol=0.0, deadline=self._deadline), count):
            yield False

    def _to_the_end(
        self, state: Sweeps, *, tol: float, max_sweeps: int, margin: float
    ) -> Generator[bool, None, bool]:
        """Descend to a tolerance, and take what is better by then, and at each deadline."""
        taken, over = False, False
        while not over:
            end = state.descend(max_sweeps=max_sweeps, tol=tol, deadline=self._deadline)
            over = _ended(end, max_sweeps)
            found = self._taken(end, margin)
            taken = taken or found
            yield found
        return taken

    def _taken(self, found: Descent, margin: float) -> bool:
        fit = self._fit
        if found.objective >= (1 - margin) * fit.objective:
            return False
        return fit.take(fit.challenger(found.H))


def _ended(end: Descent, max_sweeps: int) -> bool:
    return end.converged or end.sweeps >= max_sweeps
