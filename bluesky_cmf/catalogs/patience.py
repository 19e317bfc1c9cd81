"""A network or a server that fails costs time, and no data, however long it lasts."""

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import httpx
from tiled.client.utils import ClientError, should_retry

__all__ = ["Abandoned", "Watcher", "attend", "existing_or_new", "patiently"]

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

    def away(self, error: Exception) -> None:
        """Learn that the catalog does not answer; called once for each request that waits."""

    def back(self) -> None:
        """Learn that it answers again."""

    def pause(self, seconds: float) -> None:
        """Wait, and raise `Abandoned` where that has no point any more."""


class _Alone:
    """Watches where no one does."""

    def away(self, error: Exception) -> None:
        pass

    def back(self) -> None:
        pass

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class _Watched(threading.local):
    watcher: Watcher = _Alone()


_watched = _Watched()


def attend(watcher: Watcher) -> None:
    """Let `watcher` watch the requests of the calling thread."""
    _watched.watcher = watcher


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
            answer = request()
        except Exception as error:
            # A request that fails because all was closed meanwhile fails for no one.
            watcher.pause(0.0)
            again = should_retry(error)
            refusing = (refusing or time.monotonic()) if _internal(error) else None
            if again is False or (refusing and not proven and _since(refusing) >= limit):
                if waited:
                    watcher.back()
                raise
            if not waited:
                waited = True
                watcher.away(error)
            # A server that is too busy may tell for how long.
            watcher.pause(pause if isinstance(again, bool) else again)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
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
