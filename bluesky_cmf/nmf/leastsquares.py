"""The least-squares loss: factors with sufficient statistics, sweeps on compressed data."""

from collections.abc import Callable, Generator
from typing import Any, cast

import numpy.typing as npt
import torch

from .blocks import Blocks
from .compressed import Compressed, compress, compress_by_steps, directions, pays
from .deviceblocks import DeviceBlocks, blocks_on
from .devicesweeps import sweeps_on_device
from .exploring import MARGIN, MAX_SWEEPS
from .factorization import Factorization
from .factors import Factors
from .fit import TOL, Fit
from .graphed import GraphedEvent
from .heldproducts import HeldProducts
from .kernels import descends_on
from .recording import uses_graphs
from .rows import Rows
from .rules import Rules
from .search import FINALISTS
from .sweeps import (
    LOST,
    PASSES,
    WINDOW,
    Alternation,
    Data,
    Descent,
    Extrapolation,
    Sweeps,
    first_weights,
)

__all__ = ["LeastSquares"]

#: Sweeps of the best starts on a sample, at most; the tolerance where sweeps are cheap.
_FINAL_SWEEPS, _COMPRESSED_TOL = 200, 2e-6
#: How often the data are compressed around the end; sweeps over all of them that confirm it, and
#: that are made where they do not.
_COMPRESSIONS, _CONFIRMING, _LAST_SWEEPS = 20, 3, 200
#: Growth of the data that makes it worth following the fit anew beside events, on the host.
_GROWTH = 1.02
#: Fewest passes over components, and part of a step of a search, one in so many, that they take.
_FEW_PASSES, _PASSES_PART = 4, 4
#: Multiply-adds of one step of a search on a device, where launches cost more than they do.
_DEVICE_WORK = 100_000_000


class LeastSquares(Fit):
    """Factors that lower ½‖X - WH‖² as rows arrive."""

    factors: Factors

    draws, jump_work = 12, 40_000_000
    passes = (64, 2)
    step_work, idle_step_work, portion = 1_200_000, 6_000_000, 4

    #: Older rows that an event on a device solves anew, events from one look at it to the next, and
    #: from one step of a search to the next: with a look each.
    _window, _look_every, _step_every = 64, 64, 3

    def __init__(
        self, X: Blocks, H: torch.Tensor, rules: Rules, *, seed: int, held: Rows | None = None
    ) -> None:
        super().__init__(X, H, rules, seed=seed, held=held)
        self._graphed: GraphedEvent | None = None
        self._by_graph = self._shaped = False
        self._descends = descends_on(X.device, len(H)) is not None
        if uses_graphs(X.device):
            self.step_work, self.idle_step_work, self.portion = _DEVICE_WORK, _DEVICE_WORK, 1
            # What comes before sweeps takes longer than they do.
            self.jump_work = 0
        if rules.extrapolable and sweeps_on_device(X, len(H)):
            self.tol = _COMPRESSED_TOL

    @property
    def growth(self) -> float:
        """Growth of the data that makes it worth following the fit anew beside events."""
        # Other sweeps take longer than a step may.
        often = self.rules.extrapolable and not uses_graphs(self.X.device)
        return _GROWTH if often else super().growth

    def follow(self) -> bool:
        """Take new rows in at a bounded cost; tell whether all weights are exact then."""
        self._by_graph = self._graphable
        if not self._by_graph:
            exact = super().follow()
            self._shaped = uses_graphs(self.X.device) and not self.factors.shapeless()
            return exact
        self.search.settled = False
        if self._graphed is None or self._graphed.factors is not self.factors:
            self._graphed = GraphedEvent(self.factors, self._window)
        n, window = len(self.factors), self._window
        # Windows do not lie across the ends of blocks.
        start = self._cursor // window * window
        start = start if start + window <= n else 0
        self._cursor = start + window
        self._graphed(start)
        # A look waits for the device, and so does a step of a search.
        every = self._step_every if self.search.alarm.on else self._look_every
        if n % every == 0 and self._searches(n):
            if self.search.due(self.factors.unexplained(n, n + 1)):
                self.search.step()
            self._by_graph = self._graphed.factors is self.factors
        return False

    @property
    def latest_objective(self) -> float | torch.Tensor:
        """The objective, perhaps still on its way from the device."""
        if self._by_graph and self._graphed is not None:
            return self._graphed.objective
        return self.objective

    def latest_shapes(self, dtype: torch.dtype) -> torch.Tensor | npt.NDArray[Any]:
        """Give the components as results have them, perhaps still on their way from the device."""
        if self._by_graph and self._graphed is not None:
            return self._graphed.shapes
        return super().latest_shapes(dtype)

    @property
    def _graphable(self) -> bool:
        """Whether the next event can go as a graph: one row more, and nothing special."""
        factors, rules = self.factors, self.rules
        return (
            uses_graphs(self.X.device)
            and (self.X.device.type == "cpu" or self._descends)
            and rules.extrapolable
            and not rules.penalised
            and self._shaped
            and len(factors) > self._window
            and len(self.X) == len(factors) + 1
            and (not isinstance(self.X, DeviceBlocks) or self.X.tiled)
        )

    def _factors(self, X: Blocks, H: torch.Tensor, held: Rows | None) -> Factors:
        return Factors(X, H, self.rules, held=held, products=self._shared(X))

    def sweeps(
        self, X: Data, H: torch.Tensor, *, held: Rows | None, W: torch.Tensor | None = None
    ) -> Sweeps:
        """Begin a descent from components, and from weights where they are given."""
        if self.rules.extrapolable:
            return Extrapolation(X, H, self.rules, W=W)
        # Only what is extrapolable is ever compressed.
        products = self._shared(X)
        return Alternation(Factors(cast(Blocks, X), H, self.rules, held=held, products=products))

    def begun(
        self, X: Data, H: torch.Tensor, *, held: Rows | None
    ) -> Generator[None, None, Sweeps]:
        """Begin a descent over some rows, in small steps."""
        if not self.rules.extrapolable:
            return self.sweeps(X, H, held=held)
        # Events change the components that stand, between steps.
        H = H.clone()
        C = X.times(H)
        yield None
        W = first_weights(X.device, C, H, self.rules)
        yield None
        return Extrapolation(X, H, self.rules, W=W, C=C, most=self._step_passes)

    @property
    def _step_passes(self) -> int:
        """Passes over components, at most, in what is one step of a search."""
        work = max(1, len(self.rules.free) * self.factors.H.numel())
        return max(_FEW_PASSES, min(PASSES[1], self.step_work // (_PASSES_PART * work)))

    def _shared(self, X: Data) -> HeldProducts | None:
        """Give what factors that start elsewhere share with those that stand: what is held."""
        standing = getattr(self, "factors", None)
        return None if standing is None or standing.X is not X else standing.products

    def some(self, rows: torch.Tensor, *, work: Callable[[], int]) -> Generator[None, None, Data]:
        """Give some rows, by number, in a form that sweeps go over fast where there is one."""
        if not self.rules.extrapolable or not self._compresses(len(rows)):
            copied = yield from super().some(rows, work=work)
            return copied
        H, B = self.factors.H, self.factors.B
        compressed = yield from compress_by_steps(self.X, rows, H, B, work=work)
        return compressed

    def _compresses(self, n_rows: int) -> bool:
        """Whether sweeps over so many rows go faster where these are compressed."""
        on_device = sweeps_on_device(self.X, self.factors.n_components)
        return not on_device and pays(n_rows, self.X.n_features)

    @property
    def weighs_rows(self) -> bool:
        """Whether rows of a sample can count for what they stand for."""
        # They are multiplied by a factor, and so are their weights: nothing may be said of these.
        return self.rules.extrapolable and not self.rules.penalised

    def weighted(self, data: Data, weights: torch.Tensor) -> Data:
        """Let rows of a sample count as often as ``weights`` (M,) say."""
        factors = weights.sqrt().to(self.X.device)
        if isinstance(data, Compressed):
            return data.scaled(factors)
        rows = cast(Blocks, data).stored()
        scaled = blocks_on(self.X.n_features, dtype=self.X.dtype, device=self.X.device)
        scaled.append(rows * factors.to(rows.dtype)[:, None])
        return scaled

    def _take_in(self) -> None:
        if not self.factors.follow_one(self.passes[1]):
            super()._take_in()

    def _descend_bounded(self) -> None:
        # The statistics stand for all rows.
        self.factors.descend(self.passes[1])

    def settle(self, challenger: Factorization) -> None:
        """Descend from where a challenger has taken all rows in."""
        challenger.descend(self._step_passes)

    def _converge(self) -> bool:
        few = len(self.X) * self.factors.H.numel() <= self.all_rows
        large = self.sampled and not few and self._compresses(len(self.X))
        if not (large and self.rules.extrapolable):
            return super()._converge()
        data = self._all_compressed()
        sample = data.sample(torch.unique(torch.linspace(0, len(data) - 1, self.sample).long()))

        def begin(H: torch.Tensor) -> Sweeps:
            return Extrapolation(sample, H, self.rules)

        starts = self.starts(sample, self.factors.H, draws=self.draws)
        trials = (begin(start) for start in starts if start is not None)
        found = self.best_end(trials, ((self.trial_sweeps, FINALISTS),), most=_FINAL_SWEEPS)
        found = self.bettered(found, sample, begin, most=_FINAL_SWEEPS)
        best = self._end(data, found.H)
        # What the history has led to is followed only as far as it may win.
        own = Extrapolation(data, self.factors.H, self.rules, W=self.factors.W.tensor())
        own.descend(max_sweeps=2 * self.trial_sweeps, tol=_COMPRESSED_TOL)
        ahead = own.curve[-1] < (1 - MARGIN) * best.objective
        return self._polish(own.H if ahead else best.H) and self._confirmed()

    def descend(self, *, tol: float = TOL) -> None:
        """Go on from where the fit stands, and from nowhere else, to a tolerance."""
        if self.rules.extrapolable and self._compresses(len(self.X)):
            self._polish(self.factors.H)
        else:
            super().descend(tol=tol)

    def _polish(self, H: torch.Tensor) -> bool:
        """Sweep on what is compressed around the fit, until the exact objective stays."""
        self.take(self.challenger(H), anyway=True)
        for _ in range(_COMPRESSIONS):
            factors, before = self.factors, self.objective
            found = self._end(self._all_compressed(), factors.H, W=factors.W.tensor())
            self.take(self.challenger(found.H))
            if before - self.objective <= max(TOL * before, LOST * self.X.half_norm):
                return True
        return False

    def _confirmed(self) -> bool:
        """Sweep over the data themselves; go on where that leads further, and tell whether it ends.

        What few rows have of their own is in no basis.
        """
        factors = self.factors
        own = self.begin(factors.H, W=factors.W.tensor())
        own.sweep(_CONFIRMING)
        before, now = own.curve[0], own.curve[-1]
        if before - now <= max(TOL * before * _CONFIRMING / WINDOW, own.lost):
            return True
        end = own.descend(max_sweeps=_LAST_SWEEPS, tol=TOL)
        self.take(self.challenger(end.H))
        return end.converged

    def _all_compressed(self) -> Compressed:
        """All rows, compressed around the fit that stands."""
        return compress(self.X, directions(self.X, self.factors.H, self.factors.B))

    def _end(
        self,
        data: Compressed,
        H: torch.Tensor,
        *,
        W: torch.Tensor | None = None,
    ) -> Descent:
        state = Extrapolation(data, H, self.rules, W=W)
        return state.descend(max_sweeps=MAX_SWEEPS, tol=_COMPRESSED_TOL)
