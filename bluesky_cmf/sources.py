"""Where documents come from: a stored run, or one that still grows."""

import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from event_model import pack_event_page

from .catalogs import Catalog, open_catalog

__all__ = ["Paged", "replay"]

#: Events and bytes of a page, at most.
_PAGE, _PAGE_BYTES = 1000, 2**26


class Paged:
    """Hands events that follow each other on as pages, all else as it is.

    A callback that handles a page at once, as ``LiveNMF(background=False)`` does, fits its
    patterns together.

    Parameters
    ----------
    callback : callable
        Gets each ``(name, document)``.
    """

    def __init__(self, callback: Callable[[str, dict[str, Any]], Any]) -> None:
        self._callback = callback
        self._events: list[dict[str, Any]] = []
        self._kind: object = None
        self._bytes = 0

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Take a document."""
        if name != "event":
            self._flush()
            self._callback(name, doc)
            return
        # Only events with the same keys have columns in common.
        kind = doc["descriptor"], frozenset(doc["data"]), frozenset(doc.get("filled") or ())
        if kind != self._kind:
            self._flush()
        self._kind = kind
        self._events.append(doc)
        self._bytes += sum(np.asarray(value).nbytes for value in doc["data"].values())
        if len(self._events) >= _PAGE or self._bytes >= _PAGE_BYTES:
            self._flush()

    def _flush(self) -> None:
        events, self._events, self._bytes = self._events, [], 0
        if events:
            self._callback("event_page", dict(pack_event_page(*events)))


def replay(
    catalog: Any,
    uid: str,
    callback: Callable[[str, dict[str, Any]], Any],
    *,
    follow: bool = False,
    patience: float | None = None,
) -> int:
    """Feed the documents of a stored run to a callback, as if the scan ran again.

    A run that ends before its stop document, because it was never finished, because reading it
    fails, or because the user interrupts, is closed for the callback with a stop document whose
    ``exit_status`` is ``"abort"`` and whose ``reason`` says why.

    With `follow` a run that is still measured is read as far as it has come, and then as it
    grows, to its end: so an analysis that was killed catches up.

    Parameters
    ----------
    catalog
        Whatever `open_catalog` takes. What is opened here is closed here; a folder has to be a
        catalog already.
    uid
        The run's uid, or its first characters, at least 5.
    callback
        Any Bluesky callback, called as ``callback(name, doc)`` in this thread.
    follow
        Whether to go on with what comes until the stop document, and every row before it, is
        there. The run need not be in the catalog yet; a server that is away for a while is waited
        for. The catalog has to be a server, or in this process: a folder is open in one alone.
    patience
        Seconds that a followed run may go without growth, the server's absence not counted,
        before it is taken to be over; by default it is waited for without end.

    Returns
    -------
    int
        How many documents were given to the callback.

    Raises
    ------
    InputError
        If `patience` is no time, or comes without `follow`.
    CatalogError
        If the catalog cannot be opened or read.
    RunNotFoundError
        If it holds no run, or more than one, with this uid.
    Exception
        What the callback raises, unchanged; it gets no more documents then.
    """
    opened = open_catalog(catalog, create=False)
    try:
        return _Player(callback).play(opened, uid, follow, patience)
    finally:
        if not isinstance(catalog, Catalog):
            opened.close()


class _Player:
    """Counts what a callback got, and knows whether its run is open."""

    def __init__(self, callback: Callable[[str, dict[str, Any]], Any]) -> None:
        self._callback = callback
        self._count = 0
        self._open_run: str | None = None
        self._failed = False
        self._n_events: dict[str, int] = {}
        self._streams: dict[str, str] = {}

    def play(self, catalog: Catalog, uid: str, follow: bool, patience: float | None) -> int:
        reason = "the stored run has no stop document"
        if follow and patience is not None:
            reason = f"{reason} and did not grow for {patience:g} s"
        try:
            for name, doc in catalog.documents(uid, follow=follow, patience=patience):
                self._give(name, doc)
        except BaseException as error:
            reason = f"the replay was interrupted: {error!r}"
            raise
        finally:
            if self._open_run is not None and not self._failed:
                self._give("stop", self._abort(self._open_run, reason))
        return self._count

    def _give(self, name: str, doc: dict[str, Any]) -> None:
        if name == "start":
            self._open_run = str(doc["uid"])
        elif name == "descriptor":
            self._streams[doc["uid"]] = doc["name"]
            self._n_events.setdefault(doc["name"], 0)
        elif name == "event":
            self._n_events[self._streams[doc["descriptor"]]] += 1
        elif name == "stop":
            self._open_run = None
        try:
            self._callback(name, doc)
        except Exception:
            self._failed = True
            raise
        self._count += 1

    def _abort(self, run: str, reason: str) -> dict[str, Any]:
        return {
            "uid": str(uuid.uuid4()),
            "time": time.time(),
            "run_start": run,
            "exit_status": "abort",
            "reason": reason,
            "num_events": dict(self._n_events),
        }
