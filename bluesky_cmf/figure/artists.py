"""The look: colours, markers, clean axes, and how much of a long curve is drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text

from ..documents import Array

__all__ = [
    "FAINT",
    "FIXED",
    "FREE",
    "GREY",
    "INK",
    "LEGEND",
    "PLAIN",
    "SHADE",
    "TROUBLE",
    "abbreviated",
    "clean",
    "colour",
    "extremes",
    "limits",
    "marker",
    "marker_size",
    "outline",
    "set_limits",
    "verbatim",
    "waiting",
]

INK, GREY, FAINT, TROUBLE = "#222222", "#666666", "#B8B8B8", "#B5260B"
#: What is shaded because of trouble, on white.
SHADE = "#F6D9D3"

#: Size of the names in legends, in points.
LEGEND = 8.5

#: Line styles of held and of free components.
FIXED: Any = "-"
FREE: Any = (0, (3.2, 1.2))

#: How a panel's title is set.
PLAIN: dict[str, Any] = {"loc": "left", "fontsize": 9.5, "color": INK}

#: Told apart also by the colour-blind: Okabe and Ito's palette without its yellow, which is lost
#: on white, then the darker of Paul Tol's muted one.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#332288",
    "#882255",
    "#999933",
    "#777777",
)
_MARKERS = "os^DvP<>X*"

#: Points that are drawn of one curve: more than a screen has columns.
_POINTS = 3000


def colour(slot: int) -> str:
    """Give the colour of a component."""
    return _COLOURS[slot % len(_COLOURS)]


def marker(slot: int) -> str:
    """Give the marker of a component; beyond ten, colours come again with another marker."""
    return _MARKERS[(slot + slot // len(_COLOURS)) % len(_MARKERS)]


def marker_size(n: int, *, ordered: bool) -> float:
    """Give the size of markers for N points; a line through many needs none."""
    if n > 300 and ordered:
        return 0.0
    return float(np.clip(34 / np.sqrt(max(n, 1)), 2.0, 5.0))


def outline(values: Array, points: int = _POINTS) -> Array:
    """Choose which points of a long curve to draw.

    Parameters
    ----------
    values : ndarray (N,)
        Ordinates in order; those that are not finite are drawn as gaps, or not at all.
    points : int
        About how many to keep.

    Returns
    -------
    ndarray of int
        All where there are few; else the lowest and the highest of each stretch, so that no
        peak is lost, and the first and the last.
    """
    n = len(values)
    if n <= points:
        return np.arange(n)
    stretches = np.array_split(np.arange(n), points // 2)
    width = max(map(len, stretches))
    starts = np.array([stretch[0] for stretch in stretches])
    table = np.minimum(starts[:, None] + np.arange(width), n - 1)
    found = values[table]
    low = np.where(np.isfinite(found), found, np.inf).argmin(axis=1)
    high = np.where(np.isfinite(found), found, -np.inf).argmax(axis=1)
    rows = np.arange(len(table))
    return np.unique(np.concatenate([[0, n - 1], table[rows, low], table[rows, high]]))


def abbreviated(name: str, length: int) -> str:
    """Shorten a name in its middle: names of one family differ at their ends."""
    name = " ".join(name.split())
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def verbatim(text: Text) -> Text:
    """Have a text drawn as it is written: a ``$`` in a sample's name is no formula."""
    text.set_parse_math(False)
    text.set_usetex(False)
    return text


def limits(
    values: Array | Sequence[float], *, pad: float = 0.04, logarithmic: bool = False
) -> tuple[float, float]:
    """Give the limits of an axis: what is finite, with some room, and never nothing."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return (0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    if logarithmic:
        return (low / 1.3, high * 1.3)
    room = (high - low) * pad
    if not room and low == high:
        room = abs(low) * 0.05 or 0.5
    return (low - room, high + room)


def set_limits(
    axes: Axes, *, x: tuple[float, float] | None = None, y: tuple[float, float] | None = None
) -> None:
    """Set limits, unless somebody has zoomed or moved that axis."""
    if x is not None and axes.get_autoscalex_on():
        axes.set_xlim(x, auto=True)
    if y is not None and axes.get_autoscaley_on():
        axes.set_ylim(y, auto=True)


def clean(axes: Axes, *, grid: bool = True, right: bool = False) -> None:
    """Take away what carries no information."""
    axes.set_facecolor("white")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "right" if right else "left"))
        spine.set(color=GREY, linewidth=0.8)
    axes.tick_params(colors=GREY, labelcolor=GREY if right else INK, labelsize=8.5, width=0.8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9.5)
        verbatim(label)
    if grid:
        axes.grid(True, color="#E8E8E8", linewidth=0.7)


def extremes(*values: Array) -> Sequence[float]:
    """Give the least and the greatest of what is finite; zeros where nothing is."""
    finite = np.concatenate([v[np.isfinite(v)].ravel() for v in values])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def waiting(axes: Axes) -> Text:
    """Make the text that stands where nothing can be drawn yet."""
    text = axes.text(0.5, 0.5, "", transform=axes.transAxes, ha="center", va="center")
    text.set(color=GREY, fontsize=9.5, fontstyle="italic", in_layout=False)
    return verbatim(text)
