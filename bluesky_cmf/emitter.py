"""Who gets the documents of the analysis runs: subscribers, served in order by one thread."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass

from .documents import Document, Emit
from .worker import Inline, Worker

__all__ = ["Emitter"]

logger = logging.getLogger(__name__)


@dataclass
class _Subscriber:
    callback: Emit
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
        subscriber = self._subscribers[token] = _Subscriber(callback)
        for documents in self._open.values():
            for name, doc in documents:
                _deliver(subscriber, name, doc)

    def _deliver(self, name: str, doc: Document) -> None:
        if name == "start":
            self._open[doc["uid"]] = [(name, doc)]
        elif name == "descriptor":
            self._open[doc["run_start"]].append((name, doc))
        elif name == "stop":
            del self._open[doc["run_start"]]
        for subscriber in list(self._subscribers.values()):
            _deliver(subscriber, name, doc)


def _deliver(subscriber: _Subscriber, name: str, doc: Document) -> None:
    try:
        subscriber.callback(name, doc)
    except Exception:
        if not subscriber.failed:
            logger.exception("subscriber %r raised on a %r document", subscriber.callback, name)
        subscriber.failed = True


def _call_all(actions: list[Callable[[], object]]) -> None:
    for action in actions:
        action()
