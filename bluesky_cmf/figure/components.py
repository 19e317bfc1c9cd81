"""The two panels in the components' colours: their weights, and the components themselves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from ..documents import Array
from .artists import (
    FIXED,
    FREE,
    GREY,
    INK,
    LEGEND,
    PLAIN,
    TROUBLE,
    abbreviated,
    colour,
    extremes,
    limits,
    marker,
    marker_size,
    outline,
    set_limits,
    verbatim,
    waiting,
)
from .view import Components, View

__all__ = ["Rows", "Stack"]

#: Distance between the baselines of two stacked components, each of height 1.
_STEP = 1.12
#: How many changes of constraints are named, and the height for each, as part of the panel's.
_NOTES, _NOTE_HEIGHT = 4, 0.05


class Rows:
    """Weights, or fractions, of the components against the independent variable."""

    def __init__(self, axes: Axes, figure: Figure) -> None:
        self._axes, self._figure = axes, figure
        self._drawn: tuple[Any, ...] = ()
        self._lines: list[Line2D] = []
        self._bands: list[Any] = []
        self._bars: list[LineCollection] = []
        self._legend: Any = None
        self._changes = LineCollection([], colors=GREY, linewidths=0.8, linestyles=(0, (2, 2)))
        self._changes.set_transform(axes.get_xaxis_transform())
        axes.add_collection(self._changes, autolim=False)
        self._onsets = LineCollection([], colors=TROUBLE, linewidths=0.8, linestyles=(0, (1, 1.5)))
        self._onsets.set_transform(axes.get_xaxis_transform())
        axes.add_collection(self._onsets, autolim=False)
        self._notes: list[Text] = []
        self._waiting = waiting(axes)
        axes.tick_params(labelbottom=True)

    def show(self, view: View) -> None:
        """Bring the panel up to date."""
        axes, x, weights = self._axes, view.abscissa.values, view.weights
        nothing = "no pattern could be used" if view.ended else "waiting for the first patterns"
        self._waiting.set_text("" if len(x) else nothing)
        has_errors = bool((view.errors > 0).any())
        drawn = (view.names, view.fixed, view.slots, view.abscissa.ordered, has_errors)
        if drawn != self._drawn:
            self._drawn = drawn
            self._build(view, has_errors)
        for k, line in enumerate(self._lines):
            kept = outline(weights[:, k])
            line.set_data(x[kept], weights[kept, k])
            line.set_markersize(marker_size(len(x), ordered=view.abscissa.ordered))
            self._show_errors(k, x[kept], weights[kept, k], view.errors[kept, k], view.most)
        axes.set_xlabel(view.abscissa.label)
        axes.set_ylabel(view.weight_label)
        # An error of one bad pattern must not squeeze the weights into a line.
        reach = weights + np.minimum(np.nan_to_num(view.errors), np.abs(weights))
        whole = limits([0.0, *extremes(weights), *extremes(reach)])
        low, high = limits([0.0, view.most]) if np.isfinite(view.most) else whole
        room = _NOTE_HEIGHT * min(len(view.marks) + len(view.onsets), _NOTES)
        set_limits(axes, x=limits(x), y=(low, high + (high - low) * room / (1 - room)))
        self._show_changes(view)

    def _build(self, view: View, has_errors: bool) -> None:
        for artist in (*self._lines, *self._bands, *self._bars):
            artist.remove()
        self._lines = [_line(view, k) for k in range(len(view.names))]
        if not view.abscissa.ordered:
            for line in self._lines:
                line.set_linestyle("none")
        colours = [colour(slot) for slot in view.slots]
        self._bars = [LineCollection([], colors=c, linewidths=1, alpha=0.5) for c in colours]
        self._bands = [
            self._axes.fill_between([], [], color=c, alpha=0.18, lw=0, zorder=1.5) for c in colours
        ]
        for bars in self._bars:
            self._axes.add_collection(bars, autolim=False)
        for line in self._lines:
            self._axes.add_line(line)
        self._build_legend(view, has_errors)

    def _build_legend(self, view: View, has_errors: bool) -> None:
        if self._legend is not None:
            self._legend.remove()
        handles: list[Any] = [_line(view, k) for k in range(len(view.names))]
        if not view.abscissa.ordered:
            for handle in handles:
                handle.set_linestyle("none")
        texts = list(view.names)
        if has_errors:
            handles.append(Patch(facecolor=GREY, alpha=0.25))
            texts.append("± σ, first fit")
        columns, length = _columns(texts, 0.45 * 72 * self._figure.get_size_inches()[0])
        # A label that begins with an underscore would be left out, so they are set afterwards.
        self._legend = self._axes.legend(
            handles,
            ["label"] * len(handles),
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            frameon=False,
            fontsize=LEGEND,
            labelcolor=INK,
            handlelength=2.6,
            labelspacing=0.35,
            columnspacing=1.4,
            borderaxespad=0.1,
        )
        for text, label in zip(self._legend.get_texts(), texts, strict=True):
            text.set_text(abbreviated(label, length))
            verbatim(text)
        # Its width is none of the layout's business, and an empty title keeps room for its height.
        self._legend.set_in_layout(False)
        rows = -(-len(texts) // columns)
        self._axes.set_title("\n".join(" " * rows), fontsize=LEGEND, linespacing=1.6, pad=7)

    def _show_errors(self, k: int, x: Array, y: Array, error: Array, most: float) -> None:
        known = np.isfinite(error) & np.isfinite(y)
        low, high = np.maximum(y - error, 0), np.minimum(y + error, most)
        if self._drawn[3]:
            self._bands[k].set_data(x, low, high, where=known)
        else:
            ends = np.stack([np.column_stack([x, low]), np.column_stack([x, high])], axis=1)
            self._bars[k].set_segments(list(ends[known]))

    def _show_changes(self, view: View) -> None:
        for lines, places in ((self._changes, view.marks), (self._onsets, view.onsets)):
            lines.set_segments([[(place, 0), (place, 1)] for place, _text in places])
        for note in self._notes:
            note.remove()
        marks = [(*mark, GREY) for mark in view.marks] + [(*on, TROUBLE) for on in view.onsets]
        # Where there are many, the last ones are named: all names would cover each other.
        named = marks[-_NOTES:]
        self._notes = [self._note(*mark, row) for row, mark in enumerate(named)]

    def _note(self, place: float, text: str, shade: str, row: int) -> Text:
        left, right = self._axes.get_xlim()
        leftwards = place > (left + right) / 2
        text = f"{abbreviated(text, 44)} " if leftwards else f" {abbreviated(text, 44)}"
        note = self._axes.text(place, 1 - (row + 0.15) * _NOTE_HEIGHT, text, fontsize=8)
        note.set(ha="right" if leftwards else "left", va="top", color=shade, clip_on=True)
        note.set_in_layout(False)
        note.set_transform(self._axes.get_xaxis_transform())
        return verbatim(note)


class Stack:
    """The components, stacked, each with its name."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._drawn: tuple[Any, ...] = ()
        self._lines: list[Line2D] = []
        self._names: list[Text] = []
        self._waiting = waiting(axes)
        axes.set_ylabel("component / its maximum")
        axes.tick_params(left=False, labelleft=False)
        axes.grid(False, axis="y")
        axes.set_title("components: solid fixed, dashed free", **PLAIN)

    def show(self, view: View) -> None:
        """Bring the panel up to date."""
        parts = view.components
        self._waiting.set_text("" if parts else "components come with the first fit")
        drawn = (view.names, view.fixed, view.slots, parts is None)
        if drawn != self._drawn:
            self._drawn = drawn
            self._build(view)
        if parts is None:
            return
        for k, line in enumerate(self._lines):
            self._show_component(line, parts, k)
        count = max(len(self._lines), 1)
        self._axes.set_xlabel(parts.label)
        set_limits(self._axes, x=limits(parts.x, pad=0), y=(-0.08, count * _STEP + 0.02))

    def _show_component(self, line: Line2D, parts: Components, k: int) -> None:
        values = parts.values[k]
        height = np.abs(values).max(initial=0.0) or 1.0
        kept = outline(values)
        baseline = (len(self._lines) - 1 - k) * _STEP
        line.set_data(parts.x[kept], values[kept] / height + baseline)

    def _build(self, view: View) -> None:
        for artist in (*self._lines, *self._names):
            artist.remove()
        self._lines, self._names = [], []
        if view.components is None:
            return
        for k, name in enumerate(view.names):
            line = _line(view, k)
            line.set(marker="none", linewidth=1.2)
            self._lines.append(self._axes.add_line(line))
            baseline = (len(view.names) - 1 - k) * _STEP
            label = self._axes.text(1.012, baseline + 0.1, abbreviated(name, 20), fontsize=LEGEND)
            label.set(color=line.get_color(), fontweight="bold", va="center")
            label.set_transform(self._axes.get_yaxis_transform())
            self._names.append(verbatim(label))


def _line(view: View, k: int) -> Line2D:
    """Make the line of a component: solid and filled where it is fixed, dashed and open if free."""
    shade, fixed = colour(view.slots[k]), view.fixed[k]
    return Line2D(
        [],
        [],
        label=view.names[k],
        color=shade,
        linestyle=FIXED if fixed else FREE,
        linewidth=1.5,
        marker=marker(view.slots[k]),
        markersize=4.5,
        markerfacecolor=shade if fixed else "white",
        markeredgewidth=1.0,
    )


def _columns(texts: Sequence[str], width: float) -> tuple[int, int]:
    """Choose the columns of a legend `width` points wide, and the letters that a name may have."""
    longest = max(map(len, texts), default=0)
    columns, letters = 1, 10
    for columns in range(len(texts), 0, -1):
        letters = int((width / columns - 4.5 * LEGEND) / (0.57 * LEGEND))
        if letters >= min(longest, 15):
            break
    return columns, max(letters, 10)
