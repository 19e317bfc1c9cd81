"""The thread between the RunEngine and the fit: nothing lost, handled in order, drained at exit."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Inline", "Worker", "at_exit", "remaining"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def at_exit(function: Callable[[], object]) -> None:
    """Call a function at interpreter exit, while threads can still do their work.

    Functions registered with `atexit` run too late: thread pools, which an embedded server needs,
    refuse work by then. The last one registered is called first.
    """
    threading._register_atexit(function)  # type: ignore[attr-defined]


class Worker(Generic[T]):
    """Handle items on a thread of its own, in order, several at once where they have queued up.

    Parameters
    ----------
    handle : callable
        Gets a list of items. What it raises is logged and goes no further.
    name : str
        Name of the thread.
    max_batch : int, optional
        Most items at once.
    idle : callable, optional
        Called without arguments while no item waits, until it returns False. An item that comes
        meanwhile waits for it to return.
    prepare : callable, optional
        Called once, first thing in the thread.

    Notes
    -----
    The thread starts with the first item, as a daemon: `close` it at interpreter exit
    (`at_exit`), or what waits then is lost.
    """

    def __init__(
        self,
        handle: Callable[[list[T]], None],
        *,
        name: str,
        max_batch: int = 256,
        idle: Callable[[], bool] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._handle, self._idle, self._prepare = handle, idle, prepare
        self._name, self._max_batch = name, max_batch
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._put = self._done = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    def put(self, item: T) -> bool:
        """Queue an item; never blocks for longer than it takes to append it.

        Returns
        -------
        bool
            False where the worker is closed: the item is not taken then.
        """
        with self._changed:
            if self._closed:
                return False
            self._items.append(item)
            self._put += 1
            if self._thread is None:
                self._start()
            self._changed.notify_all()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything that was put before this call is handled.

        Returns
        -------
        bool
            False where ``timeout`` seconds were not enough.
        """
        with self._changed:
            target = self._put
            return self._changed.wait_for(lambda: self._done >= target, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Take nothing more, handle what waits, and end the thread.

        Returns
        -------
        bool
            False where ``timeout`` seconds were not enough.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._prepare is not None:
                self._prepare()
        except Exception:
            logger.exception("%s: could not be prepared; it goes on as it is", self._name)
        while batch := self._next():
            try:
                self._handle(batch)
            except Exception:
                logger.exception("%s: %d items could not be handled", self._name, len(batch))
            with self._changed:
                self._done += len(batch)
                self._changed.notify_all()
            # An exception keeps its frames, and they keep the batch, until the next one.
            del batch

    def _next(self) -> list[T]:
        """Wait for items; an empty list says that the worker is closed and drained."""
        while self._idle is not None and not self._items and not self._closed:
            if not self._idle_once(self._idle):
                break
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            count = min(self._max_batch, len(self._items))
            return [self._items.popleft() for _ in range(count)]

    def _idle_once(self, idle: Callable[[], bool]) -> bool:
        try:
            return idle()
        except Exception:
            logger.exception("%s: work between items failed", self._name)
            return False


class Inline(Generic[T]):
    """Handle items in the caller's thread: what `Worker` does, without the thread."""

    def __init__(self, handle: Callable[[list[T]], None]) -> None:
        self._handle = handle
        self._lock = threading.RLock()
        self._closed = False

    def __len__(self) -> int:
        return 0

    def put(self, item: T) -> bool:
        """Handle an item."""
        with self._lock:
            if self._closed:
                return False
            self._handle([item])
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Return True: nothing ever waits."""
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Take nothing more."""
        self._closed = True
        return True


def remaining(timeout: float | None) -> Callable[[], float | None]:
    """Share one timeout between several waits."""
    if timeout is None:
        return lambda: None
    end = time.monotonic() + timeout
    return lambda: max(0.0, end - time.monotonic())
