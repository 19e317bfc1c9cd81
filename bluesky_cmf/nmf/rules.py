"""What factors keep to: which components are free, the loss, penalties, totals."""

import math
from dataclasses import dataclass

import torch

__all__ = ["Rules"]


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
    interchangeable : tuple of int
        Free components none of whose weights is held: only these may take each other's places.
    holds_weights : bool
        Whether some weights are held.
    """

    free: tuple[int, ...]
    beta: float = 2.0
    l1: float = 0.0
    l2: float = 0.0
    total: float | None = None
    scalable: tuple[int, ...] = ()
    interchangeable: tuple[int, ...] = ()
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
