"""Where something stands out, since when, and whether it is the same as something else."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Places", "onset", "places_of", "proportional"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Most windows that are taken for significant, and from how many standard deviations on.
_MOST, _FROM = 32, 3.0
#: Sums that two series are compared by, and how much chi-squared more than that they may differ.
_BLOCKS, _MOST_CHI = 8, 30.0


@dataclass(frozen=True)
class Places:
    """Where a structure stands out.

    Attributes
    ----------
    runs : tuple of (int, int)
        First and last point of each place, the strongest first.
    mask : ndarray (F,)
        All of their points, and some beside.
    template : ndarray (F,)
        What to weigh standardised residuals with to see it, of unit length.
    """

    runs: tuple[tuple[int, int], ...]
    mask: Mask
    template: Array


def places_of(z: Array, begins: npt.NDArray[np.intp], width: int, n_points: int) -> Places:
    """Find the windows that stand out, the largest first and none that overlaps another.

    Parameters
    ----------
    z : ndarray (P,)
        Standardised sums in windows.
    begins : ndarray (P,)
        Their first points.
    width : int
        Points of a window.
    n_points : int
        F.
    """
    order = np.argsort(z)[::-1]
    order = order[: max(1, int(np.count_nonzero(z > _FROM)))]
    inside, beside = np.zeros(n_points, dtype=bool), np.zeros(n_points, dtype=bool)
    height = np.zeros(n_points)
    taken = 0
    for place in order:
        window = slice(begins[place], begins[place] + width)
        if inside[window].any():
            continue
        inside[window], height[window] = True, max(z[place], 0.1)
        beside[max(0, window.start - width) : window.stop + width] = True
        taken += 1
        if taken == _MOST:
            break
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    runs = sorted(
        zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True),
        key=lambda run: -height[run[0] : run[1] + 1].max(),
    )
    return Places(tuple(runs), beside, height / np.linalg.norm(height))


def onset(series: Array) -> int:
    """Tell from which of the values on a series of unit noise is best taken for raised.

    The most likely place of a step up from zero to another mean, which lasts to the end.
    """
    sums = np.cumsum(series[::-1])[::-1]
    score = np.maximum(sums, 0.0) ** 2 / np.arange(len(series), 0, -1)
    return int(score.argmax())


def proportional(told: Array, new: Array) -> bool:
    """Tell whether two series of unit noise may be multiples of each other."""
    slope = float(told @ new) / max(float(told @ told), 1e-300)
    blocks = np.array_split(new - slope * told, min(_BLOCKS, len(told)))
    sums = np.array([block.sum() for block in blocks])
    sizes = np.array([len(block) for block in blocks])
    chi = float((sums**2 / (sizes * (1.0 + slope**2))).sum())
    return chi < _MOST_CHI
