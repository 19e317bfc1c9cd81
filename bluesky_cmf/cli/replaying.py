"""``bluesky-cmf replay``: stored runs through `LiveNMF`, as if they were being measured."""

import contextlib
import logging
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
from ..frames import Integrator
from ..phases import Phase
from ..preprocess import Preprocess
from ..sources import replay
from .checking import check_device, check_figure
from .console import FollowProgress, console, show_facts, summarize
from .outcome import raise_failures

__all__ = ["Replay", "run_replay"]

logger = logging.getLogger(__name__)


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
    negative: Any
    poni: Path | None
    mask: Path | None
    unit: str | None
    points: int | None
    on_unknown: Any
    session: bool
    seed: int
    loss: str
    device: str
    figure: Path | None
    into: str | None
    follow: bool
    patience: float | None


def run_replay(options: Replay) -> None:
    """Fit the runs, one analysis run each or one for all, and show what they came to.

    Raises
    ------
    CMFError
        Where an option is wrong, a run or a data key is not there, or something failed.
    KeyboardInterrupt
        After an interrupt; what was read of a run that is followed is fitted, drawn and stored.
    """
    if options.patience is not None and not options.follow:
        raise InputError("--patience: a run is waited for only with --follow")
    # A file at most: no window, and no toolkit to look for.
    matplotlib.use("agg")
    check_device(options.device)
    if options.figure is not None:
        check_figure(options.figure)
    live = _live(options)
    with contextlib.ExitStack() as stack:
        catalog = stack.enter_context(open_catalog(options.catalog, create=False))
        target = _target(options, catalog, stack)
        # Closed before the catalogs: what it still has to say is stored.
        stack.callback(_patiently, live.close)
        plot = _plot(options)
        writer = None if target is None else target.writer()
        raw = _RawRuns(live, options, target)
        report = _Report(options, live, plot, writer, raw)
        interrupted = False
        for number, uid in enumerate(options.uids):
            if number and not options.session:
                console.print()
            interrupted = _play(catalog, uid, raw, live, options)
            if not options.session and (live.result is not None or not interrupted):
                interrupted = _patiently(report.show) or interrupted
            if interrupted:
                break
        if options.session and not (interrupted and live.result is None):
            interrupted = _patiently(live.close) or interrupted
            interrupted = _patiently(report.show) or interrupted
    if interrupted:
        raise KeyboardInterrupt


def _play(catalog: Catalog, uid: str, raw: "_RawRuns", live: LiveNMF, options: Replay) -> bool:
    """Replay a run, or follow it; tell whether the user has had enough of following it."""
    if not options.follow:
        replay(catalog, uid, raw)
        return False
    interrupted = False
    with FollowProgress(uid) as raw.progress:
        try:
            replay(catalog, uid, raw, follow=True, patience=options.patience)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            # However it ends, its end is fitted and stored before the catalog is closed.
            interrupted = _patiently(live.wait) or interrupted
    return interrupted


def _patiently(action: Callable[[], object]) -> bool:
    """Do it to the end: an interrupt is told, and heeded afterwards; a second one is heeded now."""
    try:
        action()
    except KeyboardInterrupt:
        logger.warning("interrupted: what was measured is finished first; again to give it up")
        action()
        return True
    return False


def _live(options: Replay) -> LiveNMF:
    signed = options.negative != "reject"
    return LiveNMF(
        options.pattern,
        x=options.x,
        independent=options.independent or None,
        stream=options.stream,
        n_components=options.components,
        phases=[Phase.from_file(path, signed=signed) for path in options.phases],
        preprocess=Preprocess(
            roi=options.roi, normalize=options.normalize, negative=options.negative
        ),
        integrator=_integrator(options),
        on_unknown=options.on_unknown,
        scope="session" if options.session else "run",
        seed=options.seed,
        loss=options.loss,
        device=options.device,
        # A run that is followed is fitted while it is waited for.
        background=options.follow,
    )


def _integrator(options: Replay) -> Integrator | None:
    named = {"mask": options.mask, "unit": options.unit, "n_points": options.points}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if options.poni is not None:
        return Integrator(options.poni, **given)
    for name in given:
        option = "points" if name == "n_points" else name
        raise InputError(f"--{option}: frames are integrated only with the geometry (--poni)")
    return None


class _RawRuns:
    """Looks at the documents on their way to the callback.

    Refuses an analysis run, which the callback would pass over without a word.
    """

    def __init__(
        self, callback: Callable[[str, Any], Any], options: Replay, target: Catalog | None
    ) -> None:
        self._callback, self._stream = callback, options.stream
        self._target = target if options.follow else None
        self._descriptors: set[str] = set()
        #: Data keys of the stream, to name them.
        self.data_keys: set[str] = set()
        #: Is told of each pattern of a run that is followed.
        self.progress: FollowProgress | None = None

    def __call__(self, name: str, doc: Any) -> None:
        """Take a document."""
        if name == "start":
            self._start(doc)
        elif name == "descriptor" and doc["name"] == self._stream:
            self._descriptors.add(doc["uid"])
            self.data_keys |= doc["data_keys"].keys()
        elif self.progress is not None:
            if name == "event" and doc["descriptor"] in self._descriptors:
                self.progress.advance()
            elif name == "stop" and doc["exit_status"] != "success":
                self.progress.end(f"{doc['exit_status']}: {doc.get('reason') or 'no reason given'}")
        self._callback(name, doc)

    def _start(self, doc: Any) -> None:
        if is_analysis(doc):
            raise InputError(
                f"{doc['uid']} is an analysis run; replay the raw run, {doc['original_run_uid']}"
            )
        for uid in () if self._target is None else self._target.unfinished_analyses(doc["uid"]):
            logger.warning(
                "The analysis run %s of this run has no end: it was left by a process that was "
                "killed, or is being written by another one. It stays as it is, and another one "
                "is made of all patterns.",
                uid,
            )


def _plot(options: Replay) -> LiveNMFPlot | None:
    if options.figure is None:
        return None
    save = options.figure
    if len(options.uids) > 1 and not options.session and "{" not in str(save):
        # One file for each run: later ones must not overwrite the first.
        save = save.with_name(f"{save.stem}_{{raw_uid:.8}}{save.suffix}")
    return LiveNMFPlot(save=save)


def _target(options: Replay, catalog: Catalog, stack: contextlib.ExitStack) -> Catalog | None:
    """Give the catalog that the analysis runs are stored in."""
    if options.into is None or options.into == options.catalog:
        return None if options.into is None else catalog
    return stack.enter_context(open_catalog(options.into))


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
