"""The embedded Tiled server: one for a folder and process, shared by all who open the folder."""

# The exit hook of this module has to be younger than that of concurrent.futures, because the
# server works with its executors: hooks run in the reverse order of their registration.
import concurrent.futures.thread  # noqa: F401
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
from tiled.catalog.core import REQUIRED_REVISION

from ..errors import CatalogError
from ..worker import at_exit
from .folder_server import CATALOG_FILE, TABLES_FILE, FolderServer

__all__ = ["release", "serve"]


@dataclass
class _Served:
    server: FolderServer
    users: int = 0


@dataclass
class _Shelf:
    """The servers of this process, by folder."""

    served: dict[Path, _Served] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    closes_at_exit: bool = False


_shelf = _Shelf()


def serve(folder: Path, *, create: bool = True) -> str:
    """Start the server of a folder, or take part in the one that runs.

    Parameters
    ----------
    folder
        An absolute path.
    create
        Whether a new or empty folder is made into a catalog.

    Returns
    -------
    str
        The address of the server, its key included. Each call needs one `release`.

    Raises
    ------
    CatalogError
        If the folder is not a catalog, cannot be written, or is open in another process.
    """
    with _shelf.lock:
        if folder not in _shelf.served:
            _check(folder, create=create)
            try:
                _shelf.served[folder] = _Served(FolderServer(folder))
            except Exception as error:
                raise _refusal(folder, error) from error
            if not _shelf.closes_at_exit:
                at_exit(_close_all, stage="servers")
                _shelf.closes_at_exit = True
        _shelf.served[folder].users += 1
        return _shelf.served[folder].server.uri


def release(folder: Path) -> None:
    """Give up one use of the server of `folder`; the last one closes it."""
    with _shelf.lock:
        served = _shelf.served.get(folder)
        if served is None:
            return
        served.users -= 1
        if served.users <= 0:
            _shelf.served.pop(folder).server.close()


def _close_all() -> None:
    with _shelf.lock:
        while _shelf.served:
            _shelf.served.popitem()[1].server.close()


def _check(folder: Path, *, create: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise CatalogError(
            f"{folder} is a file, and a catalog is a folder. Name a new or empty folder, or one "
            "that holds a catalog."
        )
    if (folder / CATALOG_FILE).is_file():
        _check_databases(folder)
        return
    if not create:
        raise CatalogError(
            f"There is no catalog in the folder {folder}. Name the folder that runs were stored "
            "in, the http(s) address of a Tiled server, or a Tiled profile."
        )
    if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise CatalogError(
            f"The folder {folder} is not empty and holds no catalog (no {CATALOG_FILE}). "
            "Name a new or an empty folder."
        )


def _check_databases(folder: Path) -> None:
    """Refuse at once what the server would find out only after its start."""
    try:
        with closing(sqlite3.connect(folder / CATALOG_FILE)) as catalog:
            (revision,) = catalog.execute("SELECT version_num FROM alembic_version").fetchone()
        if (folder / TABLES_FILE).exists():
            duckdb.connect(str(folder / TABLES_FILE)).close()
    except (sqlite3.Error, duckdb.Error, TypeError) as error:
        raise _refusal(folder, error) from error
    if revision != REQUIRED_REVISION:
        raise CatalogError(
            f"The catalog in {folder} was made by another version of Tiled. Bring it up to date "
            f"with 'tiled catalog upgrade-database sqlite:///{folder / CATALOG_FILE}', or "
            "install the version that made it."
        )


def _refusal(folder: Path, error: BaseException) -> CatalogError:
    if f"lock on file {str(folder / TABLES_FILE)!r}".replace("'", '"') in str(error):
        return CatalogError(
            f"The catalog in {folder} is open in another process, and a folder serves one at a "
            "time. Close it there, or run a Tiled server over the folder and give its address "
            "to both."
        )
    return CatalogError(
        f"The folder {folder} cannot be opened as a catalog: {error}. Check that it may be "
        "written and was made by Tiled, or name a new folder."
    )
