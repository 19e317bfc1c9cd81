"""The least-squares loss with strained components: sweeps that fit strains, seeds without them."""

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import cast
from weakref import WeakKeyDictionary

import torch

from .blocks import Blocks
from .exploring import MARGIN, MAX_SWEEPS
from .families import Family, Tables
from .fit import TOL, Fit
from .rows import Rows
from .rules import Rules
from .search import FINALISTS
from .steps import finished
from .strainedfactors import StrainedFactors
from .strainedrows import Seen
from .sweeps import LOST, PASSES, Data, Pace, Sweeps

__all__ = ["StrainedFit", "StrainedSweeps", "Unstrained"]

#: Rows up to which starts are compared on all of them.
_ALL_ROWS = 400
#: Rows that starts are compared on at the end, where there are more, and sweeps that tell.
_SAMPLE, _TRIAL_SWEEPS = 128, 30
#: Rows that are brought back at a time.
_CHUNK = 256


class StrainedSweeps(Sweeps):
    """Exact weights and strains, and extrapolated passes over the free components, in turn.

    Parameters
    ----------
    factors : StrainedFactors
        Where to start; they are changed in place.
    """

    def __init__(self, factors: StrainedFactors) -> None:
        self.factors, self.H = factors, factors.H
        self.lost = LOST * factors.X.half_norm
        factors.follow()
        self.curve = [factors.objective]
        self._pace = Pace()
        self._before = self._free()

    @property
    def weights(self) -> torch.Tensor:
        """The best weights so far, (N, K)."""
        return self.factors.W.tensor()

    def _sweep_on(self, count: int) -> None:
        for _ in range(count):
            self._sweep()

    def _sweep(self) -> None:
        factors, n = self.factors, len(self.factors)
        factors.descend(PASSES[1])
        new = self._free()
        factors.put((new + self._pace.step * (new - self._before)).clamp_min(0))
        factors.resolve(0, n)
        if factors.objective <= self.curve[-1]:
            self._pace.good()
        else:
            # Without a lead it cannot rise.
            factors.put(new)
            factors.resolve(0, n)
            self._pace.bad()
        self._before = new
        self.curve.append(min(self.curve[-1], factors.objective))

    def _free(self) -> torch.Tensor:
        return self.factors.H[self.factors.tables.free].clone()


class Unstrained:
    """Rows of X as they were without strain: what seeds are taken from.

    Parameters
    ----------
    X : Blocks
        The data.
    tables : Tables
        The held components.
    H : Tensor (K, F)
        The components, those that are strained without strain.
    W, strains : Tensor (N, S)
        Weights of the strained components, and strains.
    """

    def __init__(
        self, X: Blocks, tables: Tables, H: torch.Tensor, W: torch.Tensor, strains: torch.Tensor
    ) -> None:
        self._X, self._tables, self._shapes = X, tables, H[tables.strained]
        self._W, self._strains = W, strains
        self.device = X.device
        squares = [rows.square().sum(1) for _, rows in self._chunks()]
        self.norms = torch.cat([X.norms.new_zeros(0), *squares])
        self.half_norm = 0.5 * float(self.norms.sum())

    def __len__(self) -> int:
        return len(self._W)

    def times(self, H: torch.Tensor) -> torch.Tensor:
        """XHᵀ, (N, K)."""
        return torch.cat([H.new_zeros(0, len(H)), *(rows @ H.T for _, rows in self._chunks())])

    def transposed_times(self, W: torch.Tensor) -> torch.Tensor:
        """WᵀX, (K, F)."""
        product = W.new_zeros(W.shape[1], self._X.n_features)
        for first, rows in self._chunks():
            product += W[first : first + len(rows)].T @ rows
        return product

    def row(self, index: int) -> torch.Tensor:
        """One row, (F,), not negative."""
        return self._brought_back(self._X.row(index)[None], index)[0].clamp_min(0)

    def fused(self) -> None:
        """Give no matrix: it is never in one piece."""

    def _chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        for first, rows in self._X.chunks(0, len(self)):
            for begin in range(0, len(rows), _CHUNK):
                part = rows[begin : begin + _CHUNK]
                yield first + begin, self._brought_back(part, first + begin)

    def _brought_back(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        last, S = first + len(rows), len(self._tables.strained)
        W = self._W[first:last]
        index, value, _ = (part[:, :S] for part in self._tables.places(self._strains[first:last]))
        shares = W.new_zeros(len(W), len(self._tables.rows))
        shares.scatter_add_(1, index.flatten(1), (W[:, :, None] * value).flatten(1))
        return rows - shares @ self._tables.rows + W @ self._shapes


class StrainedFit(Fit):
    """Factors with strained components that lower ½‖X - Σ wₖ hₖ(ε)‖² as rows arrive.

    Parameters
    ----------
    X, H, rules, seed, held
        As those of `Fit`.
    families : mapping of int to Family
        The components that are strained, by number; they are held.
    strains : sequence of Tensor (n,), optional
        Strains that are known of the first rows, one component after the other; None where not.
    """

    factors: StrainedFactors

    all_rows, rounds = 1_500_000, 2
    passes = (8, 2)
    # A step of the search that goes with an event must not cost more than the event.
    sample, trial_sweeps = 64, 15

    def __init__(
        self,
        X: Blocks,
        H: torch.Tensor,
        rules: Rules,
        *,
        seed: int,
        held: Rows | None = None,
        families: Mapping[int, Family],
        strains: Sequence[torch.Tensor | None] = (),
    ) -> None:
        self.tables = Tables(H, rules.free, dict(families))
        self._seen = Seen(self.tables, device=X.device)
        #: Of copies of some rows that a search goes over: products, weights and strains.
        self._sampled: WeakKeyDictionary[Data, tuple[Seen, torch.Tensor, torch.Tensor]] = (
            WeakKeyDictionary()
        )
        known = [column for column in strains if column is not None]
        self._known = torch.stack(known, 1) if len(known) == len(families) else None
        super().__init__(X, H, rules, seed=seed, held=held)

    def converge(self) -> bool:
        """Fit to convergence, also from starts that depend on the data alone; tell whether."""
        self.search.drop()
        self.refresh()
        self.factors.settle()
        if not self.rules.free:
            return True
        converged = self._converge()
        self.factors.settle()
        return converged

    def _converge(self) -> bool:
        if len(self.X) <= _ALL_ROWS:
            return super()._converge()
        # Starts are compared on some rows; what the best of them led to, on all.
        n, H = len(self.factors), self.factors.H
        rows = torch.unique(torch.linspace(0, n - 1, _SAMPLE).long())
        sample = finished(self.some(rows, work=lambda: sys.maxsize))
        held = self.held_of(rows)
        starts = self.starts(sample, H, draws=self.draws)
        trials = (self.sweeps(sample, start, held=held) for start in starts if start is not None)
        end = self.best_end(trials, ((_TRIAL_SWEEPS, FINALISTS),))
        found = self.begin(end.H)
        own = self.begin(H)
        for descent in (found, own):
            descent.descend(max_sweeps=_TRIAL_SWEEPS, tol=TOL)
        ahead = own.curve[-1] < (1 - MARGIN) * found.curve[-1]
        best = (own if ahead else found).descend(max_sweeps=MAX_SWEEPS, tol=TOL)
        self.take(self.challenger(best.H), anyway=True)
        return best.converged

    def _factors(self, X: Blocks, H: torch.Tensor, held: Rows | None) -> StrainedFactors:
        standing = getattr(self, "factors", None)
        return StrainedFactors(
            X,
            H,
            self.rules,
            tables=self.tables,
            seen=self._seen,
            held=held,
            like=self._known if standing is None else standing.strains.tensor(),
            anchors=None if standing is None else standing.anchors,
        )

    def sweeps(
        self, X: Data, H: torch.Tensor, *, held: Rows | None, W: torch.Tensor | None = None
    ) -> Sweeps:
        """Begin a descent from components, and from weights where they are given."""
        blocks = cast(Blocks, X)
        if blocks not in self._sampled:
            return StrainedSweeps(self._factors(blocks, H, held))
        seen, _, strains = self._sampled[blocks]
        return StrainedSweeps(
            StrainedFactors(
                blocks, H, self.rules, tables=self.tables, seen=seen, held=held, like=strains
            )
        )

    def starts(self, X: Data, H: torch.Tensor, *, draws: int) -> Iterator[torch.Tensor | None]:
        """Seed from the data as they were without strain, as far as it is known."""
        return super().starts(self._unstrained(X, H), H, draws=draws)

    def beside(self, X: Data, H: torch.Tensor) -> Iterator[torch.Tensor | None]:
        """Yield components beside those of a fit, from the data as they were without strain."""
        return super().beside(self._unstrained(X, H), H)

    def _unstrained(self, X: Data, H: torch.Tensor) -> "Unstrained":
        if X not in self._sampled:
            n = len(self.factors)
            W, strains = self.factors.W.tensor()[:n], self.factors.strains.tensor()
            W = W[:, self.tables.strained]
        else:
            _, W, strains = self._sampled[X]
        return Unstrained(cast(Blocks, X), self.tables, H, W, strains)

    def some(self, rows: torch.Tensor, *, work: Callable[[], int]) -> Generator[None, None, Data]:
        """Copy some rows, by number, and note their strains, which sweeps over them start from."""
        sample = yield from super().some(rows, work=work)
        factors = self.factors
        self._sampled[sample] = (
            Seen(self.tables, device=self.X.device),
            factors.W.tensor()[rows][:, self.tables.strained],
            factors.strains.tensor()[rows],
        )
        return sample

    def _descend_bounded(self) -> None:
        # The statistics stand for all rows.
        self.factors.descend(self.passes[1])
