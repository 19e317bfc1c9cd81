"""Documents of interleaved runs, each run kept apart: one that fails does not stop the others."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import event_model
import numpy as np

from ..errors import CatalogError

__all__ = [
    "LOST",
    "Document",
    "RunOpener",
    "RunRouter",
    "RunStore",
    "is_array",
    "truthful_descriptor",
    "unpack_event_page",
]

logger = logging.getLogger(__name__)

#: A Bluesky document.
Document = Mapping[str, Any]

#: The kinds of documents that are stored; what else a dispatcher may send is passed over.
_KINDS = frozenset(
    {"start", "descriptor", "event", "event_page", "stop"}
    | {"resource", "datum", "datum_page", "stream_resource", "stream_datum"}
)


#: The kind of what stands for documents that are lost: how many (``count``) and why (``cause``),
#: and of a single one its kind (``of``) and what names its run (``ids``).
LOST = "lost"


class RunStore(Protocol):
    """One open run on its way into a catalog.

    Attributes
    ----------
    lost
        Failures that cost a part of the run and not the whole; whoever reports them takes them
        away.
    """

    lost: list[Exception]

    def __call__(self, name: str, doc: Document) -> None:
        """Take one document."""

    def flush(self, *, force: bool) -> bool:
        """Write what waits, all of it if `force`; tell whether something still waits."""

    def state(self) -> dict[str, Any] | None:
        """Give, as plain data, what another process needs to go on; None where none can.

        It is asked any time, also while a document is taken.
        """


#: Makes the store of a run from its start document, from what the run is claimed by, and from
#: the `state` of the store that had it before.
RunOpener = Callable[[Document, str, Mapping[str, Any] | None], RunStore]


class RunRouter:
    """Gives each run its own store, with the descriptors as the data turn out to be.

    Parameters
    ----------
    open_run
        Makes the store of a run from its start document, which it has stored then.
    failed
        Is told the run's uid, the cause, and whether the run is given up or lost only a part. The
        uid is None where documents are lost, and it is not known whose.
    claim
        What the runs are claimed by.
    """

    def __init__(
        self,
        open_run: RunOpener,
        failed: Callable[[str | None, Exception, bool], None],
        claim: str = "",
    ) -> None:
        self._open_run = open_run
        self._claim = claim
        self._failed = failed
        self._runs: dict[str, _OpenRun] = {}
        #: The run that a descriptor, a resource or a stream resource belongs to.
        self._owners: dict[str, str] = {}
        self._strangers: set[str] = set()

    def __call__(self, name: str, doc: Document) -> None:
        """Take one document; what a store raises costs its run alone.

        Raises
        ------
        Exception
            Where the document lacks what says which run it belongs to.
        """
        if name == LOST:
            self._lose(doc)
        if name not in _KINDS:
            return
        if name == "start":
            self._start(doc)
            return
        for uid in self._runs_of(name, doc):
            self._guarded(uid, lambda run: run(name, doc))
        if name == "stop":
            self._forget(doc["run_start"])

    def flush(self, *, force: bool) -> bool:
        """Write what waits in every run; tell whether something still waits."""
        waits = False
        for uid in list(self._runs):
            waits |= bool(self._guarded(uid, lambda run: run.store.flush(force=force)))
        return waits

    def state(self) -> list[dict[str, Any]]:
        """Give, as plain data, what `resume` needs to go on with the open runs."""
        owners: dict[str, list[str]] = {uid: [] for uid in self._runs}
        for key, uid in self._owners.items():
            if uid in owners:
                owners[uid].append(key)
        return [{"owns": owners[uid], **run.state()} for uid, run in self._runs.items()]

    def resume(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Go on with the runs of another router; one that fails is given up."""
        for state in states:
            start = state["start"]
            try:
                if state["store"] is None:
                    raise TypeError("what stored it cannot be gone on with in another process")
                store = self._open_run(start, self._claim, state["store"])
                self._runs[start["uid"]] = _OpenRun(start, store, state)
                self._owners.update(dict.fromkeys(state["owns"], start["uid"]))
            except Exception as error:
                self._give_up(start["uid"], error)

    def _start(self, doc: Document) -> None:
        try:
            self._runs[doc["uid"]] = _OpenRun(doc, self._open_run(doc, self._claim, None))
        except Exception as error:
            self._give_up(doc["uid"], error)

    def _guarded(self, uid: str, action: Callable[["_OpenRun"], Any]) -> Any:
        run = self._runs[uid]
        try:
            result = action(run)
        except Exception as error:
            self._give_up(uid, error)
            return None
        while run.store.lost:
            self._failed(uid, run.store.lost.pop(0), False)
        return result

    def _lose(self, doc: Document) -> None:
        """Give up the runs that lack a document: all, where it is not known which."""
        n_lost = "A document is" if doc["count"] == 1 else f"{doc['count']} documents are"
        error = CatalogError(f"{n_lost} lost: {doc['cause']}")
        of, ids = doc.get("of"), doc.get("ids", {})
        if of is None:
            uids = list(self._runs)
        else:
            uids = [ids["uid"]] if of == "start" else list(self._runs_of(of, ids))
        for uid in uids:
            self._give_up(uid, error)
        if of is None:
            self._failed(None, error, True)
        elif of == "stop":
            self._forget(ids["run_start"])

    def _give_up(self, uid: str, error: Exception) -> None:
        # The stop document is not stored either, so that half a run never looks like a whole one.
        self._runs.pop(uid, None)
        self._strangers.add(uid)
        self._failed(uid, error, True)

    def _forget(self, uid: str) -> None:
        self._runs.pop(uid, None)
        self._strangers.discard(uid)
        for key in [key for key, owner in self._owners.items() if owner == uid]:
            del self._owners[key]

    def _runs_of(self, name: str, doc: Document) -> Iterable[str]:
        uid = self._owner(name, doc)
        if uid is None:
            # Resources of old files name no run; they do no harm in the others.
            return list(self._runs)
        if uid in self._runs:
            return (uid,)
        if uid not in self._strangers:
            self._strangers.add(uid)
            logger.warning(
                "A %s document belongs to the run %r, whose start did not come: that run is not "
                "stored. Subscribe the writer before the scan.",
                name,
                uid,
            )
        return ()

    def _owner(self, name: str, doc: Document) -> str | None:
        """Name the run of a document; None where that cannot be known."""
        if name in ("descriptor", "resource", "stream_resource"):
            run = doc.get("run_start")
            if run is not None:
                self._owners[doc["uid"]] = str(run)
            return run
        if name == "stop":
            return str(doc["run_start"])
        parent = doc["resource"] if name in ("datum", "datum_page") else doc["descriptor"]
        # A descriptor that nobody announced stands for the run that is missing.
        return self._owners.get(parent, None if name.startswith("datum") else parent)


class _OpenRun:
    """Holds each descriptor back until its first event shows what the data are."""

    def __init__(
        self, start: Document, store: RunStore, before: Mapping[str, Any] | None = None
    ) -> None:
        before = before or {}
        self.store = store
        self._start = start
        self._streams: dict[str, str] = dict(before.get("streams", {}))
        self._waiting: dict[str, list[Document]] = {
            stream: list(docs) for stream, docs in before.get("waiting", {}).items()
        }

    def state(self) -> dict[str, Any]:
        """Give, as plain data, what another one needs."""
        return {
            "start": self._start,
            "streams": dict(self._streams),
            "waiting": {stream: list(docs) for stream, docs in self._waiting.items()},
            "store": self.store.state(),
        }

    def __call__(self, name: str, doc: Document) -> None:
        if name == "descriptor":
            stream = str(doc.get("name", "primary"))
            self._streams[doc["uid"]] = stream
            self._waiting.setdefault(stream, []).append(doc)
            return
        if name in ("event", "event_page"):
            self._announce(self._streams[doc["descriptor"]], _first_data(name, doc))
        elif name == "stream_datum":
            self._announce(self._streams[doc["descriptor"]], {})
        elif name == "stop":
            for stream in self._waiting:
                self._announce(stream, {})
        self.store(name, doc)

    def _announce(self, stream: str, data: Mapping[str, Any]) -> None:
        waiting = self._waiting.get(stream)
        while waiting:
            # It waits until it is stored, so that `state` may be asked any time.
            self.store("descriptor", truthful_descriptor(waiting[0], data))
            waiting.pop(0)


def _first_data(name: str, doc: Document) -> Mapping[str, Any]:
    if name == "event":
        data: Mapping[str, Any] = doc["data"]
        return data
    return {key: column[0] for key, column in doc["data"].items() if len(column)}


def is_array(value: Any) -> bool:
    """Tell whether a value in an event is an array, a list or a tuple, and not a scalar."""
    return (isinstance(value, np.ndarray) and value.ndim > 0) or isinstance(value, (list, tuple))


def truthful_descriptor(descriptor: Document, data: Mapping[str, Any]) -> dict[str, Any]:
    """Correct the dtype and shape of data keys by the data of the first event.

    Descriptors of real beamlines understate them: no shape for an array, no ``dtype_numpy``, a
    number for what is a string. Storage that trusts them loses precision or the whole run.

    Parameters
    ----------
    descriptor
        The descriptor as it came; it is not changed.
    data
        The first event's data. Keys that refer to files are passed over.

    Returns
    -------
    dict
        A descriptor that tells what is there.
    """
    data_keys = dict(descriptor["data_keys"])
    for key, value in data.items():
        declared = data_keys.get(key)
        if declared is None or "external" in declared:
            continue
        correct = _array_key if is_array(value) else _scalar_key
        data_keys[key] = correct(dict(declared), value)
    return {**descriptor, "data_keys": data_keys}


def _array_key(declared: dict[str, Any], value: Any) -> dict[str, Any]:
    shape = np.shape(value)
    stated = declared.get("shape")
    fits = stated is not None and len(stated) == len(shape)
    if not fits or any(s not in (None, n) for s, n in zip(stated or (), shape, strict=True)):
        declared["shape"] = list(shape)
    declared["dtype"] = "array"
    dtype = np.asarray(value).dtype
    if not isinstance(value, np.ndarray) and dtype.kind in "iu":
        # The next list may hold 0.5 where this one holds 0.
        dtype = np.dtype("<f8")
    stated_dtype = declared.get("dtype_numpy")
    if stated_dtype is None or (
        isinstance(stated_dtype, str) and not np.can_cast(dtype, np.dtype(stated_dtype), "safe")
    ):
        declared["dtype_numpy"] = dtype.str
    return declared


def _scalar_key(declared: dict[str, Any], value: Any) -> dict[str, Any]:
    allowed = _DTYPES.get(np.asarray(value).dtype.kind, ())
    if value is not None and allowed and declared.get("dtype") not in allowed:
        declared["dtype"] = allowed[0]
        declared["shape"] = []
        declared.pop("dtype_numpy", None)
    return declared


#: What a descriptor may call a scalar of numpy's kind, the right name first.
_DTYPES: dict[str, tuple[str, ...]] = {
    "b": ("boolean",),
    "i": ("integer", "number"),
    "u": ("integer", "number"),
    "f": ("number",),
    "U": ("string",),
    "S": ("string",),
}


def unpack_event_page(page: Document) -> Iterator[Document]:
    """Make single events of a page, each with a dictionary of what is filled."""
    for event in event_model.unpack_event_page(page):
        yield event if event.get("filled") is not None else {**event, "filled": {}}
