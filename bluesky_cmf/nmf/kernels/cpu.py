"""Kernels for the CPU, in numba: coordinate descent and whole sweeps; the others are re-exported.

X may be float32 or float64; everything else is float64. One thread: a core is left to the scan.
"""

import numpy as np

from .nnls import nnls, resolve
from .products import (
    COLUMNS,
    add_transposed_times,
    compiled,
    gram,
    gram_from,
    harmless,
    inner,
    squared_norms,
    times,
    times_by_row,
    transposed_times,
)

__all__ = [
    "add_transposed_times",
    "descend_components",
    "follow",
    "gram",
    "gram_from",
    "harmless",
    "inner",
    "nnls",
    "resolve",
    "squared_norms",
    "sweep",
    "times",
    "times_by_row",
    "transposed_times",
    "warm_up",
]

#: A diagonal element that vanishes beside the largest one, as in `updates.py`.
_VANISHING = 1e-26
#: Passes between two looks at whether they still move anything; what that is, squared: of what
#: there is, and, for components, of what the first pass has moved.
_LOOK_EVERY, _STILL, _SETTLED = 4, 1e-12, 1e-2


@compiled
def _product(X, V, H, free, C):
    """Put the columns ``free`` of XHᵀ into C, where X stands for X V if V has rows."""
    some = np.empty((len(free), H.shape[1]))
    for k in range(len(free)):
        some[k] = H[free[k]]
    columns = np.empty((len(X), len(free)))
    if len(V):
        core = np.empty((len(V), len(free)))
        times(V, some, core)
        times(X, np.ascontiguousarray(core.T), columns)
    else:
        times(X, some, columns)
    for k in range(len(free)):
        C[:, free[k]] = columns[:, k]


@compiled
def _transposed_product(X, V, W, free, B):
    """Put the rows ``free`` of WX into B, for W (K, N), where X stands for X V if V has rows."""
    some = np.empty((len(X), len(free)))
    for k in range(len(free)):
        some[:, k] = W[free[k]]
    rows = np.empty((len(free), B.shape[1]))
    if len(V):
        core = np.empty((len(free), len(V)))
        transposed_times(X, some, core)
        transposed_times(V, np.ascontiguousarray(core.T), rows)
    else:
        transposed_times(X, some, rows)
    for k in range(len(free)):
        B[free[k]] = rows[k]


@compiled
def _descend_columns(V, G, C, free, passes):
    """Coordinate descent on V (K, M) in place: `updates.coordinate_descent`.

    Returns what the first pass has moved, squared, and the last: where they fill a round.
    """
    K, M = V.shape
    largest = moved_first = moved_last = 0.0
    for k in range(K):
        largest = max(largest, G[k, k])
    held = [k for k in range(K) if k not in free]
    base, step = np.empty((K, COLUMNS)), np.empty(COLUMNS)
    for first in range(0, M, COLUMNS):
        last = min(M, first + COLUMNS)
        n = last - first
        for k in free:
            v, c, b = V[k, first:last], C[k, first:last], base[k]
            for j in range(n):
                v[j] = max(0.0, v[j])
            if G[k, k] <= largest * _VANISHING:
                for j in range(n):
                    if c[j] < 0.0:
                        v[j] = 0.0
            # What is held takes the same from each pass.
            for j in range(n):
                b[j] = c[j]
            for m in held:
                if G[k, m] != 0.0:
                    g, u = G[k, m], V[m, first:last]
                    for j in range(n):
                        b[j] -= g * u[j]
        for done in range(passes):
            look = done % _LOOK_EVERY == _LOOK_EVERY - 1
            measured = look or (done == 0 and passes >= _LOOK_EVERY)
            moved = size = 0.0
            for k in free:
                diagonal = G[k, k]
                if diagonal <= largest * _VANISHING:
                    continue
                b = base[k]
                for j in range(n):
                    step[j] = b[j]
                for m in free:
                    if m != k and G[k, m] != 0.0:
                        g, v = G[k, m], V[m, first:last]
                        for j in range(n):
                            step[j] -= g * v[j]
                v, inverse = V[k, first:last], 1.0 / diagonal
                if measured:
                    change = total = 0.0
                    for j in range(n):
                        new = max(0.0, step[j] * inverse)
                        change += (new - v[j]) * (new - v[j])
                        total += new * new
                        v[j] = new
                    moved += diagonal * change
                    size += diagonal * total
                else:
                    for j in range(n):
                        v[j] = max(0.0, step[j] * inverse)
            if done == 0:
                moved_first += moved
            if look and (moved <= _STILL * size or done == passes - 1):
                moved_last += moved
                break
    return moved_first, moved_last


@compiled
def _descend(H, G, C, free, passes):
    """Coordinate descent on components, until a pass moves a small part of what the first did."""
    first = 0.0
    for done in range(0, passes, _LOOK_EVERY):
        some = min(_LOOK_EVERY, passes - done)
        before, last = _descend_columns(H, G, C, free, some)
        if done == 0:
            first = before
        if some == _LOOK_EVERY and last <= _SETTLED * first:
            break


@compiled
def _objective(half_norm, W, C, A, G):
    """½‖X‖² - ⟨W, XHᵀ⟩ + ½⟨WᵀW, HHᵀ⟩ for W (K, N), C (N, K)."""
    objective = half_norm
    K, N = W.shape
    for i in range(N):
        for k in range(K):
            objective -= W[k, i] * C[i, k]
    for k in range(K):
        for m in range(K):
            objective += 0.5 * A[k, m] * G[k, m]
    return objective


@compiled
def _penalise(G, C, l1, l2):
    """Add a penalty to the problem of a half-step: ½vᵀ(G + l2)v - (c - l1)ᵀv."""
    if l2 > 0.0:
        for k in range(len(G)):
            G[k, k] += l2
    if l1 > 0.0:
        C -= l1


@compiled
def _penalty(W, H, A, G, l1, l2):
    penalty = 0.0
    if l1 > 0.0:
        penalty += l1 * (W.sum() + H.sum())
    if l2 > 0.0:
        for k in range(len(A)):
            penalty += 0.5 * l2 * (A[k, k] + G[k, k])
    return penalty


@compiled
def sweep(
    X, V, half_norm, l1, l2, W, H, C, ahead_W, ahead_H, ahead_C, pace, free, passes, sweeps, curve
):
    """Do extrapolated sweeps in place: `sweeps.Extrapolation.sweep`.

    X (N, F), or X V with X (N, r) and V (r, F), are the data; V without rows stands for nothing.
    W (K, N) and H (K, F) are the best factors and C = XHᵀ (N, K), ``ahead_…`` the extrapolated
    ones. ``pace`` holds the step and its bound, how both grow after a good sweep, and how the
    step shrinks after a bad one. ``curve`` (sweeps,) takes the objective after each sweep.
    """
    K, N = W.shape
    F = H.shape[1]
    # What belongs to held components stays as it is.
    new_C = C.copy()
    A, G, B = np.empty((K, K)), np.empty((K, K)), np.zeros((K, F))
    new_W, new_H = np.empty((K, N)), np.empty((K, F))
    every = np.arange(K)
    right = np.empty((K, N))
    gram(W, A)
    gram(H, G)
    objective = _objective(half_norm, W, C, A, G) + _penalty(W, H, A, G, l1, l2)
    for s in range(sweeps):
        step = pace[0]
        gram(ahead_H, G)
        new_W[:] = ahead_W
        right[:] = ahead_C.T
        _penalise(G, right, l1, l2)
        _descend_columns(new_W, G, right, every, passes[0])
        ahead_W[:] = new_W + step * (new_W - W)
        gram(ahead_W, A)
        _transposed_product(X, V, ahead_W, free, B)
        _penalise(A, B, l1, l2)
        new_H[:] = ahead_H
        _descend(new_H, A, B, free, passes[1])
        _product(X, V, new_H, free, new_C)
        gram(new_W, A)
        gram(new_H, G)
        found = _objective(half_norm, new_W, new_C, A, G) + _penalty(new_W, new_H, A, G, l1, l2)
        if found <= objective:
            for k in free:
                for j in range(F):
                    ahead_H[k, j] = new_H[k, j] + step * (new_H[k, j] - H[k, j])
            ahead_C[:] = new_C + step * (new_C - C)
            W[:], H[:], C[:] = new_W, new_H, new_C
            objective = found
            pace[0] = min(pace[1], pace[2] * step)
            pace[1] = min(1.0, pace[3] * pace[1])
        else:
            ahead_W[:], ahead_H[:], ahead_C[:] = W, H, C
            pace[1], pace[0] = step, step / pace[4]
        curve[s] = objective


@compiled
def descend_components(H, A, B, l1, l2, free, passes, G):
    """Coordinate descent on the free rows of H (K, F) in place, for A = WᵀW, B = WᵀX; G = HHᵀ.

    ``free`` rises.
    """
    if l1 > 0.0 or l2 > 0.0:
        A, B = A.copy(), B.copy()
        _penalise(A, B, l1, l2)
    _descend(H, A, B, free, passes)
    # Those before the first that is free have not moved.
    gram_from(H, free[0] if len(free) else len(H), G)


@compiled
def follow(
    passes, shapes, X, norms, H, GH, l1, l2, total, held, constant, free, products, W, squared, A, B
):
    """Solve for the weights of rows, descend on the components, and solve anew: an event.

    ``shapes`` (n, F) are the components ``constant``, and ``products`` are given here. Returns what
    `resolve` does, both times.
    """
    times_by_row(X, shapes, products)
    first = resolve(
        X, norms, H, GH, l1, l2, total, held, constant, free, products, W, squared, A, B
    )
    descend_components(H, A, B, l1, l2, free, passes, GH)
    second = resolve(
        X, norms, H, GH, l1, l2, total, held, constant, free, products, W, squared, A, B
    )
    return first, second


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
    nothing, none_held = np.empty((0, 0)), np.empty((0, 0))
    for dtype in (np.float32, np.float64):
        X, W, H, C = np.ones((2, 3), dtype), np.ones((1, 2)), np.ones((1, 3)), np.ones((2, 1))
        pace = np.array([0.5, 1.0, 1.05, 1.01, 1.5])
        free, curve = np.zeros(1, np.int64), np.empty(1)
        times(X, H, C)
        transposed_times(X, C, H.copy())
        rest = (W.copy(), H.copy(), C.copy(), pace, free, (1, 1), 1, curve)
        sweep(X, nothing, 3.0, 0.0, 0.0, W, H, C, *rest)
        A, B, norms = np.ones((1, 1)), np.ones((1, 3)), np.ones(2)
        squared_norms(X, norms)
        harmless(X, 1.0)
        inner(A, A)
        times_by_row(X, H, C)
        shares = np.zeros(0, np.int64), free, np.empty((2, 0))
        masters = C, norms.copy(), A.copy(), B
        problem = X, norms, H, A, 0.0, 0.0, np.nan, none_held, *shares, *masters
        resolve(*problem)
        follow(1, H[:0], *problem)
        descend_components(H, A, B, 0.0, 0.0, free, 1, A.copy())
    nnls(np.ones((1, 1)), np.ones((1, 1)))
