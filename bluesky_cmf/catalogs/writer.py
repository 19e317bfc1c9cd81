"""`CatalogWriter`: the callback that stores documents from a thread of its own."""

import logging
import threading
import time
import weakref
from collections import deque
from pathlib import Path

from ..worker import at_exit
from .failures import Failures
from .patience import Abandoned, Attendant, attend
from .recovering import LOOK_AGAIN, Recovery
from .routing import LOST, Document, RunOpener, RunRouter
from .spool import Spool
from .taking import LatestLeftOut, detached

__all__ = ["CatalogWriter"]

logger = logging.getLogger(__name__)

#: Seconds that documents are collected before they are written.
_PACE = 0.5
#: Seconds without any progress after which a close without timeout, and the drain at exit, put
#: what waits on disk: where the catalog is known not to answer, and where it only seems so.
_STUCK_AWAY, _STUCK = 20.0, 90.0
#: Seconds that putting it on disk may take, and that the thread may take to come to a request.
_SAVING, _STILL = 60.0, 5.0


class CatalogWriter:
    """Stores the runs that it is called with, raw and analysis runs, interleaved or not.

    A call copies the document and returns. A daemon thread writes: what came is collected for
    half a second, so that a reader sees an event after at most 2 s and a fast scan is written in
    large batches.

    While the catalog does not answer, documents wait, in memory and in files on disk, for as long
    as the process lives; nothing is lost, and in Tiled nothing is written twice. databroker's
    server cannot be asked what it has: a document whose answer was lost is sent to it again, and
    only a database with databroker's unique indexes keeps it once. When the interpreter exits the
    rest is written first. What cannot be written then, because the catalog does not answer or
    takes a request and says nothing, stays on disk, and the next writer for the same catalog
    writes it. What is refused then stays there too.

    Parameters
    ----------
    open_run
        Makes the store of one run from its start document.
    target
        What the log calls the catalog.
    latest
        Whether the stream ``latest`` of analysis runs is stored; it repeats the raw data.
    spool
        The folder for what has to wait on disk; None keeps all in memory.

    Attributes
    ----------
    error
        The first failure; None while there is none. A run that fails is given up, without a
        stop document, and the others go on; so they do after a document that makes no sense. A
        catalog that does not answer is no failure.
    """

    def __init__(
        self,
        open_run: RunOpener,
        *,
        target: str = "the catalog",
        latest: bool = False,
        spool: Path | None = None,
    ) -> None:
        self._failures = Failures(target)
        self._target = target
        self._left_out = None if latest else LatestLeftOut()
        self._spool = Spool(spool)
        self._router = RunRouter(open_run, self._failures.run, self._spool.claim)
        self._recovery = Recovery(spool, open_run, target=target, failed=self._failures.run)
        #: What was taken out of the spool, the first perhaps in part, the others not.
        self._routing: deque[tuple[str, Document]] = deque()
        self._changed = threading.Condition()
        self._received = self._handled = self._written = 0
        self._hurry = self._closing = self._closed = False
        #: Whether the catalog does not answer, and how many documents were written before.
        self._away = False
        self._written_before: int | None = None
        self._recovering = spool is not None
        self._attendant = Attendant(self._lost_touch, self._in_touch)
        #: Not the thread itself: one whose `join` was interrupted passes for ended.
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="catalog-writer", daemon=True).start()
        reference = weakref.ref(self)
        at_exit(lambda: _drain(reference), stage="writers")

    @property
    def error(self) -> BaseException | None:
        """The first failure; None while there is none."""
        return self._failures.first

    def __call__(self, name: str, doc: Document) -> None:
        """Take one document; nothing is raised and nothing is waited for.

        Parameters
        ----------
        name
            The kind of document: "start", "descriptor", "event", "event_page", "stop", …
        doc
            The document, which is not changed, and may be changed by others afterwards.
        """
        try:
            if self._leave_out(name, doc):
                return
            own = detached(name, doc)
        except Exception as error:
            self._failures.document(name, error)
            return
        with self._changed:
            if self._closing:
                if not self._closed:
                    logger.warning("The writer of %s is closed: documents are not stored.", self)
                    self._closed = True
                return
            self._spool.put(name, own)
            self._received += 1
            if self._received == self._handled + 1:
                self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Write what has come so far, now.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits as long as it takes, also for a catalog that does not
            answer.

        Returns
        -------
        bool
            True where everything received, and what an earlier process left, stands in the
            catalog; False at the timeout, or where a run was given up (see `error`).
        """
        with self._changed:
            target = self._received
            self._hurry = True
            self._changed.notify_all()

            def done() -> bool:
                return self._written >= target and not self._recovering

            self._changed.wait_for(lambda: done() or self._ended.is_set(), timeout)
            return done() and self.error is None

    def close(self, timeout: float | None = None) -> bool:
        """Write what has come and end the thread; documents that come later are left out.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits as long as the catalog answers: 20 s where it is known not
            to, 90 s where it takes a request and says nothing.

        Returns
        -------
        bool
            As `flush`. What could not be written because the catalog does not answer stays on
            disk: the next writer for this catalog writes it.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._join(timeout)
        if not self._ended.is_set() and (self._away or timeout is None):
            self._leave()
        with self._changed:
            return self._written >= self._received and self.error is None

    def _join(self, timeout: float | None) -> None:
        """Wait for the thread; without a timeout, for as long as it gets on."""
        if timeout is not None:
            self._ended.wait(timeout)
            return
        watch = _Progress(self)
        while not self._ended.is_set() and not watch.stuck():
            self._ended.wait(0.1)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} into {self._target}>"

    def _leave_out(self, name: str, doc: Document) -> bool:
        # Before it waits anywhere: from disk another process stores all that it finds.
        with self._changed:
            return self._left_out is not None and self._left_out(name, doc)

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        attend(self._attendant)
        whole = False
        try:
            with self._attendant.moving:
                self._work()
            whole = True
        except Abandoned:
            return
        finally:
            # Not before: another writer may go on with what is kept.
            self._spool.close(keep=not whole)
            with self._changed:
                self._ended.set()
                self._changed.notify_all()

    def _work(self) -> None:
        self._recover()
        waits = False
        while True:
            force, last = self._collect(waits)
            try:
                waits = self._write(force)
            except Exception as error:
                self._failures.stumble(error)
                # What was taken, and is not written, is not left until more comes.
                waits = True
                self._attendant.abandoned.wait(_PACE)
            with self._changed:
                if last and self._written == self._received:
                    return
            if not force:
                self._recover()

    def _write(self, force: bool) -> bool:
        """Write what has come; tell whether some of it is held back."""
        while True:
            self._routing.extend(self._spool.take())
            while self._routing:
                name, doc = self._routing[0]
                self._route(name, doc)
                # What is being routed can be gone on with only as a whole.
                self._routing.popleft()
                self._handled += doc["count"] if name == LOST else 1
            waits = self._router.flush(force=force)
            with self._changed:
                if not waits:
                    self._written = self._handled
                self._changed.notify_all()
                all_taken = self._handled == self._received
            self._caught_up(all_taken and not waits)
            if all_taken:
                return waits

    def _recover(self) -> None:
        """Write what earlier processes left for this catalog."""
        try:
            if self._recovery.look():
                self._caught_up(self._written == self._received)
        except Exception as error:
            self._failures.stumble(error)
        with self._changed:
            self._recovering = False
            self._changed.notify_all()

    def _route(self, name: str, doc: Document) -> None:
        try:
            self._router(name, doc)
        except Exception as error:
            # Without this thread nothing would ever be stored again.
            self._failures.document(name, error)

    def _collect(self, waits: bool) -> tuple[bool, bool]:
        """Wait for documents; tell whether to write everything, and whether to end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._received > self._handled or waits or self._hurry or self._closing,
                LOOK_AGAIN,
            )
            self._changed.wait_for(lambda: self._hurry or self._closing, _PACE)
            force = self._hurry or self._closing
            self._hurry = False
            return force, self._closing

    # ---- a catalog that does not answer ----------------------------------------------------------

    def _lost_touch(self, error: Exception) -> None:
        """Keep on disk what is needed to go on; called in the thread, in a request."""
        self._hold()
        with self._changed:
            self._away = True
            first, waiting = self._written_before is None, self._received - self._written
            if first:
                self._written_before = self._written
            self._changed.notify_all()
        if first:
            logger.warning(
                "%s does not answer, or cannot store now (%s). %d documents wait, with those that "
                "come, in memory and in %s; they are written when it is back.",
                self._target,
                error,
                waiting,
                self._spool.folder,
            )

    def _hold(self) -> None:
        try:
            self._spool.hold(self._router.state(), list(self._routing))
        except Exception as error:
            # What waits for the catalog in memory does so all the same.
            self._failures.stumble(error)

    def _in_touch(self) -> None:
        with self._changed:
            self._away = False
        self._spool.answered()

    def _caught_up(self, entirely: bool) -> None:
        """Forget what is on disk as soon as none of it waits, and tell when nothing waits."""
        if self._written_before is None or not self._spool.release() or not entirely:
            return
        with self._changed:
            n_documents = self._written - self._written_before
            self._written_before = None
        logger.warning("%s answers again; %d documents were written.", self._target, n_documents)

    def _leave(self) -> None:
        """Put what waits on disk for another process; where that fails, the thread goes on."""
        n_documents = self._received - self._written
        if not n_documents:
            self._spool.forget()
            self._attendant.abandoned.set()
            return
        if not self._put_aside():
            logger.error(
                "%s does not answer, and %d documents could not be put on disk in %s: they are "
                "lost when this process ends.",
                self._target,
                n_documents,
                self._spool.folder,
            )
            return
        self._ended.wait(1.0)
        logger.error(
            "%s does not answer: %d documents wait in %s. They are written by the next writer for "
            "this catalog: when it answers again, open it and call its writer(), in any process.",
            self._target,
            n_documents,
            self._spool.folder,
        )

    def _put_aside(self) -> bool:
        # The thread is in a request, or comes to one, and finds then that nobody waits for it.
        if not self._attendant.moving.acquire(timeout=_STILL):
            return False
        try:
            self._hold()
            if not self._spool.save(_SAVING):
                return False
            self._attendant.abandoned.set()
            return True
        finally:
            self._attendant.moving.release()


class _Progress:
    """Tells whether a writer gets on."""

    def __init__(self, writer: CatalogWriter) -> None:
        self._writer = writer
        self._seen, self._since = (-1, -1), time.monotonic()

    def stuck(self) -> bool:
        seen = self._writer._handled, self._writer._attendant.n_answers
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        patience = _STUCK_AWAY if self._writer._away else _STUCK
        return time.monotonic() - self._since > patience


def _drain(reference: "weakref.ref[CatalogWriter]") -> None:
    """Write the rest at exit, for as long as it gets on."""
    writer = reference()
    if writer is None:
        return
    watch = _Progress(writer)
    while not writer._ended.is_set() and not writer._attendant.abandoned.is_set():
        if writer.flush(1.0) or writer._written >= writer._received:
            break
        if watch.stuck():
            writer._leave()
            return
    if not writer._attendant.abandoned.is_set():
        writer.close(1.0)
