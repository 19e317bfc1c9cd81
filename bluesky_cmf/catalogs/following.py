"""A run is read as it grows: what is there, then what comes, until its end."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ..errors import InputError, RunNotFoundError
from .patience import is_outage

__all__ = ["Reading", "check_patience", "followed"]

logger = logging.getLogger(__name__)

#: A pause is as many times longer than the look before it: looking takes a fifth of the time.
_REST = 4.0
#: Seconds of a pause: at least, where nothing comes, and at most, however long looking takes.
_SHORTEST_PAUSE, _QUIET_PAUSE, _LONGEST_PAUSE = 0.1, 1.0, 10.0
#: Seconds that a server may be away, where patience is shorter: it takes some to restart.
_OUTAGE = 300.0

_Named = tuple[str, dict[str, Any]]


class Reading(Protocol):
    """A run that is read as far as it has come, as often as one likes.

    Attributes
    ----------
    finished
        Whether the stop document was given.
    extent
        How much of the run has been seen: a number that grows with it.
    """

    finished: bool
    extent: int

    def news(self, *, last: bool) -> Iterator[_Named]:
        """Give what has come since; what this raises, or leaves, comes the next time."""


def check_patience(follow: bool, patience: float | None) -> None:
    """Refuse a patience that is no time, or that there is nothing to wait for with.

    Raises
    ------
    InputError
        Which says what is expected.
    """
    if patience is None:
        return
    if not follow:
        raise InputError("patience: a run is waited for only where it is followed (follow=True)")
    if not 0.0 <= patience < math.inf:
        raise InputError(
            f"patience: expected seconds, 0 or more, or None to wait for ever, got {patience}"
        )


def followed(
    find: Callable[[], Reading | None],
    absent: Callable[[], RunNotFoundError],
    *,
    patience: float | None,
    where: str,
) -> Iterator[_Named]:
    """Give the documents of a run until its stop document.

    Parameters
    ----------
    find
        Finds the run; None while it is not there.
    absent
        Says that it is not there; asked at the first look and at the last.
    patience
        Seconds of waiting, without growth, after which the run is left as it is; None waits for
        ever. While the server does not answer they are not counted.
    where
        What the log calls the catalog.

    Yields
    ------
    name, doc
        Each document once; rows of one stream are in order.

    Raises
    ------
    RunNotFoundError
        If the run has not appeared in time.
    Exception
        What the server answers, if it makes no sense, or that it was away for too long.
    """
    watch = _Watch(patience, where)
    reading: Reading | None = None
    while True:
        last = watch.is_over
        try:
            with watch.looking():
                reading = find() if reading is None else reading
            if reading is None:
                _wait_for(absent, last=last, first=watch.is_new)
            else:
                news = reading.news(last=last)
                while (named := watch.timed(news)) is not None:
                    yield named
            watch.saw(0 if reading is None else reading.extent)
        except Exception as error:
            watch.bear(error)
        else:
            if reading is not None and (reading.finished or last):
                return
        watch.rest()


def _wait_for(absent: Callable[[], RunNotFoundError], *, last: bool, first: bool) -> None:
    if last:
        raise absent()
    if first:
        logger.warning("%s It is waited for.", absent())


class _Watch:
    """When to look again, and when to give up."""

    def __init__(self, patience: float | None, where: str) -> None:
        #: Whether nothing was seen yet.
        self.is_new = True
        self._patience = math.inf if patience is None else patience
        self._where = where
        self._extent = 0
        self._spent = 0.0
        self._quiet_looks = 0
        self._waited = 0.0
        self._away_since: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end; the time of looking, or of an outage, is not counted."""
        return not self.is_new and self._away_since is None and self._waited >= self._patience

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Count the time that looking takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - began

    def timed(self, news: Iterator[_Named]) -> _Named | None:
        """Give the next document, None after the last one; whoever gets it takes his own time."""
        with self.looking():
            return next(news, None)

    def saw(self, extent: int) -> None:
        """Take note of a look, and of how much there is."""
        if self._away_since is not None:
            logger.warning("The catalog %s answers again.", self._where)
        self._away_since = None
        self.is_new = False
        if extent > self._extent:
            self._extent, self._quiet_looks, self._waited = extent, 0, 0.0
        else:
            self._quiet_looks += 1

    def bear(self, error: Exception) -> None:
        """Take an outage for what it is; everything else, and one without end, is raised."""
        if not is_outage(error):
            raise error
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            logger.warning(
                "The catalog %s does not answer (%s): it is waited for.", self._where, error
            )
        if now - self._away_since > max(_OUTAGE, self._patience):
            raise error
        self._quiet_looks += 1

    def rest(self) -> None:
        """Wait until it is time for the next look."""
        quiet = min(_SHORTEST_PAUSE * 2.0 ** min(self._quiet_looks, 10), _QUIET_PAUSE)
        pause = quiet
        if self._away_since is None:
            pause = min(max(quiet, _REST * self._spent), _LONGEST_PAUSE)
            pause = max(0.0, min(pause, self._patience - self._waited))
            self._waited += pause
        self._spent = 0.0
        time.sleep(pause)
