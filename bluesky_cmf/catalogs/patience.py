"""A network or a server that fails for a while costs time, and no data."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
from tiled.client.utils import ClientError, should_retry

__all__ = ["existing_or_new", "is_outage", "patiently"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds of trouble after which it is taken to be for good.
_PATIENCE = 300.0
#: Seconds between two attempts: at first, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0


def patiently(request: Callable[[], T]) -> T:
    """Make a request again while the network fails, or the server is out of order or too busy.

    Parameters
    ----------
    request
        What can be done twice: the answer to the first time may have been lost.

    Returns
    -------
    object
        What `request` returns.

    Raises
    ------
    Exception
        What it raises otherwise, or still after five minutes.
    """
    deadline, pause = time.monotonic() + _PATIENCE, _FIRST_PAUSE
    while True:
        try:
            return request()
        except Exception as error:
            again = should_retry(error)
            # A server that is too busy may tell for how long.
            wait = pause if isinstance(again, bool) else again
            if again is False or time.monotonic() + wait > deadline:
                raise
            if pause == _FIRST_PAUSE:
                logger.warning(
                    "The catalog's server does not take what is stored (%s): tried again for %.0f "
                    "seconds.",
                    error,
                    _PATIENCE,
                )
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


def is_outage(error: Exception) -> bool:
    """Tell whether nobody answers, unlike a server that cannot do one thing and does others."""
    internal = isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 500
    return should_retry(error) is not False and not internal


def existing_or_new(parent: Any, key: str, make: Callable[[], Any]) -> tuple[Any, bool]:
    """Make a node, patiently.

    Parameters
    ----------
    parent
        The container that it will be in.
    key
        Its name.
    make
        Makes it.

    Returns
    -------
    node, existed
        Whether an attempt whose answer was lost had made the node.
    """

    def request() -> tuple[Any, bool]:
        try:
            return make(), False
        except ClientError as error:
            if error.response.status_code != 409:
                raise
            return parent[key], True

    return patiently(request)
