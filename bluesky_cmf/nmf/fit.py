"""Follow rows as they arrive, and converge at the end: for any loss."""

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import torch

from .blocks import Blocks
from .deviceblocks import blocks_on
from .exploring import MARGIN, MAX_SWEEPS
from .factorization import Factorization
from .jumps import Jumps
from .rows import Rows
from .rules import Rules
from .search import ELSEWHERE_GROWTH, FINALISTS, Search
from .seeds import as_shape, data_seeds, match_components, seeds_beside, worst_of
from .sweeps import Data, Descent, Sweeps

__all__ = ["TOL", "Cuts", "Fit"]

#: Multiply-adds that go into older rows at an event where there are too many to solve for all.
_WINDOW_WORK = 800_000
#: What part of that while a search goes on: one that finds something solves for all in the end.
_BESIDE_SEARCH = 8
#: Multiply-adds that copying a number takes as long as.
_COPIED = 8
#: The relative decrease of a round over all rows that makes another one not worth its time.
_STANDING = 1e-5
#: The relative decrease over 20 sweeps that ends a converged refit.
TOL = 1e-5
#: How often, at most, a converged refit goes on from a start beside the best end so far.
_ROUNDS_BESIDE = 4

#: Sweeps from the start after which trials are compared, and how many of them go on.
Cuts = tuple[tuple[int, int], ...]


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
    search : Search
        What goes on between events.
    """

    #: Multiply-adds (N F K) up to which an event solves for all rows, and how many times, at most.
    all_rows, rounds = 3_000_000, 4
    #: Coordinate-descent passes over the components at an event: with all rows, with some.
    passes = (4, 2)
    #: Rows on which starts are tried, where there are many, and sweeps that tell them apart.
    sample, trial_sweeps = 512, 30
    #: Multiply-adds (N F K, times sweeps) that a jump may add to an event; none where sweeps take
    #: more than a few milliseconds.
    jump_work = 0
    #: Relative decrease over 20 sweeps that ends a converged refit: less where sweeps are cheap.
    tol = TOL
    #: Draws of rows among the starts: on a sample, and where rows are few.
    few_draws = draws = 4
    #: Multiply-adds of one step of a search that goes with an event, and of one in idle time,
    #: which is to take no more than a few milliseconds.
    step_work = idle_step_work = 600_000
    #: Events' worth of rows that are worked on at once beside events, where rows cost less so.
    portion = 1

    def __init__(
        self, X: Blocks, H: torch.Tensor, rules: Rules, *, seed: int, held: Rows | None = None
    ) -> None:
        self.X, self.rules, self.seed, self.held = X, rules, seed, held
        self.factors = self._factors(X, H, held)
        self.search = Search(self)
        self._jumps = Jumps(self)
        self._cursor = 0

    # --- what a loss brings ----------------------------------------------------------------

    def _factors(self, X: Blocks, H: torch.Tensor, held: Rows | None) -> Factorization:
        raise NotImplementedError

    def sweeps(
        self, X: Data, H: torch.Tensor, *, held: Rows | None, W: torch.Tensor | None = None
    ) -> Sweeps:
        """Begin a descent from components, and from weights where they are given."""
        raise NotImplementedError

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

    def latest_shapes(self, dtype: torch.dtype) -> torch.Tensor | npt.NDArray[Any]:
        """Give the components as results have them, perhaps still on their way from the device."""
        return self.factors.rounded(dtype)

    @property
    def sampled(self) -> bool:
        """Whether there are so many rows that a search goes over some of them."""
        return self.X.n_blocks > 1

    @property
    def growth(self) -> float:
        """Growth of the data that makes it worth following the fit anew beside events."""
        return ELSEWHERE_GROWTH

    # --- events ----------------------------------------------------------------------------

    def follow(self) -> bool:
        """Take new rows in at a bounded cost; tell whether all weights are exact then."""
        factors, work = self.factors, self.X.n_features * self.factors.n_components
        self.search.settled = False
        first, n = len(factors), len(self.X)
        watched = self._jumps.watched
        before = factors.squared.sum(0, first) if watched else 0.0
        few = n * work <= self.all_rows
        if few:
            factors.follow()
            self._wake(0)
            self._alternate(n, max(1, min(self.rounds, self.all_rows // (n * work))))
        else:
            self._take_in()
            revised = _WINDOW_WORK // _BESIDE_SEARCH if self.search.alarm.on else _WINDOW_WORK
            self._revise(max(1, revised // work), first)
        if watched:
            self._jumps.follow(first, before)
        if self._searches(first) and self.search.due(factors.unexplained(first, n)):
            self.search.step()
        return few

    def _searches(self, first: int) -> bool:
        """Whether a search may go with an event that has brought rows from ``first`` on."""
        return first < len(self.factors) and self.sampled and bool(self.rules.free)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Give what is needed to go on later, as plain arrays."""
        return self.factors.state()

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `state` gave."""
        self.factors.restore(state)

    def refresh(self) -> None:
        """Solve for the weights of all rows."""
        self.factors.resolve(0, len(self.factors))

    def _take_in(self) -> None:
        """Take new rows in, descend, and solve for the new rows anew."""
        first = self.factors.follow()
        self._wake(first)
        self._descend_bounded()
        self.factors.resolve(first, len(self.factors))

    def _alternate(self, n: int, rounds: int) -> None:
        """Descend, and solve for all ``n`` rows, so many times, or until that gains nothing."""
        factors = self.factors
        for _ in range(rounds):
            before = factors.objective
            factors.descend(self.passes[0])
            factors.resolve(0, n)
            if factors.objective >= (1 - _STANDING) * before:
                break

    def _revise(self, count: int, n: int) -> None:
        """Solve anew for the next of the first ``n`` rows, those that are not new."""
        start, stop = self._cursor, min(n, self._cursor + count)
        # On from the end there would be, event after event, the row that has just come.
        self._cursor = stop if stop < n else 0
        self.factors.resolve(start, stop)

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

    # --- the end ---------------------------------------------------------------------------

    def converge(self) -> bool:
        """Fit to convergence, also from starts that depend on the data alone; tell whether."""
        self.search.drop()
        self.refresh()
        return not self.rules.free or self._converge()

    def _converge(self) -> bool:
        H, W = self.factors.H, self.factors.W.tensor()
        # Many sweeps over many rows, or over few.
        draws = self.few_draws if self.sampled else self.draws
        starts = self.starts(self.X, H, draws=draws)
        trials = (self.begin(start) for start in starts if start is not None)
        best = self.best_end(trials, ((self.trial_sweeps, FINALISTS),))
        own = self.begin(H, W=W).descend(max_sweeps=MAX_SWEEPS, tol=self.tol)
        if own.objective < (1 - MARGIN) * best.objective:
            best = own
        best = self.bettered(best, self.X, self.begin)
        self.take(self.challenger(best.H), anyway=True)
        return best.converged

    def best_end(self, trials: Iterable[Sweeps], cuts: Cuts, *, most: int = MAX_SWEEPS) -> Descent:
        """Sweep from each start, keep the best at each cut, and follow those that are left."""
        for sweeps, count in cuts:
            swept = (_swept(trial, sweeps) for trial in trials)
            # One after the other: all of them would take memory.
            trials = heapq.nsmallest(count, swept, key=lambda trial: trial.curve[-1])
        ends = (trial.descend(max_sweeps=most, tol=self.tol) for trial in trials)
        return min(ends, key=lambda end: end.objective)

    @property
    def cuts(self) -> Cuts:
        """When starts beside a fit are compared."""
        few = self.trial_sweeps
        return (few, 6), (2 * few, 3), (5 * few, 1)

    def bettered(
        self,
        end: Descent,
        X: Data,
        begin: Callable[[torch.Tensor], Sweeps],
        *,
        most: int = MAX_SWEEPS,
    ) -> Descent:
        """Go on from where descents over X end as long as a start beside it leads further down.

        That is iterated local search (Lourenço, Martin and Stützle, 2003): what is wrong with an
        end is most often one component, which two phases share while another two share one.
        """
        for _ in range(_ROUNDS_BESIDE):
            starts = self.beside(X, end.H)
            trials = (begin(start) for start in starts if start is not None)
            found = self.best_end(trials, self.cuts, most=most)
            if found.objective >= (1 - MARGIN) * end.objective:
                break
            end = found
        return end

    def descend(self, *, tol: float = TOL) -> None:
        """Go on from where the fit stands, and from nowhere else, to a tolerance."""
        H, W = self.factors.H, self.factors.W.tensor()
        end = self.begin(H, W=W).descend(max_sweeps=MAX_SWEEPS, tol=tol)
        self.take(self.challenger(end.H))

    # --- what a search needs ---------------------------------------------------------------

    def starts(self, X: Data, H: torch.Tensor, *, draws: int) -> Iterator[torch.Tensor | None]:
        """Yield components to start from that depend on the data alone, None between steps.

        With fewer draws they are the first of those with more.
        """
        return data_seeds(X, H, self.rules.free, draws=draws, seed=self.seed)

    def beside(self, X: Data, H: torch.Tensor) -> Iterator[torch.Tensor | None]:
        """Yield components beside those of a fit to X, None between steps."""
        return seeds_beside(X, H, self.rules.free)

    def begin(self, H: torch.Tensor, *, W: torch.Tensor | None = None) -> Sweeps:
        """Begin a descent over all rows."""
        return self.sweeps(self.X, H, W=W, held=self.held)

    def begun(
        self, X: Data, H: torch.Tensor, *, held: Rows | None
    ) -> Generator[None, None, Sweeps]:
        """Begin a descent over some rows, in small steps."""
        yield from ()
        return self.sweeps(X, H, held=held)

    def some(self, rows: torch.Tensor, *, work: Callable[[], int]) -> Generator[None, None, Data]:
        """Give some rows, by number, as sweeps see them, in steps of ``work`` multiply-adds."""
        sample = blocks_on(self.X.n_features, dtype=self.X.dtype, device=self.X.device)
        while len(sample) < len(rows):
            count = max(1, work() // (_COPIED * self.X.n_features))
            sample.append(self.X.take(rows[len(sample) : len(sample) + count]))
            yield None
        return sample

    @property
    def weighs_rows(self) -> bool:
        """Whether rows of a sample can count for what they stand for."""
        return False

    def weighted(self, data: Data, weights: torch.Tensor) -> Data:
        """Let rows of a sample count as often as ``weights`` (M,) say."""
        raise NotImplementedError

    def held_of(self, rows: torch.Tensor) -> Rows | None:
        """Copy the weights that are held of some rows, by number."""
        if self.held is None:
            return None
        some = Rows(self.factors.n_components, device=self.X.device)
        some.replace(self.held.tensor()[rows])
        return some

    def matched(self, H: torch.Tensor) -> torch.Tensor:
        """Give other components with the free ones in the order of those that stand."""
        return H[match_components(H, self.factors.H, self.rules.interchangeable)]

    def new_challenger(self, H: torch.Tensor) -> Factorization:
        """Begin factors from other components, with no rows yet."""
        return self._factors(self.X, H, self.held)

    def challenger(self, H: torch.Tensor) -> Factorization:
        """Give factors with other components, and weights for all rows.

        The free components get the names that they had.
        """
        challenger = self.new_challenger(self.matched(H))
        challenger.follow()
        return challenger

    def settle(self, challenger: Factorization) -> None:
        """Descend from where a challenger has taken all rows in."""
        challenger.descend(self.passes[0])

    def take(self, challenger: Factorization, *, anyway: bool = False) -> bool:
        """Adopt factors whose objective is lower, ``anyway`` also where it is much the same."""
        bar = (1 + MARGIN) * self.objective if anyway else self.objective
        if challenger.objective >= bar > 0:
            return False
        self.factors = challenger
        return True


def _swept(trial: Sweeps, count: int) -> Sweeps:
    trial.descend(max_sweeps=count, tol=0.0)
    return trial
