"""What an event on fixed buffers reads and leaves, for CUDA, in triton.

Where that is changes from event to event, and a graph does not: it is told by addresses and numbers
in one table of int64, by the names below. The twin on the CPU is `eventtables.HostTables`.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .cudadescent import descend, padded, pick, triton_dtype

if TYPE_CHECKING:
    from ..eventtables import EventBuffers

__all__ = ["put", "settle", "take"]

#: Blocks of weights and of squared residuals, with those that take their place: for the window, and
#: for the new row.
BLOCKS = tl.constexpr(0)
#: The rows of the window as they are stored, the new one as it was sent, and where it goes; where
#: their squared norms are; their first places in blocks; where results go.
WINDOW_ROWS, SENT_ROW, NEW_ROW, WINDOW_NORMS, NEW_NORM, FIRST, LAST, SHAPES, OBJECTIVE = map(
    tl.constexpr, range(8, 17)
)
#: Numbers: the squared norm of the new row, and half that of all rows.
NORM, HALF_NORM = map(tl.constexpr, range(17, 19))
#: Numbers that a program copies at a time.
_COPIED = 1024


@triton.jit
def _take(
    table, X, norms, Wt, half_norm, F, window, DTYPE: tl.constexpr, K: tl.constexpr,
    KP: tl.constexpr, BLOCK_ROWS: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    i = tl.arange(0, COPIED)
    if program <= window:
        k = tl.arange(0, KP)
        rows = tl.load(table + WINDOW_ROWS).to(tl.pointer_type(DTYPE)) + program * F
        blocks = tl.load(table + BLOCKS).to(tl.pointer_type(tl.float64))
        # The new row, which comes last, has none yet, and no place in this block.
        known = tl.load(table + FIRST) + program
        w = tl.load(blocks + known * K + k, mask=(k < K) & (program + k * 0 < window), other=0.0)
        if program == window:
            rows = tl.load(table + SENT_ROW).to(tl.pointer_type(DTYPE))
            norm = tl.load(table + NORM).to(tl.float64, bitcast=True)
            tl.store(tl.load(table + NEW_NORM).to(tl.pointer_type(tl.float64)), norm)
            tl.store(norms + program, norm)
            tl.store(half_norm, tl.load(table + HALF_NORM).to(tl.float64, bitcast=True))
        else:
            norm_table = tl.load(table + WINDOW_NORMS).to(tl.pointer_type(tl.float64))
            tl.store(norms + program, tl.load(norm_table + program))
        tl.store(Wt + k * (window + 1) + program, w, mask=k < K)
        for first in range(0, F, COPIED):
            f = first + i
            x = tl.load(rows + f, mask=f < F, other=0.0)
            tl.store(X + program * F + f, x.to(tl.float64), mask=f < F)
            if program == window:
                place = tl.load(table + NEW_ROW).to(tl.pointer_type(DTYPE))
                tl.store(place + f, x, mask=f < F)
    else:
        # A snapshot may hold the old block.
        number = program - window - 1
        old = tl.load(table + BLOCKS + 2 * number)
        new = tl.load(table + BLOCKS + 2 * number + 1)
        if old != new:
            size = BLOCK_ROWS
            if number % 2 == 0:
                size = BLOCK_ROWS * K
            for first in range(0, size, COPIED):
                at = first + i
                some = tl.load(old.to(tl.pointer_type(tl.float64)) + at, mask=at < size)
                tl.store(new.to(tl.pointer_type(tl.float64)) + at, some, mask=at < size)


@triton.jit
def _put(
    table, Wt, squared, H, objective, size, window, DTYPE: tl.constexpr, K: tl.constexpr,
    KP: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program <= window:
        k = tl.arange(0, KP)
        place = tl.load(table + FIRST) + program
        blocks = BLOCKS + 0
        if program == window:
            place = tl.load(table + LAST)
            blocks = BLOCKS + 4
        weights = tl.load(table + blocks + 1).to(tl.pointer_type(tl.float64))
        residuals = tl.load(table + blocks + 3).to(tl.pointer_type(tl.float64))
        w = tl.load(Wt + k * (window + 1) + program, mask=k < K, other=0.0)
        tl.store(weights + place * K + k, w, mask=k < K)
        tl.store(residuals + place, tl.load(squared + program))
    else:
        at = (program - window - 1) * COPIED + tl.arange(0, COPIED)
        shapes = tl.load(table + SHAPES).to(tl.pointer_type(DTYPE))
        tl.store(shapes + at, tl.load(H + at, mask=at < size).to(DTYPE), mask=at < size)
        if program == window + 1:
            place = tl.load(table + OBJECTIVE)
            tl.store(place.to(tl.pointer_type(tl.float64)), tl.load(objective))


@triton.jit(do_not_specialize=["first", "last", "passes"])
def _settle(
    C, Wt, change, norms, squared, G, A, every, first, last, M, passes, K: tl.constexpr,
    KP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, KP)
    m = first + tl.arange(0, BM)
    inside = (k[:, None] < K) & (m[None, :] < last)
    at = k[:, None] * M + m[None, :]
    before = tl.load(Wt + at, mask=inside, other=0.0)
    c = tl.load(C + at, mask=inside, other=0.0)
    v = tl.where(inside, descend(before, c, G, 0.0, every, passes, K, KP), 0.0)
    explained = -2.0 * c
    for j in tl.static_range(K):
        for i in tl.static_range(K):
            g = tl.load(G + j * K + i)
            explained += tl.where(k[:, None] == i, g * pick(v, k[:, None] == j)[None, :], 0.0)
    left = tl.load(norms + m, mask=m < last, other=0.0) + tl.sum(v * explained, 0)
    tl.store(squared + m, tl.maximum(left, 0.0), mask=m < last)
    tl.store(Wt + at, v, mask=inside)
    tl.store(change + at, v - before, mask=inside)
    gram = tl.dot(v, tl.trans(v), out_dtype=tl.float64)
    gram -= tl.dot(before, tl.trans(before), out_dtype=tl.float64)
    place = A + k[:, None] * K + k[None, :]
    there = (k[:, None] < K) & (k[None, :] < K)
    tl.store(place, tl.load(place, mask=there, other=0.0) + gram, mask=there)


def take(
    table: torch.Tensor,
    X: torch.Tensor,
    norms: torch.Tensor,
    Wt: torch.Tensor,
    half_norm: torch.Tensor,
    *,
    dtype: torch.dtype,
    block_rows: int,
) -> None:
    """Copy rows (M, F), norms (M,), weights (K, M) into buffers, and blocks that are replaced."""
    (M, F), K = X.shape, len(Wt)
    _take[(M + 4,)](
        table, X, norms, Wt, half_norm, F, M - 1,
        DTYPE=triton_dtype(dtype), K=K, KP=triton.next_power_of_2(K), BLOCK_ROWS=block_rows,
        COPIED=_COPIED,
    )  # fmt: skip


def put(
    table: torch.Tensor,
    Wt: torch.Tensor,
    squared: torch.Tensor,
    H: torch.Tensor,
    objective: torch.Tensor,
    *,
    dtype: torch.dtype,
) -> None:
    """Copy weights (K, M), squared residuals (M,), components and the objective from buffers."""
    K, M = Wt.shape
    _put[(M + triton.cdiv(H.numel(), _COPIED),)](
        table, Wt, squared, H, objective, H.numel(), M - 1,
        DTYPE=triton_dtype(dtype), K=K, KP=triton.next_power_of_2(K), COPIED=_COPIED,
    )  # fmt: skip


def settle(
    buffers: "EventBuffers",
    G: torch.Tensor,
    A: torch.Tensor,
    every: torch.Tensor,
    rows: slice,
    passes: int,
) -> None:
    """Do what `graphed.settle` does, in one launch: a program has all of the rows."""
    K, M = buffers.Wt.shape
    count = triton.next_power_of_2(rows.stop - rows.start)
    _settle[(1,)](
        buffers.C, buffers.Wt, buffers.change, buffers.norms, buffers.squared, G, A, every,
        rows.start, rows.stop, M, passes,
        K=K, KP=padded(K), BM=max(32, count), num_warps=max(1, count // 32),
    )  # fmt: skip
