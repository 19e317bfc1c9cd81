"""Extrapolated sweeps for CUDA, in triton: three launches, two looks at the data, no host.

What the host would decide is decided by the program that comes last. Numbers that sweeps go by are
in two tables: ``state`` of float64 and ``whole`` of int32, by the names below.
"""

import triton
import triton.language as tl

from .cuda import gather_columns, gather_rows
from .cudadescent import descend

__all__ = ["BEST", "COUNT", "GOOD", "SLOT", "components", "products", "weights"]

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


@triton.jit
def weights(
    tiles, H, lead_H, Wt, lead_Wt, G, every, parts, came, grams, A, state, whole, N, F, slabs, slab,
    n_groups, passes, DTYPE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr,
    BF: tl.constexpr, BG: tl.constexpr, KQ: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Solve for the weights of all rows, and lead on: the first look at the data.

    Each program leaves a part of XHᵀ. Who is the last to do so for a group of BG rows solves for
    their weights, and who is the last to do that sums up WᵀW of what is found and what leads.
    """
    unit = tl.program_id(0)
    tile = unit // slabs
    part = unit % slabs
    k = tl.arange(0, KP)
    m = tl.arange(0, BM)
    slot = tl.load(whole + SLOT)
    good = tl.load(whole + GOOD)
    ahead = H + slot * K * F
    if good > 0:
        ahead = lead_H
    X = tl.multiple_of(tl.load(tiles + tile).to(tl.pointer_type(DTYPE)), 16)
    there = tile * BM + m < N
    first = part * slab
    last = tl.minimum(first + slab, F)
    sums = gather_rows(X, there, ahead, first, last, F, K, KP, BM, BF, STAGES)
    mine = parts + (part * K + k[None, :]) * N + (tile * BM + m[:, None])
    tl.store(mine, sums, mask=there[:, None] & (k[None, :] < K))
    tl.debug_barrier()
    group = tile // (BG // BM)
    ready = tl.atomic_add(came + group, 1, sem="acq_rel", scope="gpu") + 1
    if ready == BG // BM * slabs:
        # The zero keeps compilers from giving a thread neighbouring rows in place of all of one.
        row = group * BG + tl.load(whole + ZERO) + tl.arange(0, BG)
        inside = (k[:, None] < K) & (row[None, :] < N)
        at = k[:, None] * N + row[None, :]
        C = tl.zeros([KP, BG], dtype=tl.float64) - tl.load(state + L1)
        for other in range(0, slabs):
            C += tl.load(parts + other * K * N + at, mask=inside, other=0.0, cache_modifier=".cg")
        best = tl.load(Wt + slot * K * N + at, mask=inside, other=0.0)
        V = best
        if good > 0:
            V = tl.load(lead_Wt + at, mask=inside, other=0.0)
        V = descend(V, C, G, tl.load(state + L2), every, passes, K, KP)
        lead = V + tl.load(state + STEP) * (V - best)
        tl.store(Wt + (1 - slot) * K * N + at, V, mask=inside)
        tl.store(lead_Wt + at, lead, mask=inside)
        width = 2 * K * K + 1
        out = grams + group * width
        _store_gram(V, out, K, KP)
        _store_gram(lead, out + K * K, K, KP)
        tl.store(out + 2 * K * K, tl.sum(V))
        tl.debug_barrier()
        solved = tl.atomic_add(came + n_groups, 1, sem="acq_rel", scope="gpu") + 1
        if solved == n_groups:
            q = tl.arange(0, KQ)
            total = tl.zeros([KQ], dtype=tl.float64)
            for other in range(0, n_groups):
                group_sums = grams + other * width + q
                total += tl.load(group_sums, mask=q < width, other=0.0, cache_modifier=".cg")
            tl.store(A + q, total, mask=q < width)


@triton.jit
def products(
    tiles, lead_Wt, B_parts, N, F, columns, share, shares, DTYPE: tl.constexpr, K: tl.constexpr,
    KP: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Leave parts of WᵀX of the weights that lead: the second look at the data.

    It begins with the rows that were seen last, which are still near.
    """
    program = tl.program_id(0)
    number = shares - 1 - program // columns
    f = program % columns * BC + tl.arange(0, BC)
    k = tl.arange(0, KP)
    first = number * share
    last = tl.minimum(first + share, N)
    X = tl.load(tiles).to(tl.pointer_type(DTYPE))
    sums = gather_columns(
        X, tiles, lead_Wt, 1, N, f, first, last, F, K, KP, BM, BR, BC, STAGES, True
    )
    at = B_parts + (number * K + k[None, :]) * F + f[:, None]
    tl.store(at, sums, mask=(k[None, :] < K) & (f[:, None] < F))


@triton.jit
def components(
    H, lead_H, B, G, ahead_G, free, A, B_parts, parts, came, state, whole, curve, F, shares,
    n_groups, passes, K: tl.constexpr, KP: tl.constexpr, BT: tl.constexpr, KQ: tl.constexpr,
    BP: tl.constexpr, BZ: tl.constexpr,
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
    for share in range(0, shares):
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
    done = tl.atomic_add(came + n_groups + 1, 1, sem="acq_rel", scope="gpu") + 1
    if done == tl.num_programs(0):
        _decide(G, ahead_G, A, parts, tl.num_programs(0), state, whole, curve, K, KQ, BP)
        for first in range(0, n_groups + 2, BZ):
            z = first + tl.arange(0, BZ)
            tl.store(came + z, 0, mask=z < n_groups + 2)


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
