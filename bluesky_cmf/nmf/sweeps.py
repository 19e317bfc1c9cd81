"""Alternating sweeps over all rows, extrapolated, to a tolerance or a deadline."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .blocks import Blocks
from .kernels import kernels_for
from .updates import coordinate_descent, nnls

__all__ = ["Descent", "Extrapolation", "descend", "exact_weights", "residuals"]

#: Coordinate-descent passes for each Gram matrix: the products with X cost more than the passes.
_PASSES = 8
#: Sweeps over which the decrease is judged.
_WINDOW = 20
#: Decrease that is lost beside ½‖X‖²: data without noise are never explained to the last bit.
_LOST = 1e-9
#: Part of ‖X‖² below which a residual is formed, and not taken from products, which round it.
_EXACT_BELOW = 1e-8
#: Seconds between two looks at the deadline, as long as it is this far away.
_LOOK = 0.005

# Extrapolation of Ang and Gillis, Neural Computation 31, 417 (2019), arXiv 1805.06604: step,
# its bound, the growth of both after a good sweep, and how the step shrinks after a bad one.
_PACE = (0.5, 1.0, 1.05, 1.01, 1.5)


@dataclass(frozen=True)
class Descent:
    """Where a descent arrived: W (N, K), H (K, F), what is left there, and why it ended.

    ``squared`` (N,) are the squared residuals of the rows, half of whose sum is ``objective``.
    """

    W: torch.Tensor
    H: torch.Tensor
    squared: torch.Tensor
    objective: float
    converged: bool
    sweeps: int


def exact_weights(
    X: Blocks, H: torch.Tensor, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    """Solve for the weights (M, K) of the rows of X from ``start`` to ``stop``, given H (K, F)."""
    return _solve(X, X.times(H, start, stop), H @ H.T)


def _solve(X: Blocks, C: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    kernels = kernels_for(X.device)
    if kernels is None:
        return nnls(C, G)
    return torch.from_numpy(kernels.nnls(C.numpy(), G.numpy()))


def residuals(
    X: Blocks, W: torch.Tensor, H: torch.Tensor, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    """Form the squared residuals of the rows from ``start`` to ``stop``, (M,).

    ``W`` holds the weights of these rows alone.
    """
    squared = []
    for first, rows in X.chunks(start, stop):
        weights = W[first - start : first - start + len(rows)]
        squared.append(torch.addmm(rows, weights, H, alpha=-1.0).square_().sum(1))
    return torch.cat([W.new_zeros(0), *squared])


def _residuals_of_products(
    X: Blocks, W: torch.Tensor, H: torch.Tensor, C: torch.Tensor, G: torch.Tensor
) -> torch.Tensor:
    """Take the squared residuals from XHᵀ and HHᵀ, where rounding leaves enough of them."""
    squared = X.norms - 2.0 * (W * C).sum(1) + ((W @ G) * W).sum(1)
    if float(squared.sum()) < _EXACT_BELOW * 2.0 * X.half_norm:
        return residuals(X, W, H)
    return squared.clamp_min(0)


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
        Not above the objective of (W, H), but for rounding.
    """
    state = Extrapolation(X, W, H, free)
    lost = _LOST * X.half_norm
    converged = not free or not len(X)
    while len(state.curve) <= max_sweeps and time.perf_counter() < deadline and not converged:
        state.sweep(state.sweeps_until(deadline, max_sweeps + 1 - len(state.curve)))
        if len(state.curve) > _WINDOW:
            before, now = state.curve[-1 - _WINDOW], state.curve[-1]
            converged = before - now <= max(tol * before, lost)
    C, G = state.C, state.H @ state.H.T
    W = _solve(X, C, G)
    squared = _residuals_of_products(X, W, state.H, C, G)
    objective = 0.5 * float(squared.sum())
    return Descent(W, state.H, squared, objective, converged, len(state.curve) - 1)


class Extrapolation:
    """The best factors so far, and the extrapolated ones that the next sweep starts from.

    Parameters
    ----------
    X : Blocks
        The data.
    W, H : Tensor (N, K), (K, F)
        Where to start.
    free : sequence of int
        Components that may change.

    Attributes
    ----------
    H, C : Tensor (K, F), (N, K)
        The best components, and XHᵀ.
    curve : list of float
        The objective at the start and after each sweep; it never rises.
    """

    def __init__(self, X: Blocks, W: torch.Tensor, H: torch.Tensor, free: Sequence[int]) -> None:
        self.X, self.free = X, list(free)
        # Rows of Wᵀ are worked on one after the other, as those of H.
        self.Wt, self.H = W.T.clone(memory_format=torch.contiguous_format), H.clone()
        self._ahead_Wt, self._ahead_H = self.Wt.clone(), self.H.clone()
        self._pace = list(_PACE)
        self.C = X.times(self.H)
        self._ahead_C = self.C.clone()
        self.curve = [self._objective(self.Wt, self.H, self.C)]
        self._seconds = 0.0

    def sweep(self, count: int) -> None:
        """Do sweeps; keep each where it lowers the objective, else go on without its lead."""
        started = time.perf_counter()
        kernels, block = kernels_for(self.X.device), self.X.single()
        if kernels is None or block is None:
            for _ in range(count):
                self._sweep()
        else:
            self._sweep_fused(kernels, block, count)
        self._seconds = (time.perf_counter() - started) / count

    def sweeps_until(self, deadline: float, most: int) -> int:
        """Sweeps to do before the next look at the clock and at the curve."""
        left = deadline - time.perf_counter()
        if math.isinf(left):
            return min(_WINDOW, most)
        if not self._seconds:
            return 1
        return max(1, min(_WINDOW, most, int(min(left, max(_LOOK, left / 2)) / self._seconds)))

    def _sweep_fused(self, kernels: object, block: torch.Tensor, count: int) -> None:
        curve, pace = np.empty(count), np.array(self._pace)
        kernels.sweep(  # type: ignore[attr-defined]
            block.numpy(),
            self.X.half_norm,
            self.Wt.numpy(),
            self.H.numpy(),
            self.C.numpy(),
            self._ahead_Wt.numpy(),
            self._ahead_H.numpy(),
            self._ahead_C.numpy(),
            pace,
            np.array(self.free, dtype=np.int64),
            _PASSES,
            count,
            curve,
        )
        self._pace = pace.tolist()
        self.curve += curve.tolist()

    def _sweep(self) -> None:
        step, bound, growth, bound_growth, shrink = self._pace
        every, X = range(len(self.H)), self.X
        G = self._ahead_H @ self._ahead_H.T
        Wt = coordinate_descent(self._ahead_Wt, G, self._ahead_C.T, free=every, passes=_PASSES)
        ahead_Wt = Wt + step * (Wt - self.Wt)
        B = X.transposed_times(ahead_Wt.T)
        A = ahead_Wt @ ahead_Wt.T
        H = coordinate_descent(self._ahead_H, A, B, free=self.free, passes=_PASSES)
        C = X.times(H)
        objective = self._objective(Wt, H, C)
        if objective <= self.curve[-1]:
            # Extrapolated components may be negative here and there: the next step mends that,
            # and XHᵀ of an extrapolation is the extrapolation of XHᵀ.
            self._ahead_Wt, self._ahead_H = ahead_Wt, H.clone()
            self._ahead_H[self.free] += step * (H - self.H)[self.free]
            self._ahead_C = C + step * (C - self.C)
            self.Wt, self.H, self.C = Wt, H, C
            self._pace[:2] = min(bound, growth * step), min(1.0, bound_growth * bound)
        else:
            objective = self.curve[-1]
            self._ahead_Wt, self._ahead_H, self._ahead_C = self.Wt, self.H, self.C
            self._pace[:2] = step / shrink, step
        self.curve.append(objective)

    def _objective(self, Wt: torch.Tensor, H: torch.Tensor, C: torch.Tensor) -> float:
        gram = ((Wt @ Wt.T) * (H @ H.T)).sum()
        return self.X.half_norm - float((Wt.T * C).sum()) + 0.5 * float(gram)
