"""Where to draw: a window where there is a display and this is its thread, else memory."""

import logging
import os
import sys
import threading

import matplotlib
from bluesky.callbacks.mpl_plotting import initialize_qt_teleporter
from matplotlib.backend_bases import FigureCanvasBase, TimerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.figure import Figure

__all__ = ["has_loop", "is_qt", "new_figure", "offscreen_figure", "teleports"]

logger = logging.getLogger(__name__)

#: Inches and dots per inch: 1280 × 800 points.
SIZE, DPI = (12.8, 8.0), 100


def offscreen_figure() -> Figure:
    """Make a figure in memory that pyplot does not know: any one thread may draw it."""
    figure = Figure(figsize=SIZE, dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def new_figure() -> Figure:
    """Make a figure: a window if there can be one, which never raises, else in memory."""
    try:
        backend = _backend()
        if backend is None:
            return offscreen_figure()
        return _window()
    except Exception as error:
        # Toolkits fail in their own ways: a missing library, a display that does not answer.
        logger.warning("no window can be opened, so the figure is drawn in memory: %s", error)
        return offscreen_figure()


def has_loop(canvas: FigureCanvasBase) -> bool:
    """Tell whether an event loop of a toolkit stands behind a canvas."""
    return type(canvas.new_timer()) is not TimerBase


def is_qt(canvas: FigureCanvasBase) -> bool:
    """Tell whether a canvas is a Qt widget."""
    return getattr(canvas, "required_interactive_framework", None) == "qt"


def teleports(wanted: bool) -> bool:
    """Prepare bluesky's teleporter into the Qt thread; tell whether it can be used."""
    if not wanted:
        return False
    try:
        initialize_qt_teleporter()
    except Exception as error:
        logger.warning("bluesky's Qt teleporter cannot be used, a timer draws: %s", error)
        return False
    return True


def _window() -> Figure:
    import matplotlib.pyplot as plt

    figure: Figure = plt.figure(figsize=SIZE, dpi=DPI)
    if not has_loop(figure.canvas):
        # pyplot falls back to memory by itself where a display does not answer.
        plt.close(figure)
        return offscreen_figure()
    manager = figure.canvas.manager
    if manager is not None:
        manager.set_window_title(f"LiveNMF {figure.number}")
    figure.show()
    return figure


def _backend() -> str | None:
    """Name the backend that can show a window from here, if any."""
    if threading.current_thread() is not threading.main_thread():
        logger.info("made outside the main thread, so the figure is drawn in memory")
        return None
    name = matplotlib.get_backend(auto_select=False)
    if name is None and _has_display():
        name = matplotlib.get_backend()
    return name if name is not None and _shows(name.lower()) else None


def _shows(backend: str) -> bool:
    if backend in ("nbagg", "webagg") or "ipympl" in backend or backend == "widget":
        return True
    interactive = {b.lower() for b in backend_registry.list_builtin(BackendFilter.INTERACTIVE)}
    # Backends of others, such as an IDE's, are left to pyplot's own figures.
    return backend in interactive and _has_display()


def _has_display() -> bool:
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
