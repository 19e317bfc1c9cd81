"""Look for a better fit between events while rows are few: by sweeps over all of them."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch

from .deadline import Deadline
from .seeds import CHOSEN
from .sweeps import Descent, Sweeps

if TYPE_CHECKING:
    from .fit import Fit

__all__ = ["MARGIN", "MAX_SWEEPS", "Exploration"]

#: How much worse than the fit that stands a start may be after its trial and still be followed.
_PROMISING = 1.1
#: Most sweeps of a descent, and the relative decrease over 20 sweeps that ends it between events.
MAX_SWEEPS, _TOL = 2000, 1e-4
#: What a start that depends on the history must win by: within this the data's own start is
#: taken, so that the end does not depend on timing.
MARGIN = 2e-4
#: Starts that are tried in one go, once the first are through.
_AT_ONCE = 5
#: Growth of the data since all starts were tried that makes it worth trying all again.
_GROWTH = 1.1


class Exploration:
    """What goes on between events for a fit with few rows.

    First the fit is followed from where it stands, and the first of other starts are tried: that
    is done anew for each row. Where there is time, and the data have grown or jumped, more draws
    come after these, some at a time.

    Parameters
    ----------
    fit : Fit
        What is to be improved.
    """

    def __init__(self, fit: "Fit") -> None:
        self._fit = fit
        #: Starts for the rows so far that were not tried yet.
        self._more: Iterator[torch.Tensor] | None = None
        #: Rows when the first were tried, and when all were.
        self._begun = self._tried = 0

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be tried for the rows so far."""
        return self._more is None and self._begun == len(self._fit.X)

    def drop(self) -> None:
        """Begin anew, with all starts."""
        self._more, self._begun, self._tried = None, 0, 0

    def improve(self, deadline: Deadline) -> bool:
        """Look for a better fit until the deadline; tell whether one was found and taken."""
        fit, n = self._fit, len(self._fit.X)
        adopted = False
        if self._begun != n:
            every = fit.starts(fit.X, fit.factors.H, draws=fit.draws)
            given = (start for start in every if start is not None)
            adopted = self._taken(self._first(given, deadline))
            # What was interrupted is begun anew at the next event.
            self._begun, self._more = n, given if n > _GROWTH * self._tried else None
        while self._more is not None and not deadline.passed:
            starts = list(islice(self._more, _AT_ONCE))
            best = self._best_of(starts, deadline)
            if not starts:
                self._tried, self._more = n, None
            elif best is not None and best.curve[-1] < _PROMISING * fit.objective:
                adopted = self._taken(_to_the_end(best, deadline)) or adopted
        return adopted

    def _first(self, starts: Iterator[torch.Tensor], deadline: Deadline) -> Descent:
        """Go on from where the fit stands, try the first starts, and follow the best of them."""
        fit = self._fit
        H, W = fit.factors.H, fit.factors.W.tensor()
        own = _to_the_end(fit.begin(H, W=W), deadline.earlier(1 / 3))
        best = self._best_of(islice(starts, CHOSEN + fit.few_draws), deadline)
        if best is None or best.curve[-1] > _PROMISING * own.objective:
            best = fit.begin(own.H)
        return min(own, _to_the_end(best, deadline), key=lambda found: found.objective)

    def _best_of(self, starts: Iterable[torch.Tensor], deadline: Deadline) -> Sweeps | None:
        """Try starts for a few sweeps; give the best, None where there is none, or no time."""
        best: Sweeps | None = None
        for start in starts:
            if deadline.passed:
                break
            trial = self._fit.begin(start)
            trial.descend(max_sweeps=self._fit.trial_sweeps, tol=0.0, deadline=deadline)
            if best is None or trial.curve[-1] < best.curve[-1]:
                best = trial
        return best

    def _taken(self, found: Descent) -> bool:
        fit = self._fit
        if found.objective >= (1 - MARGIN) * fit.objective:
            return False
        return fit.take(fit.challenger(found.H))


def _to_the_end(state: Sweeps, deadline: Deadline) -> Descent:
    return state.descend(max_sweeps=MAX_SWEEPS, tol=_TOL, deadline=deadline)
