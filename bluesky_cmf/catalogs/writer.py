"""`CatalogWriter`: the callback that stores documents from a thread of its own."""

import copy
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from ..documents import is_analysis
from ..worker import at_exit
from .routing import Document, RunRouter, RunStore

__all__ = ["CatalogWriter"]

logger = logging.getLogger(__name__)

#: Seconds that documents are collected before they are written.
_PACE = 0.5
#: Seconds without any progress after which the drain at exit gives up.
_STUCK = 60.0


class CatalogWriter:
    """Stores the runs that it is called with, raw and analysis runs, interleaved or not.

    A call copies the document and returns. A daemon thread writes: what came is collected for
    half a second, so that a reader sees an event after at most 2 s and a fast scan is written in
    large batches. When the interpreter exits, the rest is written first.

    Parameters
    ----------
    open_run
        Makes the store of one run from its start document.
    target
        What the log calls the catalog.
    latest
        Whether the stream ``latest`` of analysis runs is stored; it repeats the raw data.

    Attributes
    ----------
    error
        The first failure; None while there is none. A run that fails is given up, without a
        stop document, and the others go on; so they do after a document that makes no sense.
    """

    def __init__(
        self,
        open_run: Callable[[Document], RunStore],
        *,
        target: str = "the catalog",
        latest: bool = False,
    ) -> None:
        self.error: BaseException | None = None
        self._target = target
        self._latest = latest
        self._router = RunRouter(open_run, self._run_failed)
        self._analysis_runs: set[str] = set()
        self._skipped: dict[str, str] = {}
        self._changed = threading.Condition()
        self._queue: deque[tuple[str, Document]] = deque()
        self._received = self._handled = self._written = 0
        self._hurry = self._closing = self._closed = self._puzzled = False
        self._thread = threading.Thread(target=self._run, name="catalog-writer", daemon=True)
        self._thread.start()
        reference = weakref.ref(self)
        at_exit(lambda: _drain(reference), stage="writers")

    def __call__(self, name: str, doc: Document) -> None:
        """Take one document; nothing is raised and nothing is waited for.

        Parameters
        ----------
        name
            The kind of document: "start", "descriptor", "event", "event_page", "stop", …
        doc
            The document, which is not changed, and may be changed by others afterwards.
        """
        try:
            detached = _detached(name, doc)
        except Exception as error:
            self._not_understood(name, error)
            return
        with self._changed:
            if self._closing:
                if not self._closed:
                    logger.warning("The writer of %s is closed: documents are not stored.", self)
                    self._closed = True
                return
            self._queue.append((name, detached))
            self._received += 1
            if len(self._queue) == 1:
                self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Write what has come so far, now.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits as long as it takes.

        Returns
        -------
        bool
            True where everything received stands in the catalog; False at the timeout, or
            where a run was given up (see `error`).
        """
        with self._changed:
            target = self._received
            self._hurry = True
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: self._written >= target or not self._thread.is_alive(), timeout
            )
            return done and self._written >= target and self.error is None

    def close(self, timeout: float | None = None) -> bool:
        """Write what has come and end the thread; documents that come later are left out.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits as long as it takes.

        Returns
        -------
        bool
            As `flush`.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            return self._written >= self._received and self.error is None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} into {self._target}>"

    def _leave_out(self, name: str, doc: Document) -> bool:
        """Tell whether a document belongs to the stream ``latest`` of an analysis run."""
        if name == "start" and is_analysis(doc):
            self._analysis_runs.add(doc["uid"])
        elif name == "descriptor":
            run = doc.get("run_start")
            if run in self._analysis_runs and doc.get("name") == "latest":
                self._skipped[doc["uid"]] = str(run)
                return True
        elif name in ("event", "event_page"):
            return doc["descriptor"] in self._skipped
        elif name == "stop" and doc["run_start"] in self._analysis_runs:
            run = doc["run_start"]
            self._analysis_runs.discard(run)
            self._skipped = {uid: owner for uid, owner in self._skipped.items() if owner != run}
        return False

    def _run(self) -> None:
        waits = False
        while True:
            documents, force, last = self._collect(waits)
            for name, doc in documents:
                self._route(name, doc)
                self._handled += 1
            waits = self._router.flush(force=force)
            with self._changed:
                if not waits:
                    self._written = self._handled
                self._changed.notify_all()
                if last and not self._queue:
                    return

    def _route(self, name: str, doc: Document) -> None:
        try:
            if self._latest or not self._leave_out(name, doc):
                self._router(name, doc)
        except BaseException as error:
            # Without this thread nothing would ever be stored again.
            self._not_understood(name, error)

    def _collect(self, waits: bool) -> tuple[list[tuple[str, Document]], bool, bool]:
        """Wait for documents; give them, whether to write everything, and whether to end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._queue or waits or self._hurry or self._closing,
            )
            self._changed.wait_for(lambda: self._hurry or self._closing, _PACE)
            documents = list(self._queue)
            self._queue.clear()
            force = self._hurry or self._closing
            self._hurry = False
            return documents, force, self._closing

    def _run_failed(self, uid: str, error: Exception, given_up: bool) -> None:
        logger.error(
            "%s the run %s could not be stored in %s; %s on. Cause: %s",
            "The rest of" if given_up else "A part of",
            uid,
            self._target,
            "other runs go" if given_up else "the run goes",
            error,
            exc_info=error,
        )
        if self.error is None:
            self.error = error

    def _not_understood(self, name: str, error: BaseException) -> None:
        if not self._puzzled:
            self._puzzled = True
            logger.error(
                "A document of the kind %r makes no sense and is not stored in %s; others are. "
                "Cause: %r",
                name,
                self._target,
                error,
                exc_info=error,
            )
        if self.error is None:
            self.error = error


def _drain(reference: "weakref.ref[CatalogWriter]") -> None:
    """Write the rest at exit, for as long as it gets on."""
    writer = reference()
    handled, since = -1, time.monotonic()
    while writer is not None and writer._written < writer._received:
        if writer._handled != handled:
            handled, since = writer._handled, time.monotonic()
        elif time.monotonic() - since > _STUCK:
            logger.error(
                "%d documents could not be written to %s before the exit.",
                writer._received - writer._written,
                writer._target,
            )
            return
        if not writer._thread.is_alive():
            return
        writer.flush(1.0)


def _detached(name: str, doc: Document) -> Document:
    """Copy what others may still change, above all the arrays that a detector uses again."""
    if name not in ("event", "event_page"):
        try:
            return copy.deepcopy(doc)
        except Exception:
            # It holds a lock or a socket: its store will refuse it, and name the run.
            return dict(doc)
    return {key: _copied(value) for key, value in doc.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (np.ndarray, list, tuple, dict)):
            return [_copied(part) for part in value]
        return list(value)
    return value
