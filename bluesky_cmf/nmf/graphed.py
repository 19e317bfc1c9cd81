"""An event on fixed buffers, without a word to the host."""

from typing import Any

import torch

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
    """

    def __init__(self, factors: Factors, window: int, *, descent: Descent | None = None) -> None:
        self.factors = factors
        H, rules = factors.H, factors.rules
        (K, F), device = H.shape, H.device
        self._descent = descent_for(device) if descent is None else descent
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self._every = torch.ones(K, dtype=torch.int32, device=device)
        self._free = torch.zeros(K, dtype=torch.int32, device=device)
        self._free[list(rules.free)] = 1
        # The older rows come first, the new one last.
        self._rows = torch.zeros(window + 1, F, **options)
        self._norms = torch.zeros(window + 1, **options)
        self._W = torch.zeros(window + 1, K, **options)
        self._squared = torch.zeros(window + 1, **options)
        self._half_norm = torch.zeros((), **options)
        self.objective = torch.zeros((), **options)
        self._run = Recording(self._step, (H, factors.G, factors.A, factors.B, self._W))

    @property
    def window(self) -> int:
        """Older rows at an event."""
        return len(self._rows) - 1

    def __call__(self, start: int) -> None:
        """Take in the newest row of X, and solve anew for those from ``start`` on."""
        factors, X = self.factors, self.factors.X
        n = len(factors)
        factors.W.extend(1)
        factors.squared.extend(1)
        for first, last, at in ((start, start + self.window, 0), (n, n + 1, self.window)):
            for begin, piece in X.pieces(first, last):
                place = slice(at + begin - first, at + begin - first + len(piece))
                self._rows[place].copy_(piece, non_blocking=True)
        self._copy(start, n, write=False)
        self._half_norm.fill_(X.half_norm - factors.held_cross)
        self._run()
        self._copy(start, n, write=True)

    def _copy(self, start: int, n: int, *, write: bool) -> None:
        """Copy weights and what belongs to them between the tables and the buffers."""
        factors = self.factors
        for first, last, at in ((start, start + self.window, 0), (n, n + 1, self.window)):
            for begin, end in factors.W.spans(first, last):
                place = slice(at + begin - first, at + end - first)
                if write:
                    factors.W.view(begin, end).copy_(self._W[place])
                    factors.squared.view(begin, end)[:, 0].copy_(self._squared[place])
                else:
                    self._W[place].copy_(factors.W.view(begin, end))
                    self._norms[place].copy_(factors.X.norms[begin:end])

    def _step(self) -> None:
        """Do the event; on CUDA every line is recorded once and replayed ever after."""
        factors = self.factors
        self._solve(slice(self.window, self.window + 1))
        self._descent(factors.H, factors.A, factors.B, self._free, _COMPONENT_PASSES)
        torch.mm(factors.H, factors.H.T, out=factors.G)
        self._solve(slice(0, self.window + 1))
        cross = (factors.B * factors.H).sum()
        self.objective.copy_(self._half_norm - cross + 0.5 * (factors.A * factors.G).sum())

    def _solve(self, rows: slice) -> None:
        factors, X, W = self.factors, self._rows[rows], self._W[rows]
        C = X @ factors.H.T
        new = W.clone()
        self._descent(new.T, factors.G, C.T, self._every, _ROW_PASSES)
        factors.A += new.T @ new - W.T @ W
        factors.B += (new - W).T @ X
        squared = self._norms[rows] - 2.0 * (new * C).sum(1) + ((new @ factors.G) * new).sum(1)
        self._squared[rows] = squared.clamp_min(0)
        W.copy_(new)
