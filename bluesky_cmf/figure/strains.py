"""The panel of the strains: there only where phases have some."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from ..documents import Array
from .artists import FAINT, clean, colour, limits, marker, marker_size, outline, set_limits
from .view import View

__all__ = ["Strains"]

#: Strains are drawn in percent.
_PERCENT = 100.0
#: How much larger than usual errors may be of strains that the limits of the panel go by: where
#: next to nothing of a phase is there, its strain is anything.
_TELLING = 5.0


class Strains:
    """Strains of the phases that have some against the independent variable.

    Parameters
    ----------
    axes : Axes
        Where they are drawn.
    """

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        clean(axes)
        axes.axhline(0, color=FAINT, lw=1, zorder=1)
        axes.set_ylabel("strain (%)")
        axes.tick_params(labelbottom=False)
        self._drawn: tuple[Any, ...] = ()
        self._lines: dict[int, Line2D] = {}
        self._bars: dict[int, LineCollection] = {}

    def show(self, view: View) -> None:
        """Bring the panel up to date."""
        x, ordered = view.abscissa.values, view.abscissa.ordered
        drawn = (view.names, view.strained, view.slots, ordered)
        if drawn != self._drawn:
            self._drawn = drawn
            self._build(view)
        strains, errors = _PERCENT * view.strains, _PERCENT * view.strain_errors
        for k, line in self._lines.items():
            kept = outline(strains[:, k])
            line.set_data(x[kept], strains[kept, k])
            line.set_markersize(marker_size(len(x), ordered=ordered) * 0.8)
            known = kept[np.isfinite(strains[kept, k]) & (errors[kept, k] > 0)]
            low, high = (strains[known, k] + sign * errors[known, k] for sign in (-1, 1))
            bars = [np.column_stack([x[known], end]) for end in (low, high)]
            self._bars[k].set_segments(list(np.stack(bars, axis=1)))
        set_limits(self._axes, y=limits([0.0, *_telling(strains, errors, list(self._lines))]))

    def _build(self, view: View) -> None:
        for artist in (*self._lines.values(), *self._bars.values()):
            artist.remove()
        self._lines, self._bars = {}, {}
        for k in view.strained:
            slot = view.slots[k]
            (line,) = self._axes.plot(
                [], [], color=colour(slot), marker=marker(slot), lw=1.2, mew=0
            )
            self._lines[k] = line
            self._lines[k].set_linestyle("-" if view.abscissa.ordered else "none")
            self._bars[k] = LineCollection([], colors=colour(slot), linewidths=0.8, alpha=0.4)
            self._axes.add_collection(self._bars[k], autolim=False)


def _telling(strains: Array, errors: Array, columns: list[int]) -> Array:
    """Give the strains that the limits of the panel go by."""
    found = []
    for k in columns:
        known = np.isfinite(strains[:, k])
        usual = errors[known & (errors[:, k] > 0), k]
        if usual.size:
            known &= np.nan_to_num(errors[:, k]) <= _TELLING * np.median(usual)
        found.append(strains[known, k])
    return np.concatenate([np.empty(0), *found])
