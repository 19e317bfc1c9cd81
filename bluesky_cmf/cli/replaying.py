"""``bluesky-cmf replay``: stored runs through `LiveNMF`, as if they were being measured."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from ..callback import LiveNMF
from ..catalogs import Catalog, CatalogWriter, open_catalog
from ..documents import AnalysisReader, independents, is_analysis
from ..errors import DataKeyError, InputError, PatternError
from ..figure import LiveNMFPlot
from ..phases import Phase
from ..preprocess import Preprocess
from ..sources import replay
from .checking import check_device, check_figure
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
    loss: str
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
    check_device(options.device)
    if options.figure is not None:
        check_figure(options.figure)
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(contextlib.closing(_live(options)))
        plot = _plot(options)
        catalog = stack.enter_context(open_catalog(options.catalog, create=False))
        writer = _writer(options, catalog, stack)
        raw = _RawRuns(live, options.stream)
        report = _Report(options, live, plot, writer, raw)
        for number, uid in enumerate(options.uids):
            if number and not options.session:
                console.print()
            replay(catalog, uid, raw)
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
        loss=options.loss,
        device=options.device,
        background=False,
    )


class _RawRuns:
    """Refuses an analysis run, which the callback would pass over without a word."""

    def __init__(self, callback: Callable[[str, Any], Any], stream: str) -> None:
        self._callback, self._stream = callback, stream
        #: Data keys of the stream, to name them.
        self.data_keys: set[str] = set()

    def __call__(self, name: str, doc: Any) -> None:
        """Take a document."""
        if name == "start" and is_analysis(doc):
            raise InputError(
                f"{doc['uid']} is an analysis run; replay the raw run, {doc['original_run_uid']}"
            )
        if name == "descriptor" and doc["name"] == self._stream:
            self.data_keys |= doc["data_keys"].keys()
        self._callback(name, doc)


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
        options: Replay,
        live: LiveNMF,
        plot: LiveNMFPlot | None,
        writer: CatalogWriter | None,
        raw: _RawRuns,
    ) -> None:
        self._options, self._raw = options, raw
        self._live, self._plot, self._writer = live, plot, writer
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
                f"no pattern came out of stream {self._options.stream!r}: nothing was fitted"
            )
        self._shown = self._analysis.uid
        show_facts(dict(self._facts()))
        summarize(self._analysis, result)
        self._check_independent()

    def _check_independent(self) -> None:
        """Say that weights are drawn against something else than was asked for."""
        wanted = independents([name] for name in self._options.independent)
        missing = [v.field for v in wanted if v.key not in self._analysis.variables]
        if missing:
            raise DataKeyError(
                f"--independent: no data key {missing[0]!r} in the run; stream "
                f"{self._options.stream!r} has {', '.join(sorted(self._raw.data_keys))}"
            )

    def _facts(self) -> Iterator[tuple[str, str]]:
        stop = self._analysis.stop or {}
        yield "raw run", ", ".join(stop.get("cmf", {}).get("parent_uids", []))
        if self._writer is not None:
            yield "analysis run", str(self._analysis.uid)
        if self._plot is not None:
            yield "figure", str(self._plot.path)
