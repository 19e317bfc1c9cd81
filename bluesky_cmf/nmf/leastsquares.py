"""The least-squares road: bounded events, a search between them, a converged end."""

from collections.abc import Generator, Mapping
from typing import Any

import numpy.typing as npt
import torch

from .alarm import Alarm
from .blocks import Blocks
from .compressed import Compressed, compress, directions, pays
from .deadline import Deadline
from .factors import Factors, Rules
from .results import relative
from .rows import Rows
from .seeds import data_seeds, match_components
from .sweeps import LOST, NEVER, Descent, Extrapolation, alternate, descend

__all__ = ["LeastSquares"]

#: Multiply-adds (N F K) up to which an event solves for all rows, and how many times it does.
_ALL_ROWS, _ROUNDS = 3_000_000, 2
#: Multiply-adds that go into older rows at an event where there are more of them.
_WINDOW_WORK = 800_000
#: Coordinate-descent passes over the components at an event.
_FEW_PASSES, _BOUNDED_PASSES = 8, 2
#: Squared relative residual below which nothing is left to explain.
_EXPLAINED = 1e-6

#: Sweeps by which starts are told apart; those of the best few among them; how many are the few.
_TRIAL_SWEEPS, _FINAL_SWEEPS, _FINALISTS = 30, 150, 3
#: How much worse than the fit that stands a start may be after its trial and still be followed.
_PROMISING = 1.1
#: Most sweeps of a converged refit, and the relative decrease over 20 sweeps that ends it.
_MAX_SWEEPS, _TOL, _EVENT_TOL = 2000, 1e-5, 1e-4
#: What a start that depends on the history must win by: within this the data's own start is
#: taken, so that the end does not depend on timing.
MARGIN = 2e-4
#: The tolerance where sweeps are cheap, and how often the data are compressed around their end.
_COMPRESSED_TOL, _COMPRESSIONS = 2e-6, 20
#: Rows on which starts are tried, where there are many, and multiply-adds of one step of a search.
_SAMPLE, _STEP_WORK = 512, 600_000
#: Rows that set the standard for those that come after a search.
_LATEST = 64

#: Work in small steps: None while it goes on, factors where there are some to be compared.
Steps = Generator[Factors | None, None, None]


class LeastSquares:
    """Factors that lower ½‖X - WH‖² as rows arrive.

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
    """

    def __init__(
        self, X: Blocks, H: torch.Tensor, rules: Rules, *, seed: int, held: Rows | None = None
    ) -> None:
        self.X, self.rules, self.seed, self.held = X, rules, seed, held
        self.factors = Factors(X, H, rules, held=held)
        self.alarm = Alarm()
        self._cursor = 0
        self._search: Steps | None = None
        #: Whether the search has come to its end for the rows so far.
        self.settled = False

    @property
    def objective(self) -> float:
        """The objective for the factors as they are."""
        return self.factors.objective

    @property
    def sampled(self) -> bool:
        """Whether there are so many rows that a search goes over some of them."""
        return self.rules.extrapolable and pays(self.X)

    # --- events ----------------------------------------------------------------------------

    def follow(self) -> bool:
        """Take new rows in at a bounded cost; tell whether all weights are exact then."""
        factors, work = self.factors, self.X.n_features * len(self.factors.H)
        self.settled = False
        first = factors.follow()
        n = len(factors)
        few = n * work <= _ALL_ROWS
        self._wake(0 if few else first)
        for _ in range(max(1, min(_ROUNDS, _ALL_ROWS // (n * work))) if few else 1):
            factors.descend(_FEW_PASSES if few else _BOUNDED_PASSES)
            if few:
                factors.resolve(0, n)
            else:
                self._revise(max(1, _WINDOW_WORK // work))
                factors.resolve(first, n)
        if self.sampled and self.alarm.raised(n, factors.left(first, n)):
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
        sizes = factors.G.diagonal().tolist()
        for k in self.rules.free:
            if sizes[k] > 0:
                continue
            n = len(factors)
            squared, norms = factors.squared.tensor(first, n)[:, 0], self.X.norms[first:n]
            if not bool((squared > _EXPLAINED * norms).any()):
                break
            worst = first + int(squared.argmax())
            fit = factors.W.tensor(worst, worst + 1)[0] @ factors.H
            left = (self.X.row(worst) - fit).clamp_min(0)
            if float(left.amax()) <= 0:
                break
            factors.reseed(k, left / left.amax())
            factors.resolve(first, n)

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
        own = self._descend(H, W=W, tol=_EVENT_TOL, deadline=deadline.earlier(1 / 3))
        best: Descent | None = None
        for start in data_seeds(self.X, H, self.rules.free, seed=self.seed):
            if deadline.passed:
                break
            found = self._descend(start, max_sweeps=_TRIAL_SWEEPS, deadline=deadline)
            if best is None or found.objective < best.objective:
                best = found
        if best is None or best.objective > _PROMISING * own.objective:
            best = own
        best = self._descend(best.H, tol=_EVENT_TOL, deadline=deadline)
        return min(own, best, key=lambda end: end.objective)

    def _rounds(self) -> Steps:
        """Search without end: on some rows, from the fit that stands and from other starts."""
        while True:
            n, before = len(self.factors), self.objective
            sample = yield from self._sample_steps(n)
            own = Extrapolation(sample, self.factors.H, self.rules)
            yield from _sweeps(own)
            yield from self._challenge(own.H)
            best = own
            for start in data_seeds(sample, self.factors.H, self.rules.free, seed=self.seed):
                trial = Extrapolation(sample, start, self.rules)
                yield from _sweeps(trial)
                best = min(best, trial, key=lambda state: state.curve[-1])
            if best.curve[-1] < (1 - MARGIN) * own.curve[-1]:
                yield from _sweeps(best)
                yield from self._challenge(best.H)
            self.settled = n == len(self.X) and self.objective >= (1 - MARGIN) * before
            # The standard is set by what was searched: what has come since may be unexplained.
            self.alarm.quiet(n, self.factors.left(max(0, n - _LATEST), n))
            yield None

    def _sample_steps(self, n: int) -> Generator[None, None, Compressed]:
        """Compress some rows: at even distances, and those that are explained worst."""
        even = torch.linspace(0, n - 1, _SAMPLE).long()
        left = relative(self.factors.squared.tensor(0, n)[:, 0], self.X.norms[:n])
        rows = torch.unique(torch.cat([even[::2], left.topk(_SAMPLE // 2).indices]))
        V = directions(self.X, self.factors.H, self.factors.B)
        yield None
        U = []
        for part in rows.split(max(1, _STEP_WORK // V.numel())):
            U.append(torch.stack([self.X.row(row) for row in part.tolist()]) @ V.T)
            yield None
        return Compressed(torch.cat(U), V, self.X.norms[rows])

    def _challenge(self, H: torch.Tensor) -> Steps:
        """Hold components against the fit that stands, on all the data."""
        challenger = Factors(self.X, self._matched(H), self.rules)
        most = max(1, _STEP_WORK // H.numel())
        challenger.follow(most)
        while len(challenger) < len(self.factors):
            # Rows may arrive in the meantime.
            yield None
            challenger.follow(most)
        challenger.descend(_FEW_PASSES)
        yield challenger

    # --- the end ---------------------------------------------------------------------------

    def converge(self) -> bool:
        """Fit to convergence, also from starts that depend on the data alone; tell whether."""
        if not self.rules.free:
            self.refresh()
            return True
        return self._converge_compressed() if self.sampled else self._converge_on_data()

    def _converge_on_data(self) -> bool:
        H, W = self.factors.H, self.factors.W.tensor()
        starts = data_seeds(self.X, H, self.rules.free, seed=self.seed)
        trials = [self._descend(start, max_sweeps=_TRIAL_SWEEPS) for start in starts]
        trials.sort(key=lambda trial: trial.objective)
        ends = [self._descend(trial.H) for trial in trials[:_FINALISTS]]
        best = min(ends, key=lambda end: end.objective)
        own = self._descend(H, W=W)
        if own.objective < (1 - MARGIN) * best.objective:
            best = own
        self._take(self._challenger(best.H), anyway=True)
        return best.converged

    def _converge_compressed(self) -> bool:
        self.refresh()
        data = self._compressed()
        sample = data.sample(torch.unique(torch.linspace(0, len(data) - 1, _SAMPLE).long()))
        starts = data_seeds(sample, self.factors.H, self.rules.free, seed=self.seed)
        trials = [self._on(sample, start, sweeps=_TRIAL_SWEEPS) for start in starts]
        trials.sort(key=lambda trial: trial.objective)
        finals = [self._on(sample, trial.H, sweeps=_FINAL_SWEEPS) for trial in trials[:_FINALISTS]]
        best = self._on(data, min(finals, key=lambda final: final.objective).H)
        own = self._on(data, self.factors.H, W=self.factors.W.tensor())
        if own.objective < (1 - MARGIN) * best.objective:
            best = own
        return self._polish(best.H)

    def _compressed(self) -> Compressed:
        """All rows, compressed around the fit that stands."""
        return compress(self.X, directions(self.X, self.factors.H, self.factors.B))

    def _polish(self, H: torch.Tensor) -> bool:
        """Sweep on what is compressed around the fit, until the exact objective stays."""
        self._take(self._challenger(H), anyway=True)
        for _ in range(_COMPRESSIONS):
            factors, before = self.factors, self.objective
            found = self._on(self._compressed(), factors.H, W=factors.W.tensor())
            self._take(self._challenger(found.H))
            if before - self.objective <= max(_TOL * before, LOST * self.X.half_norm):
                return True
        return False

    def _on(
        self,
        data: Compressed,
        H: torch.Tensor,
        *,
        W: torch.Tensor | None = None,
        sweeps: int = _MAX_SWEEPS,
    ) -> Descent:
        return descend(data, H, self.rules, W=W, max_sweeps=sweeps, tol=_COMPRESSED_TOL)

    # --- details ---------------------------------------------------------------------------

    def _descend(
        self,
        H: torch.Tensor,
        *,
        W: torch.Tensor | None = None,
        max_sweeps: int = _MAX_SWEEPS,
        tol: float = _TOL,
        deadline: Deadline = NEVER,
    ) -> Descent:
        if self.rules.extrapolable:
            return descend(
                self.X, H, self.rules, W=W, max_sweeps=max_sweeps, tol=tol, deadline=deadline
            )
        factors = Factors(self.X, H, self.rules, held=self.held)
        return alternate(factors, max_sweeps=max_sweeps, tol=tol, deadline=deadline)

    def _matched(self, H: torch.Tensor) -> torch.Tensor:
        """Give the free components of another start the names that they had."""
        return H[match_components(H, self.factors.H, self.rules.free)]

    def _challenger(self, H: torch.Tensor) -> Factors:
        challenger = Factors(self.X, self._matched(H), self.rules, held=self.held)
        challenger.follow()
        return challenger

    def _take(self, challenger: Factors, *, anyway: bool = False) -> bool:
        """Adopt factors whose objective is lower, ``anyway`` also others."""
        if not anyway and challenger.objective >= self.objective:
            return False
        self.factors = challenger
        return True


def _sweeps(state: Extrapolation) -> Steps:
    """Sweep, one by one."""
    for _ in range(_TRIAL_SWEEPS):
        state.sweep(1)
        yield None
