"""``bluesky-cmf replay``: stored runs through `LiveNMF`, as if they were being measured."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from ..callback import LiveNMF
from ..catalogs import Catalog, CatalogWriter, open_catalog
from ..documents import AnalysisReader, is_analysis
from ..errors import InputError, PatternError
from ..figure import LiveNMFPlot
from ..phases import Phase
from ..preprocess import Preprocess
from ..sources import replay
from .console import console, show_facts, summarize
from .outcome import raise_failures

__all__ = ["Replay", "run_replay"]


@dataclass(frozen=True)
class Replay:
    """The options of the command."""

    catalog: str
    uids: tuple[str, ...]
    pattern: str
    x: str | None
    components: int | None
    phases: tuple[Path, ...]
    independent: tuple[str, ...]
    stream: str
    normalize: Any
    roi: tuple[float, float] | None
    session: bool
    seed: int
    device: str
    figure: Path | None
    into: str | None


def run_replay(options: Replay) -> None:
    """Fit the runs, one analysis run each or one for all, and show what they came to.

    Raises
    ------
    CMFError
        Where an option is wrong, a run or a data key is not there, or something failed.
    """
    # A file at most: no window, and no toolkit to look for.
    matplotlib.use("agg")
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(contextlib.closing(_live(options)))
        plot = _plot(options)
        catalog = stack.enter_context(open_catalog(options.catalog, create=False))
        writer = _writer(options, catalog, stack)
        report = _Report(live, plot, writer, stream=options.stream)
        for number, uid in enumerate(options.uids):
            if number and not options.session:
                console.print()
            replay(catalog, uid, _raw_only(live))
            if not options.session:
                report.show()
        if options.session:
            live.close()
            report.show()


def _live(options: Replay) -> LiveNMF:
    return LiveNMF(
        options.pattern,
        x=options.x,
        independent=options.independent or None,
        stream=options.stream,
        n_components=options.components,
        phases=[Phase.from_file(path) for path in options.phases],
        preprocess=Preprocess(roi=options.roi, normalize=options.normalize),
        scope="session" if options.session else "run",
        seed=options.seed,
        device=options.device,
        background=False,
    )


def _raw_only(callback: Callable[[str, Any], Any]) -> Callable[[str, Any], None]:
    """Refuse an analysis run, which the callback would pass over without a word."""

    def take(name: str, doc: Any) -> None:
        if name == "start" and is_analysis(doc):
            raise InputError(
                f"{doc['uid']} is an analysis run; replay the raw run, {doc['original_run_uid']}"
            )
        callback(name, doc)

    return take


def _plot(options: Replay) -> LiveNMFPlot | None:
    if options.figure is None:
        return None
    save = options.figure
    if len(options.uids) > 1 and not options.session and "{" not in str(save):
        # One file for each run: later ones must not overwrite the first.
        save = save.with_name(f"{save.stem}_{{raw_uid:.8}}{save.suffix}")
    return LiveNMFPlot(save=save)


def _writer(options: Replay, catalog: Catalog, stack: contextlib.ExitStack) -> CatalogWriter | None:
    if options.into is None:
        return None
    if options.into == options.catalog:
        return catalog.writer()
    return stack.enter_context(open_catalog(options.into)).writer()


class _Report:
    """What is shown of each analysis run."""

    def __init__(
        self,
        live: LiveNMF,
        plot: LiveNMFPlot | None,
        writer: CatalogWriter | None,
        *,
        stream: str,
    ) -> None:
        self._live, self._plot, self._writer, self._stream = live, plot, writer, stream
        self._analysis = AnalysisReader()
        self._shown: str | None = None
        sinks: tuple[Any, ...] = (self._analysis, plot, writer)
        for callback in sinks:
            if callback is not None:
                live.subscribe(callback)

    def show(self) -> None:
        """Wait until the analysis run has ended and is stored, and show it."""
        self._live.wait()
        if self._writer is not None:
            self._writer.flush()
        raise_failures(self._live, self._analysis, self._plot, self._writer)
        result = self._live.result
        if result is None or self._analysis.uid in (None, self._shown):
            raise PatternError(
                f"no pattern came out of stream {self._stream!r}: nothing was fitted"
            )
        self._shown = self._analysis.uid
        show_facts(dict(self._facts()))
        summarize(self._analysis, result)

    def _facts(self) -> Iterator[tuple[str, str]]:
        stop = self._analysis.stop or {}
        yield "raw run", ", ".join(stop.get("cmf", {}).get("parent_uids", []))
        if self._writer is not None:
            yield "analysis run", str(self._analysis.uid)
        if self._plot is not None:
            yield "figure", str(self._plot.path)
