"""Products with the data for CUDA, in triton: no word to the host.

They read the data once, as they are stored, and multiply and sum in float64. Their twins are those
of `products`.
"""

import torch
import triton
import triton.language as tl

from .cudadescent import coordinate_descent, padded, triton_dtype, weights_of

__all__ = [
    "add_transposed_times",
    "coordinate_descent",
    "gather_rows",
    "padded",
    "shares",
    "times",
    "triton_dtype",
    "warm_up",
    "weights_of",
]

#: Rows and points that a program loads at a time for XHᵀ, and points that it goes over.
ROWS, POINTS, SLAB = 64, 32, 2048
#: Rows and points that one loads at a time for WᵀX.
SOME_ROWS, COLUMNS = 16, 128
#: Loads under way at a time, for both.
STAGES, COLUMN_STAGES = 4, 4
#: Programs that a processor has room for.
PROGRAMS = 3


@triton.jit
def gather_rows(
    X, there, H, first, last, F, K: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr,
    BF: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Give a part of XHᵀ, (BM, KP): that of the points from ``first`` to ``last``."""
    m = tl.arange(0, BM)
    k = tl.arange(0, KP)
    sums = tl.zeros([BM, KP], dtype=tl.float64)
    for start in tl.range(first, last, BF, num_stages=STAGES):
        f = start + tl.arange(0, BF)
        x = tl.load(
            X + m[:, None] * F + f[None, :],
            mask=there[:, None] & (f[None, :] < last),
            other=0.0,
        )
        h = tl.load(
            H + k[None, :] * F + f[:, None],
            mask=(k[None, :] < K) & (f[:, None] < last),
            other=0.0,
        )
        sums = tl.dot(x.to(tl.float64), h, sums, out_dtype=tl.float64)
    return sums


@triton.jit(do_not_specialize=["M"])
def _times(
    X, H, C, M, F, K: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BM
    m = first + tl.arange(0, BM)
    k = tl.arange(0, KP)
    rows = X + first * F
    sums = gather_rows(rows, m < M, H, 0, F, F, K, KP, BM, BF, STAGES)
    tl.store(C + m[:, None] * K + k[None, :], sums, mask=(m[:, None] < M) & (k[None, :] < K))


@triton.jit(do_not_specialize=["M", "share"])
def _transposed_times(
    X, W, parts, M, F, share, K: tl.constexpr, KP: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * BC + tl.arange(0, BC)
    r = tl.arange(0, BR)
    k = tl.arange(0, KP)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, M)
    sums = tl.zeros([BC, KP], dtype=tl.float64)
    for start in tl.range(first, last, BR, num_stages=STAGES):
        row = start + r
        x = tl.load(
            X + row[:, None] * F + f[None, :],
            mask=(row[:, None] < last) & (f[None, :] < F),
            other=0.0,
        )
        w = tl.load(
            W + row[:, None] * K + k[None, :],
            mask=(row[:, None] < last) & (k[None, :] < K),
            other=0.0,
        )
        sums = tl.dot(tl.trans(x).to(tl.float64), w, sums, out_dtype=tl.float64)
    part = parts + tl.program_id(1) * K * F
    at = part + k[None, :] * F + f[:, None]
    tl.store(at, sums, mask=(k[None, :] < K) & (f[:, None] < F))


def times(X: torch.Tensor, H: torch.Tensor, C: torch.Tensor) -> None:
    """C = XHᵀ, (M, K), for X (M, F) of float32 or float64, H (K, F) and C of float64."""
    (M, F), K = X.shape, len(H)
    if M:
        _times[(triton.cdiv(M, ROWS),)](
            X, H.contiguous(), C, M, F, K=K, KP=padded(K), BM=ROWS, BF=POINTS, STAGES=STAGES
        )


def add_transposed_times(X: torch.Tensor, W: torch.Tensor, B: torch.Tensor) -> None:
    """B += WᵀX, (K, F), for X (M, F) of float32 or float64, W (M, K) and B of float64.

    What programs sum up is added in the same order each time.
    """
    (M, F), K = X.shape, W.shape[1]
    if not M:
        return
    columns = triton.cdiv(F, COLUMNS)
    share = SOME_ROWS * triton.cdiv(M, SOME_ROWS * shares(X.device, columns))
    parts = B.new_empty(triton.cdiv(M, share), K, F)
    _transposed_times[(columns, len(parts))](
        X, W.contiguous(), parts, M, F, share,
        K=K, KP=padded(K), BR=SOME_ROWS, BC=COLUMNS, STAGES=COLUMN_STAGES,
    )  # fmt: skip
    B += parts.sum(0)


def shares(device: torch.device, columns: int) -> int:
    """Tell how many programs are to share a column, where there are so many of these."""
    processors = 1
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, PROGRAMS * processors // columns)


def warm_up(device: torch.device) -> None:
    """Compile the products on a device; an error says that they cannot be had there."""
    for dtype in (torch.float32, torch.float64):
        X = torch.ones(2, 3, dtype=dtype, device=device)
        H = torch.ones(1, 3, dtype=torch.float64, device=device)
        C = H.new_zeros(2, 1)
        times(X, H, C)
        add_transposed_times(X, C, H)
