"""The half-steps as pure functions on factors and Gram matrices: coordinate descent, exact NNLS.

Both solve, for each column c of C, the non-negative least squares problem of a Gram matrix G:
minimise ½ vᵀGv - cᵀv over v ≥ 0. With G = HHᵀ and C = HXᵀ its solutions are the columns of Wᵀ;
with G = WᵀW and C = WᵀX those of H.
"""

import math
from collections.abc import Sequence

import torch

__all__ = ["DEVICE_PASSES", "SETTLED", "coordinate_descent", "nnls", "nnls_to_total", "solve_rows"]

#: Ridge, relative to the largest diagonal element, that keeps equal components apart from a
#: singular matrix; it splits the weight of identical components evenly.
_RIDGE = 1e-12
_VANISHING = 1e-26
#: Passes between two looks at whether they still move anything; what that is, squared: of what
#: there is, and, for components, of what the first pass has moved.
_LOOK_EVERY, _STILL, SETTLED = 4, 1e-12, 1e-2
#: Passes over components on a device, which does not tell when they settle.
DEVICE_PASSES = 4
#: Exchanges of whole sets before block pivoting falls back to single exchanges, which cannot cycle.
_FULL_EXCHANGES = 3
_MAX_EXCHANGES = 200
_BISECTIONS = 200


def coordinate_descent(
    V: torch.Tensor,
    G: torch.Tensor,
    C: torch.Tensor,
    *,
    free: Sequence[int],
    passes: int,
    settled: float = 0.0,
) -> torch.Tensor:
    """Improve V by cyclic coordinate descent (hierarchical alternating least squares).

    Parameters
    ----------
    V : Tensor (K, M)
        Where to start; it is not changed.
    G : Tensor (K, K)
        Gram matrix.
    C : Tensor (K, M)
        Right-hand sides.
    free : sequence of int
        Rows of V that may move.
    passes : int
        Most passes over the free rows; there are fewer where they come to rest.
    settled : float, optional
        What that is: this part of what the first pass has moved, squared; or 1e-12 of what is
        there.

    Returns
    -------
    Tensor (K, M)
        Non-negative in its free rows, with an objective that is not higher. A row whose diagonal
        element of G is zero takes part in nothing: it is zero where C is negative, and keeps its
        non-negative values elsewhere.

    Notes
    -----
    Cichocki and Phan, IEICE Trans. Fundamentals E92-A, 708 (2009); with several passes for each
    Gram matrix: Gillis and Glineur, Neural Computation 24, 1085 (2012).
    """
    V = V.clone()
    diagonal = G.diagonal().tolist()
    # A diagonal that vanishes beside the largest one would turn rounding into infinite steps.
    floor = max(diagonal, default=0.0) * _VANISHING
    moving = [k for k in free if diagonal[k] > floor]
    for k in set(free) - set(moving):
        V[k] = torch.where(C[k] < 0, 0.0, V[k])
    # What an extrapolation has made negative is mended also where nothing moves.
    V[list(free)] = V[list(free)].clamp(min=0)
    weight, enough = G.diagonal()[moving], 0.0
    for done in range(passes):
        look = done % _LOOK_EVERY == _LOOK_EVERY - 1
        measured = look or (done == 0 and passes >= _LOOK_EVERY)
        before = V.clone() if measured else V
        for k in moving:
            step = torch.addmv(C[k], V.T, G[k], alpha=-1.0)
            V[k].add_(step, alpha=1.0 / diagonal[k]).clamp_(min=0)
        if measured:
            moved = float(weight @ (V - before)[moving].square().sum(1))
            enough = settled * moved if done == 0 else enough
            still = _STILL * float(weight @ V[moving].square().sum(1))
            if look and moved <= max(still, enough):
                break
    return V


def nnls(C: torch.Tensor, G: torch.Tensor, open_: torch.Tensor | None = None) -> torch.Tensor:
    """Solve non-negative least squares exactly, for many right-hand sides at once.

    Parameters
    ----------
    C : Tensor (N, K)
        Right-hand sides XHᵀ, one row each, float64.
    G : Tensor (K, K) or (N, K, K)
        Gram matrix HHᵀ, float64, or one for each row. Zero components get weight zero.
    open_ : Tensor (N, K) of bool, optional
        Which weights are asked for; the others are zero.

    Returns
    -------
    Tensor (N, K)
        Weights that meet the optimality conditions.

    Notes
    -----
    Block principal pivoting: Kim and Park, SIAM J. Sci. Comput. 33, 3261 (2011).
    """
    N, K = C.shape
    if not N or not K:
        return C.new_zeros(N, K)
    scale = G.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    alive = scale > 0
    unit = torch.where(alive, scale, torch.ones_like(scale))
    # With a unit diagonal one tolerance and one ridge serve components of any intensity.
    G = G / (unit[..., :, None] * unit[..., None, :])
    G = G + torch.diag_embed((~alive).to(G.dtype) + _RIDGE * K)
    asked = alive.expand_as(C) if open_ is None else open_ & alive
    return _pivot(C / unit, G, asked) / unit


def nnls_to_total(
    C: torch.Tensor, G: torch.Tensor, open_: torch.Tensor, total: torch.Tensor
) -> torch.Tensor:
    """Solve non-negative least squares for weights (N, K) whose rows add up to ``total`` (N,).

    The sum of a row rises with the multiplier of its condition, so the multiplier is bisected.
    Rows with a total of zero or less, or with nothing open, get zeros.
    """
    diagonal = G.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    # A component of zeros takes what the others leave, at next to no cost.
    largest = diagonal.amax(-1, keepdim=True)
    idle = torch.where(diagonal > 0, 0.0, torch.where(largest > 0, largest, 1.0) * _RIDGE)
    G = G + torch.diag_embed(idle)
    diagonal = diagonal + idle
    step = torch.where(open_, C.abs(), 0.0).amax(1)
    reach = torch.where(open_, total[:, None] * diagonal.expand_as(C), 0.0).amax(1)
    low, high = -step - reach, step + reach * C.shape[1]
    W = torch.zeros_like(C)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        W = nnls(C + middle[:, None], G, open_)
        short = W.sum(1) < total
        if bool(((W.sum(1) - total).abs() <= 1e-13 * total.abs()).all()):
            break
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    found = W.sum(1)
    usable = (total > 0) & (found > 0)
    return W * torch.where(usable, total / found.clamp_min(1e-300), 0.0)[:, None]


def solve_rows(
    C: torch.Tensor,
    G: torch.Tensor,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    total: float = math.nan,
    held: torch.Tensor | None = None,
) -> torch.Tensor:
    """Solve for the weights of some rows under everything that may be asked of them.

    Parameters
    ----------
    C : Tensor (N, K)
        XHᵀ.
    G : Tensor (K, K) or (N, K, K)
        HHᵀ, or one matrix for each row.
    l1, l2 : float
        Penalty: l1 times the sum of the weights, l2 times half the sum of their squares.
    total : float
        What the weights of a row add up to; NaN leaves it free.
    held : Tensor (N, K), optional
        Weights that are held, NaN where they are free.

    Returns
    -------
    Tensor (N, K)
    """
    open_ = torch.ones_like(C, dtype=torch.bool)
    kept = torch.zeros_like(C)
    if held is not None:
        open_, kept = held.isnan(), held.nan_to_num(0.0)
    rest = C - l1 - _apply(G, kept)
    if math.isnan(total):
        open_ = open_ & (G.diagonal(dim1=-2, dim2=-1) > 0)
    G = G + l2 * torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    if math.isnan(total):
        return kept + nnls(rest, G, open_)
    return kept + nnls_to_total(rest, G, open_, total - kept.sum(1))


def _pivot(C: torch.Tensor, G: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    tiny = torch.finfo(C.dtype).tiny
    tolerance = 1e-12 * torch.where(asked, C.abs(), 0.0).amax(1, keepdim=True).clamp_min(tiny)
    passive = (C > 0) & asked
    weights = _solve_passive(C, G, passive)
    fewest = torch.full_like(C[:, 0], C.shape[1] + 1)
    chances = torch.full_like(fewest, _FULL_EXCHANGES)
    for _ in range(_MAX_EXCHANGES):
        gradient = _apply(G, weights) - C
        wrong = (passive & (weights < -tolerance)) | (asked & ~passive & (gradient < -tolerance))
        count = wrong.sum(1).to(C.dtype)
        unsolved = count.nonzero()[:, 0]
        if not len(unsolved):
            break
        better = count < fewest
        fewest = torch.where(better, count, fewest)
        chances = torch.where(better, torch.full_like(chances, _FULL_EXCHANGES), chances - 1)
        flip = torch.where((chances >= 0)[:, None], wrong, _last_only(wrong))
        passive = passive ^ flip
        some = G if G.ndim == 2 else G[unsolved]
        weights[unsolved] = _solve_passive(C[unsolved], some, passive[unsolved])
    return weights.clamp_min(0)


def _apply(G: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """Multiply each row of W (N, K) by G (K, K), or by its own of (N, K, K)."""
    return W @ G if G.ndim == 2 else (G @ W[:, :, None])[:, :, 0]


def _last_only(wrong: torch.Tensor) -> torch.Tensor:
    """Keep the last True of each row: Murty's rule, which ends after finitely many exchanges."""
    later = wrong.flip(1).cumsum(1).flip(1)
    return wrong & (later == 1)


def _solve_passive(C: torch.Tensor, G: torch.Tensor, passive: torch.Tensor) -> torch.Tensor:
    """Solve G w = c on the passive sets, with zeros elsewhere."""
    both = passive[:, :, None] & passive[:, None, :]
    # One matrix per row, (N, K, K): G on the passive set, the identity elsewhere.
    matrices = torch.where(both, G, torch.eye(G.shape[-1], dtype=G.dtype, device=G.device))
    solved: torch.Tensor = torch.linalg.solve(matrices, torch.where(passive, C, 0.0))
    return solved
