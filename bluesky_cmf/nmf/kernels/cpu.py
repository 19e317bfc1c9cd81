"""Kernels for the CPU, in numba: no interpreter lock, no dispatch between the steps.

X may be float32 or float64; everything else is float64. One thread: a core is left to the scan.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

__all__ = [
    "RIDGE",
    "VANISHING",
    "add_transposed_times",
    "compiled",
    "descend_components",
    "gram",
    "nnls",
    "resolve",
    "solve_weights",
    "sweep",
    "times",
    "transposed_times",
    "warm_up",
]

#: Rounding may be reassociated, as BLAS does; NaN and infinity keep their meaning.
_OPTIONS = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, and keep it for the next process where that is possible."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        # Neither the package nor the home can be written to: compile anew in each process.
        return njit(**_OPTIONS)(function)


#: Columns worked on at a time: what a step touches stays in the first-level cache.
_COLUMNS = 512
#: Ridge relative to the largest diagonal element, as in `updates.py`.
RIDGE = 1e-12
VANISHING = 1e-26
#: Passes between two looks at whether they still move anything; what that is, squared.
_LOOK_EVERY, _STILL = 4, 1e-12
_FULL_EXCHANGES = 3
_MAX_EXCHANGES = 200
_BISECTIONS = 200
#: Rows whose weights are solved between two passes over them, which so find them in the cache.
_ROWS = 32
#: Part of ‖x‖² below which a residual is formed, and not taken from products, which round it.
_EXACT_BELOW = 1e-8


@compiled
def times(X, H, C):
    """C = XHᵀ, (N, K)."""
    N, F = X.shape
    K = len(H)
    C[:] = 0.0
    for first in range(0, F, _COLUMNS):
        last = min(F, first + _COLUMNS)
        i = 0
        # Two rows by four components: what is loaded is used several times.
        while i + 2 <= N:
            x, y = X[i, first:last], X[i + 1, first:last]
            k = 0
            while k + 4 <= K:
                h0, h1 = H[k, first:last], H[k + 1, first:last]
                h2, h3 = H[k + 2, first:last], H[k + 3, first:last]
                c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = 0.0
                for j in range(len(x)):
                    value, other = np.float64(x[j]), np.float64(y[j])
                    c0 += value * h0[j]
                    c1 += value * h1[j]
                    c2 += value * h2[j]
                    c3 += value * h3[j]
                    d0 += other * h0[j]
                    d1 += other * h1[j]
                    d2 += other * h2[j]
                    d3 += other * h3[j]
                C[i, k] += c0
                C[i, k + 1] += c1
                C[i, k + 2] += c2
                C[i, k + 3] += c3
                C[i + 1, k] += d0
                C[i + 1, k + 1] += d1
                C[i + 1, k + 2] += d2
                C[i + 1, k + 3] += d3
                k += 4
            while k < K:
                h = H[k, first:last]
                c = d = 0.0
                for j in range(len(x)):
                    c += np.float64(x[j]) * h[j]
                    d += np.float64(y[j]) * h[j]
                C[i, k] += c
                C[i + 1, k] += d
                k += 1
            i += 2
        while i < N:
            x = X[i, first:last]
            for k in range(K):
                h = H[k, first:last]
                c = 0.0
                for j in range(len(x)):
                    c += np.float64(x[j]) * h[j]
                C[i, k] += c
            i += 1


@compiled
def transposed_times(X, W, B):
    """B = WᵀX, (K, F)."""
    B[:] = 0.0
    add_transposed_times(X, W, B)


@compiled
def add_transposed_times(X, W, B):
    """B += WᵀX, (K, F)."""
    N, F = X.shape
    K = W.shape[1]
    for first in range(0, F, _COLUMNS):
        last = min(F, first + _COLUMNS)
        i = 0
        while i + 4 <= N:
            x0, x1 = X[i, first:last], X[i + 1, first:last]
            x2, x3 = X[i + 2, first:last], X[i + 3, first:last]
            k = 0
            # Four rows by four components, or two: what is loaded is used several times.
            while k + 4 <= K:
                w0, w1, w2, w3 = W[i, k], W[i + 1, k], W[i + 2, k], W[i + 3, k]
                u0, u1, u2, u3 = W[i, k + 1], W[i + 1, k + 1], W[i + 2, k + 1], W[i + 3, k + 1]
                v0, v1, v2, v3 = W[i, k + 2], W[i + 1, k + 2], W[i + 2, k + 2], W[i + 3, k + 2]
                t0, t1, t2, t3 = W[i, k + 3], W[i + 1, k + 3], W[i + 2, k + 3], W[i + 3, k + 3]
                b, d = B[k, first:last], B[k + 1, first:last]
                e, f = B[k + 2, first:last], B[k + 3, first:last]
                for j in range(len(b)):
                    y0, y1 = np.float64(x0[j]), np.float64(x1[j])
                    y2, y3 = np.float64(x2[j]), np.float64(x3[j])
                    b[j] += w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3
                    d[j] += u0 * y0 + u1 * y1 + u2 * y2 + u3 * y3
                    e[j] += v0 * y0 + v1 * y1 + v2 * y2 + v3 * y3
                    f[j] += t0 * y0 + t1 * y1 + t2 * y2 + t3 * y3
                k += 4
            while k + 2 <= K:
                w0, w1, w2, w3 = W[i, k], W[i + 1, k], W[i + 2, k], W[i + 3, k]
                u0, u1, u2, u3 = W[i, k + 1], W[i + 1, k + 1], W[i + 2, k + 1], W[i + 3, k + 1]
                b, d = B[k, first:last], B[k + 1, first:last]
                for j in range(len(b)):
                    y0, y1 = np.float64(x0[j]), np.float64(x1[j])
                    y2, y3 = np.float64(x2[j]), np.float64(x3[j])
                    b[j] += w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3
                    d[j] += u0 * y0 + u1 * y1 + u2 * y2 + u3 * y3
                k += 2
            while k < K:
                w0, w1, w2, w3 = W[i, k], W[i + 1, k], W[i + 2, k], W[i + 3, k]
                b = B[k, first:last]
                for j in range(len(b)):
                    b[j] += (
                        w0 * np.float64(x0[j])
                        + w1 * np.float64(x1[j])
                        + w2 * np.float64(x2[j])
                        + w3 * np.float64(x3[j])
                    )
                k += 1
            i += 4
        while i < N:
            x = X[i, first:last]
            for k in range(K):
                w = W[i, k]
                b = B[k, first:last]
                for j in range(len(b)):
                    b[j] += w * np.float64(x[j])
            i += 1


@compiled
def _product(X, V, H, C):
    """C = XHᵀ, where X stands for X V if V has rows."""
    if len(V):
        inner = np.empty((len(V), len(H)))
        times(V, H, inner)
        times(X, np.ascontiguousarray(inner.T), C)
    else:
        times(X, H, C)


@compiled
def _transposed_product(X, V, W, B):
    """B = WᵀX, where X stands for X V if V has rows."""
    if len(V):
        inner = np.empty((W.shape[1], len(V)))
        transposed_times(X, W, inner)
        transposed_times(V, np.ascontiguousarray(inner.T), B)
    else:
        transposed_times(X, W, B)


@compiled
def gram(V, G):
    """G = VVᵀ for V (K, M)."""
    for k in range(len(V)):
        for m in range(k + 1):
            v, u = V[k], V[m]
            g = 0.0
            for j in range(len(v)):
                g += v[j] * u[j]
            G[k, m] = g
            G[m, k] = g


@compiled
def _descend_columns(V, G, C, free, passes):
    """Coordinate descent on V (K, M) in place: `updates.coordinate_descent`."""
    K, M = V.shape
    largest = 0.0
    for k in range(K):
        largest = max(largest, G[k, k])
    step = np.empty(_COLUMNS)
    for first in range(0, M, _COLUMNS):
        last = min(M, first + _COLUMNS)
        n = last - first
        for k in free:
            v, c = V[k, first:last], C[k, first:last]
            for j in range(n):
                v[j] = max(0.0, v[j])
            if G[k, k] <= largest * VANISHING:
                for j in range(n):
                    if c[j] < 0.0:
                        v[j] = 0.0
        for done in range(passes):
            look = done % _LOOK_EVERY == _LOOK_EVERY - 1
            moved = size = 0.0
            for k in free:
                diagonal = G[k, k]
                if diagonal <= largest * VANISHING:
                    continue
                c = C[k, first:last]
                for j in range(n):
                    step[j] = c[j]
                for m in range(K):
                    if m != k and G[k, m] != 0.0:
                        g, v = G[k, m], V[m, first:last]
                        for j in range(n):
                            step[j] -= g * v[j]
                v, inverse = V[k, first:last], 1.0 / diagonal
                if look:
                    change = total = 0.0
                    for j in range(n):
                        new = max(0.0, step[j] * inverse)
                        change += abs(new - v[j])
                        total += new
                        v[j] = new
                    moved += diagonal * change * change
                    size += diagonal * total * total
                else:
                    for j in range(n):
                        v[j] = max(0.0, step[j] * inverse)
            if look and moved <= _STILL * size:
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
    new_C = np.empty((N, K))
    A, G, B = np.empty((K, K)), np.empty((K, K)), np.empty((K, F))
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
        _transposed_product(X, V, ahead_W.T, B)
        _penalise(A, B, l1, l2)
        new_H[:] = ahead_H
        _descend_columns(new_H, A, B, free, passes[1])
        _product(X, V, new_H, new_C)
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
def _solve_passive(G, c, passive, w, lower, index):
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
        _solve_passive(G, c, passive, w, lower, index)
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
def resolve(X, norms, H, GH, l1, l2, total, held, W, squared, A, B):
    """Solve for the weights of some rows, in place; A and B follow: `updates.solve_rows`.

    X (M, F), norms (M,), H (K, F), held (M, K) with NaN where weights are free, or without rows,
    W (M, K), squared (M,), A (K, K), B (K, F). ``total`` is what the weights of a row add up to,
    NaN where that is free. Returns what the sums of the weights and
    of the squared residuals gain.
    """
    M, F = X.shape
    K = len(H)
    c, w, none_held = np.empty(K), np.empty(K), np.empty(0)
    C, change = np.empty((_ROWS, K)), np.empty((_ROWS, K))
    gained = lost = 0.0
    for first in range(0, M, _ROWS):
        last = min(M, first + _ROWS)
        n = last - first
        times(X[first:last], H, C[:n])
        for i in range(n):
            row = first + i
            c[:] = C[i]
            solve_weights(GH, c, l1, l2, total, held[row] if len(held) else none_held, w)
            left = norms[row]
            for k in range(K):
                left -= 2.0 * w[k] * C[i, k]
                for m in range(K):
                    left += w[k] * w[m] * GH[k, m]
                    A[k, m] += w[k] * w[m] - W[row, k] * W[row, m]
            for k in range(K):
                change[i, k] = w[k] - W[row, k]
                gained += change[i, k]
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
        add_transposed_times(X[first:last], change[:n], B)
    return gained, lost


@compiled
def descend_components(H, A, B, l1, l2, free, passes, G):
    """Coordinate descent on the free rows of H (K, F) in place, for A = WᵀW, B = WᵀX; G = HHᵀ."""
    if l1 > 0.0 or l2 > 0.0:
        A, B = A.copy(), B.copy()
        _penalise(A, B, l1, l2)
    _descend_columns(H, A, B, free, passes)
    gram(H, G)


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
        resolve(X, norms, H, A, 0.0, 0.0, np.nan, none_held, C, norms.copy(), A.copy(), B)
        descend_components(H, A, B, 0.0, 0.0, free, 1, A.copy())
    nnls(np.ones((1, 1)), np.ones((1, 1)))
