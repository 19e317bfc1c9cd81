"""All that an analysis run says, column by column: for exports."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .reader import AnalysisReader
from .schema import Array, Document, fraction_keys, strain_keys, weight_keys

__all__ = ["AnalysisArchive", "read_analysis"]

#: Streams that the reader keeps the last event of, and nothing more is wanted of.
_NOT_KEPT = ("components", "latest")
#: Columns of ``weights`` that say which row it is.
_ROW = ("fit_id", "pattern")


class AnalysisArchive(AnalysisReader):
    """An `AnalysisReader` that keeps every column of the run, for a table of all patterns.

    Of a run that continues the one before, as after a component was added, it has what that one
    published with its patterns, and its rejected patterns, faults and changes.
    """

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
            with the pattern, and missing (NaN or "") where an earlier run published it that did
            not come by here.
        """
        n = self.n_patterns
        table = {"pattern": np.arange(1, n + 1)}
        revised, published = self.columns("weights"), self.columns("primary")
        # A run that continues another one may have published no pattern of its own.
        for key in dict.fromkeys((*published, *revised, *self._past)):
            if key in _ROW:
                continue
            table[key] = _joined(self._past.get(key), published.get(key), n)
            if key in revised:
                table[key][: len(revised[key])] = revised[key]
        return table

    def _reset(self, start: Document | None) -> None:
        continues = None if start is None else start.get("cmf", {}).get("continues")
        if continues is None or continues != self.uid:
            super()._reset(start)
            self._kept: dict[str, dict[str, list[Any]]] = {}
            self._past: dict[str, Array] = {}
            return
        past, gone = self.table(), self._amounts()
        kept = {key: self._kept[key] for key in self._kept if key not in ("primary", "weights")}
        rejected, faults, changes = self.rejected, self.faults, self.changes
        super()._reset(start)
        gone -= self._amounts()
        self._kept = kept
        self._past = {
            key: values
            for key, values in past.items()
            if key != "pattern" and key.removesuffix("_error") not in gone
        }
        self.rejected, self.faults, self.changes = rejected, faults, changes

    def _amounts(self) -> set[str]:
        """Give the keys that are of one component each."""
        strains = strain_keys(self.names, self.strained).values()
        return {*weight_keys(self.names), *fraction_keys(self.names), *strains}

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


def _joined(past: Array | None, published: Array | None, n: int) -> Array:
    """Give n rows: of earlier runs, then of this one, and between them what is missing."""
    rows = np.empty(0) if published is None else published
    if past is None:
        return _padded(rows, n)
    past = past[: max(0, n - len(rows))]
    if published is None:
        rows = past[:0]
    if len(past) + len(rows) < n:
        rows = _padded(rows, n - len(past))
    return np.concatenate([past, rows])[-n:] if n else past


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
