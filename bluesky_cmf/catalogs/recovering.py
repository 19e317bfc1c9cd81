"""What processes before this one could not write to a catalog is written now, or kept."""

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path

from .leftovers import Leftover, leftovers
from .routing import RunOpener, RunRouter

__all__ = ["LOOK_AGAIN", "Recovery"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at what other processes left.
LOOK_AGAIN = 60.0


class Recovery:
    """Looks now and then for what was left for a catalog, and writes it.

    Each leftover is tried once. Where a run of it fails, it stays on disk as a whole: whoever
    finds it next has all of it, and what is stored already is not stored again.

    Parameters
    ----------
    folder
        As `spool_folder` names it; None where nothing can be left.
    open_run
        Makes the store of one run from its start document.
    target
        What the log calls the catalog.
    failed
        Is told of a run that fails, as that of a `RunRouter`.
    """

    def __init__(
        self,
        folder: Path | None,
        open_run: RunOpener,
        *,
        target: str,
        failed: Callable[[str | None, Exception, bool], None],
    ) -> None:
        self._folder = folder
        self._open_run = open_run
        self._target = target
        self._failed = failed
        self._known: set[Path] = set()
        self._next_look = 0.0

    def look(self) -> bool:
        """Write what is there, if it is time to look; tell whether it was."""
        if self._folder is None or time.monotonic() < self._next_look:
            return False
        try:
            for leftover in leftovers(self._folder, known=self._known):
                self._write(leftover)
        finally:
            self._next_look = time.monotonic() + LOOK_AGAIN
        return True

    def _write(self, leftover: Leftover) -> None:
        failures: list[Exception] = []
        whole = False

        def failed(uid: str | None, error: Exception, given_up: bool) -> None:
            failures.append(error)
            self._failed(uid, error, given_up)

        try:
            try:
                self._route(leftover, RunRouter(self._open_run, failed, leftover.claim))
            except Exception as error:
                failed(None, error, True)
            whole = not failures
        finally:
            # Also where nobody waits for the catalog any more.
            if whole:
                leftover.remove()
            else:
                leftover.leave()
        if whole:
            logger.warning(
                "What an earlier process could not write to %s was written now, from %s.",
                self._target,
                leftover.folder,
            )
            return
        logger.error(
            "What an earlier process could not write to %s stays in %s, since not all of it could "
            "be stored now either (%s). The next writer for this catalog tries again; what is not "
            "wanted any more may be deleted.",
            self._target,
            leftover.folder,
            failures[0],
        )

    def _route(self, leftover: Leftover, router: RunRouter) -> None:
        router.resume(leftover.runs)
        for documents in itertools.chain([leftover.routing], leftover.documents()):
            for name, doc in documents:
                router(name, doc)
            router.flush(force=True)
