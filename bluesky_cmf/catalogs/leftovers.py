"""What waits on disk for a catalog: its files, and what processes leave there when they end."""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from .packing import pack, unpack_all
from .routing import LOST

__all__ = [
    "LOCK",
    "STATE",
    "Leftover",
    "Named",
    "leftovers",
    "packed_document",
    "packed_state",
    "read_documents",
    "remove_folder",
    "spool_folder",
    "unlink",
]

logger = logging.getLogger(__name__)

#: The names of two files in the folder of one writer; the others hold documents.
STATE, LOCK = "state.msgpack", "lock"

#: A document with its kind.
Named = tuple[str, Any]

#: What tells whose a document is.
_IDS = ("uid", "run_start", "descriptor", "resource")


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


# ---- files ---------------------------------------------------------------------------------------


def packed_document(name: str, doc: Any) -> tuple[bytes, Exception | None]:
    """Give a document as bytes; one that cannot be packed costs no other.

    Returns
    -------
    packed, error
        Where there is an error, what says that this document is lost, and whose it is.
    """
    try:
        return pack((name, doc)), None
    except Exception as error:
        ids = {key: doc[key] for key in _IDS if isinstance(doc.get(key), str)}
        lost = {"count": 1, "cause": f"{name}: {error}", "of": name, "ids": ids}
        return pack((LOST, lost)), error


def packed_state(
    first: int, claim: str, runs: Sequence[Mapping[str, Any]], routing: Iterable[Named]
) -> tuple[list[bytes], list[Exception]]:
    """Give what is needed to go on as the parts of a file, and what of it cannot be packed.

    Parameters
    ----------
    first
        The number of the first file of documents that comes after.
    claim, runs
        What a `RunRouter` has for another one; a run that cannot be packed is given up there.
    routing
        Documents that come before those in files.
    """
    parts = [pack({"first": first, "claim": claim, "runs": len(runs)})]
    errors: list[Exception] = []
    for run in runs:
        try:
            parts.append(pack(run))
        except Exception as error:
            errors.append(error)
            start = {"uid": run["start"]["uid"]}
            parts.append(pack({"start": start, "owns": run["owns"], "store": None}))
    for name, doc in routing:
        packed, failure = packed_document(name, doc)
        parts.append(packed)
        errors += [failure] if failure else []
    return parts, errors


def read_documents(path: Path) -> list[Named]:
    """Read a file of documents."""
    with path.open("rb") as file:
        return [(name, doc) for name, doc in unpack_all(file)]


def unlink(files: Iterable[Path]) -> None:
    """Remove files; what cannot be removed is told and stays."""
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error)


def remove_folder(folder: Path, lock: filelock.FileLock) -> None:
    """Remove the folder of a writer, and give its lock back."""
    # The state first: without it the rest is nothing that anyone would go on with.
    unlink([folder / STATE])
    lock.release()
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        # That of the catalog, where it is empty.
        folder.parent.rmdir()


# ---- what others left ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """What a process could not write before it ended; this process alone has it.

    Attributes
    ----------
    folder
        Where it is.
    claim, runs
        For a `RunRouter` to go on with.
    routing
        The documents that come first.
    """

    folder: Path
    claim: str
    runs: list[dict[str, Any]]
    routing: list[Named]
    _first: int
    _lock: filelock.FileLock

    def documents(self) -> Iterator[list[Named]]:
        """Give the documents that come then, a file at once."""
        for path in sorted(self.folder.glob("*.docs")):
            if int(path.stem) >= self._first:
                yield read_documents(path)

    def remove(self) -> None:
        """Remove the files: everything is written."""
        remove_folder(self.folder, self._lock)

    def leave(self) -> None:
        """Let another one take it."""
        self._lock.release()


def leftovers(folder: Path, *, known: set[Path]) -> Iterator[Leftover]:
    """Give what earlier processes left for a catalog, the oldest first.

    Parameters
    ----------
    folder
        As `spool_folder` names it. What a living process has there is passed over.
    known
        What is passed over too; what is given, or cannot be read, is added.
    """
    for state in _by_age(folder.glob(f"*/{STATE}")):
        if state.parent in known:
            continue
        lock = filelock.FileLock(state.parent / LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (filelock.Timeout, OSError):
            continue
        try:
            found = _read_leftover(state, lock)
        except FileNotFoundError:
            # Another process was quicker. The lock has made the folder again.
            lock.release()
            _remove_lock(state.parent)
        except Exception as error:
            lock.release()
            known.add(state.parent)
            logger.error("What waits in %s cannot be read: %r", state.parent, error)
        else:
            known.add(state.parent)
            yield found


def _by_age(paths: Iterable[Path]) -> list[Path]:
    ages = []
    for path in paths:
        # Another process may write it, and remove it, meanwhile.
        with suppress(OSError):
            ages.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(ages)]


def _read_leftover(state: Path, lock: filelock.FileLock) -> Leftover:
    with state.open("rb") as file:
        head, *rest = unpack_all(file)
    runs, routing = rest[: head["runs"]], rest[head["runs"] :]
    documents = [(name, doc) for name, doc in routing]
    return Leftover(state.parent, head["claim"], runs, documents, head["first"], lock)


def _remove_lock(folder: Path) -> None:
    with suppress(OSError):
        (folder / LOCK).unlink()
        folder.rmdir()
        folder.parent.rmdir()
