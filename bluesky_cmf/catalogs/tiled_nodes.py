"""Containers in Tiled as TiledWriter sees them: what is made a second time is what is there."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..errors import CatalogError
from .patience import existing_or_new

__all__ = ["ClaimedRuns", "plain_node", "read_frame"]

#: The entry of a run's metadata that says which writer it belongs to.
CLAIM = "_claim"
#: TiledWriter's entry of a stream's metadata for changes of its configuration.
_UPDATES = "_config_updates"


def plain_node(node: Any) -> Any:
    """Give a Tiled node as the plain container that it is, without Bluesky's views."""
    return getattr(node, "base", node)


def read_frame(node: Any, columns: Sequence[str] | None = None) -> Any:
    """Read a table, (N rows), with this client's connection.

    `read` of Tiled's client goes through an expression of dask, which dask shares among all of the
    same name: one of a client that has been closed since, and not been collected yet, would do
    the reading.
    """
    names = None if columns is None else list(columns)
    parts = range(node.structure().npartitions)
    return pd.concat([node.read_partition(part, names) for part in parts], ignore_index=True)


class ClaimedRuns:
    """The container of runs as TiledWriter sees it: what it makes there bears a claim."""

    def __init__(self, client: Any, claim: str) -> None:
        self._client = client
        self._claim = claim

    def include_data_sources(self) -> "ClaimedRuns":
        """Give the same with a client that tells of data sources."""
        return ClaimedRuns(self._client.include_data_sources(), self._claim)

    def create_container(self, *, key: str, metadata: Mapping[str, Any], **more: Any) -> Any:
        """Make the container of a run, or give the one that was made under this claim."""
        claimed = {**metadata, CLAIM: self._claim}
        node, existed = existing_or_new(
            self._client,
            key,
            lambda: self._client.create_container(key=key, metadata=claimed, **more),
        )
        if existed and node.metadata.get(CLAIM) != self._claim:
            raise CatalogError(
                f"The catalog has a run with the uid {key} that somebody else has stored. Store "
                "each run once."
            )
        return _Container(node)


class _Container:
    """A container as TiledWriter sees it: what it makes there a second time is what is there."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    @property
    def base(self) -> "_Container":
        return _Container(self._node.base)

    def create_container(self, *, key: str, **more: Any) -> "_Container":
        make = functools.partial(self._node.create_container, key=key, **more)
        return _Container(existing_or_new(self._node, key, make)[0])

    def new(self, *, key: str, **more: Any) -> Any:
        return existing_or_new(self._node, key, lambda: self._node.new(key=key, **more))[0]

    def update_metadata(self, *, metadata: Mapping[str, Any], **more: Any) -> None:
        updates = metadata.get(_UPDATES)
        if updates:
            # A change of configuration that comes a second time was stored by another process.
            once = {update["uid"]: update for update in updates}
            metadata = {**metadata, _UPDATES: list(once.values())}
        self._node.update_metadata(metadata=metadata, **more)
