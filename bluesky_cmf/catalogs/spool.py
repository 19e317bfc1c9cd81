"""Documents that wait for the catalog: in memory up to a bound, beyond it in files on disk."""

import hashlib
import logging
import os
import re
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import platformdirs

from .packing import pack, unpack, unpack_all

__all__ = ["MEMORY", "Leftover", "Spool", "leftovers", "spool_folder"]

logger = logging.getLogger(__name__)

#: Bytes of documents that wait in memory before the rest goes to disk.
MEMORY = 64 * 2**20
#: Bytes of one file.
_PARCEL = 4 * 2**20
#: Seconds between two files while the catalog is away, and between two attempts on a full disk.
_PACE, _RETRY = 1.0, 10.0
_STATE, _LOCK = "state.msgpack", "lock"

_Named = tuple[str, Any]


def spool_folder(spec: str, given: str | os.PathLike[str] | None = None) -> Path:
    """Name the folder for what waits for a catalog.

    Parameters
    ----------
    spec
        The catalog, as `open_catalog` takes it.
    given
        The folder for all catalogs; None takes that of the environment variable
        ``BLUESKY_CMF_SPOOL``, or else one in the user's folder for the state of programs.
    """
    base = given or os.environ.get("BLUESKY_CMF_SPOOL")
    root = Path(base) if base else platformdirs.user_state_path("bluesky-cmf") / "spool"
    # Readable, and different for catalogs whose names differ in what a folder cannot be called.
    name = re.sub(r"[^\w.-]+", "_", spec).strip("_.")[-60:]
    return root.expanduser() / f"{name}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"


@dataclass
class _Parcel:
    """Documents that are in memory, or in one file, or both."""

    number: int
    documents: list[_Named] | None = field(default_factory=list)
    size: int = 0
    count: int = 0
    path: Path | None = None
    sealed: bool = False
    #: Whether it holds what cannot be in a file.
    unpackable: bool = False


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
        self._state: bytes | None = None
        #: Files that were read and still belong to the state on disk, or to one before.
        self._journal: list[Path] = []
        self._outdated: list[Path] = []
        self._held = self._away = self._everything = self._closed = self._busy = False
        self._lock: filelock.FileLock | None = None
        self._trouble: Exception | None = None
        self._thread = threading.Thread(target=self._spill, name="catalog-spool", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        with self._changed:
            return sum(parcel.count for parcel in self._parcels)

    def put(self, name: str, doc: Any) -> None:
        """Queue a document; nothing is written and nothing waited for."""
        size = _size(doc)
        with self._changed:
            parcel = self._parcels[-1] if self._parcels else None
            if parcel is None or parcel.sealed or parcel.size > _PARCEL:
                parcel = _Parcel(self._next)
                self._next += 1
                self._parcels.append(parcel)
            if parcel.documents is not None:
                parcel.documents.append((name, doc))
            parcel.size += size
            parcel.count += 1
            self._in_memory += size
            if self._away or self._in_memory > self._memory:
                self._changed.notify_all()

    def take(self) -> list[_Named]:
        """Give the oldest documents, a file of them at most; nothing where none wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            if not self._parcels:
                return []
            parcel = self._parcels[0]
            parcel.sealed = True
            self._busy = unsaved = self._held and parcel.path is None
        if unsaved and not self._written(parcel):
            # With a gap in it, what is on disk cannot be gone on with.
            self._drop_journal()
        with self._changed:
            self._busy = False
            self._parcels.popleft()
            documents, path = parcel.documents, parcel.path
            if documents is not None:
                self._in_memory -= parcel.size
            if path is not None and self._held:
                self._journal.append(path)
            self._changed.notify_all()
        if documents is None and path is not None:
            try:
                documents = _read(path)
            except Exception as error:
                logger.error("%d documents are lost, in %s: %s", parcel.count, path, error)
                return [("lost", {})] * parcel.count
        if path is not None and not self._held:
            path.unlink(missing_ok=True)
        return documents or []

    def hold(self, state: Any) -> None:
        """Keep what waits on disk from now on, with what is needed to go on with it.

        Parameters
        ----------
        state
            Plain data: everything that was taken before and is not in the catalog.
        """
        with self._changed:
            first = self._parcels[0].number if self._parcels else self._next
            if self.folder is None:
                return
            try:
                self._state = pack({"first": first, "state": state})
            except (TypeError, ValueError, OverflowError) as error:
                self._report(error)
                return
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
        with self._changed:
            if not self._held or self._away:
                return True
            if any(parcel.path is not None for parcel in self._parcels):
                return False
            self._changed.wait_for(lambda: not self._busy)
            self._held = False
            self._trouble = None
        self._drop_journal()
        return True

    def forget(self) -> None:
        """Forget what was held: nothing of it waits."""
        with self._changed:
            self._held = self._away = False
        self._drop_journal()

    def save(self, timeout: float) -> bool:
        """Write everything that waits to disk; tell whether it is there, after `hold`."""
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
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            if self.folder is not None and not (keep and self._held):
                shutil.rmtree(self.folder, ignore_errors=True)
                _remove_empty(self.folder.parent)

    # ---- to disk ---------------------------------------------------------------------------------

    def _saved(self) -> bool:
        return self._state is None and all(parcel.path is not None for parcel in self._parcels)

    def _wanted(self) -> _Parcel | bytes | None:
        """Give what is to be written now."""
        if self._state is not None:
            return self._state
        if self.folder is None or not (
            self._away or self._everything or self._in_memory > self._memory
        ):
            return None
        waiting = (p for p in self._parcels if p.path is None and not p.unpackable)
        return next(waiting, None)

    def _spill(self) -> None:
        while True:
            with self._changed:
                # One writes at a time: `take` may be at the same file.
                self._changed.wait_for(
                    lambda: self._closed or (not self._busy and self._wanted() is not None)
                )
                if self._closed:
                    return
                wanted = self._wanted()
                self._busy = True
            trouble = self._write(wanted)
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                if trouble:
                    self._changed.wait_for(lambda: self._closed, _RETRY)
                elif self._away and not self._everything and self._in_memory < self._memory:
                    # Not a file for each document.
                    self._changed.wait_for(lambda: self._closed or self._everything, _PACE)

    def _write(self, wanted: _Parcel | bytes | None) -> bool:
        """Write a parcel or the state; tell whether that failed."""
        if isinstance(wanted, _Parcel):
            with self._changed:
                wanted.sealed = True
            return not self._written(wanted)
        if wanted is not None:
            try:
                self._store(_STATE, [wanted])
            except OSError as error:
                self._report(error)
                return True
            with self._changed:
                if self._state is wanted:
                    self._state = None
                outdated, self._outdated = self._outdated, []
            _unlink(outdated)
        return False

    def _written(self, parcel: _Parcel) -> bool:
        documents = parcel.documents
        if documents is None:
            return True
        try:
            path = self._store(f"{parcel.number:08d}.docs", (pack(named) for named in documents))
        except OSError as error:
            self._report(error)
            return False
        except (TypeError, ValueError, OverflowError) as error:
            parcel.unpackable = True
            self._report(error)
            return False
        with self._changed:
            parcel.path = path
            if parcel in self._parcels:
                parcel.documents = None
                self._in_memory -= parcel.size
            self._changed.notify_all()
        return True

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
            lock = filelock.FileLock(self.folder / _LOCK, thread_local=False)
            lock.acquire(timeout=0)
            self._lock = lock
        return self.folder

    def _drop_journal(self) -> None:
        if self.folder is None:
            return
        with self._changed:
            self._state = None
            files = [self.folder / _STATE, *self._journal, *self._outdated]
            self._journal, self._outdated = [], []
        _unlink(files)

    def _report(self, error: Exception) -> None:
        with self._changed:
            first, self._trouble = self._trouble is None, error
            self._changed.notify_all()
        if first:
            logger.error(
                "Documents that wait for the catalog cannot be put on disk in %s (%s): they wait "
                "in memory. Make room there, or name another folder in BLUESKY_CMF_SPOOL.",
                self.folder,
                error,
            )


@dataclass(frozen=True)
class Leftover:
    """What a process could not write before it ended; this process alone has it.

    Attributes
    ----------
    folder
        Where it is.
    state
        As given to `Spool.hold`.
    """

    folder: Path
    state: Any
    _first: int
    _lock: filelock.FileLock

    def documents(self) -> Iterator[list[_Named]]:
        """Give the documents that came after the state, a file at once."""
        for path in sorted(self.folder.glob("*.docs")):
            if int(path.stem) >= self._first:
                yield _read(path)

    def remove(self) -> None:
        """Remove the files: everything is written."""
        # The state first: without it the rest is nothing that anyone would go on with.
        (self.folder / _STATE).unlink(missing_ok=True)
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)
        _remove_empty(self.folder.parent)

    def leave(self) -> None:
        """Let another one take it."""
        self._lock.release()


def leftovers(folder: Path) -> Iterator[Leftover]:
    """Give what earlier processes left for a catalog, the oldest first.

    Parameters
    ----------
    folder
        As `spool_folder` names it. What a living process has there is passed over.
    """
    states = ((path.stat().st_mtime, path) for path in folder.glob(f"*/{_STATE}"))
    for _, path in sorted(states):
        lock = filelock.FileLock(path.parent / _LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (filelock.Timeout, OSError):
            continue
        try:
            kept = unpack(path.read_bytes())
            found = Leftover(path.parent, kept["state"], kept["first"], lock)
        except FileNotFoundError:
            lock.release()
            continue
        except Exception as error:
            lock.release()
            logger.error("What waits in %s cannot be read: %s", path.parent, error)
            continue
        yield found


def _read(path: Path) -> list[_Named]:
    with path.open("rb") as file:
        return [(name, doc) for name, doc in unpack_all(file)]


def _unlink(files: Iterable[Path]) -> None:
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


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
