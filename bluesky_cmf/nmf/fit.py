"""Follow rows as they arrive, search between them, converge at the end: for any loss."""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import torch

from .alarm import Alarm
from .blocks import Blocks
from .deadline import Deadline
from .factorization import Factorization
from .results import relative
from .rows import Rows
from .rules import Rules
from .seeds import as_shape, data_seeds, match_components, worst_of
from .sweeps import Data, Descent, Sweeps

__all__ = ["Fit"]

#: Multiply-adds that go into older rows at an event where there are too many to solve for all.
_WINDOW_WORK = 800_000
#: How many of the starts go on.
FINALISTS = 3
#: How much worse than the fit that stands a start may be after its trial and still be followed.
_PROMISING = 1.1
#: Most sweeps of a converged refit, and the relative decrease over 20 sweeps that ends it; that
#: which ends work between events.
MAX_SWEEPS, TOL, _EVENT_TOL = 2000, 1e-5, 1e-4
#: What a start that depends on the history must win by: within this the data's own start is
#: taken, so that the end does not depend on timing.
MARGIN = 2e-4
#: Multiply-adds of one step of a search.
STEP_WORK = 600_000
#: Growth since a search has begun that makes it worth beginning anew in idle time.
_STALE = 1.02
#: Rows that set the standard for those that come after a search.
_LATEST = 64


#: Work in small steps: None while it goes on, factors where there are some to be compared.
Steps = Generator[Factorization | None, None, None]


class Fit:
    """Factors that lower an objective as rows arrive.

    Parameters
    ----------
    X : Blocks
        The data.
    H : Tensor (K, F)
        Components to start from.
    rules : Rules
        What is asked of the factors.
    seed : int
        Of the draws among starts.
    held : Rows, optional
        Weights that are held, (N, K), NaN where they are free.

    Attributes
    ----------
    factors : Factorization
        The fit that stands.
    settled : bool
        Whether the search has come to its end for the rows so far.
    """

    #: Multiply-adds (N F K) up to which an event solves for all rows, and how many times it does.
    all_rows, rounds = 3_000_000, 2
    #: Coordinate-descent passes over the components at an event: with all rows, with some.
    passes = (4, 2)
    #: Rows on which starts are tried, where there are many, and sweeps that tell them apart.
    sample, trial_sweeps = 512, 30

    def __init__(
        self, X: Blocks, H: torch.Tensor, rules: Rules, *, seed: int, held: Rows | None = None
    ) -> None:
        self.X, self.rules, self.seed, self.held = X, rules, seed, held
        self.factors = self._factors(X, H, held)
        self.settled = False
        self._alarm = Alarm()
        self._cursor = self._searched = 0
        self._search: Steps | None = None

    # --- what a loss brings ----------------------------------------------------------------

    def _factors(self, X: Blocks, H: torch.Tensor, held: Rows | None) -> Factorization:
        raise NotImplementedError

    def _sweeps(
        self, X: Data, H: torch.Tensor, *, held: Rows | None, W: torch.Tensor | None = None
    ) -> Sweeps:
        """Begin a descent from components, and from weights where they are given."""
        raise NotImplementedError

    def _compressed(self, sample: Blocks) -> Generator[None, None, Data]:
        """Give a form of some rows that sweeps go over fast, in small steps."""
        yield None
        return sample

    def _descend_bounded(self) -> None:
        """Descend on the components at an event that cannot solve for all rows."""
        raise NotImplementedError

    @property
    def objective(self) -> float:
        """The objective for the factors as they are."""
        return self.factors.objective

    @property
    def latest_objective(self) -> float | torch.Tensor:
        """The same, perhaps still on its way from the device."""
        return self.objective

    @property
    def sampled(self) -> bool:
        """Whether there are so many rows that a search goes over some of them."""
        return self.X.n_blocks > 1

    # --- events ----------------------------------------------------------------------------

    def follow(self) -> bool:
        """Take new rows in at a bounded cost; tell whether all weights are exact then."""
        factors, work = self.factors, self.X.n_features * len(self.factors.H)
        self.settled = False
        first = factors.follow()
        n = len(factors)
        few = n * work <= self.all_rows
        self._wake(0 if few else first)
        if few:
            for _ in range(max(1, min(self.rounds, self.all_rows // (n * work)))):
                factors.descend(self.passes[0])
                factors.resolve(0, n)
        else:
            self._descend_bounded()
            # A search leaves less for older rows, all of which it solves for in the end.
            window = _WINDOW_WORK // (4 if self._alarm.on else 1)
            self._revise(max(1, window // work))
            factors.resolve(first, n)
        if first < n and self.sampled and self._alarm.raised(n, factors.unexplained(first, n)):
            self._search_on()
        return few

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Give what is needed to go on later, as plain arrays."""
        return self.factors.state()

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `state` gave."""
        self.factors.restore(state)

    def refresh(self) -> None:
        """Solve for the weights of all rows."""
        self.factors.resolve(0, len(self.factors))

    def _revise(self, count: int) -> None:
        """Solve anew for the next older rows."""
        n = len(self.factors)
        start = self._cursor if self._cursor < n else 0
        self._cursor = min(n, start + count)
        self.factors.resolve(start, self._cursor)

    def _wake(self, first: int) -> None:
        """Give components without a shape what the worst of the rows from ``first`` on lacks."""
        factors = self.factors
        for k in factors.shapeless():
            n, before = len(factors), factors.objective
            worst = worst_of(factors.squared.tensor(first, n)[:, 0], self.X.norms[first:n])
            if worst is None:
                break
            row = first + worst
            fitted = factors.reconstruct(factors.W.tensor(row, row + 1), row)[0]
            shape = as_shape(self.X.row(row) - fitted)
            if shape is None:
                break
            factors.reseed(k, shape)
            factors.resolve(first, n)
            if self.rules.penalised and factors.objective > before:
                # The penalty has put it to zero, and would again.
                factors.reseed(k, torch.zeros_like(shape))
                factors.resolve(first, n)
                break

    # --- between events --------------------------------------------------------------------

    def improve(self, deadline: Deadline) -> bool:
        """Look for a better fit until the deadline; tell whether one was found and taken."""
        if not self.sampled:
            found = self._explore(deadline)
            # What was interrupted is begun anew at the next event.
            self.settled = True
            if found.objective >= (1 - MARGIN) * self.objective:
                return False
            return self._take(self._challenger(found.H))
        if len(self.X) > _STALE * self._searched:
            # What was begun lately is gone on with; what was begun for other data is not.
            self._search = None
        adopted = False
        while not self.settled and not deadline.passed:
            adopted = self._search_on() or adopted
        return adopted

    def _search_on(self) -> bool:
        """Take one small step of the search; tell whether it has led to a better fit."""
        if self._search is None:
            self._search = self._rounds()
        challenger = next(self._search, None)
        return challenger is not None and self._take(challenger)

    def _explore(self, deadline: Deadline) -> Descent:
        """Go on from where the fit stands, try other starts, and follow the best of them."""
        H, W = self.factors.H, self.factors.W.tensor()
        third = deadline.earlier(1 / 3)
        own = self._begin(H, W=W).descend(max_sweeps=MAX_SWEEPS, tol=_EVENT_TOL, deadline=third)
        best: Sweeps | None = None
        for start in self._starts(self.X, H):
            if deadline.passed:
                break
            trial = self._begin(start)
            trial.descend(max_sweeps=self.trial_sweeps, tol=0.0, deadline=deadline)
            if best is None or trial.curve[-1] < best.curve[-1]:
                best = trial
        if best is None or best.curve[-1] > _PROMISING * own.objective:
            best = self._begin(own.H)
        end = best.descend(max_sweeps=MAX_SWEEPS, tol=_EVENT_TOL, deadline=deadline)
        return min(own, end, key=lambda found: found.objective)

    def _rounds(self) -> Steps:
        """Search without end: on some rows, from the fit that stands and from other starts."""
        while True:
            n, before = len(self.factors), self.objective
            self._searched = n
            data, held = yield from self._sample_steps(n)
            own = self._sweeps(data, self.factors.H, held=held)
            yield from _sweep_steps(own, self.trial_sweeps)
            yield from self._challenge(own.H)
            best = own
            for start in self._starts(data, self.factors.H):
                trial = self._sweeps(data, start, held=held)
                yield from _sweep_steps(trial, self.trial_sweeps)
                best = min(best, trial, key=lambda state: state.curve[-1])
            if best.curve[-1] < (1 - MARGIN) * own.curve[-1]:
                yield from _sweep_steps(best, self.trial_sweeps)
                yield from self._challenge(best.H)
            self.settled = n == len(self.X) and self.objective >= (1 - MARGIN) * before
            # The standard is set by what was searched: what has come since may be unexplained.
            self._alarm.quiet(n, self.factors.unexplained(max(0, n - _LATEST), n))
            yield None

    def _sample_steps(self, n: int) -> Generator[None, None, tuple[Data, Rows | None]]:
        """Copy some rows: at even distances, and those that are explained worst."""
        even = torch.linspace(0, n - 1, self.sample).long()
        left = relative(self.factors.squared.tensor(0, n)[:, 0], self.X.norms[:n])
        rows = torch.unique(
            torch.cat([even[::2], left.topk(min(n, self.sample // 2)).indices.cpu()])
        )
        sample = Blocks(self.X.n_features, dtype=self.X.dtype, device=self.X.device)
        for part in rows.split(max(1, STEP_WORK // (8 * self.X.n_features))):
            sample.append(self.X.take(part))
            yield None
        data = yield from self._compressed(sample)
        return data, self._held_of(rows)

    def _held_of(self, rows: torch.Tensor) -> Rows | None:
        if self.held is None:
            return None
        some = Rows(len(self.factors.H), device=self.X.device)
        some.replace(self.held.tensor()[rows])
        return some

    def _challenge(self, H: torch.Tensor) -> Steps:
        """Hold components against the fit that stands, on all the data."""
        challenger = self._factors(self.X, self._matched(H), self.held)
        most = max(1, STEP_WORK // H.numel())
        challenger.follow(most)
        while len(challenger) < len(self.factors):
            # Rows may arrive in the meantime.
            yield None
            challenger.follow(most)
        self._settle(challenger)
        yield challenger

    def _settle(self, challenger: Factorization) -> None:
        challenger.descend(self.passes[0])

    # --- the end ---------------------------------------------------------------------------

    def converge(self) -> bool:
        """Fit to convergence, also from starts that depend on the data alone; tell whether."""
        self.refresh()
        return not self.rules.free or self._converge()

    def _converge(self) -> bool:
        H, W = self.factors.H, self.factors.W.tensor()
        trials = [self._begin(start) for start in self._starts(self.X, H)]
        for trial in trials:
            trial.descend(max_sweeps=self.trial_sweeps, tol=0.0)
        trials.sort(key=lambda trial: trial.curve[-1])
        ends = [trial.descend(max_sweeps=MAX_SWEEPS, tol=TOL) for trial in trials[:FINALISTS]]
        best = min(ends, key=lambda end: end.objective)
        own = self._begin(H, W=W).descend(max_sweeps=MAX_SWEEPS, tol=TOL)
        if own.objective < (1 - MARGIN) * best.objective:
            best = own
        self._take(self._challenger(best.H), anyway=True)
        return best.converged

    def descend(self, *, tol: float = TOL) -> None:
        """Go on from where the fit stands, and from nowhere else, to a tolerance."""
        H, W = self.factors.H, self.factors.W.tensor()
        end = self._begin(H, W=W).descend(max_sweeps=MAX_SWEEPS, tol=tol)
        self._take(self._challenger(end.H))

    # --- details ---------------------------------------------------------------------------

    def _starts(self, X: Data, H: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield components to start from that depend on the data alone."""
        return data_seeds(X, H, self.rules.free, seed=self.seed)

    def _begin(self, H: torch.Tensor, *, W: torch.Tensor | None = None) -> Sweeps:
        return self._sweeps(self.X, H, W=W, held=self.held)

    def _matched(self, H: torch.Tensor) -> torch.Tensor:
        """Give the free components of another start the names that they had."""
        return H[match_components(H, self.factors.H, self.rules.interchangeable)]

    def _challenger(self, H: torch.Tensor) -> Factorization:
        challenger = self._factors(self.X, self._matched(H), self.held)
        challenger.follow()
        return challenger

    def _take(self, challenger: Factorization, *, anyway: bool = False) -> bool:
        """Adopt factors whose objective is lower, ``anyway`` also where it is much the same."""
        bar = (1 + MARGIN) * self.objective if anyway else self.objective
        if challenger.objective >= bar > 0:
            return False
        self.factors = challenger
        return True


def _sweep_steps(state: Sweeps, count: int) -> Steps:
    """Sweep, one by one."""
    for _ in range(count):
        state.sweep(1)
        yield None
