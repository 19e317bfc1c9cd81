"""Who gets the documents of the analysis runs: subscribers, served in order by one thread."""

import itertools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

from .documents import Document, Emit
from .worker import Inline, Worker

__all__ = ["Emitter"]

logger = logging.getLogger(__name__)


#: Callbacks of bluesky that take every event that has their keys, of whatever stream: revised
#: weights, which have the keys of ``primary``, would be drawn again and again.
_TAKE_ANY_STREAM = {
    "bluesky.callbacks.mpl_plotting": ("LivePlot", "LiveScatter", "LiveGrid"),
    "bluesky.callbacks.fitting": ("LiveFit",),
}


@dataclass
class _Subscriber:
    callback: Emit
    primary_only: bool
    failed: bool = False


class Emitter:
    """Call every subscriber with every document, in order.

    Parameters
    ----------
    background : bool
        Call them from a thread of their own, so that a slow one delays no fit.
    """

    def __init__(self, *, background: bool) -> None:
        self._tokens = itertools.count()
        self._subscribers: dict[int, _Subscriber] = {}
        self._open: dict[str, list[tuple[str, Document]]] = {}
        # Descriptors of the open runs' other streams than primary.
        self._not_primary: set[str] = set()
        self._worker: Worker[Callable[[], object]] | Inline[Callable[[], object]] = (
            Worker(_call_all, name="bluesky_cmf emit") if background else Inline(_call_all)
        )

    def __call__(self, name: str, doc: Document) -> None:
        """Hand a document to the subscribers."""
        self._worker.put(lambda: self._deliver(name, doc))

    def subscribe(self, callback: Emit) -> int:
        """Add a subscriber; it first gets the start and the descriptors of the open runs."""
        token = next(self._tokens)
        self._worker.put(lambda: self._welcome(token, callback))
        return token

    def unsubscribe(self, token: int) -> None:
        """Take a subscriber away."""
        self._worker.put(lambda: self._subscribers.pop(token, None))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything emitted so far has been delivered."""
        return self._worker.wait(timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Deliver what waits and end the thread."""
        return self._worker.close(timeout)

    def _welcome(self, token: int, callback: Emit) -> None:
        subscriber = _Subscriber(callback, _takes_any_stream(callback))
        self._subscribers[token] = subscriber
        for documents in self._open.values():
            for name, doc in documents:
                self._deliver_to(subscriber, name, doc)

    def _deliver(self, name: str, doc: Document) -> None:
        if name == "start":
            self._open[doc["uid"]] = [(name, doc)]
        elif name == "descriptor":
            self._open[doc["run_start"]].append((name, doc))
            if doc["name"] != "primary":
                self._not_primary.add(doc["uid"])
        elif name == "stop":
            for _, known in self._open.pop(doc["run_start"]):
                self._not_primary.discard(known["uid"])
        for subscriber in list(self._subscribers.values()):
            self._deliver_to(subscriber, name, doc)

    def _deliver_to(self, subscriber: _Subscriber, name: str, doc: Document) -> None:
        descriptor = doc["uid"] if name == "descriptor" else doc.get("descriptor")
        if not (subscriber.primary_only and descriptor in self._not_primary):
            _call(subscriber, name, doc)


def _takes_any_stream(callback: Emit) -> bool:
    """Tell whether it is one of these; where their module is not loaded, it is not."""
    return any(
        isinstance(callback, getattr(sys.modules[module], name))
        for module, names in _TAKE_ANY_STREAM.items()
        if module in sys.modules
        for name in names
    )


def _call(subscriber: _Subscriber, name: str, doc: Document) -> None:
    try:
        subscriber.callback(name, doc)
    except BaseException:
        # SystemExit as well: the others are to be served.
        if not subscriber.failed:
            logger.exception("subscriber %r raised on a %r document", subscriber.callback, name)
        subscriber.failed = True


def _call_all(actions: list[Callable[[], object]]) -> None:
    for action in actions:
        try:
            action()
        except Exception:
            logger.exception("a document could not be handed on")
