"""From the axis of a measured pattern to the one that is fitted: crop, interpolate, average."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import AxisError, PatternError

__all__ = ["Resampling", "averaged", "resample"]

Array = npt.NDArray[Any]

#: How far, in steps of the finer axis, the data may reach beyond a phase: rounding, no more.
_REACH = 0.5


@dataclass(frozen=True, eq=False)
class Resampling:
    """The linear map from values on one axis to values on another one.

    Parameters
    ----------
    x : ndarray (F,)
        Increasing axis of the measured values.
    grid : ndarray (B,)
        Increasing axis that they are interpolated onto; where its points are points of ``x`` that
        follow each other, the values are taken as they are, to the bit.
    count : int
        Neighbouring points of the grid that are averaged then; what is left over at the upper
        end, fewer than these, is left out. G = B // count.
    """

    x: Array
    grid: Array
    count: int = 1

    def taken(self, y: Array) -> Array:
        """Give values (F,) on the grid, (B,): a copy.

        Raises
        ------
        AxisError
            Where the axis does not cover the grid.
        PatternError
            Where there are not as many values as points of the axis.
        """
        if y.shape != self.x.shape:
            raise PatternError(f"expected {len(self.x)} points, as the axis has, got {y.shape}")
        span = self._span
        if span is not None:
            return y[span].copy()
        return resample(self.x, y, self.grid, what="the pattern")

    def __call__(self, y: Array) -> Array:
        """Map values (F,) to (G,)."""
        return averaged(self.taken(y), self.count)

    @cached_property
    def points(self) -> "slice | Array":
        """Which points of ``x`` have part in the result, P of them."""
        if self._span is not None:
            start = self._span.start
            return slice(start, start + len(self.grid) // self.count * self.count)
        points: Array = self._by_point[1][self._by_point[2]]
        return points

    def spread(self, variance: Array) -> Array:
        """Give the variances (G,) that independent noise with the variances (F,) comes to."""
        if self._span is not None:
            return averaged(variance[self._span].astype(float), self.count) / self.count
        _, cols, weights, starts = self._matrix
        spread: Array = np.add.reduceat(weights**2 * variance[cols], starts)
        return spread

    def pulled_back(self, vectors: Array) -> Array:
        """Give (K, P) such that these times `points` of y are ``vectors`` (K, G) times the result.

        This is the transposed map: what a weighted sum of the result takes of each measured value.
        """
        if self._span is not None:
            if self.count == 1:
                return vectors
            return np.repeat(vectors / self.count, self.count, axis=1)
        rows, _, weights, _ = self._matrix
        order, _, starts = self._by_point
        pulled: Array = np.add.reduceat(vectors[:, rows[order]] * weights[order], starts, axis=1)
        return pulled

    @cached_property
    def _span(self) -> slice | None:
        """Where the grid is a stretch of the axis: which one."""
        start = int(np.searchsorted(self.x, self.grid[0]))
        span = slice(start, start + len(self.grid))
        return span if np.array_equal(self.x[span], self.grid) else None

    @cached_property
    def _matrix(self) -> tuple[Array, Array, Array, Array]:
        """The map as a sparse matrix: rows, columns, weights, and where each row begins."""
        size = len(self.grid) // self.count * self.count
        grid, last = self.grid[:size], max(len(self.x) - 2, 0)
        left: Array = np.clip(np.searchsorted(self.x, grid, side="right") - 1, 0, last)
        step = np.diff(self.x, append=np.inf)[left]
        # Beyond its ends, by rounding at most, the pattern goes on as it ends.
        share: Array = np.clip((grid - self.x[left]) / step, 0.0, 1.0)
        rows: Array = np.arange(size) // self.count
        weights: Array = np.concatenate([1.0 - share, share]) / self.count
        cells: Array = np.concatenate([rows * len(self.x) + left, rows * len(self.x) + left + 1])
        # What has no weight has no part: a value that is no number may stand there.
        cells, weights = cells[weights > 0], weights[weights > 0]
        cells, places = np.unique(cells, return_inverse=True)
        rows, cols = np.divmod(cells, len(self.x))
        weights = np.bincount(places, weights=weights)
        return rows, cols, weights, np.searchsorted(rows, np.arange(size // self.count))

    @cached_property
    def _by_point(self) -> tuple[Array, Array, Array]:
        """The matrix' cells in the order of columns, and where each column begins."""
        cols = self._matrix[1]
        order = np.argsort(cols, kind="stable")
        cols = cols[order]
        starts = np.flatnonzero(np.r_[True, cols[1:] != cols[:-1]])
        return order, cols, starts


def averaged(values: Array, count: int) -> Array:
    """Average each ``count`` neighbours of (B,), in float64; what is left over is left out."""
    if count == 1:
        return values
    size = len(values) // count * count
    means: Array = values[:size].reshape(-1, count).mean(axis=1, dtype=float)
    return means


def resample(x: Array, y: Array, onto: Array, *, what: str) -> Array:
    """Interpolate a pattern linearly onto another axis that it covers.

    Parameters
    ----------
    x, y : ndarray (F,)
        Increasing axis and values.
    onto : ndarray (G,)
        Increasing axis.
    what : str
        What the message calls the pattern.

    Returns
    -------
    ndarray (G,)
        A copy of ``y``, to the bit, where the axes are the same.

    Raises
    ------
    AxisError
        Where ``x`` does not cover ``onto`` to within half a step.
    """
    if x.shape == onto.shape and np.array_equal(x, onto):
        return y.copy()
    if onto.ndim != 1 or onto.dtype.kind not in "fiu" or not (onto[1:] > onto[:-1]).all():
        raise AxisError(
            f"{what}: expected an axis (F,) of numbers that increase throughout, "
            f"got {onto.dtype} of shape {onto.shape}"
        )
    steps = [float((axis[1:] - axis[:-1]).min()) for axis in (x, onto) if len(axis) > 1]
    reach = _REACH * min(steps) if len(onto) > 1 else 0.0
    if (
        not len(onto)
        or not np.isfinite(onto[[0, -1]]).all()
        or onto[0] < x[0] - reach
        or onto[-1] > x[-1] + reach
    ):
        covered = f"{x[0]:.6g} to {x[-1]:.6g}"
        needed = f"{onto[0]:.6g} to {onto[-1]:.6g}" if len(onto) else "no point at all"
        raise AxisError(
            f"{what} covers {covered} but the data's axis is {needed}; "
            "crop the data (Preprocess(roi=…)) or give a phase that covers it, in the same unit"
        )
    return np.interp(onto, x, y)
