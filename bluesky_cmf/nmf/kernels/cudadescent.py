"""Coordinate descent on many small problems, for CUDA, in triton.

A thread has one problem, or a few, with all of their K numbers: no word passes between threads.
The twin on the CPU is `updates.coordinate_descent`. Here and elsewhere, numbers that change
while rows arrive are not compiled in: an event would wait for that.
"""

import torch
import triton
import triton.language as tl

__all__ = ["coordinate_descent", "descend", "padded", "pick", "triton_dtype", "weights_of"]

#: Problems that one program of one warp works on: two for each of its threads.
_PROBLEMS = 64
#: Passes over the weights of rows, at most: they end where nothing moves any more.
_PASSES = 1000
#: As in `updates.py`.
_VANISHING = tl.constexpr(1e-26)
#: Passes between two looks at whether they still move anything; what that is, squared.
_LOOK_EVERY, _STILL = tl.constexpr(4), tl.constexpr(1e-12)


@triton.jit
def pick(V, chosen):
    """Give the row of V (KP, M) that is chosen by flags (KP, 1), (M,)."""
    return tl.sum(tl.where(chosen, V, -0.0), 0)


@triton.jit
def _column(G, j, like, K: tl.constexpr, KP: tl.constexpr):
    """Give row j of G (K, K) as a column, for each of the columns of ``like`` (KP, M)."""
    k = tl.arange(0, KP)[:, None]
    column = tl.zeros_like(like)
    for i in tl.static_range(K):
        # One by one: as a vector they would have to be handed from thread to thread.
        column = tl.where(k == i, tl.load(G + j * K + i), column)
    return column


@triton.jit
def descend(V, C, G, l2, free, passes, K: tl.constexpr, KP: tl.constexpr):
    """Lower ½vᵀ(G + l2)v - cᵀv for columns of V and C (KP, M), G (K, K), flags ``free`` (K,)."""
    k = tl.arange(0, KP)[:, None]
    largest = tl.load(G) * 0.0
    for j in tl.static_range(K):
        largest = tl.maximum(largest, tl.load(G + j * (K + 1)) + l2)
    inverse = tl.zeros_like(V)
    left = C
    for j in tl.static_range(K):
        chosen = k == j
        own = tl.load(G + j * (K + 1)) + l2
        moves = tl.load(free + j) != 0
        usable = moves & (own > largest * _VANISHING)
        v = pick(V, chosen)
        v = tl.where(moves, tl.maximum(v, 0.0), v)
        v = tl.where(moves & ~usable & (pick(C, chosen) < 0.0), 0.0, v)
        V = tl.where(chosen, v[None, :], V)
        inverse = tl.where(chosen & usable, 1.0 / tl.where(usable, own, 1.0), inverse)
        left -= (_column(G, j, V, K, KP) + tl.where(chosen, l2, 0.0)) * v[None, :]
    done = 0
    going = 1
    while (done < passes) & (going > 0):
        change = tl.zeros([V.shape[1]], dtype=tl.float64)
        size = change
        for j in tl.static_range(K):
            chosen = k == j
            g = _column(G, j, V, K, KP) + tl.where(chosen, l2, 0.0)
            v = pick(V, chosen)
            scale = pick(inverse, chosen)
            moved = tl.maximum(v + pick(left, chosen) * scale, 0.0)
            moved = tl.where(scale > 0.0, moved, v)
            left -= g * (moved - v)[None, :]
            V = tl.where(chosen, moved[None, :], V)
            weight = tl.where(scale > 0.0, pick(g, chosen), 0.0)
            change += weight * (moved - v) * (moved - v)
            size += weight * moved * moved
        done += 1
        if done % _LOOK_EVERY == 0:
            going = (tl.sum(change) > _STILL * tl.sum(size)).to(tl.int32)
    return V


@triton.jit(do_not_specialize=["M", "passes"])
def _descend_all(V, G, C, free, M, passes, K: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.arange(0, KP)
    inside = (k[:, None] < K) & (m[None, :] < M)
    at = k[:, None] * M + m[None, :]
    v = tl.load(V + at, mask=inside, other=0.0)
    c = tl.load(C + at, mask=inside, other=0.0)
    tl.store(V + at, descend(v, c, G, 0.0, free, passes, K, KP), mask=inside)


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Give the name that kernels have for what data are stored in."""
    return tl.float32 if dtype == torch.float32 else tl.float64


def padded(K: int) -> int:
    """Give how many components kernels see, where K are asked for: what units for products take."""
    some: int = triton.next_power_of_2(K)
    return max(8, some)


def coordinate_descent(
    V: torch.Tensor, G: torch.Tensor, C: torch.Tensor, free: torch.Tensor, passes: int
) -> None:
    """Improve V (K, M) in place: `updates.coordinate_descent`, for all passes.

    Parameters
    ----------
    V, G, C : Tensor (K, M), (K, K), (K, M)
        float64, contiguous: columns lie side by side, as threads do.
    free : Tensor (K,) of int32
        Which rows of V may move.
    passes : int
        Passes over them, at most.
    """
    K, M = V.shape
    if M:
        grid = (triton.cdiv(M, _PROBLEMS),)
        sizes = {"K": K, "KP": padded(K), "BM": _PROBLEMS}
        _descend_all[grid](V, G, C.contiguous(), free, M, passes, **sizes, num_warps=1)


def weights_of(C: torch.Tensor, G: torch.Tensor, W: torch.Tensor | None = None) -> torch.Tensor:
    """Solve for weights (N, K) until nothing moves any more, given XHᵀ (N, K) and HHᵀ (K, K).

    From weights W, or from nothing. What solves exactly exchanges sets, which the host decides on.
    """
    Wt = torch.zeros_like(C) if W is None else W
    Wt = Wt.T.clone(memory_format=torch.contiguous_format)
    every = torch.ones(len(G), dtype=torch.int32, device=G.device)
    coordinate_descent(Wt, G, C.T, every, _PASSES)
    return Wt.T
