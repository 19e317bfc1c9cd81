"""How many components, and which patterns serve as them: one figure for each question."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..errors import InputError
from .artists import (
    FIXED,
    GREY,
    INK,
    LEGEND,
    PLAIN,
    TROUBLE,
    abbreviated,
    clean,
    colour,
    limits,
    marker,
    marker_size,
    outline,
    verbatim,
)
from .canvas import new_figure

if TYPE_CHECKING:
    from ..nmf.selection import ComponentSweep, DataConstraints

__all__ = ["plot_constraints", "plot_sweep"]

Array = npt.NDArray[Any]

#: Inches.
_SWEEP_SIZE, _CONSTRAINTS_SIZE = (8.6, 5.4), (12.8, 8.0)
#: Distance between the baselines of two stacked components, each of height 1.
_STEP = 1.12
#: Points across that a map of the data is drawn with.
_ACROSS = 1600
#: White to ink: the colours are the components'.
_SHADES = LinearSegmentedColormap.from_list("ink", ["#FFFFFF", "#9A9A9A", INK])


def plot_sweep(sweep: "ComponentSweep", figure: Figure | None = None) -> Figure:
    """Draw objective and held-out error against the number of components.

    Parameters
    ----------
    sweep : ComponentSweep
        What `bluesky_cmf.nmf.selection.sweep_components` gave.
    figure : matplotlib.figure.Figure, optional
        A figure to draw on, which is cleared; by default a new one.

    Returns
    -------
    matplotlib.figure.Figure
        Both as the loss of one entry, on a logarithmic scale where they are positive; the
        suggested number is marked, and the reason stands above.
    """
    figure = _prepared(figure, _SWEEP_SIZE)
    axes = figure.add_subplot()
    clean(axes)
    counts, seen = sweep.n_components, sweep.objective / np.prod(sweep.shape)
    held_out, error = sweep.held_out, sweep.held_out_error
    if min(seen.min(), held_out.min()) > 0:
        axes.set_yscale("log")
        # A bar to below zero has no end on this scale.
        low = np.minimum(error, 0.9 * held_out)
    else:
        low = error
    axes.plot(
        counts,
        seen,
        color=GREY,
        linestyle=(0, (3.2, 1.2)),
        linewidth=1.3,
        marker="s",
        markersize=4.5,
        markerfacecolor="white",
        label="in entries that were fitted",
    )
    axes.errorbar(
        counts,
        held_out,
        yerr=[low, error],
        color=colour(0),
        linewidth=1.8,
        marker="o",
        markersize=5.5,
        elinewidth=1.1,
        capsize=2.5,
        label="in entries that were held out",
    )
    _mark_suggestion(axes, sweep)
    axes.set_xlabel("number of components")
    axes.set_ylabel("mean loss of an entry")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(counts[0] - 0.5, counts[-1] + 0.5)
    axes.legend(frameon=False, fontsize=LEGEND, labelcolor=INK, loc="upper right")
    held = f", {sweep.n_known} of them known" if sweep.n_known else ""
    _head(
        figure,
        f"{sweep.suggested} component{'' if sweep.suggested == 1 else 's'}{held}",
        sweep.reason,
    )
    return figure


def plot_constraints(
    X: npt.ArrayLike,
    constraints: "DataConstraints",
    *,
    x: npt.ArrayLike | None = None,
    positions: npt.ArrayLike | None = None,
    x_label: str | None = None,
    position_label: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw which patterns of the data serve as components, and how they hand over.

    Parameters
    ----------
    X : array_like (N, F)
        The patterns.
    constraints : DataConstraints
        What `bluesky_cmf.nmf.selection.constraints_from_data` gave for them.
    x : array_like (F,), optional
        Axis of the patterns; by default the number of the point.
    positions : array_like (N,), optional
        What the shares are drawn against, such as the temperature; by default the number of the
        pattern.
    x_label, position_label : str, optional
        What they are, with their units: ``"temperature (K)"``.
    figure : matplotlib.figure.Figure, optional
        A figure to draw on, which is cleared; by default a new one.

    Returns
    -------
    matplotlib.figure.Figure
        Shares of the intensity and R-factors against the positions; the components, and a map of
        the data in which they are marked.

    Raises
    ------
    InputError
        Where a length is another one than that of `constraints`.
    """
    data = np.asarray(X, dtype=float)
    N, F = len(constraints.weights), constraints.components.shape[1]
    if data.shape != (N, F):
        raise InputError(f"X: expected the patterns (N, F) = {(N, F)}, got shape {data.shape}")
    axis = _numbers("x", x, F)
    place = _numbers("positions", positions, N)
    labels = _labels(constraints, None if positions is None else place, position_label)
    if x_label is None:
        x_label = "point" if x is None else "x"
    if position_label is None:
        position_label = "pattern" if positions is None else "position"
    figure = _prepared(figure, _CONSTRAINTS_SIZE)
    halves = figure.add_gridspec(1, 2, width_ratios=(1.12, 1), wspace=0.03)
    left = halves[0].subgridspec(2, 1, height_ratios=(2.2, 1), hspace=0.02)
    right = halves[1].subgridspec(2, 1, height_ratios=(1.25, 1), hspace=0.02)
    shares = figure.add_subplot(left[0])
    quality = figure.add_subplot(left[1], sharex=shares)
    stack = figure.add_subplot(right[0])
    image = figure.add_subplot(right[1], sharex=stack)
    for axes in (shares, quality, stack, image):
        clean(axes)
    _draw_shares(shares, constraints, place)
    _draw_quality(quality, constraints, place, position_label)
    _draw_stack(stack, constraints, axis, labels)
    _draw_map(image, data, axis, place, constraints)
    image.set_xlabel(x_label)
    image.set_ylabel(position_label)
    _head(figure, *_constraints_told(constraints, labels))
    return figure


# --- the sweep -----------------------------------------------------------------------------


def _mark_suggestion(axes: Axes, sweep: "ComponentSweep") -> None:
    place = int(np.flatnonzero(sweep.n_components == sweep.suggested)[0])
    axes.axvline(sweep.suggested, color=TROUBLE, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    axes.plot(
        sweep.suggested,
        sweep.held_out[place],
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=TROUBLE,
        markeredgewidth=1.6,
        linestyle="none",
    )


# --- the constraints -----------------------------------------------------------------------


def _draw_shares(axes: Axes, constraints: "DataConstraints", place: Array) -> None:
    ordered = _ordered(place)
    for k, values in enumerate(constraints.shares.T):
        axes.plot(
            place,
            values,
            color=colour(k),
            linestyle=FIXED if ordered else "none",
            linewidth=1.5,
            marker=marker(k),
            markersize=marker_size(len(place), ordered=ordered),
        )
    for k, index in _members(constraints):
        axes.plot(
            place[index],
            constraints.shares[index, k],
            marker=marker(k),
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=colour(k),
            markeredgewidth=1.8,
        )
    axes.set_ylabel("share of the intensity")
    axes.set_ylim(-0.03, 1.06)
    axes.set_xlim(limits(place))
    axes.tick_params(labelbottom=False)
    axes.set_title("large markers: where a component was measured", **PLAIN)


def _draw_quality(
    axes: Axes, constraints: "DataConstraints", place: Array, position_label: str
) -> None:
    ordered = _ordered(place)
    axes.plot(
        place,
        constraints.r_factor,
        color=INK,
        linewidth=1.1,
        linestyle="-" if ordered else "none",
        marker="o",
        markersize=0.7 * marker_size(len(place), ordered=ordered),
    )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("R-factor")
    axes.set_xlabel(position_label)


def _draw_stack(
    axes: Axes, constraints: "DataConstraints", axis: Array, labels: Sequence[str]
) -> None:
    count = len(constraints.components)
    for k, values in enumerate(constraints.components):
        baseline = (count - 1 - k) * _STEP
        kept = outline(values)
        line = Line2D(axis[kept], values[kept] / (values.max() or 1.0) + baseline)
        line.set(color=colour(k), linewidth=1.1)
        axes.add_line(line)
        text = axes.text(1.012, baseline + 0.1, abbreviated(labels[k], 20), fontsize=LEGEND)
        text.set(color=colour(k), fontweight="bold", va="center")
        text.set_transform(axes.get_yaxis_transform())
        verbatim(text)
    axes.set_xlim(limits(axis, pad=0))
    axes.set_ylim(-0.08, count * _STEP + 0.02)
    axes.set_ylabel("component / its maximum")
    axes.tick_params(left=False, labelleft=False, labelbottom=False)
    axes.grid(False, axis="y")
    known = "known ones, then " if constraints.n_known else ""
    axes.set_title(f"components: {known}patterns of the data", **PLAIN)


def _draw_map(
    axes: Axes, data: Array, axis: Array, place: Array, constraints: "DataConstraints"
) -> None:
    order = np.argsort(place, kind="stable")
    columns = np.array_split(np.arange(len(axis)), min(len(axis), _ACROSS))
    # The highest of each column of pixels, so that no line is lost.
    shown = np.stack([data[order][:, column].max(1) for column in columns], axis=1)
    across = np.array([axis[column].mean() for column in columns])
    scale = np.maximum(shown.max(1, keepdims=True), np.finfo(float).tiny)
    axes.pcolormesh(
        across,
        place[order],
        shown / scale,
        cmap=_SHADES,
        norm=PowerNorm(0.4),
        shading="nearest",
        rasterized=True,
    )
    for k, index in _members(constraints):
        axes.axhline(place[index], color=colour(k), linewidth=1.6)
    axes.grid(False)
    axes.set_title("data, each pattern by its maximum; the components are marked", **PLAIN)


def _members(constraints: "DataConstraints") -> list[tuple[int, int]]:
    """Give the numbers of the components that are patterns, with those of the patterns."""
    return [(constraints.n_known + m, index) for m, index in enumerate(constraints.indices)]


def _labels(
    constraints: "DataConstraints", place: Array | None, position_label: str | None
) -> list[str]:
    """Name components by their positions, where these are told with what they are."""
    names = list(constraints.names)
    if place is not None and position_label is not None and position_label != "pattern":
        unit = position_label[position_label.rfind("(") :].strip("()")
        unit = unit if "(" in position_label else ""
        for k, index in _members(constraints):
            if names[k] == f"pattern {index}":
                names[k] = f"{place[index]:.6g} {unit}".strip()
    return names


def _constraints_told(constraints: "DataConstraints", labels: list[str]) -> tuple[str, str]:
    known = f" and {constraints.n_known} known" if constraints.n_known else ""
    count = len(constraints.indices)
    head = f"{count} pattern{'' if count == 1 else 's'} of the data{known} as components"
    label = {index: labels[k] for k, index in _members(constraints)}
    order = ", ".join(label[index] for index in constraints.order)
    above = constraints.objective / max(constraints.free_objective, 1e-300)
    cost = f", {above:.3g} times that of free ones" if constraints.free_objective > 0 else ""
    return (
        head,
        f"{order}, as they were chosen; objective {constraints.objective:.4g}{cost}",
    )


# --- both ----------------------------------------------------------------------------------


def _prepared(figure: Figure | None, size: tuple[float, float]) -> Figure:
    if figure is None:
        figure = new_figure()
        figure.set_size_inches(size)
    figure.clear()
    figure.set_facecolor("white")
    return figure


def _head(figure: Figure, headline: str, told: str) -> None:
    """Set the headline, and below it what is told, in as many lines as it takes."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(told, int(width * 72 / (0.55 * 9.5)))
    room = 0.42 + 0.175 * len(lines)
    rect = (0, 0, 1, 1 - room / height)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, rect=rect))
    left = 0.14 / width
    title = figure.text(left, 1 - 0.12 / height, headline, va="top", fontsize=13, color=INK)
    title.set_fontweight("bold")
    told_text = figure.text(left, 1 - 0.4 / height, "\n".join(lines), va="top", fontsize=9.5)
    told_text.set_color(GREY)
    for text in (title, told_text):
        text.set_in_layout(False)
        verbatim(text)


def _numbers(argument: str, values: npt.ArrayLike | None, count: int) -> Array:
    if values is None:
        return np.arange(count, dtype=float)
    numbers = np.asarray(values, dtype=float)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputError(f"{argument}: expected {count} finite numbers, got shape {numbers.shape}")
    return numbers


def _ordered(place: Array) -> bool:
    steps = np.diff(place)
    return bool((steps >= 0).all() or (steps <= 0).all())
