"""Exact non-negative least squares for the weights of rows, in numba: `updates.solve_rows`.

X may be float32 or float64; everything else is float64. One thread: a core is left to the scan.
"""

from typing import Any, NamedTuple

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


class _Room(NamedTuple):
    """What solving for K weights works in, row after row, as long as the Gram matrix stays.

    ``lower`` (K, K) holds the latest Cholesky factor, of the rows and columns ``index[:size[0]]``,
    which are those that ``factored`` (K,) marks; there is none where the size is -1. ``passive``,
    ``open_``, ``wrong``, ``change``, ``price`` and ``shifted`` (K,) are used as their names say.
    """

    lower: Any
    index: Any
    size: Any
    factored: Any
    passive: Any
    open_: Any
    wrong: Any
    change: Any
    price: Any
    shifted: Any


@compiled
def _room(K):
    return _Room(
        np.empty((K, K)),
        np.empty(K, np.int64),
        np.full(1, -1),
        np.empty(K, np.bool_),
        np.empty(K, np.bool_),
        np.ones(K, np.bool_),
        np.empty(K, np.bool_),
        np.empty(K),
        np.empty(K),
        np.empty(K),
    )


@compiled
def solve_passive(G, c, passive, w, lower, index):
    """Solve G w = c on the passive set by Cholesky; other weights are left alone."""
    n = _factor(G, passive, lower, index)
    _substitute(c, w, lower, index[:n])


@compiled
def _factor(G, passive, lower, index):
    """Take the Cholesky factor of G on the passive set; give the size of the set."""
    n = 0
    for k in range(len(passive)):
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
    return n


@compiled
def _substitute(c, w, lower, index):
    """Solve with the Cholesky factor of some rows and columns."""
    n = len(index)
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
def _exchange(G, c, price, total, w, room):
    """Solve one non-negative least squares problem by exchanges; tell whether these end.

    Only the weights that are open are solved for. The others are zero here; what they explain has
    been taken from c. ``room.passive`` is where the search for the positive ones starts, and on
    return what they are. ``price @ w`` comes to ``total``, where that is a number: on a set of
    positive weights the multiplier is that of a linear equation.
    """
    open_, passive, wrong, change = room.open_, room.passive, room.wrong, room.change
    K, ended = len(c), False
    fewest, chances = K + 1, _FULL_EXCHANGES
    for _ in range(_MAX_EXCHANGES):
        # Rows that follow each other are often made of the same components.
        known = room.size[0] >= 0
        for k in range(K):
            w[k] = change[k] = 0.0
            known = known and room.factored[k] == passive[k]
        if not known:
            room.size[0] = _factor(G, passive, room.lower, room.index)
            room.factored[:] = passive
        chosen = room.index[: room.size[0]]
        _substitute(c, w, room.lower, chosen)
        multiplier = 0.0
        if not np.isnan(total):
            _substitute(price, change, room.lower, chosen)
            missing, gained = total, 0.0
            for k in range(K):
                missing -= w[k] * price[k]
                gained += change[k] * price[k]
            if gained <= 0.0:
                break
            multiplier = missing / gained
            for k in range(K):
                w[k] += multiplier * change[k]
        largest = 0.0
        for k in range(K):
            if open_[k]:
                largest = max(largest, abs(c[k]) + abs(multiplier * price[k]))
        tolerance, count, last = 1e-12 * largest, 0, -1
        for k in range(K):
            wrong[k] = False
            if passive[k]:
                wrong[k] = w[k] < -tolerance
            elif open_[k]:
                gradient = -c[k] - multiplier * price[k]
                for m in range(K):
                    gradient += G[k, m] * w[m]
                wrong[k] = gradient < -tolerance
            if wrong[k]:
                count, last = count + 1, k
        if count == 0:
            ended = True
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
    return ended


@compiled
def _solve_row(G, c, w, room):
    """Solve for weights that nothing more is asked of: see `_exchange`."""
    _exchange(G, c, c, np.nan, w, room)


@compiled
def _solve_to_total(G, c, unit, total, w, room):
    """Solve with the weights w / unit summing to ``total``."""
    price, K = room.price, len(c)
    for k in range(K):
        price[k] = 1.0 / unit[k]
    if not _exchange(G, c, price, total, w, room):
        # Components that depend on each other may let exchanges go round.
        _bisect_to_total(G, c, price, total, w, room)
    found = 0.0
    for k in range(K):
        found += w[k] * price[k]
    if found > 0.0:
        for k in range(K):
            w[k] *= total / found


@compiled
def _bisect_to_total(G, c, price, total, w, room):
    """Solve with ``price @ w`` near ``total``: the multiplier is found by bisection.

    The sum rises with the multiplier, piecewise linearly, from 0 where it is very negative.
    """
    open_, shifted = room.open_, room.shifted
    K = len(c)
    low, high, step = 0.0, 0.0, 0.0
    for k in range(K):
        if open_[k]:
            step = max(step, abs(c[k]) / price[k])
            # One weight alone reaches the total at this multiplier, or earlier.
            high = max(high, total / (price[k] * price[k]))
    low, high = -step - high, step + high * K
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        for k in range(K):
            shifted[k] = c[k] + middle * price[k]
            room.passive[k] = open_[k] and shifted[k] > 0.0
        _solve_row(G, shifted, w, room)
        found = 0.0
        for k in range(K):
            found += w[k] * price[k]
        if abs(found - total) <= 1e-13 * total:
            break
        if found < total:
            low = middle
        else:
            high = middle


@compiled
def _scale(gram_, l2, G, unit):
    """Put gram_ (K, K) and the penalty into G with a unit diagonal, and the units (K,).

    One tolerance and one ridge so serve components of any intensity.
    """
    K = len(gram_)
    largest = 0.0
    for k in range(K):
        largest = max(largest, gram_[k, k])
    for k in range(K):
        alive = gram_[k, k] > 0.0
        unit[k] = np.sqrt(gram_[k, k] + l2) if alive else np.sqrt(largest) if largest > 0 else 1.0
    for k in range(K):
        for m in range(K):
            G[k, m] = gram_[k, m] / (unit[k] * unit[m])
        G[k, k] = (gram_[k, k] + l2) / (unit[k] * unit[k]) + RIDGE * K


@compiled
def _solve_scaled(gram_, G, unit, c, l1, total, held, w, start, room):
    """Do what `solve_weights` does, for what `_scale` has made of ``gram_``.

    The search begins with the weights that are positive in ``start`` (K,).
    """
    K = len(c)
    open_, passive = room.open_, room.passive
    rest, any_open, any_positive = total, False, False
    for k in range(K):
        # Of a total, a component of zeros takes what the others leave.
        open_[k] = gram_[k, k] > 0.0 or not np.isnan(total)
        c[k] -= l1
    for k in range(len(held)):
        if not np.isnan(held[k]):
            open_[k] = False
            rest -= held[k]
            for m in range(K):
                c[m] -= gram_[m, k] * held[k]
    for k in range(K):
        any_open = any_open or open_[k]
        c[k] /= unit[k]
        passive[k] = open_[k] and start[k] > 0.0
        any_positive = any_positive or passive[k]
    if np.isnan(total):
        if not any_positive:
            for k in range(K):
                passive[k] = open_[k] and c[k] > 0.0
        _solve_row(G, c, w, room)
    elif rest > 0.0 and any_open:
        if not any_positive:
            passive[:] = open_
        _solve_to_total(G, c, unit, rest, w, room)
    else:
        w[:] = 0.0
    for k in range(K):
        w[k] /= unit[k]
    for k in range(len(held)):
        if not np.isnan(held[k]):
            w[k] = held[k]


@compiled
def solve_weights(gram_, c, l1, l2, total, held, w):
    """Solve for the weights of one row, w (K,), for G (K, K) and c (K,); c is overwritten.

    ``held`` (K,) has NaN where weights are free, or no elements; ``total`` is what all of them
    add up to, NaN where that is free.
    """
    K = len(c)
    G, unit, start = np.empty((K, K)), np.empty(K), np.zeros(K)
    _scale(gram_, l2, G, unit)
    _solve_scaled(gram_, G, unit, c, l1, total, held, w, start, _room(K))


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
    C, part = np.empty((_ROWS, K)), np.empty((_ROWS, len(free)))
    moved = np.empty((_ROWS, len(free)))
    G, unit, room = np.empty((K, K)), np.empty(K), _room(K)
    _scale(GH, l2, G, unit)
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
            here = held[row] if len(held) else none_held
            _solve_scaled(GH, G, unit, c, l1, total, here, w, W[row], room)
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
    room = _room(K)
    for k in range(K):
        room.passive[k] = len(C) > 0 and C[0, k] > 0.0
    for i in range(len(C)):
        # From the second on, rows start from what the one before is made of.
        _solve_row(G, C[i], W[i], room)
