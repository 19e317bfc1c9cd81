"""Where something stands out, since when, and what else there is beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Places", "beside", "onset", "places_of"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Most windows that are taken for significant, and from how many standard deviations on.
_MOST, _FROM = 32, 3.0


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
    inside, around = np.zeros(n_points, dtype=bool), np.zeros(n_points, dtype=bool)
    height = np.zeros(n_points)
    taken = 0
    for place in order:
        window = slice(begins[place], begins[place] + width)
        if inside[window].any():
            continue
        inside[window], height[window] = True, max(z[place], 0.1)
        around[max(0, window.start - width) : window.stop + width] = True
        taken += 1
        if taken == _MOST:
            break
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    runs = sorted(
        zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True),
        key=lambda run: -height[run[0] : run[1] + 1].max(),
    )
    return Places(tuple(runs), around, height / np.linalg.norm(height))


def onset(series: Array) -> int:
    """Tell from which of the values on a series of unit noise is best taken for raised.

    The most likely place of a step up from zero to another mean, which lasts to the end.
    """
    sums = np.cumsum(series[::-1])[::-1]
    score = np.maximum(sums, 0.0) ** 2 / np.arange(len(series), 0, -1)
    return int(score.argmax())


def beside(residuals: Array, sigma: Array, templates: Sequence[Array]) -> Array:
    """Take out of residuals what goes up and down with what was told, (N, F).

    Each place is regressed on how strong the told structures were in each pattern: whatever is
    in proportion to them, such as further lines of the same phase, is gone.

    Parameters
    ----------
    residuals, sigma : ndarray (N, F)
        Residuals in units of the noise, and the noise.
    templates : sequence of ndarray (F,)
        What was told.
    """
    # What is in proportion is the intensity; the noise of a place changes as phases do.
    scale = sigma / sigma.mean(axis=0)
    scaled = residuals * scale
    strengths: Array = scaled @ np.stack(templates, axis=1)
    scaled -= strengths @ (np.linalg.pinv(strengths, rcond=1e-6) @ scaled)
    found: Array = scaled / scale
    return found
