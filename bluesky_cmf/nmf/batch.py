"""The fast road of a batch fit: the sweeps that a stream goes by, from where factors stand."""

import math

import torch

from .base import Factor, Goal
from .deviceblocks import blocks_on
from .divergencefit import ReweightedSweeps
from .factors import Factors
from .kernels import kernels_for
from .reweighting import Floor
from .rows import Rows
from .rules import Rules
from .seeds import seed_worst
from .sweeps import Alternation, Extrapolation, Sweeps

__all__ = ["BatchSweeps"]


class BatchSweeps:
    """Sweeps from factors W (N, K) and H (K, F), begun anew where components have died.

    Parameters
    ----------
    goal : Goal
        The data, the loss and the penalty.
    W, H : Tensor
        Where to start.
    fixed : tuple of Tensor
        Which elements of W and of H are held; those of H in whole rows.
    free : list of {"W", "H"}
        Which factors may move.

    Attributes
    ----------
    now : Sweeps
        Where the fit stands.
    """

    def __init__(
        self,
        goal: Goal,
        W: torch.Tensor,
        H: torch.Tensor,
        *,
        fixed: tuple[torch.Tensor, torch.Tensor],
        free: list[Factor],
    ) -> None:
        W_fixed, H_fixed = fixed
        held = W_fixed.expand_as(W) if "W" in free else torch.ones_like(W, dtype=torch.bool)
        none = torch.zeros(len(H), dtype=torch.bool)
        moving = ~H_fixed.expand_as(H).all(1) if "H" in free else none
        self._goal = goal
        self._rules = Rules(
            tuple(moving.nonzero()[:, 0].tolist()),
            beta=goal.beta,
            l1=goal.l1,
            l2=goal.l2,
            holds_weights=bool(held.any()),
        )
        self._X = blocks_on(goal.X.shape[1], dtype=goal.X.dtype, device=goal.X.device)
        self._X.append(goal.X)
        # Nothing would ever move the weights of a component that is held at zero.
        unseen = ~moving & ~H.any(1)
        W = W.double().masked_fill(unseen & ~held, 0.0)
        self._held: Rows | None = None
        if self._rules.holds_weights:
            self._held = Rows(len(H), device=W.device)
            self._held.replace(torch.where(held, W, math.nan))
        # What may die, and be given another shape: nobody holds anything of it.
        self._mortal = (moving & ~held.any(0)).nonzero()[:, 0].tolist()
        self._refused = False
        self.now = self._begin(H.double(), W)

    @staticmethod
    def serve(device: torch.device, *, beta: float) -> bool:
        """Whether there are kernels for a device and a loss."""
        return kernels_for(device, beta=beta) is not None

    def revive(self, count: int) -> bool:
        """Give components that explain nothing what the worst patterns lack, and do some sweeps.

        Tell whether that has lowered the objective; where it has not, it is not tried again.
        """
        now = self.now
        if self._refused:
            return False
        used = now.weights.any(0).tolist()
        idle = [k for k in self._mortal if not used[k]]
        if not idle or now.curve[-1] <= 0:
            return False
        other = self._begin(seed_worst(self._X, now.H, idle, residual=True), None)
        other.sweep(count)
        if other.curve[-1] >= now.curve[-1]:
            self._refused = True
            return False
        self.now = other
        return True

    def _begin(self, H: torch.Tensor, W: torch.Tensor | None) -> Sweeps:
        rules = self._rules
        if rules.beta != 2:
            floor = Floor()
            floor.value = self._goal.floor
            return ReweightedSweeps(self._X, H, rules, floor=floor, held=self._held, W=W)
        if rules.extrapolable:
            return Extrapolation(self._X, H, rules, W=W)
        return Alternation(Factors(self._X, H, rules, held=self._held))
