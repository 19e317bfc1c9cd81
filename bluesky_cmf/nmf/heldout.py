"""How well a factorization predicts what it has not seen: bi-cross-validation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .deviceblocks import blocks_on
from .divergencefit import DivergenceFit
from .fit import Fit
from .leastsquares import LeastSquares
from .rules import Rules

__all__ = [
    "Hidden",
    "Model",
    "descended",
    "hidden_blocks",
    "most_components",
    "prediction_losses",
]

Array = npt.NDArray[Any]

#: Stretches that the points are cut into. A stretch is hidden as a whole, so that no half of a
#: line, and no neighbour that interpolation has mixed with it, tells what is hidden.
_STRETCHES = 32
#: Decrease over 20 sweeps at which a fit has converged: what is left must be small beside the
#: noise, or another component would seem to predict something.
TOL = 1e-6
#: Singular values that are taken for zero, beside the largest.
_DEPENDENT = 1e-6
#: What stands for an intensity of zero where the loss divides by it, beside the mean.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Model:
    """Factors W (N, K) and H (K, F), of which the first ``held`` components are held."""

    W: Array
    H: Array
    held: int
    objective: float


@dataclass(frozen=True)
class Hidden:
    """What is hidden: patterns (N,) and stretches (S,), as masks, where they cross.

    ``starts`` tells where each of the S stretches of the F points starts.
    """

    rows: Array
    stretches: Array
    starts: Array
    n_features: int

    @property
    def points(self) -> Array:
        """The points of the stretches, a mask (F,)."""
        return np.repeat(self.stretches, self.lengths)

    @property
    def lengths(self) -> Array:
        """How many points each of the S stretches has."""
        return np.diff(self.starts, append=self.n_features)


def stretches(n_features: int) -> Array:
    """Tell where each of the stretches starts that points are dealt in, (S,)."""
    count = min(_STRETCHES, n_features)
    return np.arange(count) * n_features // count


def hidden_blocks(
    shape: tuple[int, int], *, fraction: float, repeats: int, seed: int
) -> Iterator[Hidden]:
    """Choose what to hide, at random, each entry as often as any other.

    Parameters
    ----------
    shape : (int, int)
        N and F.
    fraction : float
        About the part of the entries that is hidden at a time.
    repeats : int
        How many times.
    seed : int
        Of the draws.

    Yields
    ------
    Hidden
        A set of patterns and a set of stretches of points. Patterns and stretches are dealt to
        some groups each, whose crossings are hidden one after the other; when all were, the groups
        are dealt anew.
    """
    N, F = shape
    starts = stretches(F)
    of_rows, of_points = _groups(N, len(starts), fraction)
    random = np.random.default_rng(seed)
    for repeat in range(repeats):
        turn = repeat % (of_rows * of_points)
        if not turn:
            rows = _dealt(N, of_rows, random)
            cuts = _dealt(len(starts), of_points, random)
        # Along the diagonals, so that the first few have all patterns and all points among them.
        lap, row = divmod(turn, of_rows)
        column = (row + lap) % of_points
        yield Hidden(rows == row, cuts == column, starts, F)


def most_components(shape: tuple[int, int], *, fraction: float) -> int:
    """Tell how many components the smallest set that is left to fit can carry."""
    N, F = shape
    starts = stretches(F)
    of_rows, of_points = _groups(N, len(starts), fraction)
    longest = int(np.diff(starts, append=F).max()) * math.ceil(len(starts) / of_points)
    return min(N - math.ceil(N / of_rows), F - longest)


def descended(
    X: Array, H: Array, *, held: int, beta: float, device: torch.device, seed: int
) -> Model:
    """Fit patterns (N, F) from components H (K, F) on, the first ``held`` of them held."""
    free = tuple(range(held, len(H)))
    dtype = torch.float32 if X.dtype == np.float32 else torch.float64
    rows = blocks_on(X.shape[1], dtype=dtype, device=device)
    rows.append(torch.tensor(X))
    start = torch.tensor(H, dtype=torch.float64, device=device)
    rules = Rules(free, beta=beta, scalable=free, interchangeable=free)
    kind: type[Fit] = LeastSquares if beta == 2 else DivergenceFit
    fit = kind(rows, start, rules, seed=seed)
    fit.factors.follow()
    if free:
        fit.descend(tol=TOL)
    W, H = (factor.cpu().numpy() for factor in (fit.factors.W.tensor(), fit.factors.H))
    return Model(W, H, held, fit.objective)


def prediction_losses(X: Array, full: Model, hidden: Hidden, **options: Any) -> Array:
    """Predict what is hidden from the rest, and give the loss.

    Parameters
    ----------
    X : ndarray (N, F)
        All patterns.
    full : Model
        A fit of all of them, where the fit of those that are not hidden starts.
    hidden : Hidden
        What is hidden.
    options
        As `descended` takes them.

    Returns
    -------
    ndarray (rows, stretches)
        Summed over each hidden stretch of each hidden pattern. For least squares half the squared
        difference; for another loss what it is to second order about the typical intensity of a
        pattern and a point, because a prediction may come out as zero where there are counts.

    Notes
    -----
    Owen and Perry, Ann. Appl. Stat. 3, 564 (2009). The patterns and points that are seen whole are
    factorized; the hidden patterns' weights, and the components at the hidden points, are regressed
    on what is seen of them, without a bound at zero: components are determined up to a mixing, and
    a hidden pattern that is purer than all others lies beyond the weights that a bound allows.
    """
    rows, points = hidden.rows, hidden.points
    seen = X[np.ix_(~rows, ~points)]
    fit = descended(seen, full.H[:, ~points], held=full.held, **options)
    beta = options["beta"]
    aside, above = X[np.ix_(rows, ~points)], X[np.ix_(~rows, points)]
    of_rows, of_points = _sizes(aside.mean(1, dtype=float)), _sizes(above.mean(0, dtype=float))
    by_row, by_point = _sizes(seen.mean(1, dtype=float)), _sizes(seen.mean(0, dtype=float))
    weights = _regress(fit.H, aside, by_point ** (beta - 2)).T
    known = full.H[: fit.held, points]
    # What is held is known at the hidden points too.
    rest = above - fit.W[:, : fit.held] @ known
    found = _regress(fit.W[:, fit.held :].T, rest.T, by_row ** (beta - 2))
    left = X[np.ix_(rows, points)] - weights @ np.vstack([known, found])
    curvature = (np.outer(of_rows, of_points) / _sizes(seen.mean(dtype=float))) ** (beta - 2)
    lengths = hidden.lengths[hidden.stretches]
    return np.add.reduceat(0.5 * curvature * left**2, np.cumsum(lengths) - lengths, axis=1)


def _groups(n_rows: int, n_stretches: int, fraction: float) -> tuple[int, int]:
    """Tell into how many groups patterns and stretches are dealt: as square as may be."""
    of_rows = int(np.clip(round(fraction**-0.5), 2, max(n_rows, 2)))
    return of_rows, int(np.clip(round(1 / (fraction * of_rows)), 2, max(n_stretches, 2)))


def _dealt(count: int, groups: int, random: np.random.Generator) -> Array:
    """Deal numbers of groups, (count,), as evenly as may be."""
    return random.permutation(np.arange(count) % groups)


def _regress(basis: Array, rows: Array, importance: Array) -> Array:
    """Solve weighted least squares for the coefficients (K, M) of rows (M, P) on a basis (K, P)."""
    root = np.sqrt(importance)
    weighted = basis * root
    length = np.linalg.norm(weighted, axis=1, keepdims=True)
    length[length == 0] = 1.0
    unit = (weighted / length).T
    found: Array = np.linalg.lstsq(unit, (rows * root).T, rcond=_DEPENDENT)[0] / length
    return found


def _sizes(means: Array) -> Array:
    """Raise mean intensities that are about zero to what a loss may divide by."""
    return np.maximum(means, _FLOOR * (np.mean(means) or 1.0))
