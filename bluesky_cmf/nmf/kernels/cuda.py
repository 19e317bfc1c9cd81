"""Kernels for CUDA, in triton, and an event as one graph: no allocation, no word to the host.

Coordinate descent on many small problems is one launch, with the loop over components inside. Its
twin on the CPU is `updates.coordinate_descent`; `GraphedEvent` runs with either.
"""

import torch
import triton
import triton.language as tl

__all__ = ["coordinate_descent"]

#: Problems that one program works on.
_PROBLEMS = 64
#: As in `updates.py`.
_VANISHING = tl.constexpr(1e-26)


@triton.jit
def _descend(  # type: ignore[no-untyped-def]
    V, G, C, free, M, K, v_k, v_m, c_k, c_m, passes, KP: tl.constexpr, BM: tl.constexpr
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.arange(0, KP)
    inside = (k[:, None] < K) & (m[None, :] < M)
    v = tl.load(V + k[:, None] * v_k + m[None, :] * v_m, mask=inside, other=0.0)
    c = tl.load(C + k[:, None] * c_k + m[None, :] * c_m, mask=inside, other=0.0)
    moving = tl.load(free + k, mask=k < K, other=0) != 0
    v = tl.where(moving[:, None], tl.maximum(v, 0.0), v)
    largest = tl.max(tl.load(G + k * K + k, mask=k < K, other=0.0), 0)
    own_diagonal = tl.load(G + k * K + k, mask=k < K, other=1.0)
    idle = moving & (own_diagonal <= largest * _VANISHING)
    v = tl.where(idle[:, None] & (c < 0.0), 0.0, v)
    for _ in range(passes):
        for j in range(K):
            g = tl.load(G + j * K + k, mask=k < K, other=0.0)
            diagonal = tl.load(G + j * K + j)
            moves = tl.load(free + j).to(tl.float64)
            usable = tl.where(diagonal > largest * _VANISHING, moves, 0.0) > 0
            chosen = (k == j)[:, None]
            slope = tl.sum(tl.where(chosen, c, 0.0), 0) - tl.sum(g[:, None] * v, 0)
            own = tl.sum(tl.where(chosen, v, 0.0), 0)
            moved = tl.maximum(own + slope / tl.where(usable, diagonal, 1.0), 0.0)
            v = tl.where(chosen, tl.where(usable, moved[None, :], v), v)
    tl.store(V + k[:, None] * v_k + m[None, :] * v_m, v, mask=inside)


def coordinate_descent(
    V: torch.Tensor, G: torch.Tensor, C: torch.Tensor, free: torch.Tensor, passes: int
) -> None:
    """Improve V (K, M) in place: `updates.coordinate_descent`, for all passes.

    Parameters
    ----------
    V, G, C : Tensor (K, M), (K, K), (K, M)
        float64; G is contiguous.
    free : Tensor (K,) of int32
        Which rows of V may move.
    passes : int
        Passes over them.
    """
    K, M = V.shape
    if not M:
        return
    grid = (triton.cdiv(M, _PROBLEMS),)
    _descend[grid](
        V,
        G,
        C,
        free,
        M,
        K,
        V.stride(0),
        V.stride(1),
        C.stride(0),
        C.stride(1),
        passes,
        KP=triton.next_power_of_2(K),
        BM=_PROBLEMS,
    )
