"""An event on fixed buffers, without a word to the host."""

from collections.abc import Callable

import torch

from .eventtables import EventBuffers, Tables, tables_for
from .factors import Factors
from .recording import Recording, descent_for, reference

__all__ = ["GraphedEvent", "settle"]

#: Passes over the weights, which start from where they were, and over the components.
_ROW_PASSES, _COMPONENT_PASSES = 48, 2


class GraphedEvent:
    """What a bounded event does, on buffers that never move.

    A new row gets its weights, the components descend, some older rows and the new one are solved
    anew, and WᵀW, WᵀX and the objective follow: what `Fit.follow` does, with weights by coordinate
    descent from where they were in the place of exact ones.

    Parameters
    ----------
    factors : Factors
        Their H, G, A and B are worked on in place. Nothing is asked of the weights but not to be
        negative, and there is no penalty.
    window : int
        Older rows at an event.
    tables : callable, optional
        Gives where rows come from, for factors and buffers; by default those for the device.
    """

    def __init__(
        self,
        factors: Factors,
        window: int,
        *,
        tables: Callable[[Factors, EventBuffers], Tables] = tables_for,
    ) -> None:
        self.factors = factors
        device, K = factors.H.device, len(factors.H)
        self._descent = descent_for(device)
        self._settle: Callable[..., None] = settle
        if device.type == "cuda":
            from .kernels import cudaevent

            self._settle = cudaevent.settle
        self._every = torch.ones(K, dtype=torch.int32, device=device)
        self._free = torch.zeros(K, dtype=torch.int32, device=device)
        self._free[list(factors.rules.free)] = 1
        self._buffers = EventBuffers.of(window + 1, factors.H)
        self._tables = tables(factors, self._buffers)
        self._run: Recording | None = None

    @property
    def objective(self) -> torch.Tensor:
        """The objective as of the latest event, perhaps still on its way from the device."""
        return self._tables.objective

    @property
    def shapes(self) -> torch.Tensor:
        """The components as of the latest event, as results give them."""
        return self._tables.shapes

    @property
    def window(self) -> int:
        """Older rows at an event."""
        return len(self._buffers.X) - 1

    def __call__(self, start: int) -> None:
        """Take in the newest row of X, and solve anew for those from ``start`` on."""
        factors = self.factors
        n = len(factors)
        factors.W.extend(1)
        factors.squared.extend(1)
        if self._run is None:
            # To record a step is to take it: what it writes to is then replaced.
            factors.W.frozen()
            factors.squared.frozen()
        self._tables.begin(start, n)
        if self._run is None:
            self._run = Recording(self._step, (factors.H, factors.G, factors.A, factors.B))
        self._run()
        self._tables.end()

    def _step(self) -> None:
        """Do the event; on CUDA every line is recorded once and replayed ever after."""
        factors, buffers = self.factors, self._buffers
        self._tables.take()
        self._solve(slice(self.window, self.window + 1))
        self._descent(factors.H, factors.A, factors.B, self._free, _COMPONENT_PASSES)
        torch.mm(factors.H, factors.H.T, out=factors.G)
        self._solve(slice(0, self.window + 1))
        cross = torch.dot(factors.B.view(-1), factors.H.view(-1))
        gram = torch.dot(factors.A.view(-1), factors.G.view(-1))
        buffers.objective.copy_(torch.add(buffers.half_norm - cross, gram, alpha=0.5))
        self._tables.put()

    def _solve(self, rows: slice) -> None:
        factors, buffers = self.factors, self._buffers
        torch.mm(factors.H, buffers.X.T, out=buffers.C)
        self._settle(buffers, factors.G, factors.A, self._every, rows, _ROW_PASSES)
        factors.B.addmm_(buffers.change[:, rows], buffers.X[rows])


def settle(
    buffers: EventBuffers,
    G: torch.Tensor,
    A: torch.Tensor,
    every: torch.Tensor,
    rows: slice,
    passes: int,
) -> None:
    """Solve for the weights of some rows, in place, and account for it.

    Parameters
    ----------
    buffers : EventBuffers
        With XHᵀ. Weights, how they change and what is left of the rows are written to it.
    G, A : Tensor (K, K)
        HHᵀ, and WᵀW, which follows.
    every : Tensor (K,) of int32
        Ones.
    rows : slice
        Which of the M rows.
    passes : int
        Coordinate-descent passes, at most.
    """
    before, c = buffers.Wt[:, rows].clone(), buffers.C[:, rows]
    new = before.clone(memory_format=torch.contiguous_format)
    reference(new, G, c, every, passes)
    buffers.change[:, rows], buffers.Wt[:, rows] = new - before, new
    A += new @ new.T - before @ before.T
    left = buffers.norms[rows] - 2.0 * (new * c).sum(0) + ((G @ new) * new).sum(0)
    buffers.squared[rows] = left.clamp_min(0)
