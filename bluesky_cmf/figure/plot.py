"""`LiveNMFPlot`: which documents it follows, when it draws and from which thread."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from bluesky.callbacks.mpl_plotting import QtAwareCallback
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..documents import is_analysis
from ..errors import InputError
from .canvas import has_loop, is_qt, new_figure, offscreen_figure, teleports
from .panels import Panels
from .saving import SavePath
from .view import Amounts, Story, View

__all__ = ["LiveNMFPlot"]

logger = logging.getLogger(__name__)

#: matplotlib typesets numbers with one parser for all threads.
_RENDERING = threading.RLock()

#: Of its time, a thread gives at most one part in this many to drawing.
_SHARE = 4


class LiveNMFPlot(QtAwareCallback):  # type: ignore[misc]
    """Draw an analysis run while it grows, or a stored one that is replayed.

    It shows the weights, or the fractions, against the independent variable, the components, the
    newest pattern with its reconstruction, and R-factor and lag; above them how the fit stands,
    and in red what went wrong. A run that continues another one (components were added or
    removed) goes on in the same picture; any other run begins a new one.

    It may be called from any thread. Documents are taken in the thread that calls, which costs
    microseconds. A window is drawn in its own thread, woken by bluesky's teleporter (Qt) and by
    a timer of the window. Without a display, or when made outside the main thread, the
    figure is kept in memory by the calling thread and needs no event loop.

    Parameters
    ----------
    show : {"weights", "fractions"}, optional
        What is drawn of each component: its weights as they are, or fractions of the fitted
        intensity (weight times area of the component, by the sum of these).
    fig : matplotlib.figure.Figure, optional
        A figure to draw on, which is cleared; by default a new one.
    save : str or Path, optional
        Where to save the figure at the end of each analysis run: a path, in which ``{scan_id}``,
        ``{uid}``, ``{raw_uid}``, ``{plan_name}`` and ``{sample}`` are filled in (``{uid:.8}``:
        its first 8 characters), or a folder. Folders are made. Without a suffix it is PNG.
    max_rate : float
        Most drawings a second. A slow machine gets fewer: drawing takes at most a quarter of a
        thread's time. What a run ends with is always drawn.
    dpi : float
        Dots per inch of what is saved; the figure is 12.8 by 8 inches.
    use_teleporter : bool, optional
        Whether bluesky's teleporter moves drawing to the Qt thread; by default for Qt windows.
    clock : callable
        Gives the time in seconds, for the pace of drawing.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
        What is drawn on.
    path : Path or None
        Where a figure was saved last.
    draws : int
        How often it was drawn.
    error : Exception or None
        What failed last, in the run that is shown, in reading, drawing or saving: it is logged
        once and stands in the figure, and is never raised.

    Raises
    ------
    InputError
        For a `show` that is neither, a `save` with unknown fields or type of file, or a `max_rate`
        that is not positive.

    Examples
    --------
    >>> plot = LiveNMFPlot(save="figures/scan_{scan_id}.png")  # doctest: +SKIP
    >>> token = live.subscribe(plot)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        show: Amounts = "weights",
        fig: Figure | None = None,
        save: str | Path | None = None,
        max_rate: float = 5.0,
        dpi: float = 160.0,
        use_teleporter: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if show not in get_args(Amounts):
            raise InputError(f"show: expected 'weights' or 'fractions', got {show!r}")
        if not max_rate > 0:
            raise InputError(f"max_rate: expected drawings a second, more than 0, got {max_rate}")
        filetypes = offscreen_figure().canvas.get_supported_filetypes()
        self._amounts = show
        self._save = None if save is None else SavePath(save, filetypes)
        self.figure = new_figure() if fig is None else fig
        self.figure.clear()
        self._panels = Panels(self.figure)
        self.path: Path | None = None
        self.draws = 0
        self.error: Exception | None = None
        self._dpi, self._clock, self._period = dpi, clock, 1.0 / max_rate
        self._next_draw = -float("inf")
        self._logged: set[str] = set()
        # Held for moments only, so that whoever brings a document never waits for a drawing.
        self._knowing = threading.RLock()
        self._open: list[Story] = []
        self._ended: Story | None = None
        self._shown: Story | None = None
        self._dirty = False
        self._windowed = has_loop(self.figure.canvas)
        wanted = is_qt(self.figure.canvas) if use_teleporter is None else use_teleporter
        self._teleports = self._windowed and teleports(wanted)
        super().__init__(use_teleporter=self._teleports)
        if self._windowed:
            self._follow_window()

    def __call__(self, name: str, doc: Mapping[str, Any], *, escape: bool = False) -> None:
        """Take a document of an analysis run; everything else is passed over."""
        try:
            if escape:
                self._draw_if_due()
            else:
                self._receive(name, doc)
        except Exception as error:
            self._note(f"a document ({name}) cannot be shown", error)
            self._dirty = True

    @property
    def axes(self) -> dict[str, Axes]:
        """The axes, by what they show, to adjust them for a paper.

        ``weights``, ``components``, ``pattern`` and its ``difference``, ``r_factor`` and ``lag``,
        and ``strain`` where phases have some;
        the curve of a component has the component's name for a label.
        """
        return self._panels.axes

    def draw(self) -> None:
        """Draw what is known now; with a window, from its thread."""
        with self._knowing:
            story, self._dirty = self._shown, False
        if story is None:
            return
        began = self._clock()
        try:
            with _RENDERING:
                self._panels.show(self._view(story))
                if self._windowed:
                    self.figure.canvas.draw()
        except Exception as error:
            self._note("the figure cannot be drawn", error)
        self.draws += 1
        self._next_draw = began + max(self._period, _SHARE * (self._clock() - began))

    def savefig(self, path: str | Path, **kwargs: Any) -> Path:
        """Save the figure as it stands.

        Parameters
        ----------
        path : str or Path
            Where to; its suffix says how, and its folder is made.
        **kwargs
            For `matplotlib.figure.Figure.savefig`.

        Returns
        -------
        Path
            Where it was saved.
        """
        return self._write(self._shown, Path(path), **kwargs)

    def _receive(self, name: str, doc: Mapping[str, Any]) -> None:
        with self._knowing:
            finished = self._take(name, doc)
        if finished is not None:
            self._finish(finished)
        elif self._due():
            self._request_draw()

    def _take(self, name: str, doc: Mapping[str, Any]) -> Story | None:
        """Keep what a document says; give back a run that it ends."""
        if name == "start":
            if is_analysis(doc):
                self._begin(doc)
            return None
        for story in self._open:
            if story.reader(name, doc):
                return self._advance(story, name)
        return None

    def _begin(self, start: Mapping[str, Any]) -> None:
        continues = start.get("cmf", {}).get("continues")
        known = (story for story in (*self._open, self._ended, self._shown) if story is not None)
        before = next((story for story in known if story.reader.uid == continues), None)
        story = Story(start, before)
        self.error = None
        self._logged.clear()
        self._open.append(story)
        # A run that continues begins with all patterns so far: until then the old picture stands.
        self._dirty = not story.continues
        self._shown = story

    def _advance(self, story: Story, name: str) -> Story | None:
        # Runs may interleave: the one that started last is shown, while it lasts.
        if self._shown is not None and self._shown.reader.stop is not None and name != "stop":
            self._shown = story
        if name == "stop":
            self._open.remove(story)
            self._ended = story
            return story
        self._dirty |= name in ("event", "event_page") and story is self._shown
        return None

    def _finish(self, story: Story) -> None:
        if story is self._shown:
            self._dirty, self._next_draw = True, -float("inf")
        if self._save is not None:
            try:
                self._write(story, self._save.for_run(story.reader.start or {}))
            except Exception as error:
                self._note("the figure cannot be saved", error)
        if self._due():
            self._request_draw()

    def _request_draw(self) -> None:
        if not self._windowed:
            self.draw()
        elif self._teleports:
            # What the document says is known already: this only wakes the window's thread.
            super().__call__("draw", {})

    def _draw_if_due(self) -> None:
        if self._due():
            self.draw()

    def _due(self) -> bool:
        return self._dirty and self._clock() >= self._next_draw

    def _view(self, story: Story) -> View:
        with self._knowing:
            view = story.view(self._amounts)
        if self.error is None:
            return view
        return view.with_trouble(f"this figure: {type(self.error).__name__}: {self.error}")

    def _write(self, story: Story | None, path: Path, **kwargs: Any) -> Path:
        with _RENDERING:
            panels = self._panels
            if self._windowed or story is not self._shown:
                # A window belongs to its thread, and another run's picture is not to be lost.
                panels = Panels(offscreen_figure())
            if story is not None:
                panels.show(self._view(story))
            path.parent.mkdir(parents=True, exist_ok=True)
            panels.figure.savefig(path, **{"dpi": self._dpi, **kwargs})
        self.path = path
        return path

    def _follow_window(self) -> None:
        """Draw by a timer of the window, for nothing else may wake it; until it is closed."""
        canvas = self.figure.canvas
        self._timer = canvas.new_timer(interval=max(1, int(self._period * 1e3)))
        self._timer.add_callback(self._draw_if_due)
        self._timer.start()
        canvas.mpl_connect("close_event", self._on_close)

    def _on_close(self, _event: Any) -> None:
        self._timer.stop()
        # The window is gone, but runs are to be saved as before.
        self._windowed = False
        self.figure = offscreen_figure()
        self._panels = Panels(self.figure)

    def _note(self, what: str, error: Exception) -> None:
        self.error = error
        cause = f"{what}: {type(error).__name__}: {error}"
        if cause not in self._logged:
            self._logged.add(cause)
            logger.error("%s; the run is not affected", cause, exc_info=error)
