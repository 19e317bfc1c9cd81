"""A Tiled server over the files of one folder, inside this process.

The files are those of ``tiled.server.SimpleTiledServer``, which can open the folder too. That
class starts another interpreter each time, closes the logging handlers of the whole process, and
keeps the process from exiting.
"""

import logging
import threading
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from tiled.catalog import from_uri as catalog_from_uri
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
#: The loggers of the server. Their warnings go to a file in the folder and not to the console.
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
            tables = ensure_uri(f"duckdb:///{folder / TABLES_FILE}")
            catalog = catalog_from_uri(
                folder / CATALOG_FILE,
                writable_storage=[folder / "data", tables],
                init_if_not_exists=not (folder / CATALOG_FILE).exists(),
                cache_config=StreamingCacheConfig(uri="memory").model_dump(),
            )
            # Takes the lock now, and not at the first event.
            storage = get_storage(tables)
            undo.callback(storage.dispose)
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
    #: How the loggers were before the first folder was opened: handlers, level, propagate.
    _before: dict[str, tuple[list[logging.Handler], int, bool]] = {}  # noqa: RUF012
    _open: list["_FolderLog"] = []  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        self._handler = logging.FileHandler(folder / "error.log", delay=True)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        with self._lock:
            for name in _LOGGERS:
                log = logging.getLogger(name)
                if not self._open:
                    self._before[name] = (log.handlers[:], log.level, log.propagate)
                    log.handlers.clear()
                    log.setLevel(logging.WARNING)
                    log.propagate = False
                log.addHandler(self._handler)
            self._open.append(self)

    def close(self) -> None:
        """Take the file away; after the last folder the loggers are as they were."""
        with self._lock:
            self._open.remove(self)
            for name in _LOGGERS:
                log = logging.getLogger(name)
                log.removeHandler(self._handler)
                if not self._open:
                    handlers, level, log.propagate = self._before.pop(name)
                    log.handlers[:0] = handlers
                    log.setLevel(level)
        self._handler.close()
