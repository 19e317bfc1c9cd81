"""Go further than an event goes, where patterns jump while rows are few."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from .seeds import as_shape

if TYPE_CHECKING:
    from .fit import Fit

__all__ = ["Jumps"]

#: How many times more than others a new row adds to what is left in a jump; how that grows where
#: going further gains less than a part of the objective.
_JUMP, _GROWTH, _GAIN = 2.0, 1.25, 0.1
#: Part of the data that is as good as nothing.
_NOTHING = 1e-6
#: Most sweeps, and the relative decrease over 20 that ends them.
_SWEEPS, _TOL = 100, 1e-3
#: Part of these sweeps, one in so many, after which other ways are compared.
_TRIAL = 10


class Jumps:
    """What an event does beyond its rounds, where new rows add far more to what is left.

    Parameters
    ----------
    fit : Fit
        What is to follow the rows; its ``jump_work`` bounds what is done.
    """

    def __init__(self, fit: "Fit") -> None:
        self._fit = fit
        #: Whether rows have come that the fit has not found its way to yet; what is a jump now.
        self._behind, self._jump = False, _JUMP

    @property
    def watched(self) -> bool:
        """Whether an event may go further."""
        fit = self._fit
        return fit.jump_work > 0 and not fit.sampled and bool(fit.rules.free)

    def follow(self, first: int, before: float) -> None:
        """Go further where rows from ``first`` on have jumped.

        Parameters
        ----------
        first : int
            The first of the new rows.
        before : float
            Squared residuals of the rows before it, together, when these were all.
        """
        if self._behind or self._jumped(first, before):
            self._go_further()

    def _jumped(self, first: int, before: float) -> bool:
        factors = self._fit.factors
        n = len(factors)
        if not 0 < first < n:
            return False
        usual = before * (n - first) / first
        nothing = 2 * _NOTHING * self._fit.X.half_norm
        return factors.squared.sum(0, n) - before > max(self._jump * usual, nothing)

    def _go_further(self) -> None:
        """Sweep over all rows, as far as an event may; where that is not enough, the next goes."""
        fit = self._fit
        factors, n, before = fit.factors, len(fit.factors), fit.objective
        work = n * fit.X.n_features * factors.n_components
        sweeps = min(_SWEEPS, max(1, fit.jump_work // work))
        ways = [fit.begin(factors.H, W=factors.W.tensor())]
        if not self._behind:
            # The newest row in the place of the component that gives way best.
            others = [fit.begin(start) for start in self._replaced(fit.X.row(n - 1))]
            for other in others:
                other.descend(max_sweeps=sweeps // _TRIAL, tol=0.0)
            ways += sorted(others, key=lambda other: other.curve[-1])[:1]
        ends = [way.descend(max_sweeps=sweeps, tol=_TOL) for way in ways]
        end = min(ends, key=lambda end: end.objective)
        # Minima may lie elsewhere now.
        fit.search.drop()
        self._behind = fit.take(fit.challenger(end.H)) and not end.converged
        gained = fit.objective < (1 - _GAIN) * before
        # Rows that are merely brighter are no jumps.
        self._jump = _JUMP if gained else _GROWTH * self._jump

    def _replaced(self, pattern: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the components with a pattern (F,) in the place of each of the free ones."""
        shape = as_shape(pattern)
        if shape is None:
            return
        for k in self._fit.rules.free:
            H = self._fit.factors.H.clone()
            H[k] = shape
            yield H
