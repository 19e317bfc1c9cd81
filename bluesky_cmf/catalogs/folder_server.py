"""A Tiled server over the files of one folder, inside this process.

The files are those of ``tiled.server.SimpleTiledServer``, which can open the folder too. That
class starts another interpreter each time, closes the logging handlers of the whole process, and
keeps the process from exiting.
"""

import asyncio
import logging
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import tiled.server.app
import uvicorn
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool
from tiled.catalog import from_uri as catalog_from_uri
from tiled.catalog.alembic_constants import ALEMBIC_DIR
from tiled.catalog.core import REQUIRED_REVISION, initialize_database
from tiled.config import Authentication, StreamingCacheConfig
from tiled.server.app import build_app
from tiled.server.settings import get_settings
from tiled.server.simple import ThreadedServer
from tiled.storage import get_storage
from tiled.utils import ensure_uri
from zarr.errors import UnstableSpecificationWarning

__all__ = ["CATALOG_FILE", "TABLES_FILE", "FolderServer"]

#: The database of runs, streams and data keys; its presence makes a folder a catalog.
CATALOG_FILE = "catalog.db"
#: The database of tables, which DuckDB locks for one process.
TABLES_FILE = "storage.duckdb"
#: Seconds that the server may take to answer.
_START = 30.0
#: Seconds that a request waits for those before it to be done with the tables.
_CONNECTION = 120.0
#: The loggers of the server. What they say goes to a file in the folder and not to the console.
_LOGGERS = (
    *("tiled.server", "tiled.server.app", "tiled.catalog", "tiled.adapters", "tiled.graph"),
    *("uvicorn.error", "uvicorn.access"),
)

# The server writes in threads of its own, where a narrower place for this does not exist: strings
# in arrays work, but Zarr may store them otherwise one day.
warnings.filterwarnings("ignore", category=UnstableSpecificationWarning)


class FolderServer:
    """Serves a folder from creation to `close`.

    Parameters
    ----------
    folder
        An absolute path. A folder without catalog is made into one.

    Attributes
    ----------
    uri
        The address, its key included.

    Raises
    ------
    Exception
        Whatever keeps it from starting.
    """

    def __init__(self, folder: Path) -> None:
        self._closing = ExitStack()
        with ExitStack() as undo:
            (folder / "data").mkdir(parents=True, exist_ok=True)
            log = _FolderLog(folder)
            undo.callback(log.close)
            if not (folder / CATALOG_FILE).exists():
                _make_catalog(folder / CATALOG_FILE)
            tables = ensure_uri(f"duckdb:///{folder / TABLES_FILE}")
            catalog = catalog_from_uri(
                folder / CATALOG_FILE,
                writable_storage=[folder / "data", tables],
                # Detectors write their files anywhere, and the user may read them anyway.
                readable_storage=[Path(folder.anchor)],
                cache_config=StreamingCacheConfig(uri="memory").model_dump(),
            )
            # Takes the lock now, and not at the first event.
            storage = get_storage(tables)
            undo.callback(storage.dispose)
            _give_to_one_at_a_time(storage)
            storage.connect().close()
            # All servers of a process share one settings object, and with it one key: the last
            # to start decides. So this one takes the key that is there.
            key = get_settings().single_user_api_key
            app = build_app(catalog, authentication=Authentication(single_user_api_key=key))
            address = undo.enter_context(_running(app))
            _wait_until_ready(address)
            self.uri = f"{address}/api/v1?api_key={key}"
            self._closing = undo.pop_all()

    def close(self) -> None:
        """Stop the server and let the files go."""
        self._closing.close()


def _give_to_one_at_a_time(storage: Any) -> None:
    """Let a thread wait until the one before it has returned the connection to the tables.

    Tiled gives DuckDB's one connection to all threads at once: a table that is read while rows
    are appended, as where a run is followed, fails both, and corrupts the memory of the process.
    """
    pool = QueuePool(
        storage._adbc_connection.adbc_clone, pool_size=1, max_overflow=0, timeout=_CONNECTION
    )
    vars(storage)["_connection_pool"] = pool


def _make_catalog(file: Path) -> None:
    """Make the database as ``tiled catalog init`` does in another interpreter, in seconds."""
    # Under another name until it is whole: the file's presence makes a folder a catalog.
    unfinished = file.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)

    async def make_tables() -> None:
        engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(unfinished)))
        try:
            await initialize_database(engine)
        finally:
            await engine.dispose()

    with ThreadPoolExecutor(1) as pool:
        # In a thread without an event loop: the caller's own may run one, as in a notebook.
        pool.submit(asyncio.run, make_tables()).result()
    engine = create_engine(URL.create("sqlite", database=str(unfinished)))
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        context.stamp(ScriptDirectory(str(ALEMBIC_DIR)), REQUIRED_REVISION)
    engine.dispose()
    unfinished.rename(file)


def _running(app: Any) -> Any:
    """Run an application in a thread that does not keep the interpreter from exiting."""
    server = ThreadedServer(uvicorn.Config(app, port=0, loop="asyncio", log_config=None))
    return _Daemon(server)


class _Daemon:
    """Enters the context of a threaded server from a daemon thread, so that its thread is one."""

    def __init__(self, server: Any) -> None:
        self._context = server.run_in_thread()

    def __enter__(self) -> str:
        entered: list[str] = []
        failed: list[BaseException] = []

        def enter() -> None:
            try:
                entered.append(self._context.__enter__())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=enter, name="tiled-server-start", daemon=True)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return entered[0]

    def __exit__(self, *exc_info: object) -> None:
        self._context.__exit__(None, None, None)


def _wait_until_ready(address: str) -> None:
    """Wait until the application, which starts after the socket, answers."""
    deadline = time.monotonic() + _START
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while True:
            try:
                if client.get(f"{address}/healthz").status_code == httpx.codes.OK:
                    return
            except httpx.RequestError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the server did not start in {_START:.0f} s") from error
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server did not start in {_START:.0f} s")
            time.sleep(0.02)


class _FolderLog:
    """Sends the server's warnings to ``error.log`` in its folder; undone by `close`."""

    _lock = threading.Lock()
    #: Whether the loggers told others before the first folder was opened.
    _before: dict[str, bool] = {}  # noqa: RUF012
    _open: list["_FolderLog"] = []  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        self._handler = logging.FileHandler(folder / "error.log", delay=True)
        self._handler.setLevel(logging.WARNING)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        with self._lock:
            tiled.server.app.handler.addFilter(_stands_in_the_file)
            for name in _LOGGERS:
                log = logging.getLogger(name)
                if not self._open:
                    self._before[name], log.propagate = log.propagate, False
                log.addHandler(self._handler)
            self._open.append(self)

    def close(self) -> None:
        """Take the file away; after the last folder the loggers tell others again."""
        with self._lock:
            self._open.remove(self)
            for name in _LOGGERS:
                log = logging.getLogger(name)
                log.removeHandler(self._handler)
                if not self._open:
                    log.propagate = self._before.pop(name)
            if not self._open:
                tiled.server.app.handler.removeFilter(_stands_in_the_file)
        self._handler.close()


def _stands_in_the_file(_record: logging.LogRecord) -> bool:
    """Keep from the console what Tiled's own handler would print there."""
    return False
