"""One row for each pattern: all that is known of it in the end."""

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import AnalysisArchive, Array
from ..errors import InputError

__all__ = ["Fitted", "file_names", "fitted", "result_table", "write_csv", "written"]

#: Rows that are reconstructed at a time: bounds the memory.
_ROWS = 256


@dataclass(frozen=True)
class Fitted:
    """Patterns (N, G) as they were fitted, and what the fit makes of them, (N, G)."""

    patterns: Array
    _analysis: AnalysisArchive
    _given: Array | None

    def chunks(self) -> Iterator[tuple[slice, Array, Array]]:
        """Give rows, their patterns and their reconstructions, some at a time, in float64."""
        components = np.asarray(self._analysis.components, dtype=float)
        weights = self._analysis.weights
        for start in range(0, len(self.patterns), _ROWS):
            rows = slice(start, start + _ROWS)
            fit = weights[rows] @ components if self._given is None else self._given[rows]
            yield rows, self.patterns[rows].astype(float), fit.astype(float)


def result_table(
    analysis: AnalysisArchive,
    *,
    patterns: Array | None = None,
    reconstruction: Array | None = None,
) -> dict[str, Array]:
    """Give one row for each pattern of an analysis run.

    Parameters
    ----------
    analysis : AnalysisArchive
        What `bluesky_cmf.documents.read_analysis` gives.
    patterns, reconstruction : ndarray (N, G), optional
        The patterns as they were fitted and what the fit makes of them (`LiveNMF.patterns` and
        `LiveNMF.reconstruction`): with them ``r_factor`` and ``unexplained`` are those of the
        revised weights, else as published with each pattern. Weights times components take the
        place of a reconstruction that is not given, unless a phase has strains.

    Returns
    -------
    dict of str to ndarray (N,)
        ``pattern`` (the number), ``file`` where the run was made of pattern files, the
        independent variables, and every other column of ``primary``; weights, and what else the
        stream ``weights`` holds, as of the last snapshot. Errors are as published.

    Raises
    ------
    InputError
        Where the run holds no pattern, or ``patterns`` or ``reconstruction`` has another shape.
    """
    return _table(analysis, fitted(analysis, patterns, reconstruction))


def fitted(
    analysis: AnalysisArchive, patterns: Array | None, reconstruction: Array | None
) -> Fitted | None:
    """Check what a run was fitted to; None where it, or its reconstruction, is not known.

    Raises
    ------
    InputError
        Where the run holds no pattern, or an array has another shape.
    """
    if not analysis.n_patterns or analysis.components is None:
        raise InputError("analysis: expected a run with fitted patterns, got one without")
    expected = (analysis.n_patterns, analysis.components.shape[1])
    for name, values in (("patterns", patterns), ("reconstruction", reconstruction)):
        if values is not None and values.shape != expected:
            raise InputError(f"{name}: expected shape (N, G) = {expected}, got {values.shape}")
    if patterns is None or (reconstruction is None and analysis.strained):
        return None
    return Fitted(patterns, analysis, reconstruction)


def _table(analysis: AnalysisArchive, known: Fitted | None) -> dict[str, Array]:
    table = analysis.table()
    names = file_names(analysis, table.get("source_seq_num"))
    first = {"pattern": table.pop("pattern")} | ({} if names is None else {"file": names})
    first |= {key: table.pop(key) for key in analysis.variables if key in table}
    whole = first | table
    if known is not None:
        whole["r_factor"], whole["unexplained"] = _explained(known)
    return whole


def write_csv(
    path: str | Path,
    analysis: AnalysisArchive,
    *,
    patterns: Array | None = None,
    reconstruction: Array | None = None,
    overwrite: bool = False,
) -> None:
    """Write one row for each pattern, as comma-separated values with a line of names.

    Parameters
    ----------
    path : str or Path
        Where to; its folder is made.
    analysis, patterns, reconstruction
        As `result_table` takes them. What is not known is left empty.
    overwrite : bool, optional
        Whether a file that is there may be replaced.

    Raises
    ------
    InputError
        As `result_table` does, or where the file is there or cannot be written.
    """
    table = result_table(analysis, patterns=patterns, reconstruction=reconstruction)
    with (
        written(path, overwrite=overwrite) as place,
        place.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(table)
        columns = [[_cell(value) for value in values.tolist()] for values in table.values()]
        writer.writerows(zip(*columns, strict=True))


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value


@contextmanager
def written(path: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a place to write to, and move it to its own when it is whole.

    Raises
    ------
    InputError
        Where the file is there and may not be replaced, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: is there already; name another file, or overwrite it")
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def file_names(analysis: AnalysisArchive, seq_nums: Array | None) -> Array | None:
    """Give the file of each event, where the raw run was made of pattern files."""
    known = (analysis.start or {}).get("pattern_files") or {}
    names = known.get("names")
    if not names or seq_nums is None:
        return None
    numbers = [int(n) if np.isfinite(n) else 0 for n in seq_nums]
    found = [names[n - 1] if 1 <= n <= len(names) else "" for n in numbers]
    return np.array(found, dtype=object)


def _explained(known: Fitted) -> tuple[Array, Array]:
    """R-factor and unexplained fraction of each pattern."""
    n = len(known.patterns)
    r_factor, unexplained = np.empty(n), np.empty(n)
    for rows, X, fit in known.chunks():
        difference = X - fit
        r_factor[rows] = np.sqrt((difference**2).sum(1) / (X**2).sum(1))
        unexplained[rows] = np.maximum(difference, 0).sum(1) / X.sum(1)
    return r_factor, unexplained
