"""Values in files that documents refer to: noted when they are named, read when they are needed.

Notes are taken in the thread that documents come from; files are read in the fit's own thread.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from event_model import Filler, unpack_datum_page

from ..errors import InputError, PatternError

__all__ = ["Files", "Handlers", "as_handlers"]

logger = logging.getLogger(__name__)

Doc = Mapping[str, Any]
#: What makes a handler of a resource's path and keywords, by the resource's ``spec``.
Handlers = Mapping[str, Callable[..., Any]]

#: Where packages announce their handlers (area-detector-handlers, ophyd).
_HANDLERS = "databroker.handlers"
#: Seconds between attempts to read what documents name before the file system shows it.
_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
#: The most handlers, which may keep their files open.
_MOST_OPEN = 8
#: The most that is read at once.
_BLOCK_BYTES = 32 * 2**20


class Files:
    """What the documents say of files.

    Parameters
    ----------
    handlers : mapping of str to callable
        Handlers by ``spec``, before those that are installed.
    root_map : mapping of str to str
        Folders as the documents name them, and where they are on this machine.
    """

    def __init__(self, handlers: Handlers, root_map: Mapping[str, str]) -> None:
        self._reader = _DatumReader(handlers, root_map)
        self._root_map = root_map
        self._resources: dict[str, Doc] = {}
        self._datums: dict[str, Doc] = {}
        self._frames: dict[str, Doc] = {}
        self._opened: dict[tuple[str, str], _FrameFile] = {}

    def resource(self, doc: Doc) -> None:
        """Note a resource."""
        self._resources[doc["uid"]] = doc

    def datum(self, doc: Doc) -> None:
        """Note a datum."""
        self._datums[doc["datum_id"]] = doc

    def datum_page(self, doc: Doc) -> None:
        """Note the datums of a page."""
        for datum in unpack_datum_page(doc):
            self.datum(datum)

    def stream_resource(self, doc: Doc) -> None:
        """Note a file of a whole stream."""
        self._frames[doc["uid"]] = doc

    def value(self, datum_id: Any, key: str) -> "_DatumValue | None":
        """Refer to the value of a datum; None where it, or its resource, has not come yet."""
        datum = self._datums.get(datum_id) if isinstance(datum_id, str) else None
        resource = None if datum is None else self._resources.get(datum["resource"])
        if datum is None or resource is None:
            return None
        return _DatumValue(self._reader, resource, datum, key)

    def data_key(self, stream_resource: str) -> str | None:
        """Name the data key whose values a file of a stream holds."""
        known = self._frames.get(stream_resource)
        return None if known is None else str(known["data_key"])

    def frames(self, doc: Doc, descriptor: Doc) -> Iterator["_FrameValue"]:
        """Refer to the values that a stream datum announces, one an event."""
        uid = doc["stream_resource"]
        key = (uid, str(descriptor["uid"]))
        if key not in self._opened:
            self._opened[key] = _FrameFile(self._frames[uid], descriptor, self._root_map)
        file = self._opened[key]
        first, stop = int(doc["indices"]["start"]), int(doc["indices"]["stop"])
        file.announce(stop)
        for index in range(first, stop):
            yield _FrameValue(file, index)

    def forget(self, run: str, *, last: bool) -> None:
        """Forget the files of a run that is over, the ``last`` one that was open or not.

        Values that are still referred to stay readable. Resources of old files name no run.
        """
        owners = {run, None, ""} if last else {run}
        gone = {u for u, doc in self._frames.items() if doc.get("run_start") in owners}
        self._frames = {u: doc for u, doc in self._frames.items() if u not in gone}
        self._opened = {key: file for key, file in self._opened.items() if key[0] not in gone}
        old = {u for u, doc in self._resources.items() if doc.get("run_start") in owners}
        if old:
            self._datums = {i: d for i, d in self._datums.items() if d["resource"] not in old}
            self._resources = {u: d for u, d in self._resources.items() if u not in old}


class _DatumReader:
    """Reads datums through `event_model.Filler`, with the handlers that are installed."""

    def __init__(self, handlers: Handlers, root_map: Mapping[str, str]) -> None:
        self._handlers, self._root_map = dict(handlers), root_map
        self._cache: dict[Any, Any] = {}
        self._datums: dict[str, Doc] = {}
        self._resources: dict[str, Doc] = {}
        #: Resources that could not be read: the next values of theirs are not waited for.
        self._failed: set[str] = set()
        self._filler = Filler(
            {},
            inplace=True,
            handler_cache=self._cache,
            datum_cache=self._datums,
            resource_cache=self._resources,
            retry_intervals=list(_PAUSES),
        )
        self._filler("descriptor", {"uid": "", "data_keys": {}, "name": "", "run_start": ""})

    def read(self, resource: Doc, datum: Doc) -> Any:
        self._know(str(resource["spec"]))
        uid = str(resource["uid"])
        self._filler.retry_intervals = [] if uid in self._failed else list(_PAUSES)
        try:
            value = self._read(resource, datum)
        except Exception:
            self._failed.add(uid)
            raise
        self._failed.discard(uid)
        return value

    def _read(self, resource: Doc, datum: Doc) -> Any:
        try:
            return self._fill(resource, datum)
        except Exception:
            # A handler that was made before the file had grown may not see what came since.
            if self._cache.pop((resource["uid"], resource["spec"]), None) is None:
                raise
            return self._fill(resource, datum)

    def _fill(self, resource: Doc, datum: Doc) -> Any:
        # A document of our own, so that the one that came is left as it is.
        event: dict[str, Any] = {
            "descriptor": "",
            "uid": "",
            "data": {"value": datum["datum_id"]},
            "filled": {"value": False},
        }
        path = os.path.join(resource.get("root") or "", resource["resource_path"])
        here = {"root": "", "resource_path": _mapped_path(path, self._root_map)}
        self._filler.resource({**resource, **here})
        self._filler.datum(dict(datum))
        try:
            return self._filler.fill_event(event, include=["value"])["data"]["value"]
        finally:
            self._datums.clear()
            self._resources.clear()
            while len(self._cache) > _MOST_OPEN:
                _close(self._cache.pop(next(iter(self._cache))))

    def _know(self, spec: str) -> None:
        if spec in self._filler.handler_registry:
            return
        found = self._handlers.get(spec)
        if found is None:
            installed = entry_points(group=_HANDLERS, name=spec)
            if not installed:
                raise PatternError(
                    f"there is no handler for files of the kind {spec!r}: give one "
                    f"(handlers={{{spec!r}: …}}) or install the package that has it, "
                    "such as area-detector-handlers"
                )
            found = next(iter(installed)).load()
        self._filler.register_handler(spec, found)


class _DatumValue:
    """The value of one datum."""

    def __init__(self, reader: _DatumReader, resource: Doc, datum: Doc, key: str) -> None:
        self._reader, self._resource, self._datum, self._key = reader, resource, datum, key

    def read(self) -> Any:
        """Read it."""
        try:
            return np.asarray(self._reader.read(self._resource, self._datum))
        except PatternError:
            raise
        except (Exception, SystemExit) as error:
            cause = error.__cause__ or error
            raise PatternError(
                f"{self._key!r} is in the file {self._resource.get('resource_path')!r} "
                f"({self._resource.get('spec')}), which cannot be read: "
                f"{type(cause).__name__}: {cause}"
            ) from error


class _FrameFile:
    """A file, or a series of files, that holds the values of one data key of a stream."""

    def __init__(self, resource: Doc, descriptor: Doc, root_map: Mapping[str, str]) -> None:
        self._resource, self._descriptor, self._root_map = resource, descriptor, root_map
        self._announced = 0
        self._first, self._block = 0, np.empty(0)
        self._gave_up = False
        self._rows: _Hdf5Rows | _OtherRows | None = None

    def announce(self, stop: int) -> None:
        """Say how many values there are by now."""
        self._announced = max(self._announced, stop)

    def read(self, index: int) -> np.ndarray:
        """Read one value, with those after it that are there."""
        if not self._first <= index < self._first + len(self._block):
            self._block, self._first = self._patiently(index), index
        value: np.ndarray = self._block[index - self._first]
        return value

    @property
    def _declared(self) -> tuple[int, ...]:
        """The shape that the descriptor declares, of all collections of one event."""
        return tuple(self._descriptor["data_keys"][self._resource["data_key"]].get("shape") or ())

    def _patiently(self, index: int) -> np.ndarray:
        pauses = iter(() if self._gave_up else _PAUSES)
        while True:
            try:
                self._rows = self._rows or self._opened()
                block = self._rows.read(index, self._announced, self._declared)
                if not len(block):
                    raise EOFError("the file ends before it")
                self._gave_up = False
                return block
            except Exception as error:
                pause = next(pauses, None)
                if pause is None:
                    # The next ones will not be waited for as long.
                    self._gave_up = True
                    raise PatternError(
                        f"{self._resource['data_key']!r}: frame {index} of "
                        f"{_place(self._resource)} cannot be read: {type(error).__name__}: {error}"
                    ) from error
            time.sleep(pause)

    def _opened(self) -> "_Hdf5Rows | _OtherRows":
        """Find out what kind of file it is; nothing is opened yet."""
        resource = {**self._resource, "uri": _mapped(_place(self._resource), self._root_map)}
        if "HDF5" in str(resource.get("mimetype") or resource.get("spec")).upper():
            return _Hdf5Rows(resource)
        return _OtherRows(resource, self._descriptor)


class _Span:
    """The rows of an array in a file that are read at once: those of some events."""

    def __init__(self, first: int, stop: int, per_event: int, array: Any) -> None:
        self.per_event = per_event
        size = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])) * per_event)
        stop = min(stop, array.shape[0] // per_event, first + max(1, _BLOCK_BYTES // size))
        self.slice = slice(first * per_event, max(first, stop) * per_event)


class _Hdf5Rows:
    """The rows of a dataset in an HDF5 file, which may still be written."""

    def __init__(self, resource: Doc) -> None:
        self._path = unquote(urlsplit(resource["uri"]).path)
        # As it is called now, or was before documents had a mimetype.
        parameters = resource.get("parameters") or resource["resource_kwargs"]
        self._dataset = str(parameters.get("dataset") or parameters["path"])

    def read(self, first: int, stop: int, declared: tuple[int, ...]) -> np.ndarray:
        """Read the values of events from ``first`` on: as many as bear to be read at once."""
        with _hdf5(self._path) as file:
            dataset = file[self._dataset]
            joined = bool(declared) and dataset.ndim == len(declared)
            rows = _Span(first, stop, (declared[0] or 1) if joined else 1, dataset)
            block: np.ndarray = dataset[rows.slice]
            return block.reshape(-1, rows.per_event, *block.shape[1:]) if joined else block


class _OtherRows:
    """The rows of files of other kinds, as Tiled reads them."""

    def __init__(self, resource: Doc, descriptor: Doc) -> None:
        self._resource, self._descriptor = resource, descriptor
        self._consolidator: Any = None
        self._consumed = 0

    def read(self, first: int, stop: int, declared: tuple[int, ...]) -> np.ndarray:
        """Read the values of events from ``first`` on: as many as bear to be read at once."""
        consolidator = self._grown(stop)
        adapter = consolidator.init_adapter()
        joined = bool(declared) and consolidator.join_method != "stack"
        structure = adapter.structure()
        like = np.broadcast_to(np.zeros((), structure.data_type.to_numpy_dtype()), structure.shape)
        rows = _Span(first, stop, (declared[0] or 1) if joined else 1, like)
        block = np.asarray(adapter.read(slice=(rows.slice,)))
        return block.reshape(-1, rows.per_event, *block.shape[1:]) if joined else block

    def _grown(self, stop: int) -> Any:
        """Give the library's view of the files, as many as there are by now."""
        # Imported here: whoever has no such files need not wait for it.
        from bluesky_tiled_plugins.writing.consolidators import consolidator_factory

        if self._consolidator is None:
            self._consolidator = consolidator_factory(self._resource, self._descriptor)
        if stop > self._consumed:
            span = {"start": self._consumed, "stop": stop}
            numbers = {"start": self._consumed + 1, "stop": stop + 1}
            datum = {"stream_resource": self._resource["uid"], "uid": "", "descriptor": ""}
            self._consolidator.consume_stream_datum(datum | {"indices": span, "seq_nums": numbers})
            self._consumed = stop
        return self._consolidator


class _FrameValue:
    """The value that belongs to one event."""

    def __init__(self, file: _FrameFile, index: int) -> None:
        self._file, self.index = file, index

    def read(self) -> Any:
        """Read it."""
        return self._file.read(self.index)


@contextmanager
def _hdf5(path: str) -> Iterator[Any]:
    """Open a file that another process may have open for writing."""
    import h5py

    with suppress(ImportError):
        # Registers the compressions of detectors (Eiger), where it is installed.
        import hdf5plugin  # noqa: F401
    try:
        file = h5py.File(path, "r", swmr=True)
    except OSError:
        # A file that was never written in that mode.
        file = h5py.File(path, "r")
    with file:
        yield file


def _close(handler: Any) -> None:
    """Close the file of a handler, where it has one open."""
    close = getattr(handler, "close", None)
    if callable(close):
        with suppress(Exception):
            close()


def _place(resource: Doc) -> str:
    """Give the address of a file, also of one from before documents had addresses."""
    if "uri" in resource:
        return str(resource["uri"])
    return f"file://localhost{os.path.join(resource.get('root', '/'), resource['resource_path'])}"


def _mapped(uri: str, root_map: Mapping[str, str]) -> str:
    """Put a file's address where this machine has the file."""
    scheme, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    if not separator:
        return uri
    return f"{scheme}://{host}{_mapped_path(slash + path, root_map)}"


def _mapped_path(path: str, root_map: Mapping[str, str]) -> str:
    """Put a path where this machine has the file: by the longest folder that it is in."""
    for root in sorted(root_map, key=len, reverse=True):
        folder = root.rstrip("/") + "/"
        if path.startswith(folder):
            return f"{root_map[root].rstrip('/')}/{path[len(folder) :]}"
    return path


def as_handlers(handlers: Any, root_map: Any) -> tuple[Handlers, Mapping[str, str]]:
    """Check what the user says of files.

    Raises
    ------
    InputError
        Where an argument is of the wrong kind.
    """
    handlers, root_map = {} if handlers is None else handlers, root_map or {}
    if not isinstance(handlers, Mapping) or not all(map(callable, handlers.values())):
        raise InputError(f"handlers: expected handlers by spec, got {handlers!r}")
    texts = isinstance(root_map, Mapping) and all(
        isinstance(text, str) for item in root_map.items() for text in item
    )
    if not texts:
        raise InputError(f"root_map: expected folders by folder, got {root_map!r}")
    return handlers, root_map
