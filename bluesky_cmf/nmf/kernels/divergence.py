"""Kernels for other losses than least squares, in numba: one reweighted problem after another.

A half-step of the beta-divergence at v = wH is a least squares problem with the weights v^(β-2):
both have the same gradient. X may be float32 or float64; everything else is float64. One thread.
"""

import numpy as np

from .nnls import solve_weights
from .products import COLUMNS, compiled

__all__ = ["accumulate", "evaluate", "leap", "rows", "solve", "warm_up"]

#: Trials of a step, each a quarter as long as the one before, until it lowers the divergence.
_TRIALS = 5
#: Decrease of a row, relative to its divergence, that is worth no further step.
_STILL = 1e-7
#: Curvature beside that of other components, at the same point, that is as good as none. Points
#: are not to be compared: where data are near zero they weigh any number of times more.
_NO_WEIGHT = 1e-24
#: Stands for the ratio of no counts to a reconstruction; times no counts it is nothing.
_TINY = 1e-300
_LN2 = 0.6931471805599453
#: Bits of √½: numbers are taken apart as m 2^e with m from there to √2.
_ROOT = np.int64(0x3FE6A09E667F3BCD)
#: Where exponents are cut: e to the one is nothing, and to the other infinite.
_LOWEST, _HIGHEST = -709.0, 710.0
#: An integer added to this stands in its last bits.
_SHIFT, _SHIFT_BITS = 6755399441055744.0, np.int64(0x4338000000000000)


@compiled
def _logarithm(v, out):
    """Take logarithms of positive normal numbers, to rounding, several at a time.

    log v = e log 2 + 2 artanh((m - 1)/(m + 1)); the series is cut where it is below rounding.
    """
    bits, parts = v.view(np.int64), out.view(np.int64)
    n = len(v)
    for j in range(n):
        parts[j] = bits[j] - (((bits[j] - _ROOT) >> np.int64(52)) << np.int64(52))
    for j in range(n):
        exponent = np.float64((bits[j] - _ROOT) >> np.int64(52))
        t = (out[j] - 1.0) / (out[j] + 1.0)
        q = t * t
        series = 1.0 / 21.0
        series = 1.0 / 19.0 + q * series
        series = 1.0 / 17.0 + q * series
        series = 1.0 / 15.0 + q * series
        series = 1.0 / 13.0 + q * series
        series = 1.0 / 11.0 + q * series
        series = 1.0 / 9.0 + q * series
        series = 1.0 / 7.0 + q * series
        series = 1.0 / 5.0 + q * series
        series = 1.0 / 3.0 + q * series
        out[j] = exponent * _LN2 + 2.0 * t * (1.0 + q * series)


@compiled
def _exponential(t, out):
    """Take e to each of t, which is lost, several at a time: to |t| times rounding, or less.

    e^t = 2^k e^r with r from -½ log 2 to ½ log 2; the series is cut where it is below rounding.
    """
    bits = out.view(np.int64)
    n = len(t)
    for j in range(n):
        within = min(max(t[j], _LOWEST), _HIGHEST)
        k = np.rint(within * (1.0 / _LN2))
        r = within - k * _LN2
        series = 1.0 + r * (1.0 / 13.0)
        series = 1.0 + r * series * (1.0 / 12.0)
        series = 1.0 + r * series * (1.0 / 11.0)
        series = 1.0 + r * series * (1.0 / 10.0)
        series = 1.0 + r * series * (1.0 / 9.0)
        series = 1.0 + r * series * (1.0 / 8.0)
        series = 1.0 + r * series * (1.0 / 7.0)
        series = 1.0 + r * series * (1.0 / 6.0)
        series = 1.0 + r * series * (1.0 / 5.0)
        series = 1.0 + r * series * (1.0 / 4.0)
        series = 1.0 + r * series * (1.0 / 3.0)
        series = 1.0 + r * series * (1.0 / 2.0)
        t[j] = 1.0 + r * series
        out[j] = k + _SHIFT
    for j in range(n):
        bits[j] = (bits[j] - _SHIFT_BITS + np.int64(1023)) << np.int64(52)
    for j in range(n):
        out[j] *= t[j]


@compiled
def _power(v, exponent, out, scratch):
    """Raise positive normal numbers to a power p: to some |p log v| times rounding."""
    _logarithm(v, scratch)
    for j in range(len(v)):
        scratch[j] *= exponent
    _exponential(scratch, out)


@compiled
def _load(X, beta, floor, x):
    """Read intensities as float64, raised to the floor where zero has no finite divergence."""
    if beta > 0.0:
        for j in range(len(X)):
            x[j] = np.float64(X[j])
    else:
        for j in range(len(X)):
            x[j] = max(np.float64(X[j]), floor)


@compiled
def _reconstruct(w, H, first, floor, v):
    """Write the part of wH from column ``first`` on into v, raised to the floor."""
    n = len(v)
    v[:] = 0.0
    for k in range(len(w)):
        if w[k] != 0.0:
            weight, h = w[k], H[k, first : first + n]
            for j in range(n):
                v[j] += weight * h[j]
    for j in range(n):
        v[j] = max(v[j], floor)


@compiled
def _reweigh(v, beta, u, scratch):
    """Write v^(β-2) into u."""
    n = len(v)
    if beta == 1.0:
        for j in range(n):
            u[j] = 1.0 / v[j]
    elif beta == 0.0:
        for j in range(n):
            u[j] = 1.0 / (v[j] * v[j])
    elif beta == 2.0:
        u[:] = 1.0
    else:
        _power(v, beta - 2.0, u, scratch)


@compiled
def _diverge(x, v, beta, d, power, scratch):
    """Give the beta-divergence of each element, `divergences.beta_divergence`, and the sum.

    x is float64, and raised to the floor where beta is not positive.
    """
    n = len(v)
    if beta == 1.0:
        for j in range(n):
            scratch[j] = max(x[j] / v[j], _TINY)
        _logarithm(scratch, d)
        for j in range(n):
            d[j] = max(x[j] * d[j] - x[j] + v[j], 0.0)
    elif beta == 0.0:
        for j in range(n):
            scratch[j] = max(x[j] / v[j], _TINY)
        _logarithm(scratch, d)
        for j in range(n):
            d[j] = max(scratch[j] - d[j] - 1.0, 0.0)
    elif beta == 2.0:
        for j in range(n):
            d[j] = 0.5 * (x[j] - v[j]) * (x[j] - v[j])
    else:
        scale = 1.0 / (beta * (beta - 1.0))
        for j in range(n):
            power[j] = max(x[j], _TINY)
        _power(power, beta, d, scratch)
        _power(v, beta - 1.0, power, scratch)
        for j in range(n):
            data = d[j] if x[j] > 0.0 else 0.0
            mixed = data + ((beta - 1.0) * v[j] - beta * x[j]) * power[j]
            d[j] = max(scale * mixed, 0.0)
    total = 0.0
    for j in range(n):
        total += d[j]
    return total


@compiled
def _penalty(w, l1, l2):
    penalty = 0.0
    for k in range(len(w)):
        penalty += l1 * w[k] + 0.5 * l2 * w[k] * w[k]
    return penalty


@compiled
def _system(X, w, H, beta, floor, G, c):
    """Add up the reweighted problem of one row, G (K, K) and c (K,), at its weights w."""
    F, K = H.shape[1], len(H)
    x, v = np.empty(COLUMNS), np.empty(COLUMNS)
    u, scratch = np.empty(COLUMNS), np.empty(COLUMNS)
    G[:], c[:] = 0.0, 0.0
    for first in range(0, F, COLUMNS):
        last = min(F, first + COLUMNS)
        n = last - first
        _load(X[first:last], beta, floor, x)
        _reconstruct(w, H, first, floor, v[:n])
        _reweigh(v[:n], beta, u[:n], scratch[:n])
        for k in range(K):
            h = H[k, first:last]
            cross = 0.0
            for j in range(n):
                v[j] = u[j] * h[j]
                cross += v[j] * x[j]
            c[k] += cross
            for m in range(k + 1):
                product, other = 0.0, H[m, first:last]
                for j in range(n):
                    product += v[j] * other[j]
                G[k, m] += product
    for k in range(K):
        for m in range(k):
            G[m, k] = G[k, m]


@compiled
def _value(X, w, H, beta, floor):
    """Sum the divergence and the squared residual of one row at its weights w."""
    F = H.shape[1]
    x, v = np.empty(COLUMNS), np.empty(COLUMNS)
    d, power, scratch = np.empty(COLUMNS), np.empty(COLUMNS), np.empty(COLUMNS)
    left = squared = 0.0
    for first in range(0, F, COLUMNS):
        last = min(F, first + COLUMNS)
        n = last - first
        _load(X[first:last], beta, floor, x)
        _reconstruct(w, H, first, floor, v[:n])
        left += _diverge(x[:n], v[:n], beta, d[:n], power[:n], scratch[:n])
        for j in range(n):
            # The floor stands for nothing.
            fitted = v[j] if v[j] > floor else 0.0
            squared += (np.float64(X[first + j]) - fitted) ** 2
    return left, squared


@compiled
def rows(X, H, beta, floor, l1, l2, total, held, steps, W, squared, left):
    """Take reweighted steps on the weights of some rows, in place; none raises the divergence.

    X (M, F), H (K, F), held (M, K) with NaN where weights are free, or without rows, W (M, K).
    ``total`` is what the weights of a row add up to, NaN where that is free. ``squared`` and
    ``left`` (M,) take squared residuals and divergences. Returns the sum of divergences and
    penalties before and after.
    """
    K = len(H)
    G, c, z, w = np.empty((K, K)), np.empty(K), np.empty(K), np.empty(K)
    none_held = np.empty(0)
    before = after = 0.0
    for i in range(len(X)):
        here = held[i] if len(held) else none_held
        for k in range(len(here)):
            if not np.isnan(here[k]):
                W[i, k] = here[k]
        left[i], squared[i] = _value(X[i], W[i], H, beta, floor)
        found = left[i] + _penalty(W[i], l1, l2)
        before += found
        # Weights that do not add up to their total are no place to compare with.
        off_total = not np.isnan(total) and abs(W[i].sum() - total) > 1e-9 * total
        for _ in range(steps):
            _system(X[i], W[i], H, beta, floor, G, c)
            solve_weights(G, c, l1, l2, total, here, z)
            length, lower = 1.0, False
            for _trial in range(_TRIALS):
                for k in range(K):
                    w[k] = W[i, k] + length * (z[k] - W[i, k])
                new_left, new_squared = _value(X[i], w, H, beta, floor)
                value = new_left + _penalty(w, l1, l2)
                if value <= found or off_total:
                    lower = True
                    break
                length *= 0.25
            if not lower:
                break
            still = not off_total and found - value <= _STILL * abs(found)
            off_total = False
            W[i], found, left[i], squared[i] = w, value, new_left, new_squared
            if still:
                break
        after += found
    return before, after


@compiled
def leap(X, H, beta, floor, l1, l2, W):
    """Take one reweighted step on the weights (M, K) of some rows, wherever it leads."""
    K = len(H)
    G, c, z = np.empty((K, K)), np.empty(K), np.empty(K)
    none_held = np.empty(0)
    for i in range(len(X)):
        _system(X[i], W[i], H, beta, floor, G, c)
        solve_weights(G, c, l1, l2, np.nan, none_held, z)
        W[i] = z


@compiled
def accumulate(X, W, H, free, beta, floor, G, C, left):
    """Add up what a reweighted step on the free components needs, and the divergence before.

    Without elements in ``left`` the divergence is not asked for.

    X (N, F), W (N, K), H (K, F), G (n, n, F), C (n, F) with n free components, left (F,).
    """
    N, F = X.shape
    n = len(free)
    x, v, u = np.empty(COLUMNS), np.empty(COLUMNS), np.empty(COLUMNS)
    d, rest = np.empty(COLUMNS), np.empty(COLUMNS)
    power, scratch = np.empty(COLUMNS), np.empty(COLUMNS)
    others = np.ones(len(H), np.bool_)
    for k in free:
        others[k] = False
    kept = np.empty(len(H))
    for first in range(0, F, COLUMNS):
        last = min(F, first + COLUMNS)
        size = last - first
        for i in range(N):
            _load(X[i, first:last], beta, floor, x)
            for k in range(len(H)):
                kept[k] = W[i, k] if others[k] else 0.0
            _reconstruct(kept, H, first, 0.0, rest[:size])
            _reconstruct(W[i], H, first, floor, v[:size])
            _reweigh(v[:size], beta, u[:size], scratch[:size])
            if len(left):
                _diverge(x[:size], v[:size], beta, d[:size], power[:size], scratch[:size])
                for j in range(size):
                    left[first + j] += d[j]
            for j in range(size):
                rest[j] = x[j] - rest[j]
            for a in range(n):
                weight = W[i, free[a]]
                if weight == 0.0:
                    continue
                row = C[a, first:last]
                for j in range(size):
                    row[j] += weight * u[j] * rest[j]
                for b in range(a + 1):
                    both = weight * W[i, free[b]]
                    grid = G[a, b, first:last]
                    for j in range(size):
                        grid[j] += both * u[j]


@compiled
def solve(G, C, free, l1, l2, passes, H):
    """Coordinate descent on the free components, in place, for `accumulate`'s problem."""
    F = H.shape[1]
    n = len(free)
    for a in range(n):
        for b in range(a):
            for j in range(F):
                G[b, a, j] = G[a, b, j]
    step, least = np.empty(F), np.zeros(F)
    for a in range(n):
        for j in range(F):
            least[j] = max(least[j], _NO_WEIGHT * (G[a, a, j] + l2))
    for _ in range(passes):
        for a in range(n):
            for j in range(F):
                step[j] = C[a, j] - l1
            for b in range(n):
                if b != a:
                    h = H[free[b]]
                    for j in range(F):
                        step[j] -= G[a, b, j] * h[j]
            h = H[free[a]]
            for j in range(F):
                # A component that meets no weight has nothing to follow.
                curvature = G[a, a, j] + l2
                if curvature > least[j]:
                    h[j] = max(0.0, step[j] / curvature)


@compiled
def evaluate(X, W, H, beta, floor, left):
    """Add up the divergence of each column, (F,)."""
    N, F = X.shape
    x, v = np.empty(COLUMNS), np.empty(COLUMNS)
    d, power, scratch = np.empty(COLUMNS), np.empty(COLUMNS), np.empty(COLUMNS)
    for first in range(0, F, COLUMNS):
        last = min(F, first + COLUMNS)
        size = last - first
        for i in range(N):
            _load(X[i, first:last], beta, floor, x)
            _reconstruct(W[i], H, first, floor, v[:size])
            _diverge(x[:size], v[:size], beta, d[:size], power[:size], scratch[:size])
            for j in range(size):
                left[first + j] += d[j]


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
    for dtype in (np.float32, np.float64):
        X, W, H = np.ones((2, 3), dtype), np.ones((2, 1)), np.ones((1, 3))
        free, left = np.zeros(1, np.int64), np.zeros(3)
        G, C, squared = np.zeros((1, 1, 3)), np.zeros((1, 3)), np.zeros(2)
        none = np.empty((0, 0))
        rows(X, H, 1.0, 0.0, 0.0, 0.0, np.nan, none, 1, W, squared, squared.copy())
        leap(X, H, 1.0, 0.0, 0.0, 0.0, W)
        accumulate(X, W, H, free, 1.0, 0.0, G, C, left)
        solve(G, C, free, 0.0, 0.0, 1, H)
        evaluate(X, W, H, 1.0, 0.0, left)
