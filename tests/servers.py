"""A Tiled server in a process of its own, to be killed."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from bluesky_cmf import open_catalog

API_KEY = "secret"


class Server:
    """``tiled serve catalog`` over a folder, in a process of its own, on one port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        open_catalog(folder).close()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.uri = f"{self.address}/api/v1?api_key={API_KEY}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [str(Path(sys.executable).with_name("tiled")), "serve", "catalog"]
        command += [str(self.folder / "catalog.db"), "--write", str(self.folder / "data")]
        # Not DuckDB: Tiled's server crashes where its tables are read while they grow.
        command += ["--write", f"sqlite:///{self.folder / 'tables.db'}"]
        command += ["--api-key", API_KEY, "--port", str(self.port)]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{self.address}/healthz", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
