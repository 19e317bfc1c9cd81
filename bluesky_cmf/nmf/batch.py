"""The fast road of a batch fit: the sweeps that a stream goes by, from where factors stand."""

import math

import torch

from .base import Factor, Goal
from .blocks import Blocks
from .divergencefit import ReweightedSweeps
from .factors import Factors
from .kernels import kernels_for
from .reweighting import Floor
from .rows import Rows
from .rules import Rules
from .sweeps import Alternation, Extrapolation, Sweeps

__all__ = ["sweeps_for"]


def sweeps_for(
    goal: Goal,
    W: torch.Tensor,
    H: torch.Tensor,
    *,
    fixed: tuple[torch.Tensor, torch.Tensor],
    free: list[Factor],
) -> Sweeps | None:
    """Begin sweeps from factors W (N, K) and H (K, F).

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

    Returns
    -------
    Sweeps or None
        None where there are no kernels for the device.
    """
    if kernels_for(W.device, beta=goal.beta) is None:
        return None
    W_fixed, H_fixed = fixed
    held = W_fixed.expand_as(W) if "W" in free else torch.ones_like(W, dtype=torch.bool)
    moving = ~H_fixed.expand_as(H).all(1) if "H" in free else torch.zeros(len(H), dtype=torch.bool)
    rules = Rules(
        tuple(moving.nonzero()[:, 0].tolist()),
        beta=goal.beta,
        l1=goal.l1,
        l2=goal.l2,
        holds_weights=bool(held.any()),
    )
    X = Blocks(goal.X.shape[1], dtype=goal.X.dtype, device=goal.X.device)
    X.append(goal.X)
    # Nothing would ever move the weights of a component that is held at zero.
    unseen = ~moving & ~H.any(1)
    H, W = H.double(), W.double().masked_fill(unseen & ~held, 0.0)
    table: Rows | None = None
    if rules.holds_weights:
        table = Rows(len(H), device=W.device)
        table.replace(torch.where(held, W, math.nan))
    if goal.beta != 2:
        floor = Floor()
        floor.value = goal.floor
        return ReweightedSweeps(X, H, rules, floor=floor, held=table, W=W)
    if rules.extrapolable:
        return Extrapolation(X, H, rules, W=W)
    return Alternation(Factors(X, H, rules, held=table))
