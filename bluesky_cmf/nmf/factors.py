"""The factors as they stand, with their sufficient statistics: what a bounded event works on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .blocks import Blocks
from .kernels import kernels_for
from .results import scales
from .rows import Rows
from .updates import coordinate_descent, solve_rows, weight_errors

__all__ = ["Factors", "Rules", "free_weights", "spread"]

_NONE_HELD = np.zeros((0, 0))
#: Part of ‖X‖² below which an objective is summed over rows, and not taken from products.
_EXACT_BELOW = 1e-8


@dataclass(frozen=True)
class Rules:
    """What factors keep to, beside being non-negative.

    Parameters
    ----------
    free : tuple of int
        Components that may change.
    beta : float
        The loss: the beta-divergence, 2 for least squares.
    l1, l2 : float
        Penalty on both factors: l1 times the sum, l2 times half the sum of squares.
    total : float, optional
        What the weights of a pattern add up to.
    scalable : tuple of int
        Free components whose scale says nothing: they are given maximum 1.
    holds_weights : bool
        Whether some weights are held.
    """

    free: tuple[int, ...]
    beta: float = 2.0
    l1: float = 0.0
    l2: float = 0.0
    total: float | None = None
    scalable: tuple[int, ...] = ()
    holds_weights: bool = False

    @property
    def total_or_nan(self) -> float:
        """The total as kernels take it."""
        return math.nan if self.total is None else self.total

    @property
    def extrapolable(self) -> bool:
        """Whether the weights are asked nothing that coordinate descent does not keep to."""
        return self.total is None and not self.holds_weights

    @property
    def penalised(self) -> bool:
        """Whether there is a penalty."""
        return self.l1 > 0 or self.l2 > 0

    def penalty(self, W_sum: float, H_sum: float, A: torch.Tensor, G: torch.Tensor) -> float:
        """Sum the penalty, from sums and Gram matrices of the factors."""
        squares = float(A.diagonal().sum()) + float(G.diagonal().sum())
        return self.l1 * (W_sum + H_sum) + 0.5 * self.l2 * squares


class Factors:
    """W (N, K) and H (K, F) for the rows of X so far, in float64, changed in place.

    Parameters
    ----------
    X : Blocks
        The data; rows appended to it are taken in by `follow`.
    H : Tensor (K, F)
        Components to start from.
    rules : Rules
        What is asked of the factors.
    held : Rows, optional
        Weights that are held, (N, K), NaN where they are free.

    Attributes
    ----------
    G, A, B : Tensor (K, K), (K, K), (K, F)
        HHᵀ, WᵀW and WᵀX. A and B follow every change of W, so that H can be descended on and the
        objective be told without a pass over X.
    W, squared : Rows
        Weights, and squared residuals as of the last solve of each row.
    """

    def __init__(
        self, X: Blocks, H: torch.Tensor, rules: Rules, *, held: Rows | None = None
    ) -> None:
        K, device = len(H), X.device
        self.X, self.rules, self.held = X, rules, held
        self.H = H.clone(memory_format=torch.contiguous_format)
        self.H /= self.scale[:, None]
        self.G = self.H.new_zeros(K, K)
        self.A, self.B = H.new_zeros(K, K), torch.zeros_like(H)
        self.W, self.squared = Rows(K, device=device), Rows(1, device=device)
        self._W_sum = self._squared_sum = 0.0
        self._free = np.array(rules.free, dtype=np.int64)
        self._kernels = kernels_for(device)
        if self._kernels is not None:
            # As kernels take them: the same memory, for none of these is ever replaced.
            self._arrays = self.H.numpy(), self.G.numpy(), self.A.numpy(), self.B.numpy()
        self._follow_components()

    def __len__(self) -> int:
        return len(self.W)

    @property
    def scale(self) -> torch.Tensor:
        """What the components are to be divided by, and the weights multiplied, (K,)."""
        return scales(self.H, self.rules.scalable)

    @property
    def objective(self) -> float:
        """½‖X - WH‖² and the penalty, for W and H as they are."""
        if self._kernels is not None:
            H, G, A, B = self._arrays
            objective = self.X.half_norm + float(0.5 * np.vdot(A, G) - np.vdot(B, H))
        else:
            cross, gram = (self.B * self.H).sum(), (self.A * self.G).sum()
            objective = self.X.half_norm + float(0.5 * gram - cross)
        if objective < _EXACT_BELOW * self.X.half_norm:
            # Of patterns that are explained to rounding, products would leave nothing: the sum of
            # the residuals does, each as of the last solve of its row.
            objective = 0.5 * max(0.0, self._squared_sum)
        return objective + self.penalty

    @property
    def penalty(self) -> float:
        """What the penalty adds to the objective."""
        if not self.rules.penalised:
            return 0.0
        return self.rules.penalty(self._W_sum, float(self.H.sum()), self.A, self.G)

    def follow(self, most: int | None = None) -> int:
        """Take in rows of X that are new, with exact weights; give the number of the first."""
        first = len(self.W)
        stop = len(self.X) if most is None else min(len(self.X), first + most)
        if stop > first:
            self.W.extend(stop - first)
            self.squared.extend(stop - first)
            self.resolve(first, stop)
        return first

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Give what is needed to go on later, as plain arrays."""
        tensors = {
            "components": self.H,
            "weights": self.W.tensor(),
            "squared": self.squared.tensor(),
            "gram": self.A,
            "cross": self.B,
            "value": self.H.new_tensor([self._W_sum, self._squared_sum]),
        }
        return {key: np.array(tensor.cpu().numpy()) for key, tensor in tensors.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `state` gave, as it is."""
        masters = {
            key: torch.tensor(array, dtype=torch.float64, device=self.H.device)
            for key, array in state.items()
        }
        self.H[:], self.A[:], self.B[:] = (masters[key] for key in ("components", "gram", "cross"))
        self._follow_components()
        self.W.replace(masters["weights"])
        self.squared.replace(masters["squared"])
        self._W_sum, self._squared_sum = masters["value"].tolist()

    def resolve(self, start: int, stop: int) -> None:
        """Solve for the weights of rows anew, exactly, given H."""
        if self._kernels is not None:
            for first, last, rows in self.X.arrays(start, stop):
                begin = first
                while begin < last:
                    bound = self.W.bound(begin, last)
                    self._resolve_fused(rows[begin - first : bound - first], begin, bound)
                    begin = bound
            return
        for first, piece in self.X.pieces(start, stop):
            begin, end = first, first + len(piece)
            while begin < end:
                bound = self.W.bound(begin, end)
                self._resolve(piece[begin - first : bound - first], begin, bound)
                begin = bound

    def left(self, start: int, stop: int) -> float:
        """How much of some rows is left unexplained, relatively, as of their last solve."""
        squared, norms = 0.0, 1e-300
        while start < stop:
            bound = self.W.bound(start, stop)
            squared += float(self.squared.view(start, bound).sum())
            norms += float(self.X.norms[start:bound].sum())
            start = bound
        return squared / norms

    def shapeless(self) -> list[int]:
        """Tell which free components hold nothing but zeros."""
        sizes = self.G.diagonal().tolist()
        return [k for k in self.rules.free if sizes[k] <= 0]

    def errors(self, W: torch.Tensor, start: int, squared: torch.Tensor) -> torch.Tensor:
        """Estimate standard errors of weights (M, K), given their squared residuals (M,)."""
        free = free_weights(W, self.held, start)
        variance = spread(squared, free, self.X.n_features)
        return weight_errors(free, self.G, variance, add_up=self.rules.total is not None)

    def reseed(self, k: int, pattern: torch.Tensor) -> None:
        """Give a component another shape, (F,); weights stay until they are solved for."""
        self.H[k] = pattern
        self._follow_components()

    def descend(self, passes: int) -> None:
        """Lower the objective over the free components, given W."""
        rules = self.rules
        if not rules.free:
            return
        if self._kernels is not None:
            H, G, A, B = self._arrays
            self._kernels.descend_components(H, A, B, rules.l1, rules.l2, self._free, passes, G)
            return
        gram = self.A + rules.l2 * torch.eye(len(self.A), dtype=self.A.dtype, device=self.A.device)
        self.H[:] = coordinate_descent(
            self.H, gram, self.B - rules.l1, free=rules.free, passes=passes
        )
        self.G[:] = self.H @ self.H.T

    def _follow_components(self) -> None:
        """Bring G up to H, in the same bits on every way that leads there."""
        if self._kernels is not None:
            self._kernels.gram(self.H.numpy(), self.G.numpy())
        else:
            self.G[:] = self.H @ self.H.T

    def _resolve_fused(self, rows: np.ndarray, start: int, stop: int) -> None:
        H, G, A, B = self._arrays
        rules = self.rules
        gained, left = self._kernels.resolve(  # type: ignore[union-attr]
            rows,
            self.X.norms_array[start:stop],
            H,
            G,
            rules.l1,
            rules.l2,
            rules.total_or_nan,
            _NONE_HELD if self.held is None else self.held.array(start, stop),
            self.W.array(start, stop),
            self.squared.array(start, stop)[:, 0],
            A,
            B,
        )
        self._W_sum += gained
        self._squared_sum += left

    def _resolve(self, rows: torch.Tensor, start: int, stop: int) -> None:
        W, squared = self.W.view(start, stop), self.squared.view(start, stop)[:, 0]
        held = None if self.held is None else self.held.view(start, stop)
        norms, rules = self.X.norms[start:stop], self.rules
        X = rows.to(torch.float64)
        C = X @ self.H.T
        new = solve_rows(C, self.G, l1=rules.l1, l2=rules.l2, total=rules.total_or_nan, held=held)
        self._W_sum += float((new - W).sum())
        self.A += new.T @ new - W.T @ W
        self.B += (new - W).T @ X
        left = _squared(X, new, self.H, C, self.G, norms)
        self._squared_sum += float((left - squared).sum())
        squared[:] = left
        W[:] = new


def free_weights(W: torch.Tensor, held: Rows | None, start: int) -> torch.Tensor:
    """Give weights (M, K) of rows from ``start`` on with zeros where they are held."""
    if held is None:
        return W
    return torch.where(held.tensor(start, start + len(W)).isnan(), W, 0.0)


def spread(total: torch.Tensor, free: torch.Tensor, n_features: int) -> torch.Tensor:
    """Divide sums over points (M,) by the points that are left beside the free weights (M, K)."""
    # With one point for each weight nothing is left to take the noise from.
    spare = (n_features - (free > 0).sum(1)).to(total.dtype)
    return torch.where(spare > 0, total / spare.clamp_min(1), math.nan)


def _squared(
    X: torch.Tensor,
    W: torch.Tensor,
    H: torch.Tensor,
    C: torch.Tensor,
    G: torch.Tensor,
    norms: torch.Tensor,
) -> torch.Tensor:
    """Take squared residuals from products; form those that rounding leaves nothing of."""
    squared = norms - 2.0 * (W * C).sum(1) + ((W @ G) * W).sum(1)
    lost = squared < _EXACT_BELOW * norms
    if bool(lost.any()):
        squared[lost] = (X[lost] - W[lost] @ H).square_().sum(1)
    return squared
