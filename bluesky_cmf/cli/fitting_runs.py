"""``bluesky-cmf fit CATALOG UID``: stored runs, a page at a time."""

import contextlib
from collections.abc import Sequence
from typing import Any

from ..catalogs import Catalog, open_catalog
from ..collecting import Collected, collect
from ..errors import InputError
from ..settings import Settings
from ..sources import Paged, replay
from .console import console
from .fitting import Fit, result_outputs, write_settings
from .interrupts import Interrupts, patiently
from .replaying import RawRuns, open_target
from .reporting import Report
from .selecting import Selection

__all__ = ["fit_runs"]


def fit_runs(options: Fit, settings: Settings, selection: Selection) -> None:
    """Fit the runs, one analysis run each or one for all, and write what they came to.

    Raises
    ------
    CMFError
        Where an option is wrong, a run or a data key is not there, or something failed.
    KeyboardInterrupt
        After an interrupt; what was read until then is fitted and written.
    """
    spec, *uids = options.places
    _check_runs(options, settings, selection, uids)
    session = settings.scope == "session"
    outputs, folder = result_outputs(options, uids[0][:8])
    with contextlib.ExitStack() as stack:
        catalog = stack.enter_context(open_catalog(spec, create=False))
        chosen = selection.choose(
            settings, lambda: _collected(catalog, uids, settings), outputs.figure, folder
        )
        settings = chosen.settings(settings)
        live = chosen.live_nmf(settings, background=False)
        target = open_target(options.save, catalog, spec, stack)
        stack.callback(patiently, live.close)
        writer = None if target is None else target.writer()
        interrupts = stack.enter_context(Interrupts())
        raw = RawRuns(Paged(live), settings.stream, None)
        several = len(uids) > 1 and not session
        report = Report(
            live,
            outputs.by_run() if several else outputs,
            writer,
            stream=settings.stream,
            independent=options.model.independent,
            data_keys=lambda: raw.data_keys,
        )
        for uid in uids:
            _play(catalog, uid, raw, interrupts)
            if not session:
                report.show(chosen.facts)
            if interrupts.asked:
                break
            console.print() if several and uid != uids[-1] else None
        if session:
            live.close()
            report.show(chosen.facts)
        write_settings(settings, folder, options)
        if interrupts.asked:
            raise KeyboardInterrupt


def _check_runs(
    options: Fit, settings: Settings, selection: Selection, uids: Sequence[str]
) -> None:
    if not uids:
        raise InputError(f"uid: expected a run of the catalog {options.places[0]}, got none")
    if settings.pattern is None:
        raise InputError(
            "--pattern: expected the data key of the patterns, or settings that name it"
        )
    for option, value in (("from-name", options.from_name), ("table", options.table)):
        if value is not None:
            raise InputError(f"--{option}: expected with pattern files, got it with a catalog")
    if selection.wanted and len(uids) > 1 and settings.scope != "session":
        # Each run would have an axis, and so members, of its own.
        raise InputError(
            f"--{selection.wanted}: expected one run, or several as one dataset (--session), got "
            f"{len(uids)} runs"
        )


def _collected(catalog: Catalog, uids: Sequence[str], settings: Settings) -> Collected:
    """Read the runs once before they are fitted, as they will be."""
    return collect(
        catalog,
        uids,
        settings.pattern or "",
        x=settings.x,
        independent=settings.independent,
        stream=settings.stream,
        phases=settings.known_phases(),
        preprocess=settings.preprocess,
        integrator=settings.frame_integrator(),
    )


def _play(catalog: Catalog, uid: str, raw: RawRuns, interrupts: Interrupts) -> None:
    """Read a run; an interrupt ends it where it is."""
    ended = False

    def take(name: str, doc: dict[str, Any]) -> None:
        nonlocal ended
        if interrupts.asked and name in ("event", "event_page"):
            # `replay` closes the run, as it does for the user's own.
            ended = True
            raise KeyboardInterrupt
        raw(name, doc)

    try:
        replay(catalog, uid, take)
    except KeyboardInterrupt:
        if not ended:
            raise
