"""The panels: artists on a matplotlib figure that are brought up to date with a `View`."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..documents import Array
from .artists import (
    FAINT,
    GREY,
    INK,
    LEGEND,
    PLAIN,
    SHADE,
    TROUBLE,
    clean,
    extremes,
    limits,
    marker_size,
    outline,
    set_limits,
    verbatim,
    waiting,
)
from .components import Rows, Stack
from .strains import Strains
from .view import View

__all__ = ["Panels"]

#: How far R-factors must spread, as a ratio, to be drawn on a logarithmic scale.
_LOG_SPAN = 30.0


class Panels:
    """All that is drawn, on one figure.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        An empty figure.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
        The figure.
    axes : dict of str to Axes
        What each axes shows; `pattern` and `difference` are one panel, `r_factor` and `lag` too.
        `strain` is there where phases have some.
    """

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self._dataset = ""
        figure.set_facecolor("white")
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
        figure.set_layout_engine(layout)
        halves = figure.add_gridspec(1, 2, width_ratios=(1.12, 1), wspace=0.03)
        self._left = halves[0]
        left = self._left.subgridspec(2, 1, height_ratios=(1.75, 1), hspace=0.02)
        right = halves[1].subgridspec(3, 1, height_ratios=(4.6, 3.2, 1.2), hspace=0.0)
        weights, components = figure.add_subplot(left[0]), figure.add_subplot(right[0])
        r_factor = figure.add_subplot(left[1], sharex=weights)
        pattern = figure.add_subplot(right[1], sharex=components)
        difference = figure.add_subplot(right[2], sharex=components)
        for axes in (weights, components, pattern, difference, r_factor):
            clean(axes)
        lag = r_factor.twinx()
        clean(lag, grid=False, right=True)
        self.axes: dict[str, Axes] = {
            "weights": weights,
            "components": components,
            "pattern": pattern,
            "difference": difference,
            "r_factor": r_factor,
            "lag": lag,
        }
        self._rows = Rows(weights, figure)
        self._stack = Stack(components)
        self._newest = _Newest(pattern, difference)
        self._quality = _Quality(r_factor, lag)
        self._strains: Strains | None = None
        self._header = _Header(figure, layout)

    def show(self, view: View) -> None:
        """Bring every artist up to date."""
        if view.dataset != self._dataset:
            self._dataset = view.dataset
            # Where somebody zoomed into another dataset, there may be nothing of this one.
            for axes in self.axes.values():
                axes.autoscale(True)
        self._make_room(view)
        self._header.show(view)
        self._rows.show(view)
        if self._strains is not None:
            self._strains.show(view)
        self._quality.show(view)
        self._stack.show(view)
        self._newest.show(view)

    def _make_room(self, view: View) -> None:
        """Have a panel for strains where there are some, and else none."""
        if bool(view.strained) == (self._strains is not None):
            return
        weights, r_factor, lag = (self.axes[name] for name in ("weights", "r_factor", "lag"))
        if view.strained:
            rows = self._left.subgridspec(3, 1, height_ratios=(1.3, 0.65, 1), hspace=0.02)
            self.axes["strain"] = self.figure.add_subplot(rows[1], sharex=weights)
            self._strains = Strains(self.axes["strain"])
        else:
            rows = self._left.subgridspec(2, 1, height_ratios=(1.75, 1), hspace=0.02)
            self.axes.pop("strain").remove()
            self._strains = None
        last = rows[-1]
        weights.set_subplotspec(rows[0])
        for axes in (r_factor, lag):
            axes.set_subplotspec(last)


class _Header:
    """Headline, state of the fit and, in a colour that cannot be missed, trouble."""

    def __init__(self, figure: Figure, layout: ConstrainedLayoutEngine) -> None:
        self._figure, self._layout = figure, layout
        self._headline = figure.suptitle("", ha="left", va="top", fontsize=13, fontweight="bold")
        self._status = figure.text(0, 0, "", va="top", fontsize=9.5, color=GREY)
        self._trouble = figure.text(0, 0, "", va="top", fontsize=9.5, fontweight="bold")
        self._trouble.set_color(TROUBLE)
        self._headline.set_color(INK)
        self._headline.set_in_layout(False)
        for text in (self._headline, self._status, self._trouble):
            verbatim(text)

    def show(self, view: View) -> None:
        width, height = self._figure.get_size_inches()
        room = int(width * 72 / (0.68 * 9.5))
        lines = [
            part
            for line in view.trouble
            for part in textwrap.wrap(line, room, max_lines=2, placeholder=" …")
        ]
        self._headline.set_text(view.headline)
        self._status.set_text(view.status)
        self._trouble.set_text("\n".join(lines))
        place, inch = 1 - 0.09 / height, 1 / (72 * height)
        for text, rows, size in (
            (self._headline, 1, 13.0),
            (self._status, 1, 9.5),
            (self._trouble, len(lines), 9.5),
        ):
            text.set_position((0.1 / width, place))
            place -= rows * size * 1.45 * inch
        self._layout.set(rect=(0, 0, 1, place))


class _Newest:
    """The newest pattern with its reconstruction, and the difference."""

    def __init__(self, pattern: Axes, difference: Axes) -> None:
        self._pattern, self._difference = pattern, difference
        (self._measured,) = pattern.plot([], [], color="#ABABAB", lw=1.6, marker="o", mew=0)
        (self._fitted,) = pattern.plot([], [], color=INK, lw=0.9)
        (self._residual,) = difference.plot([], [], color="0.4", lw=0.8)
        difference.axhline(0, color=FAINT, lw=1, zorder=1)
        self._shades = [_Shades(axes) for axes in (pattern, difference)]
        self._waiting = waiting(pattern)
        self._title = verbatim(pattern.set_title("", **PLAIN))
        pattern.set_ylabel("intensity")
        pattern.tick_params(labelbottom=False)
        difference.set_ylabel("difference")
        difference.yaxis.set_major_locator(MaxNLocator(3))
        self._legend: Any = None
        self._shown: bool | None = None
        self._build_legend(unexplained=False)

    def _build_legend(self, *, unexplained: bool) -> None:
        if unexplained is self._shown:
            return
        if self._legend is not None:
            self._legend.remove()
        self._shown = unexplained
        shade = [Patch(facecolor=SHADE, lw=0)] if unexplained else []
        self._legend = self._pattern.legend(
            [self._measured, self._fitted, *shade],
            ["measured", "fit", "not explained"][: 2 + len(shade)],
            loc="upper left",
            bbox_to_anchor=(1, 1),
            frameon=False,
            fontsize=LEGEND,
            labelcolor=INK,
            handlelength=1.6,
            borderaxespad=0.1,
        )

    def show(self, view: View) -> None:
        latest = view.latest
        for shades in self._shades:
            shades.show(view.unexplained, view)
        self._build_legend(unexplained=bool(view.unexplained))
        for axes in (self._pattern, self._difference):
            axes.tick_params(labelleft=latest is not None)
        self._legend.set_visible(latest is not None)
        if latest is None:
            self._show_none(view)
            return
        measured = latest.pattern.astype(float)
        fitted = latest.reconstruction.astype(float)
        x, label = _axis_of(view, len(measured))
        self._waiting.set_text("")
        self._title.set_text(
            f"pattern seq_num {latest.source_seq_num},  R = {_r(measured, fitted)}"
        )
        residual = measured - fitted
        for line, values in (
            (self._measured, measured),
            (self._fitted, fitted),
            (self._residual, residual),
        ):
            kept = outline(values)
            line.set_data(x[kept], values[kept])
        dots = len(x) <= 400
        self._measured.set(linestyle="none" if dots else "-", markersize=4 if dots else 0)
        self._difference.set_xlabel(label)
        set_limits(self._pattern, x=limits(x, pad=0), y=limits([*extremes(measured, fitted)]))
        reach = float(np.nanmax(np.abs(residual), initial=0.0))
        set_limits(self._difference, y=limits([-reach, reach]))

    def _show_none(self, view: View) -> None:
        note = "the newest pattern is not in these documents" if view.ended else "waiting"
        self._waiting.set_text(note)
        self._title.set_text("newest pattern")
        self._difference.set_xlabel("" if view.components is None else view.components.label)
        for line in (self._measured, self._fitted, self._residual):
            line.set_data([], [])


class _Shades:
    """Bands over the parts of the axis where something is not explained."""

    #: Narrower ones could not be seen, as part of the axis.
    _NARROWEST = 0.006

    def __init__(self, axes: Axes) -> None:
        self._bands = PolyCollection([], facecolors=SHADE, linewidths=0, zorder=0.5)
        self._bands.set_transform(axes.get_xaxis_transform())
        axes.add_collection(self._bands, autolim=False)

    def show(self, ranges: Sequence[tuple[float, float]], view: View) -> None:
        if view.components is None or not ranges:
            self._bands.set_verts([])
            return
        least = self._NARROWEST * float(np.ptp(view.components.x)) / 2
        ends = [
            (min(low, (low + high) / 2 - least), max(high, (low + high) / 2 + least))
            for low, high in ranges
        ]
        self._bands.set_verts([[(a, 0), (b, 0), (b, 1), (a, 1)] for a, b in ends])


class _Quality:
    """R-factors, and how many patterns waited."""

    def __init__(self, r_factor: Axes, lag: Axes) -> None:
        self._axes, self._twin = r_factor, lag
        (self._r,) = r_factor.plot([], [], color=INK, lw=1.2, marker="o", mew=0)
        self._lag = LineCollection([], colors="#D4D4D4", capstyle="butt")
        lag.add_collection(self._lag, autolim=False)
        # The twin was made last, and would cover the curve that matters more.
        r_factor.set_zorder(lag.get_zorder() + 1)
        r_factor.patch.set_visible(False)
        r_factor.set_ylabel("R-factor when first fitted")
        lag.set_ylabel("lag (patterns)", color=GREY)
        lag.yaxis.set_major_locator(MaxNLocator(4, integer=True))

    def show(self, view: View) -> None:
        x, r, lag, ordered = view.abscissa.values, view.r_factor, view.lag, view.abscissa.ordered
        kept = outline(r)
        self._r.set_data(x[kept], r[kept])
        self._r.set_linestyle("-" if ordered else "none")
        self._r.set_markersize(marker_size(len(x), ordered=ordered) * 0.8)
        kept = outline(lag)
        tops = np.nan_to_num(lag[kept])
        feet = np.column_stack([x[kept], np.zeros(len(kept))])
        self._lag.set_segments(list(np.stack([feet, np.column_stack([x[kept], tops])], axis=1)))
        self._lag.set_linewidth(float(np.clip(300 / max(len(x), 1), 0.8, 6.0)))
        # As many patterns as components are explained by anything: they say nothing of the rest.
        judged = r[len(view.names) :] if len(r) > 2 * len(view.names) else r
        logarithmic = _spans_decades(judged)
        scale = "log" if logarithmic else "linear"
        if self._axes.get_yscale() != scale:
            self._axes.set_yscale(scale)
        if logarithmic:
            bounds = limits(judged[judged > 0], logarithmic=True)
        else:
            bounds = limits([0, *extremes(r)])
        set_limits(self._axes, y=bounds)
        set_limits(self._twin, y=(0, max(1.0, *extremes(lag)) * 1.3))
        # Where no pattern ever waited, as in a fit of files, the scale would say nothing.
        self._twin.set_visible(bool((tops > 0).any()))
        self._axes.set_xlabel(view.abscissa.label)


def _axis_of(view: View, n: int) -> tuple[Array, str]:
    if view.components is None or len(view.components.x) != n:
        return np.arange(n), "point"
    return view.components.x, view.components.label


def _r(measured: Array, fitted: Array) -> str:
    norm = float(np.sum(measured**2))
    return f"{np.sqrt(np.sum((measured - fitted) ** 2) / norm):.3g}" if norm > 0 else "undefined"


def _spans_decades(r: Array) -> bool:
    known = r[np.isfinite(r)]
    # A zero has no place on a logarithmic axis, and must be seen.
    return bool(known.size and known.min() > 0 and known.max() > _LOG_SPAN * known.min())
