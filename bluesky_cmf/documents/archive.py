"""All that an analysis run says, column by column: for exports."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .reader import AnalysisReader
from .schema import Array, Document

__all__ = ["AnalysisArchive", "read_analysis"]

#: Streams that the reader keeps the last event of, and nothing more is wanted of.
_NOT_KEPT = ("components", "latest")


class AnalysisArchive(AnalysisReader):
    """An `AnalysisReader` that keeps every column of the run, for a table of all patterns."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams whose columns are kept, as they came."""
        return tuple(self._kept)

    def columns(self, stream: str) -> dict[str, Array]:
        """Give the columns of a stream; of ``weights`` those of the last snapshot.

        Parameters
        ----------
        stream : str
            Any stream but ``components`` and ``latest``; one that never came has no columns.
        """
        return {key: _array(values) for key, values in self._kept.get(stream, {}).items()}

    def table(self) -> dict[str, Array]:
        """Give every column of ``primary``, one row a pattern, with what was revised since.

        Returns
        -------
        dict of str to ndarray (N,)
            First ``pattern``, the number. What the last snapshot in ``weights`` holds, weights
            above all, is as of that snapshot; the rest, errors among it, is as it was published
            with the pattern, and missing (NaN or "") where an earlier run published it.
        """
        n = self.n_patterns
        table = {"pattern": np.arange(1, n + 1)}
        revised = self.columns("weights")
        for key, values in self.columns("primary").items():
            table[key] = _padded(values, n)
            if key in revised:
                table[key][: len(revised[key])] = revised[key]
        return table

    def _reset(self, start: Document | None) -> None:
        super()._reset(start)
        self._kept: dict[str, dict[str, list[Any]]] = {}

    def _take_events(self, name: str, doc: Mapping[str, Any]) -> None:
        super()._take_events(name, doc)
        stream = self._descriptors[doc["descriptor"]]["name"]
        if stream in _NOT_KEPT:
            return
        data = doc["data"] if name == "event_page" else {k: [v] for k, v in doc["data"].items()}
        kept = self._kept.setdefault(stream, {})
        if stream == "weights":
            data = self._of_last_fit(data, kept)
        for key, values in data.items():
            kept.setdefault(key, []).extend(values)

    @staticmethod
    def _of_last_fit(
        data: Mapping[str, Any], kept: dict[str, list[Any]]
    ) -> Mapping[str, list[Any]]:
        """Give the rows of the last snapshot, and forget those of the ones before."""
        fits = list(map(int, data["fit_id"]))
        if not fits:
            return {}
        if kept.get("fit_id", [fits[-1]])[-1] != fits[-1]:
            kept.clear()
        first = fits.index(fits[-1])
        return {key: list(values)[first:] for key, values in data.items()}


def _array(values: list[Any]) -> Array:
    try:
        return np.array(values)
    except ValueError:
        # Rows of different length: arrays as objects.
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array


def _padded(values: Array, n: int) -> Array:
    """Give n rows, of which the first ones are missing."""
    missing = n - len(values)
    if missing <= 0:
        return values[len(values) - n :].copy()
    if values.dtype.kind in "fiub":
        return np.concatenate([np.full((missing, *values.shape[1:]), np.nan), values])
    return np.concatenate([np.full(missing, "", dtype=object), values])


def read_analysis(documents: Iterable[tuple[str, Mapping[str, Any]]]) -> AnalysisArchive:
    """Read a stored analysis run.

    Parameters
    ----------
    documents : iterable of (str, dict)
        As a catalog's ``documents(uid)`` gives them.

    Returns
    -------
    AnalysisArchive
        After the last document.
    """
    archive = AnalysisArchive()
    for name, doc in documents:
        archive(name, doc)
    return archive
