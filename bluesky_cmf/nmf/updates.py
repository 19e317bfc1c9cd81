"""The half-steps as pure functions on factors and Gram matrices: coordinate descent, exact NNLS.

Both solve, for each column c of C, the non-negative least squares problem of a Gram matrix G:
minimise ½ vᵀGv - cᵀv over v ≥ 0. With G = HHᵀ and C = HXᵀ its solutions are the columns of Wᵀ;
with G = WᵀW and C = WᵀX those of H.
"""

from collections.abc import Sequence

import torch

__all__ = ["coordinate_descent", "nnls", "weight_errors"]

#: Ridge, relative to the largest diagonal element, that keeps equal components apart from a
#: singular matrix; it splits the weight of identical components evenly.
_RIDGE = 1e-12
#: Exchanges of whole sets before block pivoting falls back to single exchanges, which cannot cycle.
_FULL_EXCHANGES = 3
_MAX_EXCHANGES = 200


def coordinate_descent(
    V: torch.Tensor, G: torch.Tensor, C: torch.Tensor, *, free: Sequence[int], passes: int
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
        Passes over the free rows.

    Returns
    -------
    Tensor (K, M)
        Non-negative in its free rows, with an objective that is not higher. A row whose diagonal
        element of G is zero takes part in nothing and keeps its non-negative values.

    Notes
    -----
    Cichocki and Phan, IEICE Trans. Fundamentals E92-A, 708 (2009); with several passes for each
    Gram matrix: Gillis and Glineur, Neural Computation 24, 1085 (2012).
    """
    V = V.clone()
    diagonal = G.diagonal().tolist()
    # A diagonal that is tiny beside the largest one would turn rounding into infinite steps.
    floor = max(diagonal, default=0.0) * _RIDGE
    moving = [k for k in free if diagonal[k] > floor]
    # What an extrapolation has made negative is mended also where nothing moves.
    V[list(free)] = V[list(free)].clamp(min=0)
    for _ in range(passes):
        for k in moving:
            step = torch.addmv(C[k], V.T, G[k], alpha=-1.0)
            V[k].add_(step, alpha=1.0 / diagonal[k]).clamp_(min=0)
    return V


def nnls(C: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    """Solve non-negative least squares exactly, for many right-hand sides at once.

    Parameters
    ----------
    C : Tensor (N, K)
        Right-hand sides XHᵀ, one row each, float64.
    G : Tensor (K, K)
        Gram matrix HHᵀ, float64. Zero components get weight zero.

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
    scale = G.diagonal().clamp_min(0).sqrt()
    alive = scale > 0
    unit = torch.where(alive, scale, torch.ones_like(scale))
    # With a unit diagonal one tolerance and one ridge serve components of any intensity.
    G = G / (unit[:, None] * unit) + torch.diag((~alive).to(G.dtype) + _RIDGE * K)
    C = C / unit
    tolerance = 1e-12 * C.abs().amax(1, keepdim=True).clamp_min(torch.finfo(C.dtype).tiny)
    return _pivot(C, G, tolerance) / unit


def _pivot(C: torch.Tensor, G: torch.Tensor, tolerance: torch.Tensor) -> torch.Tensor:
    passive = C > 0
    weights = _solve_passive(C, G, passive)
    fewest = torch.full_like(C[:, 0], C.shape[1] + 1)
    chances = torch.full_like(fewest, _FULL_EXCHANGES)
    for _ in range(_MAX_EXCHANGES):
        gradient = weights @ G - C
        wrong = (passive & (weights < -tolerance)) | (~passive & (gradient < -tolerance))
        count = wrong.sum(1).to(C.dtype)
        todo = count.nonzero()[:, 0]
        if not len(todo):
            break
        better = count < fewest
        fewest = torch.where(better, count, fewest)
        chances = torch.where(better, torch.full_like(chances, _FULL_EXCHANGES), chances - 1)
        flip = torch.where((chances >= 0)[:, None], wrong, _last_only(wrong))
        passive = passive ^ flip
        weights[todo] = _solve_passive(C[todo], G, passive[todo])
    return weights.clamp_min(0)


def _last_only(wrong: torch.Tensor) -> torch.Tensor:
    """Keep the last True of each row: Murty's rule, which ends after finitely many exchanges."""
    later = wrong.flip(1).cumsum(1).flip(1)
    return wrong & (later == 1)


def _solve_passive(C: torch.Tensor, G: torch.Tensor, passive: torch.Tensor) -> torch.Tensor:
    """Solve G w = c on the passive sets, with zeros elsewhere."""
    matrices = _restrict(G, passive)
    solved: torch.Tensor = torch.linalg.solve(matrices, torch.where(passive, C, 0.0))
    return solved


def _restrict(G: torch.Tensor, passive: torch.Tensor) -> torch.Tensor:
    """One matrix per row, (N, K, K): G on the passive set, the identity elsewhere."""
    both = passive[:, :, None] & passive[:, None, :]
    return torch.where(both, G, torch.eye(len(G), dtype=G.dtype, device=G.device))


def weight_errors(W: torch.Tensor, G: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Estimate standard errors of weights, given the components' shapes.

    Parameters
    ----------
    W : Tensor (N, K)
        Weights.
    G : Tensor (K, K)
        Gram matrix of the components.
    variance : Tensor (N,)
        Variance of one point of each pattern.

    Returns
    -------
    Tensor (N, K)
        Square roots of the diagonal of variance · G⁻¹ on the positive weights; 0 for a weight
        that is held at zero.
    """
    passive = W > 0
    ridge = (_RIDGE * G.diagonal()).clamp_min(torch.finfo(G.dtype).tiny)
    eye = torch.eye(len(G), dtype=G.dtype, device=G.device)
    inverse = torch.linalg.inv(_restrict(G + ridge * eye, passive))
    covariance = inverse.diagonal(dim1=1, dim2=2).clamp_min(0) * variance[:, None]
    return torch.where(passive, covariance, 0.0).sqrt()
