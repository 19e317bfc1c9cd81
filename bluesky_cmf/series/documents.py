"""The documents of a run whose patterns stand in files."""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from event_model import compose_run

from ..errors import InputError, PatternError, PatternFileError
from ..patterns import PatternFile, read_pattern_file
from .names import Variable

__all__ = ["Series"]

logger = logging.getLogger(__name__)

Documents = Iterator[tuple[str, dict[str, Any]]]
#: A pattern, or why it could not be read.
Read = PatternFile | PatternFileError

#: How patterns that cannot be read are referred to.
_SPEC = "BLUESKY_CMF_PATTERN_FILE"
#: Threads that read ahead, and how far.
_THREADS, _AHEAD = 4, 32
#: Patterns and values of a page, at most: what is fitted together, and held in memory.
_PAGE, _PAGE_VALUES = 1000, 8_000_000


class _Unreadable:
    """Handler of files that cannot be read: says why, to whoever asks for their values."""

    def __init__(self, path: str, *, reason: str) -> None:
        self._reason = reason

    def __call__(self) -> Any:
        raise PatternError(self._reason)


@dataclass(frozen=True, eq=False)
class Series:
    """Pattern files, as the run that they would have been measured in.

    Parameters
    ----------
    files : sequence of Path
        The files, in order.
    variables : sequence of Variable
        What weights are drawn against, each a dimension of the run.
    pattern, x, stream : str
        Data keys of patterns and of their axis, and the stream they come in. Standard errors,
        where files have them, come as ``<pattern>_errors``; names of files as ``file``.
    metadata : mapping
        What goes into the start document.

    Raises
    ------
    InputError
        Where there is no file, or a variable has another number of values.
    """

    files: Sequence[Path]
    variables: Sequence[Variable] = ()
    pattern: str = "intensity"
    x: str = "x"
    stream: str = "primary"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    #: For ``LiveNMF(handlers=…)``: files that cannot be read are rejected with their reason.
    handlers: ClassVar[Mapping[str, Callable[..., Any]]] = {_SPEC: _Unreadable}

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError("files: expected at least one pattern file, got none")
        for variable in self.variables:
            if len(variable.values) != len(self.files):
                raise InputError(
                    f"variables: expected {len(self.files)} values of {variable.name!r}, got "
                    f"{len(variable.values)}"
                )
        names = [variable.name for variable in self.variables]
        taken = {self.pattern, self.x, self.errors_key, "file"}
        if len(set(names)) < len(names) or taken & set(names):
            raise InputError(
                f"variables: expected names that differ, none of {', '.join(sorted(taken))}, got "
                f"{', '.join(names)}"
            )

    @property
    def errors_key(self) -> str:
        """Data key of the standard errors, where files have them."""
        return f"{self.pattern}_errors"

    def documents(
        self,
        *,
        advance: Callable[[], object] = lambda: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Documents:
        """Read the files, a little ahead, and give the documents of the run.

        Parameters
        ----------
        advance : callable
            Called after each file.
        interrupted : callable
            Asked before each file whether to end the run there, with ``exit_status: "abort"``.

        Yields
        ------
        name, doc
            Start, descriptor, pages of events, and the stop document. The values of a file that
            cannot be read are a datum, whose handler in `handlers` tells why.
        """
        names = [path.name for path in self.files]
        folder = self.files[0].absolute().parent
        run = compose_run(
            metadata={
                "plan_name": "fit",
                "plan_type": "generator",
                **self.metadata,
                "hints": {"dimensions": [[[v.name], self.stream] for v in self.variables]},
                "pattern_files": {"folder": str(folder), "names": names},
            },
            validate=False,
        )
        yield "start", run.start_doc
        writer = _Writer(self, run)
        ended = False
        for number, found in enumerate(_ahead(self.files)):
            if interrupted():
                ended = True
                break
            yield from writer.add(number, found)
            advance()
        yield from writer.page()
        reason = f"interrupted after {writer.count} of {len(names)} files" if ended else ""
        yield "stop", run.compose_stop(exit_status="abort" if ended else "success", reason=reason)


class _Writer:
    """Composes the events of a series, page after page."""

    def __init__(self, series: Series, run: Any) -> None:
        self._series, self._run = series, run
        self._descriptor: Any = None
        self._rows: list[tuple[int, Read]] = []
        self._values = 0
        self._has_errors = False
        self.count = 0

    def add(self, number: int, found: Read) -> Documents:
        """Take a pattern; give documents when a page is full."""
        self._rows.append((number, found))
        self._values += len(found.x) if isinstance(found, PatternFile) else 0
        self.count += 1
        if len(self._rows) >= _PAGE or self._values >= _PAGE_VALUES:
            yield from self.page()

    def page(self) -> Documents:
        """Give the documents of what was taken since the last page."""
        rows, self._rows, self._values = self._rows, [], 0
        if not rows:
            return
        if self._descriptor is None:
            yield from self._describe([found for _, found in rows])
        series = self._series
        keys = [series.pattern, series.x, *([self._series.errors_key] if self._has_errors else [])]
        columns: dict[str, list[Any]] = {key: [] for key in keys}
        filled: dict[str, list[bool]] = {key: [] for key in keys}
        for number, found in rows:
            values: Sequence[Any]
            if isinstance(found, PatternFile):
                values = self._of_file(found)
            else:
                resource = self._run.compose_resource(
                    spec=_SPEC,
                    root="",
                    resource_path=str(series.files[number]),
                    resource_kwargs={"reason": str(found)},
                    validate=False,
                )
                datum = resource.compose_datum(datum_kwargs={}, validate=False)
                yield "resource", resource.resource_doc
                yield "datum", datum
                values = [datum["datum_id"]] * len(keys)
            for key, value in zip(keys, values, strict=True):
                columns[key].append(value)
                filled[key].append(isinstance(found, PatternFile))
        for variable in series.variables:
            columns[variable.name] = [float(variable.values[number]) for number, _ in rows]
        columns["file"] = [series.files[number].name for number, _ in rows]
        stamps = {key: [0.0] * len(rows) for key in columns}
        page = self._descriptor.compose_event_page(columns, stamps, filled=filled, validate=False)
        yield "event_page", page

    def _of_file(self, found: PatternFile) -> list[Any]:
        values = [found.y, found.x]
        if self._has_errors:
            missing = np.full(len(found.y), np.nan)
            values.append(missing if found.errors is None else found.errors)
        return values

    def _describe(self, found: Sequence[Read]) -> Documents:
        series = self._series
        first = next((item for item in found if isinstance(item, PatternFile)), None)
        shape = [] if first is None else list(first.x.shape)
        array = {"source": "file", "dtype": "array", "dtype_numpy": "<f8", "shape": shape}
        units = "" if first is None else first.metadata.get("units", "")
        keys = {series.pattern: array, series.x: {**array, "units": units}}
        self._has_errors = first is not None and first.errors is not None
        if self._has_errors:
            keys[self._series.errors_key] = array
        number = {"source": "file", "dtype": "number", "dtype_numpy": "<f8", "shape": []}
        keys |= {v.name: {**number, "units": v.units} for v in series.variables}
        keys["file"] = {"source": "file", "dtype": "string", "shape": []}
        self._descriptor = self._run.compose_descriptor(
            name=series.stream, data_keys=keys, validate=False
        )
        yield "descriptor", self._descriptor.descriptor_doc


def _ahead(files: Sequence[Path]) -> Iterator[Read]:
    """Read files in order, some ahead."""
    rest = iter(files)
    waiting: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="bluesky_cmf read") as pool:
        try:
            for path in itertools.chain(rest, [None]):
                if path is not None:
                    waiting.append(pool.submit(_read, path))
                while waiting and (path is None or len(waiting) > _AHEAD):
                    yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _read(path: Path) -> Read:
    try:
        return read_pattern_file(path, allow_nan=True)
    except PatternFileError as error:
        return error
