"""``bluesky-cmf demo``: a scan decomposed live, drawn and stored, and how to replay it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import matplotlib
from bluesky import RunEngine
from bluesky.utils import DuringTask, RunEngineInterrupted

from ..callback import LiveNMF
from ..catalogs import open_catalog
from ..documents import AnalysisReader
from ..figure import LiveNMFPlot
from ..figure.canvas import has_loop
from ..patterns import write_pattern
from ..phases import Phase
from ..simulation import (
    HeatingRamp,
    Ramp,
    SimulatedBeamline,
    StoredRamp,
    heat,
    simulated_beamline,
)
from .checking import check_device, check_figure
from .console import ScanProgress, command_line, console, show_facts, summarize
from .outcome import raise_failures

__all__ = ["Demo", "run_demo"]

#: Seconds between two looks at whether the scan has ended.
_TICK = 0.05


@dataclass(frozen=True)
class Demo:
    """The options of the command."""

    catalog: str
    data: Path | None
    variable: str | None
    axis: str | None
    patterns: int
    components: int | None
    window: bool
    exposure: float
    figure: Path
    seed: int
    device: str


def run_demo(options: Demo) -> None:
    """Scan, decompose, draw and store; show both runs and the command that replays them.

    Raises
    ------
    CMFError
        Where an option is wrong, or something was not fitted, stored or saved.
    KeyboardInterrupt
        After an interrupt: what was measured until then is fitted and stored.
    """
    check_device(options.device)
    check_figure(options.figure)
    ramp = _ramp(options)
    beamline = simulated_beamline(ramp, exposure=options.exposure)
    if not options.window:
        matplotlib.use("agg")
    with open_catalog(options.catalog) as catalog, contextlib.closing(catalog.writer()) as writer:
        files = _write_references(ramp, options)
        live = LiveNMF(
            beamline.pattern,
            x=beamline.x,
            n_components=options.components or ramp.n_components,
            phases=[Phase.from_array(*reference) for reference in ramp.references],
            seed=options.seed,
            device=options.device,
        )
        analysis, plot = AnalysisReader(), LiveNMFPlot(save=options.figure)
        with contextlib.closing(live):
            sinks: tuple[Any, ...] = (analysis, plot, writer)
            for callback in sinks:
                live.subscribe(callback)
            raw_uid, interrupted = _scan(beamline, ramp, plot, [writer, live])
            _MainThread(plot).until(live.wait)
        writer.flush()
        raise_failures(live, analysis, plot, writer)
        _report(options, beamline, raw_uid, analysis, live, plot, files)
    if interrupted:
        raise KeyboardInterrupt


def _ramp(options: Demo) -> Ramp:
    if options.data is None:
        return HeatingRamp(n_patterns=options.patterns, seed=options.seed)
    return StoredRamp.from_npz(options.data, variable=options.variable, axis=options.axis)


def _write_references(ramp: Ramp, options: Demo) -> list[Path]:
    """Write the known phases into the catalog's folder, else beside the figure."""
    is_folder = os.path.isdir(options.catalog)
    folder = Path(options.catalog) if is_folder else options.figure.parent
    folder = folder / "phases" / ramp.name
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{reference.name}.xy" for reference in ramp.references]
    for file, reference in zip(files, ramp.references, strict=True):
        write_pattern(file, reference.x, reference.y)
    return files


def _scan(
    beamline: SimulatedBeamline, ramp: Ramp, plot: LiveNMFPlot, callbacks: list[Any]
) -> tuple[str, bool]:
    """Run the scan; give the raw run's uid and whether it was interrupted."""
    main_thread = _MainThread(plot)
    # Without bluesky's handler of interrupts, which would pause the scan and leave it there.
    RE = RunEngine(context_managers=[], during_task=main_thread)
    main_thread.RE = RE
    uids: list[str] = []
    RE.subscribe(lambda _name, doc: uids.append(doc["uid"]), "start")
    for callback in callbacks:
        RE.subscribe(callback)
    plan = heat([beamline.det], beamline.stage, ramp.positions, md={"sample_name": ramp.name})
    with ScanProgress(len(ramp.positions)) as progress:
        RE.subscribe(progress)
        try:
            RE(plan)
        except RunEngineInterrupted:
            console.print("interrupted: what was measured is fitted and stored")
            return uids[0], True
    return uids[0], False


class _MainThread(DuringTask):  # type: ignore[misc]
    """What the main thread does while the scan runs: it serves the window, if there is one."""

    def __init__(self, plot: LiveNMFPlot) -> None:
        self._plot = plot
        self.RE: RunEngine | None = None

    def block(self, blocking_event: Event) -> None:
        """Wait for the end of the scan; an interrupt ends it early, but in order."""
        try:
            self.until(blocking_event.wait)
        except KeyboardInterrupt:
            if self.RE is not None:
                self.RE.abort("interrupted at the keyboard")
            blocking_event.wait()

    def until(self, done: Callable[[float], bool]) -> None:
        """Wait until something is done, which ``done`` waits for and tells."""
        while True:
            canvas = self._plot.figure.canvas
            window = has_loop(canvas)
            if done(0.0 if window else _TICK):
                return
            if window:
                canvas.start_event_loop(_TICK)


def _report(
    options: Demo,
    beamline: SimulatedBeamline,
    raw_uid: str,
    analysis: AnalysisReader,
    live: LiveNMF,
    plot: LiveNMFPlot,
    files: list[Path],
) -> None:
    if live.result is None:
        console.print("no pattern was measured")
        return
    summarize(analysis, live.result)
    again = list(_replay_arguments(options, beamline, raw_uid, len(analysis.names), files))
    show_facts(
        {
            "raw run": raw_uid,
            "analysis run": str(analysis.uid),
            "catalog": options.catalog,
            "figure": str(plot.path),
            "replay with": command_line(again),
        }
    )


def _replay_arguments(
    options: Demo, beamline: SimulatedBeamline, raw_uid: str, components: int, files: list[Path]
) -> Iterator[str]:
    yield from ("replay", options.catalog, raw_uid)
    yield from ("--pattern", beamline.pattern, "--x", beamline.x, "--components", str(components))
    for file in files:
        yield from ("--phase", str(file))
    if options.seed:
        yield from ("--seed", str(options.seed))
    if options.device != "auto":
        yield from ("--device", options.device)
