"""The thread between the RunEngine and the fit: nothing lost, handled in order, drained at exit."""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic, TypeVar

__all__ = ["Inline", "Worker", "at_exit", "remaining"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


#: What is closed at interpreter exit, in this order, whenever it was opened: fits still publish
#: to writers, and these still write to servers.
_STAGES = ("fits", "writers", "servers")
_at_exit: dict[str, list[Callable[[], Any]]] = {}
_registering = threading.Lock()


def at_exit(function: Callable[[], object], *, stage: str) -> None:
    """Call a function at interpreter exit, while threads can still do their work.

    Functions registered with `atexit` run too late: thread pools, which an embedded server needs,
    refuse work by then.

    Parameters
    ----------
    function : callable
        Called without arguments; a bound method is held weakly, so that it keeps nothing alive.
    stage : {"fits", "writers", "servers"}
        The order; within a stage the last one registered is called first.
    """
    call = weakref.WeakMethod(function) if hasattr(function, "__self__") else lambda: function
    with _registering:
        if not _at_exit:
            # Registered after the pools' own hook, this one is called before it.
            import_module("concurrent.futures.thread")
            threading._register_atexit(_leave)  # type: ignore[attr-defined]
            _at_exit.update({name: [] for name in _STAGES})
        _at_exit[stage].append(call)


def _leave() -> None:
    for stage in _STAGES:
        for reference in reversed(_at_exit[stage]):
            function = reference()
            if function is not None:
                _finish(function, stage)


def _finish(function: Callable[[], Any], stage: str) -> None:
    """Call a function to its end; one interrupt by the keyboard does not stop it, a second does."""
    for interrupts in range(2):
        try:
            function()
            return
        except KeyboardInterrupt:
            logger.warning(
                "interrupted: %s are given up, patterns may be lost"
                if interrupts
                else "interrupted: %s are finished first; interrupt again to give them up",
                stage,
            )
        except Exception:
            logger.exception("%s could not be closed at exit", stage)
            return


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
        Called without arguments as long as no item waits and it says that there is more to do.
        An item that comes meanwhile waits for it to return.
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
        self._closed, self._ended = False, threading.Event()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    @property
    def inside(self) -> bool:
        """Whether it is the worker's own thread that asks."""
        return self._thread is threading.current_thread()

    def put(self, *items: T) -> bool:
        """Queue items; never blocks for longer than it takes to append them.

        Returns
        -------
        bool
            False where the worker is closed: they are not taken then.
        """
        with self._changed:
            if self._closed:
                return False
            self._items.extend(items)
            self._put += len(items)
            if self._thread is None:
                self._start()
            self._changed.notify_all()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything that was put before this call is handled.

        Returns
        -------
        bool
            False where ``timeout`` seconds were not enough, or at once where the worker's own
            thread asks and would wait for itself.
        """
        with self._changed:
            target = self._put
            if self._thread is threading.current_thread():
                return self._done >= target
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
        if self._thread is None or self._thread is threading.current_thread():
            return True
        # Not `join`: interrupted by the keyboard, it takes the thread for ended from then on.
        return self._ended.wait(timeout)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if self._prepare is not None:
            self._guard("preparation failed", self._prepare)
        while batch := self._next():
            self._guard(f"{len(batch)} items could not be handled", self._handle, batch)
            with self._changed:
                self._done += len(batch)
                self._changed.notify_all()
            # An exception keeps its frames, and they keep the batch, until the next one.
            del batch
        self._ended.set()

    def _next(self) -> list[T]:
        """Wait for items; an empty list says that the worker is closed and drained."""
        idle = self._idle if self._done else None
        while idle is not None and not self._items and not self._closed:
            if not self._guard("work between items failed", idle):
                break
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            count = min(self._max_batch, len(self._items))
            return [self._items.popleft() for _ in range(count)]

    def _guard(self, failure: str, function: Callable[..., object], *arguments: object) -> object:
        try:
            return function(*arguments)
        except BaseException:
            # SystemExit as well: without this thread nothing would ever be handled again.
            logger.exception("%s: %s", self._name, failure)
            return None


class Inline(Generic[T]):
    """Handle items in the caller's thread: what `Worker` does, without the thread.

    Items that are put while one is handled, by another thread or by what the handling calls,
    wait for it and are then handled by whoever handles now; no lock is held meanwhile.
    """

    def __init__(self, handle: Callable[[list[T]], None]) -> None:
        self._handle = handle
        self._items: deque[list[T]] = deque()
        self._changed = threading.Condition()
        self._owner: int | None = None
        self._closed = False

    def __len__(self) -> int:
        """Items that wait."""
        return sum(map(len, self._items))

    @property
    def inside(self) -> bool:
        """Whether it is the thread that handles items just now that asks."""
        return self._owner == threading.get_ident()

    def put(self, *items: T) -> bool:
        """Handle items, all at once, or leave them to the thread that handles some now."""
        with self._changed:
            if self._closed:
                return False
            self._items.append([*items])
            if self._owner is not None:
                return True
            self._owner = threading.get_ident()
        while self._next_handled():
            pass
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is handled; False at the timeout, or where it waits for itself."""
        with self._changed:
            if self._owner == threading.get_ident():
                return False
            return self._changed.wait_for(lambda: self._owner is None, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Take nothing more, and wait for what is handled now."""
        with self._changed:
            self._closed = True
            inside = self._owner == threading.get_ident()
        return inside or self.wait(timeout)

    def _next_handled(self) -> bool:
        with self._changed:
            if not self._items:
                self._owner = None
                self._changed.notify_all()
                return False
            items = self._items.popleft()
        try:
            self._handle(items)
        except BaseException:
            with self._changed:
                self._owner = None
                self._changed.notify_all()
            raise
        return True


def remaining(timeout: float | None) -> Callable[[], float | None]:
    """Share one timeout between several waits."""
    if timeout is None:
        return lambda: None
    end = time.monotonic() + timeout
    return lambda: max(0.0, end - time.monotonic())
