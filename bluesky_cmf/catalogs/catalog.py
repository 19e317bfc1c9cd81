"""`Catalog` and its kinds: what is written to, read from and closed in the same way."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRunV2Mongo
from tiled.client.utils import ClientError
from tiled.queries import Eq, Like

from ..errors import CatalogError, RunNotFoundError
from .broker import BrokerReading, BrokerRun, broker_documents
from .following import Reading, check_patience, followed
from .leftovers import spool_folder
from .routing import Document, RunStore
from .tiled_read import TiledReading, tiled_documents
from .tiled_write import open_tiled_run
from .writer import CatalogWriter

__all__ = ["BrokerCatalog", "Catalog", "TiledCatalog"]

logger = logging.getLogger(__name__)

#: The shortest beginning of a uid that names a run.
_SHORTEST_UID = 5


class Catalog(ABC):
    """Runs that can be written to, read back, and closed; also a context manager.

    Parameters
    ----------
    client
        The Tiled client of the container of runs.
    spec
        What `open_catalog` takes to open this catalog again.
    on_close
        What has to be closed with it.

    Attributes
    ----------
    spec
        As given; an API key in an address is left out.
    """

    def __init__(
        self, client: Any, *, spec: str, on_close: Callable[[], None] | None = None
    ) -> None:
        self.spec = spec
        self._client = client
        self._on_close = on_close
        self._writers: list[CatalogWriter] = []
        self._closed = False

    def writer(
        self, *, latest: bool = False, spool: str | os.PathLike[str] | None = None
    ) -> CatalogWriter:
        """Make a callback that stores runs here, for ``RE.subscribe`` and ``live.subscribe``.

        Parameters
        ----------
        latest
            Whether to store the stream ``latest`` of analysis runs too, which repeats the raw
            data.
        spool
            The folder for documents that have to wait on disk, while the catalog does not answer;
            None takes that of the environment variable ``BLUESKY_CMF_SPOOL``, or else one in the
            user's folder for the state of programs. What an earlier process left there for this
            catalog is written first. In Tiled nothing is stored twice; in databroker a document
            whose answer was lost is, where its database lacks databroker's unique indexes.

        Returns
        -------
        CatalogWriter
            It is closed with the catalog.
        """
        self._check_open()
        folder = spool_folder(self.spec, spool)
        writer = CatalogWriter(self._open_run, target=self.spec, latest=latest, spool=folder)
        self._writers.append(writer)
        return writer

    def documents(
        self, uid: str, *, follow: bool = False, patience: float | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Read a stored run.

        Parameters
        ----------
        uid
            The run's uid, or its first characters, at least 5.
        follow
            Whether to go on, once all is read that is there, with what comes, until the stop
            document. The run need not be there yet; a server that is away for a while is waited
            for.
        patience
            Seconds that a followed run may go without growth before it is left as it is; by
            default it is waited for without end.

        Yields
        ------
        name, doc
            Start, descriptors and events in the order of their times, and the stop document if
            the run has one. Arrays are numpy arrays. While a run grows, each row comes once and
            after those of its stream before it; another stream's may be later than their times.

        Raises
        ------
        InputError
            If `patience` is no time, or comes without `follow`.
        RunNotFoundError
            If no run, or more than one, has this uid.
        CatalogError
            If the server does not answer.
        """
        self._check_open()
        check_patience(follow, patience)
        if follow:
            _check_uid(uid)
            return self._guarded(self._follow(uid, patience))
        run = self._find(uid)
        mongo = isinstance(run, BlueskyRunV2Mongo)
        return self._guarded(broker_documents(run) if mongo else tiled_documents(run))

    def unfinished_analyses(self, uid: str) -> list[str]:
        """List the analysis runs of a run that have no stop document.

        Somebody writes them still, or was killed before their end.

        Parameters
        ----------
        uid
            The uid of the raw run.

        Raises
        ------
        CatalogError
            If the server does not answer.
        """
        self._check_open()
        try:
            found = self._client.search(Eq("start.original_run_uid", uid)).values()
            runs = [dict(run.metadata) for run in found]
        except httpx.HTTPError as error:
            raise self._no_answer(error) from error
        return [str(run["start"]["uid"]) for run in runs if not run.get("stop")]

    def uids(self, limit: int = 10) -> list[str]:
        """List the uids of the latest runs, the newest first.

        Parameters
        ----------
        limit
            How many at most.
        """
        self._check_open()
        try:
            return self._latest(limit)
        except httpx.HTTPError as error:
            raise self._no_answer(error) from error

    def close(self) -> None:
        """Write what waits and close what was opened; a client that was given stays open."""
        if self._closed:
            return
        self._closed = True
        for writer in self._writers:
            writer.close()
        if self._on_close is not None:
            self._on_close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec}>"

    @abstractmethod
    def _open_run(
        self, start: Document, claim: str, state: Mapping[str, Any] | None = None
    ) -> RunStore:
        """Store a start document and give the store of the rest."""

    @abstractmethod
    def _lookup(self, uid: str) -> list[Any]:
        """Give the runs whose uid is, or begins with, `uid`; two are enough."""

    def _latest(self, limit: int) -> list[str]:
        runs = self._client.values().tail(limit)
        starts = [dict(run.metadata).get("start") for run in runs]
        return [start["uid"] for start in reversed(starts) if start]

    def _find(self, uid: str) -> Any:
        _check_uid(uid)
        try:
            run = self._found(uid)
            if run is None:
                raise self._absent(uid)
        except httpx.HTTPError as error:
            raise self._no_answer(error) from error
        return run

    def _found(self, uid: str) -> Any | None:
        found = self._lookup(uid)
        if len(found) > 1:
            raise RunNotFoundError(
                f"More than one run in the catalog {self.spec} has a uid that begins with "
                f"{uid!r}. Give more of it."
            )
        return found[0] if found else None

    def _absent(self, uid: str) -> RunNotFoundError:
        latest = ", ".join(known[:8] for known in self._latest(5)) or "none"
        return RunNotFoundError(
            f"The catalog {self.spec} holds no run with the uid {uid!r}. Its latest runs: {latest}."
        )

    def _follow(self, uid: str, patience: float | None) -> Iterator[tuple[str, dict[str, Any]]]:
        def find() -> Reading | None:
            run = self._found(uid)
            if run is None:
                return None
            mongo = isinstance(run, BlueskyRunV2Mongo)
            return BrokerReading(run) if mongo else TiledReading(run)

        return followed(find, lambda: self._absent(uid), patience=patience, where=self.spec)

    def _guarded(
        self, documents: Iterator[tuple[str, dict[str, Any]]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            yield from documents
        except httpx.HTTPError as error:
            raise self._no_answer(error) from error

    def _no_answer(self, error: BaseException) -> CatalogError:
        return CatalogError(
            f"The catalog {self.spec} does not answer as it should: {error}. Check that its "
            "server runs and that you may read it."
        )

    def _check_open(self) -> None:
        if self._closed:
            raise CatalogError(f"The catalog {self.spec} is closed. Open it again.")


def _check_uid(uid: str) -> None:
    if not isinstance(uid, str) or len(uid) < _SHORTEST_UID or "/" in uid:
        raise RunNotFoundError(
            f"uid: expected a run's uid, or its first {_SHORTEST_UID} characters or more, "
            f"got {uid!r}."
        )


class TiledCatalog(Catalog):
    """Runs in tables and arrays of a Tiled server."""

    def _open_run(
        self, start: Document, claim: str, state: Mapping[str, Any] | None = None
    ) -> RunStore:
        return open_tiled_run(self._client, start, claim, state)

    def _lookup(self, uid: str) -> list[Any]:
        found = self._client.search(Like("start.uid", f"{uid}%")).values().head(20)
        # The query knows wildcards, and SQLite does not tell upper from lower case.
        runs = {str(run.metadata["start"]["uid"]): run for run in found}
        if uid in runs:
            return [runs[uid]]
        return [run for known, run in runs.items() if known.startswith(uid)]


class BrokerCatalog(Catalog):
    """Runs in the document store of databroker, behind its server."""

    def _open_run(
        self, start: Document, claim: str, state: Mapping[str, Any] | None = None
    ) -> RunStore:
        return BrokerRun(self._client, start, state)

    def _lookup(self, uid: str) -> list[Any]:
        try:
            return [self._client[uid]]
        except KeyError:
            return []
        except ClientError as error:
            if "multiple matches" in str(error):
                return [None, None]
            raise
