"""Extrapolated sweeps for CUDA, in triton: four launches, two looks at the data, no host.

What the host would decide is decided by the program that comes last. Numbers that sweeps go by are
in two tables: ``state`` of float64 and ``whole`` of int32, by the names below. Tables of weights
have room for S rows, a multiple of 16.
"""

import triton
import triton.language as tl

from .cuda import gather_rows
from .cudadescent import descend

__all__ = ["COUNT", "SLOT", "column_products", "components", "row_products", "weights"]

#: In ``state``: the pace, as `sweeps.Pace` has it, the objective, and what it is made of.
STEP, BOUND, GROWTH, BOUND_GROWTH, SHRINK, BEST, HALF_NORM, L1, L2 = map(tl.constexpr, range(9))
#: In ``whole``: which of two slots has the best factors, whether the last sweep led there, how many
#: there were, and a zero that compilers do not know of.
SLOT, GOOD, COUNT, ZERO = map(tl.constexpr, range(4))


@triton.jit
def _store_gram(V, out, K: tl.constexpr, KP: tl.constexpr):
    """Store VVᵀ, (K, K), for V (KP, M)."""
    k = tl.arange(0, KP)
    gram = tl.dot(V, tl.trans(V), out_dtype=tl.float64)
    at = out + k[:, None] * K + k[None, :]
    tl.store(at, gram, mask=(k[:, None] < K) & (k[None, :] < K))


@triton.jit(do_not_specialize=["N", "slabs"])
def row_products(
    tiles, H, lead_H, parts, whole, N, S, F, slabs, slab, DTYPE: tl.constexpr, K: tl.constexpr,
    KP: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Leave parts of XHᵀ of the components that lead, (slabs, K, S): the first look at the data."""
    tile = tl.program_id(0) // slabs
    part = tl.program_id(0) % slabs
    k = tl.arange(0, KP)
    m = tl.arange(0, BM)
    ahead = H + tl.load(whole + SLOT) * K * F
    if tl.load(whole + GOOD) > 0:
        ahead = lead_H
    # True where it matters: of rows whose length is no multiple of 16, numbers come one by one.
    ahead = tl.multiple_of(ahead, 16)
    X = tl.multiple_of(tl.load(tiles + tile).to(tl.pointer_type(DTYPE)), 16)
    there = tile * BM + m < N
    first = part * slab
    last = tl.minimum(first + slab, F)
    sums = gather_rows(X, there, ahead, first, last, F, K, KP, BM, BF, STAGES)
    at = parts + (part * K + k[None, :]) * S + (tile * BM + m[:, None])
    tl.store(at, sums, mask=there[:, None] & (k[None, :] < K))


@triton.jit(do_not_specialize=["N", "slabs", "passes"])
def weights(
    Wt, lead_Wt, G, every, parts, grams, A, came, state, whole, N, S, slabs, passes,
    K: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr, KQ: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Solve for the weights, given parts of XHᵀ, and lead on.

    Who is last sums up WᵀW of what is found and of what leads, and what is found.
    """
    k = tl.arange(0, KP)
    slot = tl.load(whole + SLOT)
    # The zero keeps compilers from giving a thread neighbouring rows in place of all of one.
    row = tl.program_id(0) * BM + tl.load(whole + ZERO) + tl.arange(0, BM)
    inside = (k[:, None] < K) & (row[None, :] < N)
    at = k[:, None] * S + row[None, :]
    C = tl.zeros([KP, BM], dtype=tl.float64) - tl.load(state + L1)
    for part in tl.range(0, slabs, loop_unroll_factor=8):
        C += tl.load(parts + part * K * S + at, mask=inside, other=0.0)
    best = tl.load(Wt + slot * K * S + at, mask=inside, other=0.0)
    V = best
    if tl.load(whole + GOOD) > 0:
        V = tl.load(lead_Wt + at, mask=inside, other=0.0)
    V = descend(V, C, G, tl.load(state + L2), every, passes, K, KP)
    lead = V + tl.load(state + STEP) * (V - best)
    tl.store(Wt + (1 - slot) * K * S + at, V, mask=inside)
    tl.store(lead_Wt + at, lead, mask=inside)
    width = 2 * K * K + 1
    out = grams + tl.program_id(0) * width
    _store_gram(V, out, K, KP)
    _store_gram(lead, out + K * K, K, KP)
    tl.store(out + 2 * K * K, tl.sum(V))
    tl.debug_barrier()
    done = tl.atomic_add(came, 1, sem="acq_rel", scope="gpu") + 1
    if done == tl.num_programs(0):
        # Many at a time: each waits for the memory.
        q = tl.arange(0, KQ)
        p = tl.arange(0, BP)
        total = tl.zeros([KQ], dtype=tl.float64)
        for other in range(0, tl.num_programs(0), BP):
            there = (other + p < tl.num_programs(0))[:, None] & (q < width)[None, :]
            sums = grams + (other + p)[:, None] * width + q[None, :]
            total += tl.sum(tl.load(sums, mask=there, other=0.0, cache_modifier=".cg"), 0)
        tl.store(A + q, total, mask=q < width)
        tl.store(came, 0)


@triton.jit(do_not_specialize=["N", "columns", "shares", "n_tiles"])
def column_products(
    tiles, lead_Wt, parts, N, S, F, columns, shares, n_tiles, DTYPE: tl.constexpr, K: tl.constexpr,
    KM: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Leave parts of WᵀX of the weights that lead, (shares, K, F): the second look at the data.

    All begin with the rows that were seen last, and end with those that will be seen first.
    """
    share = tl.program_id(0) // columns
    f = tl.program_id(0) % columns * BC + tl.arange(0, BC)
    k = tl.arange(0, KM)
    r = tl.arange(0, BR)
    sums = tl.zeros([KM, BC], dtype=tl.float64)
    for unit in range(share, n_tiles, shares):
        tile = n_tiles - 1 - unit
        X = tl.multiple_of(tl.load(tiles + tile).to(tl.pointer_type(DTYPE)), 16)
        # Loads are under way ahead of their use where addresses are known before: within a tile.
        for start in tl.range(0, BM, BR, num_stages=STAGES):
            row = tile * BM + start + r
            x = tl.load(
                X + (start + r)[:, None] * F + f[None, :],
                mask=(row[:, None] < N) & (f[None, :] < F),
                other=0.0,
            )
            w = tl.load(
                lead_Wt + k[:, None] * S + row[None, :],
                mask=(k[:, None] < K) & (row[None, :] < N),
                other=0.0,
            )
            sums = tl.dot(w, x.to(tl.float64), sums, out_dtype=tl.float64)
    at = parts + (share * K + k[:, None]) * F + f[None, :]
    tl.store(at, sums, mask=(k[:, None] < K) & (f[None, :] < F))


@triton.jit(do_not_specialize=["shares", "passes"])
def components(
    H, lead_H, B, G, ahead_G, free, A, B_parts, parts, came, state, whole, curve, F, shares,
    passes, K: tl.constexpr, KP: tl.constexpr, BT: tl.constexpr, KQ: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """Descend on the components, given WᵀX of the weights that lead, and lead on.

    Who is last keeps the sweep where it has lowered the objective.
    """
    k = tl.arange(0, KP)
    f = tl.program_id(0) * BT + tl.load(whole + ZERO) + tl.arange(0, BT)
    inside = (k[:, None] < K) & (f[None, :] < F)
    at = k[:, None] * F + f[None, :]
    slot = tl.load(whole + SLOT)
    step = tl.load(state + STEP)
    led = tl.zeros([KP, BT], dtype=tl.float64)
    for share in tl.range(0, shares, loop_unroll_factor=8):
        led += tl.load(B_parts + share * K * F + at, mask=inside, other=0.0)
    best = tl.load(H + slot * K * F + at, mask=inside, other=0.0)
    V = best
    if tl.load(whole + GOOD) > 0:
        V = tl.load(lead_H + at, mask=inside, other=0.0)
    V = descend(V, led - tl.load(state + L1), A + K * K, tl.load(state + L2), free, passes, K, KP)
    moves = tl.load(free + k, mask=k < K, other=0) != 0
    lead = V + tl.where(moves, step, 0.0)[:, None] * (V - best)
    # What leads is as far beyond what was found as that is beyond the best so far.
    cross = tl.load(B + slot * K * F + at, mask=inside, other=0.0)
    cross = (led + step * cross) / (1.0 + step)
    tl.store(H + (1 - slot) * K * F + at, V, mask=inside)
    tl.store(lead_H + at, lead, mask=inside)
    tl.store(B + (1 - slot) * K * F + at, cross, mask=inside)
    out = parts + tl.program_id(0) * (2 * K * K + 2)
    _store_gram(V, out, K, KP)
    _store_gram(lead, out + K * K, K, KP)
    tl.store(out + 2 * K * K, tl.sum(cross * V))
    tl.store(out + 2 * K * K + 1, tl.sum(V))
    tl.debug_barrier()
    done = tl.atomic_add(came, 1, sem="acq_rel", scope="gpu") + 1
    if done == tl.num_programs(0):
        _decide(G, ahead_G, A, parts, tl.num_programs(0), state, whole, curve, K, KQ, BP)
        tl.store(came, 0)


@triton.jit
def _decide(
    G, ahead_G, A, parts, n_parts, state, whole, curve, K: tl.constexpr, KQ: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    q = tl.arange(0, KQ)
    p = tl.arange(0, BP)
    new = tl.zeros([KQ], dtype=tl.float64)
    lead = tl.zeros([KQ], dtype=tl.float64)
    crosses = tl.zeros([BP], dtype=tl.float64)
    totals = tl.zeros([BP], dtype=tl.float64)
    width = 2 * K * K + 2
    for first in range(0, n_parts, BP):
        there = first + p < n_parts
        some = there[:, None] & (q < K * K)[None, :]
        squares = parts + (first + p)[:, None] * width + q[None, :]
        new += tl.sum(tl.load(squares, mask=some, other=0.0, cache_modifier=".cg"), 0)
        lead += tl.sum(tl.load(squares + K * K, mask=some, other=0.0, cache_modifier=".cg"), 0)
        sums = parts + (first + p) * width + 2 * K * K
        crosses += tl.load(sums, mask=there, other=0.0, cache_modifier=".cg")
        totals += tl.load(sums + 1, mask=there, other=0.0, cache_modifier=".cg")
    slot = tl.load(whole + SLOT)
    step = tl.load(state + STEP)
    bound = tl.load(state + BOUND)
    best = tl.load(state + BEST)
    found_A = tl.load(A + q, mask=q < K * K, other=0.0)
    found = tl.load(state + HALF_NORM) - tl.sum(crosses) + 0.5 * tl.sum(found_A * new)
    found += tl.load(state + L1) * (tl.load(A + 2 * K * K) + tl.sum(totals))
    diagonal = (q < K * K) & (q % (K + 1) == 0)
    found += 0.5 * tl.load(state + L2) * tl.sum(tl.where(diagonal, found_A + new, 0.0))
    good = found <= best
    kept = tl.load(G + slot * K * K + q, mask=q < K * K, other=0.0)
    tl.store(G + (1 - slot) * K * K + q, new, mask=q < K * K)
    tl.store(ahead_G + q, tl.where(good, lead, kept), mask=q < K * K)
    further = tl.minimum(bound, tl.load(state + GROWTH) * step)
    wider = tl.minimum(1.0, tl.load(state + BOUND_GROWTH) * bound)
    tl.store(state + STEP, tl.where(good, further, step / tl.load(state + SHRINK)))
    tl.store(state + BOUND, tl.where(good, wider, step))
    best = tl.where(good, found, best)
    tl.store(state + BEST, best)
    count = tl.load(whole + COUNT)
    tl.store(curve + count, best)
    tl.store(whole + SLOT, tl.where(good, 1 - slot, slot))
    tl.store(whole + GOOD, good.to(tl.int32))
    tl.store(whole + COUNT, count + 1)
