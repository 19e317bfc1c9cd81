"""Kernels for the CPU, in numba: no interpreter lock, no dispatch between the steps.

X may be float32 or float64; everything else is float64. One thread: a core is left to the scan.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

__all__ = ["nnls", "sweep", "times", "warm_up"]

#: Rounding may be reassociated, as BLAS does; NaN and infinity keep their meaning.
_OPTIONS = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        # Neither the package nor the home can be written to: compile anew in each process.
        return njit(**_OPTIONS)(function)


#: Columns worked on at a time: what a step touches stays in the first-level cache.
_COLUMNS = 512
_LONG = 2048
#: Ridge relative to the largest diagonal element, as in `updates.py`.
_RIDGE = 1e-12
_FULL_EXCHANGES = 3
_MAX_EXCHANGES = 200


@_compiled
def times(X, H, C):
    """C = XHᵀ, (N, K)."""
    N, F = X.shape
    K = len(H)
    C[:] = 0.0
    for first in range(0, F, _LONG):
        last = min(F, first + _LONG)
        for i in range(N):
            x = X[i, first:last]
            k = 0
            while k + 4 <= K:
                h0, h1 = H[k, first:last], H[k + 1, first:last]
                h2, h3 = H[k + 2, first:last], H[k + 3, first:last]
                c0 = c1 = c2 = c3 = 0.0
                for j in range(len(x)):
                    value = np.float64(x[j])
                    c0 += value * h0[j]
                    c1 += value * h1[j]
                    c2 += value * h2[j]
                    c3 += value * h3[j]
                C[i, k] += c0
                C[i, k + 1] += c1
                C[i, k + 2] += c2
                C[i, k + 3] += c3
                k += 4
            while k < K:
                h = H[k, first:last]
                c = 0.0
                for j in range(len(x)):
                    c += np.float64(x[j]) * h[j]
                C[i, k] += c
                k += 1


@_compiled
def _transposed_times(X, W, B):
    """B = WᵀX, (K, F)."""
    N, F = X.shape
    K = W.shape[1]
    B[:] = 0.0
    for first in range(0, F, _COLUMNS):
        last = min(F, first + _COLUMNS)
        i = 0
        while i + 4 <= N:
            x0, x1 = X[i, first:last], X[i + 1, first:last]
            x2, x3 = X[i + 2, first:last], X[i + 3, first:last]
            for k in range(K):
                w0, w1, w2, w3 = W[i, k], W[i + 1, k], W[i + 2, k], W[i + 3, k]
                b = B[k, first:last]
                for j in range(len(b)):
                    b[j] += (
                        w0 * np.float64(x0[j])
                        + w1 * np.float64(x1[j])
                        + w2 * np.float64(x2[j])
                        + w3 * np.float64(x3[j])
                    )
            i += 4
        while i < N:
            x = X[i, first:last]
            for k in range(K):
                w = W[i, k]
                b = B[k, first:last]
                for j in range(len(b)):
                    b[j] += w * np.float64(x[j])
            i += 1


@_compiled
def _gram(V, G):
    """G = VVᵀ for V (K, M)."""
    for k in range(len(V)):
        for m in range(k + 1):
            v, u = V[k], V[m]
            g = 0.0
            for j in range(len(v)):
                g += v[j] * u[j]
            G[k, m] = g
            G[m, k] = g


@_compiled
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
            v = V[k, first:last]
            for j in range(n):
                v[j] = max(0.0, v[j])
        for _ in range(passes):
            for k in free:
                diagonal = G[k, k]
                if diagonal <= largest * _RIDGE:
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
                for j in range(n):
                    v[j] = max(0.0, step[j] * inverse)


@_compiled
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


@_compiled
def sweep(X, half_norm, W, H, C, ahead_W, ahead_H, ahead_C, pace, free, passes, sweeps, curve):
    """Do extrapolated sweeps in place: `sweeps.Extrapolation.sweep`.

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
    _gram(W, A)
    _gram(H, G)
    objective = _objective(half_norm, W, C, A, G)
    for s in range(sweeps):
        step = pace[0]
        _gram(ahead_H, G)
        new_W[:] = ahead_W
        _descend_columns(new_W, G, ahead_C.T, every, passes)
        ahead_W[:] = new_W + step * (new_W - W)
        _gram(ahead_W, A)
        _transposed_times(X, ahead_W.T, B)
        new_H[:] = ahead_H
        _descend_columns(new_H, A, B, free, passes)
        times(X, new_H, new_C)
        _gram(new_W, A)
        _gram(new_H, G)
        found = _objective(half_norm, new_W, new_C, A, G)
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


@_compiled
def _solve_passive(G, c, passive, w, lower, index):
    """Solve G w = c on the passive set by Cholesky, with zeros elsewhere."""
    n = 0
    for k in range(len(c)):
        w[k] = 0.0
        if passive[k]:
            index[n] = k
            n += 1
    for a in range(n):
        for b in range(a + 1):
            value = G[index[a], index[b]]
            for m in range(b):
                value -= lower[a, m] * lower[b, m]
            if a == b:
                lower[a, a] = np.sqrt(max(value, _RIDGE))
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


@_compiled
def _nnls(C, G, W):
    N, K = C.shape
    lower, index = np.empty((K, K)), np.empty(K, np.int64)
    passive, wrong = np.empty(K, np.bool_), np.empty(K, np.bool_)
    for i in range(N):
        c, w = C[i], W[i]
        largest = 0.0
        for k in range(K):
            passive[k] = c[k] > 0.0
            largest = max(largest, abs(c[k]))
        tolerance = 1e-12 * largest
        fewest, chances = K + 1, _FULL_EXCHANGES
        for _ in range(_MAX_EXCHANGES):
            _solve_passive(G, c, passive, w, lower, index)
            count, last = 0, -1
            for k in range(K):
                if passive[k]:
                    wrong[k] = w[k] < -tolerance
                else:
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


def nnls(C: np.ndarray, G: np.ndarray) -> np.ndarray:
    """Solve non-negative least squares exactly, (N, K): `updates.nnls`."""
    scale = np.sqrt(np.maximum(G.diagonal(), 0.0))
    alive = scale > 0
    unit = np.where(alive, scale, 1.0)
    scaled = G / (unit[:, None] * unit) + np.diag(~alive + _RIDGE * len(G))
    W = np.empty_like(C)
    _nnls(np.ascontiguousarray(C / unit), scaled, W)
    return W / unit


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
    for dtype in (np.float32, np.float64):
        X, W, H, C = np.ones((2, 3), dtype), np.ones((1, 2)), np.ones((1, 3)), np.ones((2, 1))
        pace = np.array([0.5, 1.0, 1.05, 1.01, 1.5])
        free, curve = np.zeros(1, np.int64), np.empty(1)
        times(X, H, C)
        sweep(X, 3.0, W, H, C, W.copy(), H.copy(), C.copy(), pace, free, 1, 1, curve)
    nnls(np.ones((1, 1)), np.ones((1, 1)))
