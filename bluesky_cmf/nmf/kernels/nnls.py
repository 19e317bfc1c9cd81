"""Exact non-negative least squares for the weights of rows, in numba: `updates.solve_rows`.

X may be float32 or float64; everything else is float64. One thread: a core is left to the scan.
"""

import numpy as np

from .products import add_transposed_times, compiled, times

__all__ = ["RIDGE", "nnls", "resolve", "solve_passive", "solve_weights"]

#: Ridge on a unit diagonal, and the exchanges of block pivoting, as in `updates.py`.
RIDGE = 1e-12
_FULL_EXCHANGES = 3
_MAX_EXCHANGES = 200
_BISECTIONS = 200
#: Rows whose weights are solved between two passes over them, which so find them in the cache.
_ROWS = 32
#: Part of ‖x‖² below which a residual is formed, and not taken from products, which round it.
_EXACT_BELOW = 1e-8


@compiled
def solve_passive(G, c, passive, w, lower, index):
    """Solve G w = c on the passive set by Cholesky; other weights are left alone."""
    n = 0
    for k in range(len(c)):
        if passive[k]:
            index[n] = k
            n += 1
    for a in range(n):
        for b in range(a + 1):
            value = G[index[a], index[b]]
            for m in range(b):
                value -= lower[a, m] * lower[b, m]
            if a == b:
                lower[a, a] = np.sqrt(max(value, RIDGE))
            else:
                lower[a, b] = value / lower[b, b]
    for a in range(n):
        value = c[index[a]]
        for m in range(a):
            value -= lower[a, m] * w[index[m]]
        w[index[a]] = value / lower[a, a]
    for a in range(n - 1, -1, -1):
        value = w[index[a]]
        for m in range(a + 1, n):
            value -= lower[m, a] * w[index[m]]
        w[index[a]] = value / lower[a, a]


@compiled
def _solve_row(G, c, open_, w, passive, wrong, lower, index):
    """Solve one non-negative least squares problem for the weights that are open.

    The others are zero here; what they explain has been taken from c.
    """
    K = len(c)
    largest = 0.0
    for k in range(K):
        passive[k] = open_[k] and c[k] > 0.0
        if open_[k]:
            largest = max(largest, abs(c[k]))
    tolerance = 1e-12 * largest
    fewest, chances = K + 1, _FULL_EXCHANGES
    for _ in range(_MAX_EXCHANGES):
        for k in range(K):
            w[k] = 0.0
        solve_passive(G, c, passive, w, lower, index)
        count, last = 0, -1
        for k in range(K):
            wrong[k] = False
            if passive[k]:
                wrong[k] = w[k] < -tolerance
            elif open_[k]:
                gradient = -c[k]
                for m in range(K):
                    gradient += G[k, m] * w[m]
                wrong[k] = gradient < -tolerance
            if wrong[k]:
                count, last = count + 1, k
        if count == 0:
            break
        if count < fewest:
            fewest, chances = count, _FULL_EXCHANGES
        else:
            chances -= 1
        for k in range(K):
            if wrong[k] and (chances >= 0 or k == last):
                passive[k] = not passive[k]
    for k in range(K):
        w[k] = max(0.0, w[k])


@compiled
def _solve_to_total(G, c, unit, total, open_, w, shifted, passive, wrong, lower, index):
    """Solve with the weights w / unit summing to ``total``: the multiplier is found by bisection.

    The sum rises with the multiplier, piecewise linearly, from 0 where it is very negative.
    """
    K = len(c)
    low, high, step = 0.0, 0.0, 0.0
    for k in range(K):
        if open_[k]:
            step = max(step, abs(c[k]) * unit[k])
            # One weight alone reaches the total at this multiplier, or earlier.
            high = max(high, total * unit[k] * unit[k])
    low, high = -step - high, step + high * K
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        for k in range(K):
            shifted[k] = c[k] + middle / unit[k]
        _solve_row(G, shifted, open_, w, passive, wrong, lower, index)
        found = 0.0
        for k in range(K):
            found += w[k] / unit[k]
        if abs(found - total) <= 1e-13 * total:
            break
        if found < total:
            low = middle
        else:
            high = middle
    if found > 0.0:
        for k in range(K):
            w[k] *= total / found


@compiled
def solve_weights(gram_, c, l1, l2, total, held, w):
    """Solve for the weights of one row, w (K,), for G (K, K) and c (K,); c is overwritten.

    ``held`` (K,) has NaN where weights are free, or no elements; ``total`` is what all of them
    add up to, NaN where that is free.
    """
    K = len(c)
    G, unit, open_ = np.empty((K, K)), np.empty(K), np.empty(K, np.bool_)
    lower, index, shifted = np.empty((K, K)), np.empty(K, np.int64), np.empty(K)
    passive, wrong = np.empty(K, np.bool_), np.empty(K, np.bool_)
    rest, any_open, largest = total, False, 0.0
    for k in range(K):
        largest = max(largest, gram_[k, k])
    for k in range(K):
        alive = gram_[k, k] > 0.0
        # Of a total, a component of zeros takes what the others leave.
        open_[k] = alive or not np.isnan(total)
        unit[k] = np.sqrt(gram_[k, k] + l2) if alive else np.sqrt(largest) if largest > 0 else 1.0
        c[k] -= l1
    for k in range(len(held)):
        if not np.isnan(held[k]):
            open_[k] = False
            rest -= held[k]
            for m in range(K):
                c[m] -= gram_[m, k] * held[k]
    # With a unit diagonal one tolerance and one ridge serve components of any intensity.
    for k in range(K):
        any_open = any_open or open_[k]
        c[k] /= unit[k]
        for m in range(K):
            G[k, m] = gram_[k, m] / (unit[k] * unit[m])
        G[k, k] = (gram_[k, k] + l2) / (unit[k] * unit[k]) + RIDGE * K
        if G[k, k] < 0.5 and not open_[k]:
            G[k, k] = 1.0
    if np.isnan(total):
        _solve_row(G, c, open_, w, passive, wrong, lower, index)
    elif rest > 0.0 and any_open:
        _solve_to_total(G, c, unit, rest, open_, w, shifted, passive, wrong, lower, index)
    else:
        w[:] = 0.0
    for k in range(K):
        w[k] /= unit[k]
    for k in range(len(held)):
        if not np.isnan(held[k]):
            w[k] = held[k]


@compiled
def resolve(X, norms, H, GH, l1, l2, total, held, constant, free, products, W, squared, A, B):
    """Solve for the weights of some rows, in place; A and B follow: `updates.solve_rows`.

    X (M, F), norms (M,), H (K, F), held (M, K) with NaN where weights are free, or without rows,
    W (M, K), squared (M,), A (K, K), B (K, F). ``total`` is what the weights of a row add up to,
    NaN where that is free. ``products`` (M, n) are XHᵀ of the n components
    ``constant``; the rows of B for these do not follow.

    Returns what the sums of the weights and of the squared residuals gain, and what the held
    components' part of ⟨W, XHᵀ⟩ does.
    """
    M, F = X.shape
    K = len(H)
    c, w, none_held = np.empty(K), np.empty(K), np.empty(0)
    C, part, moved = (
        np.empty((_ROWS, K)),
        np.empty((_ROWS, len(free))),
        np.empty((_ROWS, len(free))),
    )
    # Free components that stand together need no copy.
    together = len(free) > 0 and free[-1] - free[0] + 1 == len(free)
    if together:
        some, target = H[free[0] : free[-1] + 1], B[free[0] : free[-1] + 1]
    else:
        some, target = np.empty((len(free), F)), np.zeros((len(free), F))
        for k in range(len(free)):
            some[k] = H[free[k]]
    gained = lost = cross = 0.0
    for first in range(0, M, _ROWS):
        last = min(M, first + _ROWS)
        n = last - first
        times(X[first:last], some, part[:n])
        for i in range(n):
            row = first + i
            for k in range(len(constant)):
                C[i, constant[k]] = products[row, k]
            for k in range(len(free)):
                C[i, free[k]] = part[i, k]
            c[:] = C[i]
            solve_weights(GH, c, l1, l2, total, held[row] if len(held) else none_held, w)
            left = norms[row]
            for k in range(K):
                left -= 2.0 * w[k] * C[i, k]
                for m in range(K):
                    left += w[k] * w[m] * GH[k, m]
                    A[k, m] += w[k] * w[m] - W[row, k] * W[row, m]
            for k in range(len(constant)):
                cross += (w[constant[k]] - W[row, constant[k]]) * C[i, constant[k]]
            for k in range(len(free)):
                moved[i, k] = w[free[k]] - W[row, free[k]]
            for k in range(K):
                gained += w[k] - W[row, k]
                W[row, k] = w[k]
            if left < _EXACT_BELOW * norms[row]:
                left = 0.0
                for j in range(F):
                    value = np.float64(X[row, j])
                    for k in range(K):
                        value -= w[k] * H[k, j]
                    left += value * value
            lost += left - squared[row]
            squared[row] = left
        add_transposed_times(X[first:last], moved[:n], target)
    if not together:
        for k in range(len(free)):
            B[free[k]] += target[k]
    return gained, lost, cross


def nnls(C: np.ndarray, G: np.ndarray) -> np.ndarray:
    """Solve non-negative least squares exactly, (N, K): `updates.nnls`."""
    scale = np.sqrt(np.maximum(G.diagonal(), 0.0))
    alive = scale > 0
    unit = np.where(alive, scale, 1.0)
    scaled = G / (unit[:, None] * unit) + np.diag(~alive + RIDGE * len(G))
    W = np.empty_like(C)
    _nnls(np.ascontiguousarray(C / unit), scaled, W)
    return W / unit


@compiled
def _nnls(C, G, W):
    K = C.shape[1]
    lower, index = np.empty((K, K)), np.empty(K, np.int64)
    passive, wrong, every = np.empty(K, np.bool_), np.empty(K, np.bool_), np.ones(K, np.bool_)
    for i in range(len(C)):
        _solve_row(G, C[i], every, W[i], passive, wrong, lower, index)
