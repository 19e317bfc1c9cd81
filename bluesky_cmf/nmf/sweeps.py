"""Alternating sweeps over all rows, extrapolated, to a tolerance or a deadline."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .blocks import Blocks
from .updates import coordinate_descent, nnls

__all__ = ["Descent", "descend", "exact_weights", "residuals"]

#: Coordinate-descent passes for each Gram matrix: the products with X cost more than the passes.
_PASSES = 8
#: Sweeps over which the decrease is judged.
_WINDOW = 20
#: Decrease that is lost beside ½‖X‖²: data without noise are never explained to the last bit.
_LOST = 1e-9

# Extrapolation of Ang and Gillis, Neural Computation 31, 417 (2019), arXiv 1805.06604: step,
# its growth and that of its bound after a good sweep, its shrinking after a bad one.
_STEP, _GROWTH, _BOUND_GROWTH, _SHRINK = 0.5, 1.05, 1.01, 1.5


@dataclass(frozen=True)
class Descent:
    """Where a descent arrived: W (N, K), H (K, F), the objective there, and why it ended."""

    W: torch.Tensor
    H: torch.Tensor
    objective: float
    converged: bool
    sweeps: int


def exact_weights(
    X: Blocks, H: torch.Tensor, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    """Solve for the weights (M, K) of the rows of X from ``start`` to ``stop``, given H (K, F)."""
    return nnls(X.times(H, start, stop), H @ H.T)


def residuals(
    X: Blocks, W: torch.Tensor, H: torch.Tensor, start: int = 0, stop: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared residual and squared norm of the rows from ``start`` to ``stop``, (M,) each.

    ``W`` holds the weights of these rows alone. The residual is formed and squared, since the
    difference of Gram matrices would lose it to rounding.
    """
    squared, norms = [], []
    for first, rows in X.chunks(start, stop):
        weights = W[first - start : first - start + len(rows)]
        squared.append(torch.addmm(rows, weights, H, alpha=-1.0).square_().sum(1))
        norms.append(torch.einsum("ij,ij->i", rows, rows))
    empty = W.new_zeros(0)
    return torch.cat([empty, *squared]), torch.cat([empty, *norms])


def descend(
    X: Blocks,
    W: torch.Tensor,
    H: torch.Tensor,
    *,
    free: Sequence[int],
    max_sweeps: int,
    tol: float,
    deadline: float = math.inf,
) -> Descent:
    """Lower ½‖X - WH‖² by extrapolated alternating sweeps that end with exact weights.

    Parameters
    ----------
    X : Blocks
        N rows of F points.
    W, H : Tensor (N, K), (K, F)
        Where to start, in float64; they are not changed.
    free : sequence of int
        Components that may change.
    max_sweeps : int
        Most sweeps.
    tol : float
        Decrease over 20 sweeps, relative to the objective, below which the descent has
        converged; so it has where the decrease is lost beside ½‖X‖² (a billionth of it).
    deadline : float
        Time on `time.perf_counter` after which no further sweep is begun.

    Returns
    -------
    Descent
        Never above the objective of (W, H).
    """
    if not free or not len(X):
        W = exact_weights(X, H)
        return Descent(W, H, _objective(X, W, H), True, 0)
    state = _Extrapolation(W, H, _objective(X, W, H))
    marks = [state.objective]
    lost = _LOST * _objective(X, torch.zeros_like(W), H)
    converged = False
    sweep = 0
    while sweep < max_sweeps and time.perf_counter() < deadline and not converged:
        sweep += 1
        state.sweep(X, free)
        marks.append(state.objective)
        if sweep >= _WINDOW:
            before = marks[-1 - _WINDOW]
            converged = before - marks[-1] <= max(tol * before, lost)
    W = exact_weights(X, state.H)
    return Descent(W, state.H, _objective(X, W, state.H), converged, sweep)


class _Extrapolation:
    """The best factors so far, and the extrapolated ones that the next sweep starts from."""

    def __init__(self, W: torch.Tensor, H: torch.Tensor, objective: float) -> None:
        self.W, self.H, self.objective = W, H, objective
        self._ahead = (W, H)
        self._step, self._bound = _STEP, 1.0

    def sweep(self, X: Blocks, free: Sequence[int]) -> None:
        """Do one sweep; keep it where it lowers the objective, else start again without it."""
        ahead_W, ahead_H = self._ahead
        every = range(len(self.H))
        C = X.times(ahead_H).T.contiguous()
        W = coordinate_descent(
            ahead_W.T.contiguous(), ahead_H @ ahead_H.T, C, free=every, passes=_PASSES
        ).T.contiguous()
        ahead_W = W + self._step * (W - self.W)
        B = X.transposed_times(ahead_W)
        H = coordinate_descent(ahead_H, ahead_W.T @ ahead_W, B, free=free, passes=_PASSES)
        objective = _objective(X, W, H)
        if not objective <= self.objective:
            self._ahead = (self.W, self.H)
            self._bound, self._step = self._step, self._step / _SHRINK
            return
        self._ahead = (ahead_W, (H + self._step * (H - self.H)).clamp_(min=0))
        self.W, self.H, self.objective = W, H, objective
        self._step = min(self._bound, _GROWTH * self._step)
        self._bound = min(1.0, _BOUND_GROWTH * self._bound)


def _objective(X: Blocks, W: torch.Tensor, H: torch.Tensor) -> float:
    total = sum(
        torch.addmm(rows, W[first : first + len(rows)], H, alpha=-1.0).square_().sum()
        for first, rows in X.chunks()
    )
    return 0.5 * float(total)
