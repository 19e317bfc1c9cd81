"""Documents that wait for the catalog: in memory up to a bound, beyond it in files on disk."""

import logging
import os
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from .leftovers import (
    LOCK,
    STATE,
    Named,
    packed_document,
    packed_state,
    read_documents,
    remove_folder,
    unlink,
)
from .routing import LOST

__all__ = ["MEMORY", "Spool"]

logger = logging.getLogger(__name__)

#: Bytes of documents that wait in memory before the rest goes to disk.
MEMORY = 64 * 2**20
#: Bytes of one file.
_PARCEL = 4 * 2**20
#: Seconds between two files while the catalog is away, and between two attempts on a full disk.
_PACE, _RETRY = 1.0, 10.0


@dataclass
class _Parcel:
    """Documents that are in memory, or in one file."""

    number: int
    documents: list[Named] = field(default_factory=list)
    size: int = 0
    count: int = 0
    path: Path | None = None
    sealed: bool = False
    #: Those that cannot be in a file, in their order.
    unpackable: list[Named] = field(default_factory=list)


class Spool:
    """A queue of documents, first in, first out, from one thread or several to one.

    While the catalog answers, files hold what memory should not. While it is away everything goes
    to disk, together with what is needed to go on (`hold`), so that another process can.

    Parameters
    ----------
    folder
        The folder of the catalog; a folder of its own is made in it when it is needed. None keeps
        all in memory.
    memory
        Bytes that wait in memory.

    Attributes
    ----------
    claim
        What this spool is called; never that of another one.
    """

    def __init__(self, folder: Path | None, *, memory: int | None = None) -> None:
        self.claim = uuid.uuid4().hex
        self.folder = None if folder is None else folder / self.claim
        self._memory = MEMORY if memory is None else memory
        self._changed = threading.Condition()
        self._parcels: deque[_Parcel] = deque()
        self._next = 0
        self._in_memory = 0
        self._state: list[bytes] | None = None
        #: Files that were read and still belong to the state on disk, or to one before.
        self._journal: list[Path] = []
        self._outdated: list[Path] = []
        self._held = self._away = self._everything = self._closed = False
        #: Whether somebody is at the files.
        self._busy = False
        self._lock: filelock.FileLock | None = None
        self._trouble: Exception | None = None
        self._told = self._told_unpackable = False
        self._thread = threading.Thread(target=self._spill, name="catalog-spool", daemon=True)
        self._thread.start()

    def put(self, name: str, doc: Any) -> None:
        """Queue a document; nothing is written and nothing waited for."""
        size = _size(doc)
        with self._changed:
            parcel = self._parcels[-1] if self._parcels else None
            if parcel is None or parcel.sealed or parcel.size > _PARCEL:
                parcel = _Parcel(self._next)
                self._next += 1
                self._parcels.append(parcel)
            parcel.documents.append((name, doc))
            parcel.size += size
            parcel.count += 1
            self._in_memory += size
            if self._away or self._in_memory > self._memory:
                self._changed.notify_all()

    def take(self) -> list[Named]:
        """Give the oldest documents, a file of them at most; nothing where none wait.

        A document of the kind `LOST` stands for those that cannot be read again.
        """
        with self._at_files():
            with self._changed:
                if not self._parcels:
                    return []
                parcel = self._parcels[0]
                parcel.sealed = True
                unsaved = self._held and parcel.path is None
            documents = parcel.documents
            if unsaved and not self._save_parcel(parcel):
                # With a gap in it, what is on disk cannot be gone on with.
                self._let_go()
            with self._changed:
                self._parcels.popleft()
                path, in_memory = parcel.path, unsaved or parcel.path is None
                if parcel.documents:
                    self._in_memory -= parcel.size
                if path is not None and self._held:
                    self._journal.append(path)
                held = self._held
            if not in_memory:
                documents = self._read(parcel)
            if path is not None and not held:
                unlink([path])
        return documents

    def hold(self, runs: Sequence[Mapping[str, Any]], routing: Sequence[Named]) -> None:
        """Keep what waits on disk from now on, with what is needed to go on with it.

        Parameters
        ----------
        runs
            Plain data: what a `RunRouter` knows of its open runs.
        routing
            The documents that were taken before and are not given to it.
        """
        if self.folder is None:
            return
        with self._changed:
            first = self._parcels[0].number if self._parcels else self._next
        # Not under the lock, which `put` needs: there may be much.
        state, errors = packed_state(first, self.claim, runs, routing)
        for error in errors:
            self._report_unpackable(error)
        with self._changed:
            self._state = state
            self._outdated += self._journal
            self._journal = []
            self._held = self._away = True
            self._changed.notify_all()

    def answered(self) -> None:
        """Let memory do again, and `release` what is on disk as soon as it is read."""
        with self._changed:
            self._away = False

    def release(self) -> bool:
        """Forget what was held; False while a part of what waits is on disk."""
        with self._at_files():
            with self._changed:
                if not self._held or self._away:
                    return True
                if any(parcel.path is not None for parcel in self._parcels):
                    return False
                self._trouble, self._told = None, False
            self._let_go()
        return True

    def forget(self) -> None:
        """Forget what was held: nothing of it waits."""
        with self._at_files():
            with self._changed:
                self._away = False
            self._let_go()

    def save(self, timeout: float) -> bool:
        """Write everything that waits to disk; tell whether it is there, after `hold`."""
        if self.folder is None:
            return False
        with self._changed:
            self._everything = True
            self._changed.notify_all()
            self._trouble = None
            self._changed.wait_for(lambda: self._saved() or self._trouble is not None, timeout)
            return self._held and self._saved()

    def close(self, *, keep: bool = False) -> None:
        """End the thread; what is held may be kept, for another process to go on with."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(5.0)
        if self._lock is None or self.folder is None:
            return
        if keep and self._held:
            self._lock.release()
        else:
            remove_folder(self.folder, self._lock)
        self._lock = None

    # ---- to disk ---------------------------------------------------------------------------------

    @contextmanager
    def _at_files(self) -> Iterator[None]:
        """Keep others from the files."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._busy = True
        try:
            yield
        finally:
            self._leave_files()

    def _leave_files(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def _saved(self) -> bool:
        return self._state is None and all(parcel.path is not None for parcel in self._parcels)

    def _wanted(self) -> _Parcel | list[bytes] | None:
        """Give what is to be written now."""
        if self._state is not None:
            return self._state
        if self.folder is None or not (
            self._away or self._everything or self._in_memory > self._memory
        ):
            return None
        return next((parcel for parcel in self._parcels if parcel.path is None), None)

    def _spill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or (not self._busy and self._wanted() is not None)
                )
                if self._closed:
                    return
                wanted = self._wanted()
                if isinstance(wanted, _Parcel):
                    wanted.sealed = True
                self._busy = True
            try:
                written = self._write(wanted)
            finally:
                self._leave_files()
            with self._changed:
                if not written:
                    self._changed.wait_for(lambda: self._closed, _RETRY)
                elif self._away and not self._everything and self._in_memory < self._memory:
                    # Not a file for each document.
                    self._changed.wait_for(lambda: self._closed or self._everything, _PACE)

    def _write(self, wanted: _Parcel | list[bytes] | None) -> bool:
        """Write a parcel or the state; tell whether that is done."""
        if isinstance(wanted, _Parcel):
            return self._save_parcel(wanted)
        return wanted is None or self._save_state(wanted)

    def _save_state(self, state: list[bytes]) -> bool:
        try:
            self._store(STATE, state)
        except Exception as error:
            self._report(error)
            return False
        with self._changed:
            if self._state is state:
                self._state = None
            outdated, self._outdated = self._outdated, []
        unlink(outdated)
        return True

    def _save_parcel(self, parcel: _Parcel) -> bool:
        unpackable: list[Named] = []

        def parts() -> Iterator[bytes]:
            for named in parcel.documents:
                packed, error = packed_document(*named)
                if error is not None:
                    unpackable.append(named)
                    self._report_unpackable(error)
                yield packed

        try:
            path = self._store(f"{parcel.number:08d}.docs", parts())
        except Exception as error:
            self._report(error)
            return False
        with self._changed:
            parcel.path, parcel.unpackable = path, unpackable
            parcel.documents = []
            self._in_memory -= parcel.size
            self._changed.notify_all()
        return True

    def _read(self, parcel: _Parcel) -> list[Named]:
        path = parcel.path
        if path is None:
            return parcel.documents
        try:
            documents = read_documents(path)
        except Exception as error:
            logger.error("%d documents are lost, in %s: %s", parcel.count, path, error)
            return [(LOST, {"count": parcel.count, "cause": f"{path} cannot be read: {error}"})]
        # This process still has what could not be in the file.
        kept = iter(parcel.unpackable)
        return [next(kept, named) if named[0] == LOST else named for named in documents]

    def _store(self, name: str, parts: Iterable[bytes]) -> Path:
        """Write a file that is there whole or not at all."""
        path = self._own_folder() / name
        unfinished = path.with_suffix(".unfinished")
        try:
            with unfinished.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return path

    def _own_folder(self) -> Path:
        if self.folder is None:
            raise FileNotFoundError("no folder was named")
        if self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / LOCK, thread_local=False)
            lock.acquire(timeout=0)
            self._lock = lock
        return self.folder

    def _let_go(self) -> None:
        """Remove what is held on disk; for whoever has the files alone."""
        with self._changed:
            self._held, self._state = False, None
            files = [*self._journal, *self._outdated]
            self._journal, self._outdated = [], []
        if self.folder is not None:
            # The state first: without it the rest is nothing that anyone would go on with.
            unlink([self.folder / STATE, *files])

    def _report(self, error: Exception) -> None:
        with self._changed:
            first, self._told, self._trouble = not self._told, True, error
            self._changed.notify_all()
        if first:
            logger.error(
                "Documents that wait for the catalog cannot be put on disk in %s (%s): they wait "
                "in memory. Make room there, or name another folder in BLUESKY_CMF_SPOOL.",
                self.folder,
                error,
            )

    def _report_unpackable(self, error: Exception) -> None:
        if not self._told_unpackable:
            self._told_unpackable = True
            logger.error(
                "A document that waits for the catalog cannot be put on disk, because %s. Where "
                "this process ends before it is stored, its run is given up; others are not "
                "concerned. Put plain data into documents.",
                error,
            )


def _size(value: Any) -> int:
    """Estimate what a document takes in memory, without a look at every number in it."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes) + 100
    if isinstance(value, dict):
        return 100 + sum(map(_size, value.values()))
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (np.ndarray, list, tuple, dict)):
            return 50 + sum(map(_size, value))
        return 50 + 32 * len(value)
    return 50 + (len(value) if isinstance(value, (str, bytes)) else 0)
