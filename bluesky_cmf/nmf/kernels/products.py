"""Products with the data and Gram matrices, in numba: no interpreter lock, no dispatch.

X may be float32 or float64; everything else is float64. One thread: a core is left to the scan.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, njit

__all__ = [
    "COLUMNS",
    "add_transposed_times",
    "compiled",
    "gram",
    "gram_from",
    "harmless",
    "inner",
    "squared_norms",
    "times",
    "times_by_row",
    "transposed_times",
]

#: Rounding may be reassociated, as BLAS does; NaN and infinity keep their meaning.
_OPTIONS = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}


@cache
def _fingerprint() -> str:
    """Tell this version of all kernels from any other."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


@contextmanager
def _cache_of_this_version() -> Iterator[None]:
    """Let numba keep what it compiles where no other version of the kernels looks.

    It looks for changes in the file of a function alone, not in those of what it calls.
    """
    before = config.CACHE_DIR
    base = Path(before) if before else Path(__file__).parent / "__pycache__"
    config.CACHE_DIR = str(base / f"kernels-{_fingerprint()}")
    try:
        yield
    finally:
        config.CACHE_DIR = before


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, and keep it for the next process where that is possible."""
    try:
        with _cache_of_this_version():
            return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        # Neither the package nor the home can be written to: compile anew in each process.
        return njit(**_OPTIONS)(function)


#: Columns worked on at a time: what a step touches stays in the first-level cache.
COLUMNS = 512
#: The same for products: rows are read in long stretches, as memory gives them fastest.
_STRIP = 2048


@compiled
def times(X, H, C):
    """C = XHᵀ, (N, K)."""
    N, F = X.shape
    K = len(H)
    C[:] = 0.0
    for first in range(0, F, _STRIP):
        last = min(F, first + _STRIP)
        n, i = last - first, 0
        # Four rows by three components, or two: what is loaded is used several times, and four
        # rows at once are what the memory gives most of.
        while i + 4 <= N:
            x, y = X[i, first:last], X[i + 1, first:last]
            z, u = X[i + 2, first:last], X[i + 3, first:last]
            k = 0
            while K - k == 3 or K - k > 4:
                h0, h1, h2 = H[k, first:last], H[k + 1, first:last], H[k + 2, first:last]
                c0 = c1 = c2 = d0 = d1 = d2 = e0 = e1 = e2 = f0 = f1 = f2 = 0.0
                for j in range(n):
                    xj, yj = np.float64(x[j]), np.float64(y[j])
                    zj, uj = np.float64(z[j]), np.float64(u[j])
                    c0 += xj * h0[j]
                    c1 += xj * h1[j]
                    c2 += xj * h2[j]
                    d0 += yj * h0[j]
                    d1 += yj * h1[j]
                    d2 += yj * h2[j]
                    e0 += zj * h0[j]
                    e1 += zj * h1[j]
                    e2 += zj * h2[j]
                    f0 += uj * h0[j]
                    f1 += uj * h1[j]
                    f2 += uj * h2[j]
                C[i, k] += c0
                C[i, k + 1] += c1
                C[i, k + 2] += c2
                C[i + 1, k] += d0
                C[i + 1, k + 1] += d1
                C[i + 1, k + 2] += d2
                C[i + 2, k] += e0
                C[i + 2, k + 1] += e1
                C[i + 2, k + 2] += e2
                C[i + 3, k] += f0
                C[i + 3, k + 1] += f1
                C[i + 3, k + 2] += f2
                k += 3
            while K - k >= 2:
                h0, h1 = H[k, first:last], H[k + 1, first:last]
                c0 = c1 = d0 = d1 = e0 = e1 = f0 = f1 = 0.0
                for j in range(n):
                    xj, yj = np.float64(x[j]), np.float64(y[j])
                    zj, uj = np.float64(z[j]), np.float64(u[j])
                    c0 += xj * h0[j]
                    c1 += xj * h1[j]
                    d0 += yj * h0[j]
                    d1 += yj * h1[j]
                    e0 += zj * h0[j]
                    e1 += zj * h1[j]
                    f0 += uj * h0[j]
                    f1 += uj * h1[j]
                C[i, k] += c0
                C[i, k + 1] += c1
                C[i + 1, k] += d0
                C[i + 1, k + 1] += d1
                C[i + 2, k] += e0
                C[i + 2, k + 1] += e1
                C[i + 3, k] += f0
                C[i + 3, k + 1] += f1
                k += 2
            if k < K:
                h = H[k, first:last]
                c0 = d0 = e0 = f0 = 0.0
                for j in range(n):
                    c0 += np.float64(x[j]) * h[j]
                    d0 += np.float64(y[j]) * h[j]
                    e0 += np.float64(z[j]) * h[j]
                    f0 += np.float64(u[j]) * h[j]
                C[i, k] += c0
                C[i + 1, k] += d0
                C[i + 2, k] += e0
                C[i + 3, k] += f0
            i += 4
        while i < N:
            x, k = X[i, first:last], 0
            while K - k >= 3:
                h0, h1, h2 = H[k, first:last], H[k + 1, first:last], H[k + 2, first:last]
                c0 = c1 = c2 = 0.0
                for j in range(n):
                    xj = np.float64(x[j])
                    c0 += xj * h0[j]
                    c1 += xj * h1[j]
                    c2 += xj * h2[j]
                C[i, k] += c0
                C[i, k + 1] += c1
                C[i, k + 2] += c2
                k += 3
            while k < K:
                h, c0 = H[k, first:last], 0.0
                for j in range(n):
                    c0 += np.float64(x[j]) * h[j]
                C[i, k] += c0
                k += 1
            i += 1


@compiled
def times_by_row(X, H, C):
    """C = XHᵀ, (N, K), in bits that do not depend on which rows come together."""
    for i in range(len(X)):
        times(X[i : i + 1], H, C[i : i + 1])


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
    for first in range(0, F, _STRIP):
        last = min(F, first + _STRIP)
        n, i = last - first, 0
        # As above, and by four components where that comes out even.
        while i + 4 <= N:
            x0, x1 = X[i, first:last], X[i + 1, first:last]
            x2, x3 = X[i + 2, first:last], X[i + 3, first:last]
            k = 0
            while K - k == 4 or K - k > 6:
                w0, w1, w2, w3 = W[i, k], W[i + 1, k], W[i + 2, k], W[i + 3, k]
                u0, u1, u2, u3 = W[i, k + 1], W[i + 1, k + 1], W[i + 2, k + 1], W[i + 3, k + 1]
                v0, v1, v2, v3 = W[i, k + 2], W[i + 1, k + 2], W[i + 2, k + 2], W[i + 3, k + 2]
                t0, t1, t2, t3 = W[i, k + 3], W[i + 1, k + 3], W[i + 2, k + 3], W[i + 3, k + 3]
                b, d = B[k, first:last], B[k + 1, first:last]
                e, f = B[k + 2, first:last], B[k + 3, first:last]
                for j in range(n):
                    y0, y1 = np.float64(x0[j]), np.float64(x1[j])
                    y2, y3 = np.float64(x2[j]), np.float64(x3[j])
                    b[j] += w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3
                    d[j] += u0 * y0 + u1 * y1 + u2 * y2 + u3 * y3
                    e[j] += v0 * y0 + v1 * y1 + v2 * y2 + v3 * y3
                    f[j] += t0 * y0 + t1 * y1 + t2 * y2 + t3 * y3
                k += 4
            while K - k >= 3:
                w0, w1, w2, w3 = W[i, k], W[i + 1, k], W[i + 2, k], W[i + 3, k]
                u0, u1, u2, u3 = W[i, k + 1], W[i + 1, k + 1], W[i + 2, k + 1], W[i + 3, k + 1]
                v0, v1, v2, v3 = W[i, k + 2], W[i + 1, k + 2], W[i + 2, k + 2], W[i + 3, k + 2]
                b, d, e = B[k, first:last], B[k + 1, first:last], B[k + 2, first:last]
                for j in range(n):
                    y0, y1 = np.float64(x0[j]), np.float64(x1[j])
                    y2, y3 = np.float64(x2[j]), np.float64(x3[j])
                    b[j] += w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3
                    d[j] += u0 * y0 + u1 * y1 + u2 * y2 + u3 * y3
                    e[j] += v0 * y0 + v1 * y1 + v2 * y2 + v3 * y3
                k += 3
            if K - k == 2:
                w0, w1, w2, w3 = W[i, k], W[i + 1, k], W[i + 2, k], W[i + 3, k]
                u0, u1, u2, u3 = W[i, k + 1], W[i + 1, k + 1], W[i + 2, k + 1], W[i + 3, k + 1]
                b, d = B[k, first:last], B[k + 1, first:last]
                for j in range(n):
                    y0, y1 = np.float64(x0[j]), np.float64(x1[j])
                    y2, y3 = np.float64(x2[j]), np.float64(x3[j])
                    b[j] += w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3
                    d[j] += u0 * y0 + u1 * y1 + u2 * y2 + u3 * y3
            elif k < K:
                w0, w1, w2, w3 = W[i, k], W[i + 1, k], W[i + 2, k], W[i + 3, k]
                b = B[k, first:last]
                for j in range(n):
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
                for j in range(n):
                    b[j] += w * np.float64(x[j])
            i += 1


@compiled
def squared_norms(X, norms):
    """Squared norms of the rows of X, (N,)."""
    for i in range(len(X)):
        x = X[i]
        total = 0.0
        for j in range(len(x)):
            total += np.float64(x[j]) * np.float64(x[j])
        norms[i] = total


@compiled
def harmless(X, largest):
    """Tell that no number of X is negative, NaN, infinite, or larger than ``largest``.

    It is not always told of those that are near it.
    """
    below = squares = 0.0
    for i in range(len(X)):
        x = X[i]
        for j in range(len(x)):
            value = np.float64(x[j])
            # Of one sign all, so that nothing cancels; and what is not a number stays none.
            below += min(value, 0.0)
            squares += value * value
    return below == 0.0 and squares <= largest * largest


@compiled
def inner(V, U):
    """⟨V, U⟩ for matrices (K, M)."""
    total = 0.0
    for k in range(len(V)):
        v, u = V[k], U[k]
        for j in range(len(v)):
            total += v[j] * u[j]
    return total


@compiled
def gram(V, G):
    """G = VVᵀ for V (K, M)."""
    gram_from(V, 0, G)


@compiled
def gram_from(V, first, G):
    """G = VVᵀ for V (K, M), where the products of the rows before ``first`` are there already.

    Each product has the same bits, whichever row is the first.
    """
    K, M = V.shape
    for k in range(first, K):
        G[k, : k + 1] = 0.0
    for begin in range(0, M, COLUMNS):
        end = min(M, begin + COLUMNS)
        n = end - begin
        for k in range(first, K):
            v, m = V[k, begin:end], 0
            # Three at a time: what is loaded is used several times.
            while m + 3 <= k + 1:
                a, b, c = V[m, begin:end], V[m + 1, begin:end], V[m + 2, begin:end]
                g0 = g1 = g2 = 0.0
                for j in range(n):
                    g0 += v[j] * a[j]
                    g1 += v[j] * b[j]
                    g2 += v[j] * c[j]
                G[k, m] += g0
                G[k, m + 1] += g1
                G[k, m + 2] += g2
                m += 3
            while m <= k:
                a, g0 = V[m, begin:end], 0.0
                for j in range(n):
                    g0 += v[j] * a[j]
                G[k, m] += g0
                m += 1
    for k in range(first, K):
        for m in range(k):
            G[m, k] = G[k, m]
