"""Weights and strains of one row by safeguarded Gauss-Newton steps, in numba.

`strainedrows.RowProblem` is the reference.

A strain h(q(1+ε)) is four rows of a table, so that all that a step asks for is in small matrices:
products of a pattern with those rows, and of the rows with each other.
All of it is float64.
"""

import numpy as np

from .nnls import RIDGE, solve_passive, solve_weights
from .products import compiled

__all__ = [
    "attempt",
    "fit_row",
    "merit_of",
    "note_strains",
    "place_strain",
    "residual",
    "search",
]

#: As in `strainedrows.py`.
_FARTHEST, _HALVINGS = 4.0, 6
_LITTLE, _ROUNDING = 1e-9, 1e-14
_STRIDE, _JUMP, _EVIDENT, _SIGNIFICANT = 2, 2.0, 15.0, 100.0

# Functions share arrays, so that a step allocates little. ``work`` holds, of P held, S strained and
# K components in all: place and seen (P,), the rows of the table that a strain takes and that
# products are known of; dots, value and slope (P, 4), these products and the weights of the rows
# in shape and derivative; c (K,), dc (S,), G (K, K), D (S, K), E (S, S) as in `strainedrows.Point`;
# w and right (K,). ``tables``, ``side`` and ``asked`` are those of `strained.resolve`.


@compiled
def _dot(a, x):
    value = 0.0
    for j in range(len(x)):
        value += a[j] * x[j]
    return value


@compiled
def place_strain(strain, first, count, low, step, value, slope):
    """Give the first of the rows that a strain takes, and their weights: `families.Tables`."""
    if count == 1:
        value[:], slope[:] = 0.0, 0.0
        value[0] = 1.0
        return first
    t = (strain - low) / step
    g = min(max(np.int64(np.floor(t)), 0), count - 4)
    u = t - g
    v = 1.0 - u
    value[0], value[3] = v * v * v / 6.0, u * u * u / 6.0
    value[1] = (3.0 * u * u * u - 6.0 * u * u + 4.0) / 6.0
    value[2] = (3.0 * v * v * v - 6.0 * v * v + 4.0) / 6.0
    slope[0], slope[3] = -v * v / 2.0 / step, u * u / 2.0 / step
    slope[1] = (3.0 * u * u - 4.0 * u) / 2.0 / step
    slope[2] = (4.0 * v - 3.0 * v * v) / 2.0 / step
    return first + g


@compiled
def _know(a, tables, side):
    """See to it that the products of a row of the table with the free components are known."""
    rows, (H, _, TH, known) = tables[0], side
    if not known[a]:
        for f in range(len(H)):
            TH[a, f] = _dot(rows[a], H[f])
        known[a] = True


@compiled
def _at(x, strains, tables, side, work):
    """Bring the products of a row, and the Gram matrices, to some strains."""
    rows, products, first, count, low, _, step = tables
    H, GH, TH, _ = side
    place, seen, dots, value, slope, c, dc, G, D, E = work[:10]
    P, S, n_free = len(first), len(strains), len(H)
    for p in range(P):
        strain = strains[p] if p < S else 0.0
        place[p] = place_strain(strain, first[p], count[p], low[p], step[p], value[p], slope[p])
        taps = min(4, count[p])
        if seen[p] != place[p]:
            for j in range(taps):
                dots[p, j] = _dot(rows[place[p] + j], x)
            seen[p] = place[p]
        c[p] = 0.0
        for j in range(taps):
            c[p] += value[p, j] * dots[p, j]
        for f in range(n_free):
            G[p, P + f] = 0.0
        for j in range(taps):
            _know(place[p] + j, tables, side)
            for f in range(n_free):
                G[p, P + f] += value[p, j] * TH[place[p] + j, f]
        for f in range(n_free):
            G[P + f, p] = G[p, P + f]
    for s in range(S):
        dc[s] = 0.0
        for f in range(n_free):
            D[s, P + f] = 0.0
        for j in range(4):
            dc[s] += slope[s, j] * dots[s, j]
            for f in range(n_free):
                D[s, P + f] += slope[s, j] * TH[place[s] + j, f]
    for p in range(P):
        for q in range(P):
            g = d = e = 0.0
            for j in range(min(4, count[p])):
                for m in range(min(4, count[q])):
                    product = products[place[p] + j, place[q] + m]
                    g += value[p, j] * value[q, m] * product
                    d += slope[p, j] * value[q, m] * product
                    e += slope[p, j] * slope[q, m] * product
            G[p, q] = g
            if p < S:
                D[p, q] = d
                if q < S:
                    E[p, q] = e
    for f in range(n_free):
        for m in range(n_free):
            G[P + f, P + m] = GH[f, m]


@compiled
def merit_of(norm, w, c, G, l1, l2):
    """Half the squared residual of a row, and the penalty of its weights."""
    value = 0.5 * norm
    for k in range(len(w)):
        value += w[k] * (l1 - c[k] + 0.5 * l2 * w[k])
        for m in range(len(w)):
            value += 0.5 * w[k] * w[m] * G[k, m]
    return value


@compiled
def _evaluate(x, norm, strains, tables, side, asked, held, work):
    """Solve for the weights of a row at some strains; give what is to be lowered."""
    l1, l2, total = asked
    c, G, w, right = work[5], work[7], work[10], work[11]
    _at(x, strains, tables, side, work)
    right[:] = c
    solve_weights(G, right, l1, l2, total, held, w)
    return merit_of(norm, w, c, G, l1, l2)


@compiled
def _step(strains, tables, asked, held, work, scratch, change):
    """Take a Gauss-Newton step in weights and strains; give what it should gain."""
    low, high, spacing = tables[4], tables[5], tables[6]
    _, _, _, _, _, _, dc, G, D, E, w, _ = work
    joint, slope, passive, solved, lower, index, unit = scratch
    K, S = len(w), len(strains)
    for k in range(K):
        passive[k] = w[k] > 0.0 and (len(held) == 0 or np.isnan(held[k]))
        slope[k] = 0.0
        for m in range(K):
            joint[k, m] = G[k, m]
        joint[k, k] += asked[1]
    for s in range(S):
        gain = dc[s]
        for k in range(K):
            gain -= w[k] * D[s, k]
            joint[k, K + s] = joint[K + s, k] = w[s] * D[s, k]
        for t in range(S):
            joint[K + s, K + t] = w[s] * w[t] * E[s, t]
        slope[K + s] = w[s] * gain
        outward = (strains[s] <= low[s] and gain < 0.0) or (strains[s] >= high[s] and gain > 0.0)
        passive[K + s] = w[s] > 0.0 and not outward
    for v in range(K + S):
        passive[v] = passive[v] and joint[v, v] > 0.0
        unit[v] = np.sqrt(joint[v, v]) if passive[v] else 1.0
    for v in range(K + S):
        slope[v] /= unit[v]
        solved[v] = 0.0
        for u in range(K + S):
            joint[v, u] /= unit[v] * unit[u]
        joint[v, v] += RIDGE * (K + S)
    solve_passive(joint, slope, passive, solved, lower, index)
    predicted = 0.0
    for s in range(S):
        most = _FARTHEST * spacing[s]
        change[s] = min(most, max(-most, solved[K + s] / unit[K + s]))
        predicted += 0.5 * change[s] * slope[K + s] * unit[K + s]
    return predicted


@compiled
def fit_row(x, norm, strains, tables, side, asked, held, steps, work, scratch):
    """Fit weights and strains of one row, from where the strains are, in place."""
    low, high = tables[4], tables[5]
    S = len(strains)
    change, trial = np.empty(S), np.empty(S)
    merit = _evaluate(x, norm, strains, tables, side, asked, held, work)
    for _ in range(steps):
        predicted = _step(strains, tables, asked, held, work, scratch, change)
        if predicted <= _LITTLE * merit + _ROUNDING * norm:
            break
        better, length = False, 1.0
        for _ in range(_HALVINGS):
            for s in range(S):
                trial[s] = min(high[s], max(low[s], strains[s] + length * change[s]))
            found = _evaluate(x, norm, trial, tables, side, asked, held, work)
            better = found < merit
            if better:
                break
            length *= 0.5
        if not better:
            _evaluate(x, norm, strains, tables, side, asked, held, work)
            break
        strains[:], merit = trial, found
    return merit


@compiled
def _scan(x, norm, s, tables, side, asked, held, work):
    """Give the strain of component s, among those of the table, that explains a row best."""
    rows, products, first, count, low, _, step = tables
    H, _, TH, _ = side
    place, _, _, value, _, c, _, G, _, _, w, right = work
    l1, l2, total = asked
    P, kept_c, kept = len(first), c[s], G[s].copy()
    best, at = np.inf, 0.0
    for j in range(1, count[s] - 1, _STRIDE):
        a = first[s] + j
        _know(a, tables, side)
        for p in range(P):
            product = 0.0
            for m in range(min(4, count[p])):
                product += value[p, m] * products[a, place[p] + m]
            G[s, p] = G[p, s] = product
        for f in range(len(H)):
            G[s, P + f] = G[P + f, s] = TH[a, f]
        G[s, s] = products[a, a]
        c[s] = _dot(rows[a], x)
        right[:] = c
        solve_weights(G, right, l1, l2, total, held, w)
        merit = merit_of(norm, w, c, G, l1, l2)
        if merit < best:
            best, at = merit, low[s] + (j - 1) * step[s]
    c[s] = kept_c
    G[s, :] = kept
    G[:, s] = kept
    return at


@compiled
def attempt(x, norm, s, at, more, merit, strains, tables, side, asked, held, steps, work, scratch):
    """Fit a row anew with another strain of component s; keep it where it is better by so much."""
    trial = strains.copy()
    trial[s] = at
    found = fit_row(x, norm, trial, tables, side, asked, held, steps, work, scratch)
    if found * (1.0 + more) + _ROUNDING * norm < merit:
        strains[:] = trial
        return found
    _evaluate(x, norm, strains, tables, side, asked, held, work)
    return merit


@compiled
def search(x, norm, merit, usual, strains, tables, side, asked, held, steps, work, scratch):
    """Look for other strains where nothing tells them, or much more than usual is left."""
    S, F = len(strains), len(x)
    jumped = usual < 0.0 or 2.0 * merit > _JUMP * usual * norm
    for _ in range(2 if usual < 0.0 else 1):
        for s in range(S):
            G, w = work[7], work[10]
            slight = w[s] * w[s] * G[s, s] * F <= _SIGNIFICANT * 2.0 * merit
            if jumped or slight:
                at = _scan(x, norm, s, tables, side, asked, held, work)
                more = 2.0 * _EVIDENT / F
                merit = attempt(
                    x, norm, s, at, more, merit, strains, tables, side, asked, held, steps,
                    work, scratch,
                )  # fmt: skip
    return merit


@compiled
def note_strains(anchors, merit, n_points, strains, work):
    """Keep the strains that this row tells, for the next one to start from."""
    G, w = work[7], work[10]
    for s in range(len(strains)):
        if w[s] * w[s] * G[s, s] * n_points > _SIGNIFICANT * 2.0 * merit:
            anchors[s] = strains[s]


@compiled
def residual(x, tables, side, work):
    """Form the squared residual of a row."""
    rows, count, H = tables[0], tables[3], side[0]
    place, value, w = work[0], work[3], work[10]
    P, squared = len(count), 0.0
    for j in range(len(x)):
        left = x[j]
        for p in range(P):
            for m in range(min(4, count[p])):
                left -= w[p] * value[p, m] * rows[place[p] + m, j]
        for f in range(len(H)):
            left -= w[P + f] * H[f, j]
        squared += left * left
    return squared
