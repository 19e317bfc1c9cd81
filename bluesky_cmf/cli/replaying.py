"""``bluesky-cmf replay``: stored runs through `LiveNMF`, as if they were being measured."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib

from ..callback import LiveNMF
from ..catalogs import Catalog, open_catalog
from ..documents import is_analysis
from ..errors import InputError
from ..sources import replay
from .checking import check_device
from .console import FollowProgress, console
from .interrupts import patiently
from .options import ModelOptions
from .outputs import Outputs
from .reporting import Report

__all__ = ["RawRuns", "Replay", "open_target", "run_replay"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replay:
    """The options of the command."""

    catalog: str
    uids: tuple[str, ...]
    model: ModelOptions
    outputs: Outputs
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
    settings = options.model.settings()
    if settings.pattern is None:
        raise InputError(
            "--pattern: expected the data key of the patterns, or settings that name it"
        )
    check_device(settings.device)
    options.outputs.check()
    session = settings.scope == "session"
    # A run that is followed is fitted while it is waited for.
    live = settings.live_nmf(background=options.follow)
    with contextlib.ExitStack() as stack:
        catalog = stack.enter_context(open_catalog(options.catalog, create=False))
        target = open_target(options.into, catalog, options.catalog, stack)
        # Closed before the catalogs: what it still has to say is stored.
        stack.callback(patiently, live.close)
        writer = None if target is None else target.writer()
        raw = RawRuns(live, settings.stream, target if options.follow else None)
        several = len(options.uids) > 1 and not session
        report = Report(
            live,
            options.outputs.by_run() if several else options.outputs,
            writer,
            stream=settings.stream,
            independent=options.model.independent,
            data_keys=lambda: raw.data_keys,
        )
        interrupted = False
        for number, uid in enumerate(options.uids):
            if number and not session:
                console.print()
            interrupted = _play(catalog, uid, raw, live, options)
            if not session and (live.result is not None or not interrupted):
                interrupted = patiently(report.show) or interrupted
            if interrupted:
                break
        if session and not (interrupted and live.result is None):
            interrupted = patiently(live.close) or interrupted
            interrupted = patiently(report.show) or interrupted
    if interrupted:
        raise KeyboardInterrupt


def _play(catalog: Catalog, uid: str, raw: "RawRuns", live: LiveNMF, options: Replay) -> bool:
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
            interrupted = patiently(live.wait) or interrupted
    return interrupted


class RawRuns:
    """Looks at the documents on their way to the callback.

    Refuses an analysis run, which the callback would pass over without a word.
    """

    def __init__(
        self, callback: Callable[[str, Any], Any], stream: str, followed_into: Catalog | None
    ) -> None:
        self._callback, self._stream = callback, stream
        self._target = followed_into
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


def open_target(
    into: str | None, catalog: Catalog | None, spec: str, stack: contextlib.ExitStack
) -> Catalog | None:
    """Give the catalog that the analysis runs are stored in."""
    if into is None or (into == spec and catalog is not None):
        return None if into is None else catalog
    return stack.enter_context(open_catalog(into))
