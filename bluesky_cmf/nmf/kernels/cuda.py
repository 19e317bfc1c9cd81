"""Kernels for CUDA, in triton: no word to the host.

Coordinate descent on many small problems is one launch, with the loop over components inside. Its
twin on the CPU is `updates.coordinate_descent`. Products read the data once, as they are stored,
and sum in float64; their twins are those of `products`.
"""

import torch
import triton
import triton.language as tl

__all__ = ["add_transposed_times", "coordinate_descent", "times", "warm_up"]

#: Problems that one program works on.
_PROBLEMS = 64
#: Numbers that one program sums up: what its registers hold.
_SUMS = 4096
#: Columns that one program of a product loads at a time: of XHᵀ, of WᵀX.
_COLUMNS = (32, 128)
#: Rows that one program of WᵀX goes over, at least, and how many share a column, at most.
_SHARE, _SHARES = 256, 64
#: As in `updates.py`.
_VANISHING = tl.constexpr(1e-26)
#: Passes between two looks at whether they still move anything; what that is, squared.
_LOOK_EVERY, _STILL = tl.constexpr(4), tl.constexpr(1e-12)


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
    done = 0
    going = 1
    while (done < passes) & (going > 0):
        before = v
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
        done += 1
        if done % _LOOK_EVERY == 0:
            change = own_diagonal[:, None] * (v - before) * (v - before)
            size = own_diagonal[:, None] * v * v
            going = (tl.sum(change) > _STILL * tl.sum(size)).to(tl.int32)
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
        Passes over them, at most.
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


@triton.jit
def _times(  # type: ignore[no-untyped-def]
    X, H, C, M, F, K, KP: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.arange(0, KP)
    sums = tl.zeros([BM, KP, BF], dtype=tl.float64)
    for first in range(0, F, BF):
        f = first + tl.arange(0, BF)
        there = (m[:, None] < M) & (f[None, :] < F)
        x = tl.load(X + m[:, None] * F + f[None, :], mask=there, other=0.0).to(tl.float64)
        there = (k[:, None] < K) & (f[None, :] < F)
        h = tl.load(H + k[:, None] * F + f[None, :], mask=there, other=0.0)
        sums += x[:, None, :] * h[None, :, :]
    there = (m[:, None] < M) & (k[None, :] < K)
    tl.store(C + m[:, None] * K + k[None, :], tl.sum(sums, 2), mask=there)


@triton.jit
def _transposed_times(  # type: ignore[no-untyped-def]
    X, W, B, M, F, K, share, KP: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr
):
    f = tl.program_id(0) * BF + tl.arange(0, BF)
    k = tl.arange(0, KP)
    start = tl.program_id(1) * share
    stop = tl.minimum(start + share, M)
    sums = tl.zeros([BM, KP, BF], dtype=tl.float64)
    for first in range(start, stop, BM):
        m = first + tl.arange(0, BM)
        there = (m[:, None] < stop) & (f[None, :] < F)
        x = tl.load(X + m[:, None] * F + f[None, :], mask=there, other=0.0).to(tl.float64)
        there = (m[:, None] < stop) & (k[None, :] < K)
        w = tl.load(W + m[:, None] * K + k[None, :], mask=there, other=0.0)
        sums += w[:, :, None] * x[:, None, :]
    there = (k[:, None] < K) & (f[None, :] < F)
    part = B + tl.program_id(1) * K * F
    tl.store(part + k[:, None] * F + f[None, :], tl.sum(sums, 0), mask=there)


def times(X: torch.Tensor, H: torch.Tensor, C: torch.Tensor) -> None:
    """C = XHᵀ, (M, K), for X (M, F) of float32 or float64, H (K, F) and C of float64."""
    (M, F), K = X.shape, len(H)
    if not M:
        return
    some = triton.next_power_of_2(K)
    rows = max(1, _SUMS // (some * _COLUMNS[0]))
    grid = (triton.cdiv(M, rows),)
    _times[grid](X, H.contiguous(), C, M, F, K, KP=some, BM=rows, BF=_COLUMNS[0])


def add_transposed_times(X: torch.Tensor, W: torch.Tensor, B: torch.Tensor) -> None:
    """B += WᵀX, (K, F), for X (M, F) of float32 or float64, W (M, K) and B of float64.

    What programs sum up is added in the same order each time.
    """
    (M, F), K = X.shape, W.shape[1]
    if not M:
        return
    some = triton.next_power_of_2(K)
    rows = max(1, _SUMS // (some * _COLUMNS[1]))
    share = max(_SHARE, triton.cdiv(M, _SHARES))
    shares = triton.cdiv(M, share)
    parts = B.new_empty(shares, K, F)
    grid = (triton.cdiv(F, _COLUMNS[1]), shares)
    _transposed_times[grid](
        X, W.contiguous(), parts, M, F, K, share, KP=some, BM=rows, BF=_COLUMNS[1]
    )
    B += parts.sum(0)


def warm_up(device: torch.device) -> None:
    """Compile the products on a device; an error says that they cannot be had there."""
    for dtype in (torch.float32, torch.float64):
        X = torch.ones(2, 3, dtype=dtype, device=device)
        H = torch.ones(1, 3, dtype=torch.float64, device=device)
        C = H.new_zeros(2, 1)
        times(X, H, C)
        add_transposed_times(X, C, H)
