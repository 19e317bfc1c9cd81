"""An event on fixed buffers, without a word to the host."""

import torch

from .eventtables import EventBuffers, Tables, tables_for
from .factors import Factors
from .recording import Descent, Recording, descent_for

__all__ = ["GraphedEvent"]

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
    descent : callable, optional
        Coordinate descent; by default that for the device.
    tables : Tables, optional
        Where rows come from; by default those for the device.
    """

    def __init__(
        self,
        factors: Factors,
        window: int,
        *,
        descent: Descent | None = None,
        tables: Tables | None = None,
    ) -> None:
        self.factors = factors
        device, K = factors.H.device, len(factors.H)
        self._descent = descent_for(device) if descent is None else descent
        self._every = torch.ones(K, dtype=torch.int32, device=device)
        self._free = torch.zeros(K, dtype=torch.int32, device=device)
        self._free[list(factors.rules.free)] = 1
        self._buffers = EventBuffers.of(window + 1, factors.H)
        self._tables = tables_for(factors, self._buffers) if tables is None else tables
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
        cross = (factors.B * factors.H).sum()
        gram = (factors.A * factors.G).sum()
        buffers.objective.copy_(buffers.half_norm - cross + 0.5 * gram)
        self._tables.put()

    def _solve(self, rows: slice) -> None:
        factors, buffers = self.factors, self._buffers
        X, Wt = buffers.X[rows], buffers.Wt[:, rows]
        C = factors.H @ X.T
        new = Wt.clone(memory_format=torch.contiguous_format)
        self._descent(new, factors.G, C, self._every, _ROW_PASSES)
        factors.A += new @ new.T - Wt @ Wt.T
        factors.B += (new - Wt) @ X
        squared = buffers.norms[rows] - 2.0 * (new * C).sum(0) + ((factors.G @ new) * new).sum(0)
        buffers.squared[rows] = squared.clamp_min(0)
        Wt.copy_(new)
