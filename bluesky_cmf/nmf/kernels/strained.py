"""Weights and strains of rows, in numba: `strainedfactors` by the reference.

X may be float32 or float64; everything else is float64. One thread: a core is left to the scan.
"""

import numpy as np

from .products import add_transposed_times, compiled, times
from .strainedrow import (
    attempt,
    fit_row,
    merit_of,
    note_strains,
    place_strain,
    residual,
    search,
)

__all__ = ["resolve", "shapes", "warm_up"]

#: What a neighbour's strain must gain, relatively, as in `strainedrows.py`.
_BETTER = 1e-9
#: Rows whose products are taken together, which so find them in the cache.
_ROWS = 32
#: Part of ‖x‖² below which a residual is formed, and not taken from products, which round it.
_EXACT_BELOW = 1e-8


@compiled
def _collect(sign, w, P, place, value, count, moved, touched):
    """Add what a row's held part takes from WᵀX to the weights (Kf, R) of the table's rows."""
    for p in range(P):
        for j in range(min(4, count[p])):
            amount = sign * w[p] * value[p, j]
            if amount != 0.0:
                touched[place[p] + j] = True
                for f in range(len(moved)):
                    moved[f, place[p] + j] += amount * w[P + f]


@compiled
def _held_part(norm, w, P, c, G):
    """Half the squared norm of what the held components leave of a row."""
    value = 0.5 * norm
    for p in range(P):
        value -= w[p] * c[p]
        for q in range(P):
            value += 0.5 * w[p] * w[q] * G[p, q]
    return value


@compiled
def resolve(
    X, norms, tables, side, order, asked, held, steps, W, squared, strains, parts, seen_rows,
    A, B, anchors, usual, others,
):  # fmt: skip
    """Solve for weights and strains of some rows, in place; A, B and the sums follow.

    X (M, F), norms (M,). ``tables`` are the arrays of `families.Tables`: rows, products, first,
    count, low, high, step. ``side`` are the free components (Kf, F), their Gram matrix, their
    products (R, Kf) with the rows of the table, and which of those are known. ``order`` (K,) tells
    the components as they are solved for: strained, other held, free ones. ``asked`` are both
    penalties and the total of the weights or NaN, ``held`` (M, K) has NaN where weights are free,
    or no rows.

    W (M, K), squared (M,), strains (M, S), what held components leave (M,), and the products of
    rows with the table that are known (M, P, 5) are brought up to date, as are A = WᵀW (K, K) and
    B (Kf, F), which is WᵀX less what held components explain of it.

    ``anchors`` (S,) are where the strains of new rows start, and follow the rows; they have no
    elements where rows start from the strains they have. ``usual`` (1,) is the relative squared
    residual of the row before, negative where there is none. ``others`` (M, S) are strains to be
    tried as well, or without rows.

    Returns what the sums of weights, squared residuals and of what held components leave gain.
    """
    M, F = X.shape
    n_free, R = len(side[0]), len(tables[0])
    first, count, low, step = tables[2], tables[3], tables[4], tables[6]
    K, P, S = len(order), len(first), strains.shape[1]
    fresh = len(anchors) > 0
    place, seen = np.zeros(P, np.int64), np.empty(P, np.int64)
    dots, value, slope = np.zeros((P, 4)), np.empty((P, 4)), np.empty((P, 4))
    c, dc, G, D, E = np.empty(K), np.empty(S), np.empty((K, K)), np.empty((S, K)), np.empty((S, S))
    w, right, now, old = np.empty(K), np.empty(K), np.empty(S), np.empty(K)
    work = (place, seen, dots, value, slope, c, dc, G, D, E, w, right)
    V = K + S
    scratch = (
        np.empty((V, V)), np.empty(V), np.empty(V, np.bool_), np.empty(V), np.empty((V, V)),
        np.empty(V, np.int64), np.empty(V),
    )  # fmt: skip
    moved, touched = np.zeros((n_free, R)), np.zeros(R, np.bool_)
    C, change = np.empty((_ROWS, n_free)), np.empty((_ROWS, n_free))
    kept = np.empty(K if len(held) else 0)
    # In float64, so that what works on it is compiled once.
    x = np.empty(F)
    gained = lost = held_gained = 0.0
    for begin in range(0, M, _ROWS):
        end = min(M, begin + _ROWS)
        times(X[begin:end], side[0], C[: end - begin])
        for i in range(begin, end):
            x[:], norm = X[i], norms[i]
            for f in range(n_free):
                c[P + f] = C[i - begin, f]
            for p in range(P):
                seen[p] = np.int64(seen_rows[i, p, 0]) - 1
                dots[p, :] = seen_rows[i, p, 1:]
            for k in range(K):
                old[k] = W[i, order[k]]
                if len(held):
                    kept[k] = held[i, order[k]]
            # What the row has been until now goes out of the sums.
            for p in range(P):
                strain = strains[i, p] if p < S else 0.0
                place[p] = place_strain(
                    strain, first[p], count[p], low[p], step[p], value[p], slope[p]
                )
            _collect(-1.0, old, P, place, value, count, moved, touched)
            now[:] = anchors if fresh else strains[i]
            merit = fit_row(x, norm, now, tables, side, asked, kept, steps, work, scratch)
            if fresh:
                merit = search(
                    x, norm, merit, usual[0], now, tables, side, asked, kept, steps, work, scratch
                )
                note_strains(anchors, merit, F, now, work)
                usual[0] = 2.0 * merit / norm if norm > 0.0 else 0.0
            if len(others):
                for s in range(S):
                    if abs(others[i, s] - now[s]) > 0.25 * step[s]:
                        merit = attempt(
                            x, norm, s, others[i, s], _BETTER, merit, now, tables, side, asked,
                            kept, steps, work, scratch,
                        )  # fmt: skip
            _collect(1.0, w, P, place, value, count, moved, touched)
            left = 2.0 * merit_of(norm, w, c, G, 0.0, 0.0)
            if left < _EXACT_BELOW * norm:
                left = residual(x, tables, side, work)
            part = _held_part(norm, w, P, c, G)
            for k in range(K):
                gained += w[k] - old[k]
                for m in range(K):
                    A[order[k], order[m]] += w[k] * w[m] - old[k] * old[m]
                W[i, order[k]] = w[k]
            for f in range(n_free):
                change[i - begin, f] = w[P + f] - old[P + f]
            lost += left - squared[i]
            held_gained += part - parts[i]
            squared[i], parts[i] = left, part
            strains[i] = now
            for p in range(P):
                seen_rows[i, p, 0] = seen[p] + 1
                seen_rows[i, p, 1:] = dots[p]
        add_transposed_times(X[begin:end], change[: end - begin], B)
    for a in range(R):
        if touched[a]:
            for f in range(n_free):
                amount, row, b = moved[f, a], tables[0][a], B[f]
                for j in range(F):
                    b[j] -= amount * row[j]
    return gained, lost, held_gained


@compiled
def shapes(strains, tables, found, slopes):
    """Form shapes at strains (M, S), and their derivatives, both (M, S, F), in place."""
    rows, _, first, count, low, _, step = tables
    value, slope = np.empty(4), np.empty(4)
    for i in range(len(strains)):
        for s in range(strains.shape[1]):
            a = place_strain(strains[i, s], first[s], count[s], low[s], step[s], value, slope)
            for j in range(rows.shape[1]):
                shape = derivative = 0.0
                for m in range(4):
                    shape += value[m] * rows[a + m, j]
                    derivative += slope[m] * rows[a + m, j]
                found[i, s, j] = shape
                slopes[i, s, j] = derivative


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
    rows = np.ones((5, 3))
    one = np.ones(2)
    tables = (rows, rows @ rows.T, np.array([0, 4]), np.array([4, 1]), -one, one, one)
    shapes(np.zeros((1, 1)), tables, np.empty((1, 1, 3)), np.empty((1, 1, 3)))
    for dtype in (np.float32, np.float64):
        side = (np.ones((1, 3)), np.ones((1, 1)), np.zeros((5, 1)), np.zeros(5, np.bool_))
        resolve(
            np.ones((1, 3), dtype), np.full(1, 3.0), tables, side, np.arange(3), (0.0, 0.0, np.nan),
            np.empty((0, 0)), 1, np.zeros((1, 3)), np.zeros(1), np.zeros((1, 1)), np.zeros(1),
            np.zeros((1, 2, 5)), np.zeros((3, 3)), np.zeros((1, 3)), np.zeros(1), -one[:1],
            np.empty((0, 0)),
        )  # fmt: skip
