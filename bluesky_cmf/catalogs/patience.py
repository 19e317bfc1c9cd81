"""A network or a server that fails costs time, and no data, however long it lasts."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import httpx
from tiled.client.utils import ClientError, should_retry

__all__ = [
    "Abandoned",
    "Attendant",
    "Watcher",
    "attend",
    "existing_or_new",
    "is_outage",
    "patiently",
]

T = TypeVar("T")

#: Seconds for which a server may answer with an internal error before that is a refusal. It does
#: not tell a full disk from a document that it can never store; all others wait meanwhile.
_REFUSED_AFTER = 3600.0
#: Seconds between two attempts: at first, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0


class Abandoned(BaseException):
    """Nobody waits for a request any more; not an error that costs a run."""


class Watcher(Protocol):
    """Is told by the requests of one thread how the catalog answers."""

    def asking(self) -> AbstractContextManager[object]:
        """Surround a request; one may be within another."""

    def away(self, error: Exception) -> None:
        """Learn that the catalog does not answer; called once for each request that waits."""

    def back(self) -> None:
        """Learn that it answers again."""

    def pause(self, seconds: float) -> None:
        """Wait, and raise `Abandoned` where that has no point any more."""


class _Alone:
    """Watches where no one does."""

    def asking(self) -> AbstractContextManager[object]:
        return nullcontext()

    def away(self, error: Exception) -> None:
        pass

    def back(self) -> None:
        pass

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class Attendant:
    """Watches a thread that others may have to do without.

    Parameters
    ----------
    away, back
        Are called where the catalog does not answer, and where it does again.

    Attributes
    ----------
    moving
        Held by the thread but for its requests: whoever has it finds all as a request left it.
    abandoned
        Set where nobody waits for the thread any more.
    n_answers
        How many requests were answered.
    """

    def __init__(self, away: Callable[[Exception], None], back: Callable[[], None]) -> None:
        self.moving = threading.Lock()
        self.abandoned = threading.Event()
        self.n_answers = 0
        self.away = away
        self.back = back
        #: How many requests are under way, one within another.
        self._depth = 0

    def pause(self, seconds: float) -> None:
        """Wait, and raise `Abandoned` where that has no point any more."""
        if seconds:
            with self._at_rest():
                self.abandoned.wait(seconds)
        if self.abandoned.is_set():
            raise Abandoned

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Surround a request."""
        with self._at_rest():
            yield
        self.n_answers += 1

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        self._depth += 1
        if self._depth == 1:
            self.moving.release()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.moving.acquire()


class _Watched(threading.local):
    watcher: Watcher = _Alone()


_watched = _Watched()


def attend(watcher: Watcher) -> None:
    """Let `watcher` watch the requests of the calling thread."""
    _watched.watcher = watcher


def is_outage(error: Exception) -> bool:
    """Tell whether nobody answers, unlike a server that cannot do one thing and does others."""
    return should_retry(error) is not False and not _internal(error)


def patiently(
    request: Callable[[], T], *, proven: bool = False, refused_after: float | None = None
) -> T:
    """Make a request again for as long as nobody answers, or the server is out of order or busy.

    Parameters
    ----------
    request
        What can be done twice: the answer to the first time may have been lost.
    proven
        Whether the server has done the like before: an internal error is then an outage, such as
        a full disk, and no refusal.
    refused_after
        Seconds after which it is a refusal otherwise; None is an hour.

    Returns
    -------
    object
        What `request` returns.

    Raises
    ------
    Exception
        What it raises otherwise, and in the end an internal error of the server.
    Abandoned
        Where the thread's watcher says so.
    """
    watcher = _watched.watcher
    limit = _REFUSED_AFTER if refused_after is None else refused_after
    pause, refusing = _FIRST_PAUSE, None
    waited = False
    while True:
        watcher.pause(0.0)
        try:
            with watcher.asking():
                answer = request()
        except Exception as error:
            # A request that fails because all was closed meanwhile fails for no one.
            watcher.pause(0.0)
            refusing = (refusing or time.monotonic()) if _internal(error) else None
            may_pass = refusing is not None and (proven or _since(refusing) < limit)
            if not (is_outage(error) or may_pass):
                if waited:
                    watcher.back()
                raise
            if not waited:
                waited = True
                watcher.away(error)
            # A server that is too busy may tell for how long.
            told = should_retry(error)
            watcher.pause(pause if isinstance(told, bool) else told)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            # So does an answer that comes when another process may go on without it.
            watcher.pause(0.0)
            if waited:
                watcher.back()
            return answer


def _internal(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 500


def _since(moment: float) -> float:
    return time.monotonic() - moment


def existing_or_new(
    parent: Any, key: str, make: Callable[[], Any], *, refused_after: float | None = None
) -> tuple[Any, bool]:
    """Make a node, patiently.

    Parameters
    ----------
    parent
        The container that it will be in.
    key
        Its name.
    make
        Makes it.
    refused_after
        As for `patiently`.

    Returns
    -------
    node, existed
        Whether an attempt whose answer was lost, or an earlier process, had made the node.
    """

    def request() -> tuple[Any, bool]:
        try:
            return make(), False
        except ClientError as error:
            if error.response.status_code != 409:
                raise
            return parent[key], True

    return patiently(request, refused_after=refused_after)
