"""A catalog that does not answer for a while, or not before the process ends, costs nothing."""

import datetime
import logging
import shutil
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import databroker
import h5py
import httpx
import numpy as np
import pytest
import zarr
from event_model import compose_run
from servers import Server
from streams import mixtures, run_documents

from bluesky_cmf import LiveNMF, open_catalog
from bluesky_cmf.catalogs import Catalog, CatalogWriter, patience, writer
from bluesky_cmf.catalogs.leftovers import leftovers
from bluesky_cmf.catalogs.packing import pack
from bluesky_cmf.catalogs.routing import RunRouter
from bluesky_cmf.catalogs.spool import Spool
from bluesky_cmf.documents import read_analysis

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Its folder and port serve all tests of this file; whether it runs is each test's matter."""
    return Server(tmp_path_factory.mktemp("outages") / "catalog")


@pytest.fixture
def server(made: Server) -> Iterator[Server]:
    with made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiled's client tries for most of a minute before it says that nobody answers."""
    monkeypatch.setattr("tiled.client.utils.TILED_RETRY_ATTEMPTS", 1)
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(writer, "_PACE", 0.05)
    monkeypatch.setattr(writer, "_STUCK_AWAY", 0.5)
    monkeypatch.setenv("BLUESKY_CMF_SPOOL", str(tmp_path / "spool"))


Documents = list[tuple[str, Any]]


def kept(tmp_path: Path) -> list[str]:
    """The files that wait on disk."""
    return sorted(path.name for path in (tmp_path / "spool").rglob("*") if path.is_file())


class Heard(logging.Handler):
    """Waits for the package to say something."""

    def __init__(self, words: str) -> None:
        super().__init__(logging.WARNING)
        self._words = words
        self._heard = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            self._heard.set()

    def __enter__(self) -> "Heard":
        logging.getLogger("bluesky_cmf").addHandler(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        heard = exc_info[0] is not None or self._heard.wait(60)
        logging.getLogger("bluesky_cmf").removeHandler(self)
        assert heard, f"not said: {self._words}"


def on_disk(store: CatalogWriter) -> None:
    """Wait until all that waits is on disk."""
    spool = store._spool
    with spool._changed:
        assert spool._changed.wait_for(lambda: spool._held and spool._saved(), 60)


def give(callback: Any, documents: Documents) -> None:
    for name, doc in documents:
        callback(name, doc)


def a_run(n: int = 12) -> tuple[str, np.ndarray, Documents]:
    x, _, patterns = mixtures(n)
    documents = run_documents(patterns, x=x)
    return documents[0][1]["uid"], patterns, documents


def assert_whole(catalog: Catalog, uid: str, patterns: np.ndarray) -> None:
    docs = list(catalog.documents(uid))
    events = [doc for name, doc in docs if name == "event"]
    assert docs[-1][0] == "stop"
    assert [event["seq_num"] for event in events] == list(range(1, len(patterns) + 1))
    assert [event["data"]["temperature"] for event in events] == list(range(len(patterns)))
    np.testing.assert_array_equal([event["data"]["chi_I"] for event in events], patterns)


def test_a_server_killed_in_mid_run_and_started_again_has_everything_once(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uid, patterns, documents = a_run(40)
    analysis: list[str] = []
    with open_catalog(server.uri) as catalog:
        store = catalog.writer()
        live = LiveNMF("chi_I", x="chi_Q", n_components=2, device="cpu")
        live.subscribe(store)
        live.subscribe(lambda name, doc: analysis.append(doc["uid"]) if name == "start" else None)
        for callback in (live, store):
            give(callback, documents[:15])
        assert live.wait(60) and live.result is not None
        assert store.flush(60)
        server.kill()
        with Heard("does not answer"):
            for callback in (live, store):
                give(callback, documents[15:30])
        assert not store.flush(0.1) and store.error is None
        for callback in (live, store):
            give(callback, documents[30:])
        assert live.wait(60)
        on_disk(store)
        assert [name for name in kept(tmp_path) if name.endswith(".docs")]
        with Heard("answers again"):
            server.start()
            assert store.flush(60)
        assert_whole(catalog, uid, patterns)
        result = read_analysis(catalog.documents(analysis[0]))
        assert result.n_patterns == 40 and result.converged and result.stop is not None
        live.close()
    said = [r.getMessage() for r in caplog.records if r.name == "bluesky_cmf.catalogs.writer"]
    assert len(said) == 2
    assert kept(tmp_path) == []


# ---- a network that fails, over a folder -------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outages") / "folder"


@pytest.fixture
def other(folder: Path) -> Iterator[Catalog]:
    """Keeps the folder's server up, and reads by a network of its own."""
    with open_catalog(folder) as catalog:
        yield catalog


class Network:
    """What lies between one client and its server."""

    def __init__(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.down = False
        self.n_requests = 0
        #: The number of the request whose answer is lost.
        self.loses: int | None = None
        self.refuses: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
        client = catalog._client.context.http_client
        self._send = client.send
        monkeypatch.setattr(client, "send", self)

    def __call__(self, request: httpx.Request, **options: Any) -> httpx.Response:
        self.n_requests += 1
        if self.down:
            raise httpx.ConnectError("the network is down")
        refusal = self.refuses(request)
        if refusal is not None:
            return refusal
        response = self._send(request, **options)
        if self.n_requests == self.loses:
            raise httpx.ReadError("the answer is lost")
        return response


def left_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before: Documents, after: Documents
) -> None:
    """Write the documents before an outage, and end in it with those after."""
    with open_catalog(folder) as catalog:
        network = Network(catalog, monkeypatch)
        store = catalog.writer()
        give(store, before)
        assert store.flush(60)
        network.down = True
        give(store, after)
        assert store.close() is False and store.error is None
        assert store._ended.wait(60)


def test_an_answer_that_is_lost_costs_nothing_whichever_it_is(
    folder: Path, other: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, total = 0, 1
    with open_catalog(folder) as catalog:
        network = Network(catalog, monkeypatch)
        while number < total:
            number += 1
            uid, patterns, documents = a_run(4)
            network.n_requests, network.loses = 0, number
            store = catalog.writer()
            give(store, documents[:4])
            assert store.flush(60)
            give(store, documents[4:])
            assert store.close(60) and store.error is None
            total = network.n_requests
            network.loses = None
            assert_whole(other, uid, patterns)
    assert total > 12


@pytest.mark.parametrize("at", [0, 1, 2, 3, 8, 14])
def test_what_a_process_could_not_write_is_written_once_by_the_next_and_by_the_one_after(
    folder: Path,
    other: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: int,
) -> None:
    uid, patterns, documents = a_run(12)
    left_behind(folder, monkeypatch, documents[:at], documents[at:])
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert f"{15 - at} documents wait in {tmp_path}" in line
    assert "state.msgpack" in kept(tmp_path)
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    store = other.writer()
    assert store.flush(60) and store.error is None
    assert_whole(other, uid, patterns)
    assert kept(tmp_path) == []
    assert "was written now" in caplog.text
    # As if the process had been killed when it had written all and removed nothing.
    store.close()
    shutil.rmtree(tmp_path / "spool", ignore_errors=True)
    shutil.move(tmp_path / "copy", tmp_path / "spool")
    store = other.writer()
    assert store.flush(60) and store.error is None
    assert_whole(other, uid, patterns)
    store.close()


def test_an_outage_in_the_middle_of_a_stream_of_many_kinds_is_made_good(
    folder: Path, other: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that change their shape, two streams, a change of configuration, odd names."""
    run = compose_run()
    keys = {"y": "array", "a b": "number", "label": "string", "n": "integer"}
    data_keys = {k: {"source": "", "dtype": t, "shape": []} for k, t in keys.items()}
    streams = [run.compose_descriptor(name=name, data_keys=data_keys) for name in ("one", "two")]
    again = run.compose_descriptor(name="one", data_keys=data_keys)
    documents: Documents = [("start", run.start_doc)]
    documents += [("descriptor", stream.descriptor_doc) for stream in streams]
    for i in range(12):
        if i == 6:
            documents.append(("descriptor", again.descriptor_doc))
        for stream in (again if i >= 6 else streams[0], streams[1]):
            data = {"y": np.arange(3.0 + i % 4) + i, "a b": 0.5 + i, "label": f"at {i}", "n": i}
            event = stream.compose_event(
                data=data, timestamps=dict.fromkeys(data, 1.0), seq_num=i + 1, validate=False
            )
            documents.append(("event", {**event, "time": run.start_doc["time"] + 1 + i}))
    documents.append(("stop", run.compose_stop()))
    for at in (4, 12, 17, 24):
        uid = str(uuid.uuid4())
        mine = [(name, _of_run(name, doc, uid)) for name, doc in documents]
        left_behind(folder, monkeypatch, mine[:at], mine[at:])
        store = other.writer()
        assert store.flush(60) and store.error is None
        store.close()
        docs = list(other.documents(uid))
        named = {doc["uid"]: doc["name"] for name, doc in docs if name == "descriptor"}
        for stream in ("one", "two"):
            found = [
                d["data"] for n, d in docs if n == "event" and named[d["descriptor"]] == stream
            ]
            assert [data["n"] for data in found] == list(range(12))
            assert [data["label"] for data in found] == [f"at {i}" for i in range(12)]
            assert [data["a b"] for data in found] == [0.5 + i for i in range(12)]
            for i, data in enumerate(found):
                np.testing.assert_array_equal(data["y"], np.arange(3.0 + i % 4) + i)
        assert len(named) == 3


def test_references_to_files_are_completed_by_the_next_process(
    folder: Path, other: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.arange(8 * 6 * 5.0).reshape(8, 6, 5)
    with h5py.File(folder / "data" / "frames.h5", "w") as file:
        file["entry/data/data"] = frames
    for at in (3, 5, 10, 18):
        run = compose_run()
        image = {"source": "", "dtype": "array", "shape": [1, 6, 5], "dtype_numpy": "<f8"}
        keys = {"image": {**image, "external": "STREAM:"}, "x": {**image, "shape": []}}
        keys["x"] = {"source": "", "dtype": "number", "shape": []}
        stream = run.compose_descriptor(name="primary", data_keys=keys)
        files = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{folder / 'data' / 'frames.h5'}",
            data_key="image",
            parameters={"dataset": "/entry/data/data", "chunk_shape": (1, 6, 5)},
        )
        documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
        documents.append(("stream_resource", files.stream_resource_doc))
        for i in range(8):
            datum = files.compose_stream_datum(indices={"start": i, "stop": i + 1})
            datum["descriptor"] = stream.descriptor_doc["uid"]
            event = stream.compose_event(
                data={"x": float(i)}, timestamps={"x": 1.0}, validate=False
            )
            documents += [("stream_datum", datum), ("event", event)]
        documents.append(("stop", run.compose_stop()))
        left_behind(folder, monkeypatch, documents[:at], documents[at:])
        store = other.writer()
        assert store.flush(60) and store.error is None
        store.close()
        found = [
            doc["data"] for name, doc in other.documents(run.start_doc["uid"]) if name == "event"
        ]
        assert [data["x"] for data in found] == list(range(8))
        np.testing.assert_array_equal([np.squeeze(data["image"]) for data in found], frames)


def _of_run(name: str, doc: dict[str, Any], uid: str) -> dict[str, Any]:
    if name == "start":
        return {**doc, "uid": uid}
    if name == "descriptor":
        return {**doc, "run_start": uid, "uid": f"{uid[:8]}-{doc['uid']}"}
    if name == "event":
        return {**doc, "descriptor": f"{uid[:8]}-{doc['descriptor']}"}
    return {**doc, "run_start": uid}


def test_an_array_whose_file_a_killed_server_left_without_a_node_is_stored_all_the_same(
    folder: Path, other: Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bluesky_cmf.catalogs.tiled_columns._UNMADE", 0.0)
    uid, patterns, documents = a_run(6)
    zarr.create_array(str(folder / "data" / uid / "primary" / "chi_I"), shape=(2, 200), dtype="f8")
    left_behind(folder, monkeypatch, documents[:5], documents[5:])
    store = other.writer()
    assert store.flush(60) and store.error is None
    assert_whole(other, uid, patterns)
    assert "stands in 'chi_I_'" in caplog.text
    store.close()


def test_an_append_that_fails_as_on_a_full_disk_is_tried_until_there_is_room(
    folder: Path, other: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_REFUSED_AFTER", 0.0)
    uid, patterns, documents = a_run(6)
    with open_catalog(folder) as catalog:
        network = Network(catalog, monkeypatch)
        store = catalog.writer()
        give(store, documents[:5])
        assert store.flush(60)
        refused = []

        def refuses(request: httpx.Request) -> httpx.Response | None:
            if request.method != "PATCH" or len(refused) >= 5:
                return None
            refused.append(request)
            return httpx.Response(500, request=request)

        network.refuses = refuses
        give(store, documents[5:])
        assert store.flush(60) and store.error is None and len(refused) == 5
    assert_whole(other, uid, patterns)


def test_a_run_of_somebody_else_is_not_taken_over(
    other: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    uid, patterns, documents = a_run(3)
    first, second = other.writer(), other.writer()
    for document in documents:
        give(first, [document])
        give(second, [document])
    results = [first.flush(60), second.flush(60)]
    assert sorted(results) == [False, True]
    assert_whole(other, uid, patterns)
    assert "somebody else" in caplog.text


def test_what_is_refused_stays_on_disk_for_the_next_writer_and_is_not_tried_again_by_this_one(
    folder: Path,
    other: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uid, patterns, documents = a_run(6)
    left_behind(folder, monkeypatch, documents[:4], documents[4:])
    monkeypatch.setattr("bluesky_cmf.catalogs.recovering.LOOK_AGAIN", 0.0)
    files = kept(tmp_path)
    with open_catalog(folder) as catalog:
        network = Network(catalog, monkeypatch)
        network.refuses = lambda request: (
            httpx.Response(403, request=request, json={"detail": "not yours"})
            if request.method != "GET"
            else None
        )
        store = catalog.writer()
        assert store.flush(60) is False and "not yours" in str(store.error)
        assert store.flush(60) is False
    assert kept(tmp_path) == files
    assert "was written now" not in caplog.text
    assert len([r for r in caplog.records if "stays in" in r.getMessage()]) == 1
    store = other.writer()
    assert store.flush(60) and store.error is None
    assert_whole(other, uid, patterns)
    assert kept(tmp_path) == []
    store.close()


def test_the_stream_that_repeats_raw_data_is_not_stored_by_the_next_process_either(
    folder: Path, other: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = compose_run(metadata={"analysis_stage": "cmf"})
    documents: Documents = [("start", run.start_doc)]
    for name in ("primary", "latest"):
        keys = {"y": {"source": "", "dtype": "number", "shape": []}}
        stream = run.compose_descriptor(name=name, data_keys=keys)
        event = stream.compose_event(data={"y": 1.0}, timestamps={"y": 1.0})
        documents += [("descriptor", stream.descriptor_doc), ("event", event)]
    documents.append(("stop", run.compose_stop()))
    left_behind(folder, monkeypatch, [], documents)
    store = other.writer()
    assert store.flush(60) and store.error is None
    store.close()
    docs = list(other.documents(run.start_doc["uid"]))
    assert [doc["name"] for name, doc in docs if name == "descriptor"] == ["primary"]
    assert docs[-1][0] == "stop"


@pytest.mark.parametrize("at_exit", [False, True])
def test_what_a_catalog_that_only_hangs_does_not_take_is_left_on_disk(
    folder: Path,
    other: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_exit: bool,
) -> None:
    monkeypatch.setattr(writer, "_STUCK", 0.5)
    uid, patterns, documents = a_run(8)
    hanging, go_on = threading.Event(), threading.Event()

    def hang(request: httpx.Request) -> None:
        if request.method == "PATCH":
            hanging.set()
            assert go_on.wait(60)

    with open_catalog(folder) as catalog:
        network = Network(catalog, monkeypatch)
        store = catalog.writer()
        give(store, documents[:5])
        assert store.flush(60)
        network.refuses = hang
        give(store, documents[5:])
        assert hanging.wait(60)
        if at_exit:
            writer._drain(weakref.ref(store))
        else:
            assert store.close() is False
        assert store.error is None and "state.msgpack" in kept(tmp_path)
        # Its answer comes too late: it is stored, and the thread ends without another request.
        network.refuses = lambda request: None
        go_on.set()
        assert store._ended.wait(60)
    store = other.writer()
    assert store.flush(60) and store.error is None
    assert_whole(other, uid, patterns)
    assert kept(tmp_path) == []
    store.close()


def test_a_document_that_no_file_can_hold_costs_its_run_and_no_other(
    folder: Path, other: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, timed = a_run(3)[2], a_run(4)
    began = datetime.datetime.now(datetime.UTC)
    odd[0] = ("start", {**odd[0][1], "device": threading.Lock()})
    timed[2][0] = ("start", {**timed[2][0][1], "began": began, "batch": uuid.uuid4()})
    left_behind(folder, monkeypatch, [], [*odd, *timed[2]])
    store = other.writer()
    assert store.flush(60) is False and "lock is not plain data" in str(store.error)
    assert_whole(other, timed[0], timed[1])
    (start, *_) = other.documents(timed[0])
    assert datetime.datetime.fromisoformat(start[1]["began"]) == began
    store.close()
    shutil.rmtree(tmp_path / "spool")


# ---- runs with files -----------------------------------------------------------------------------


def old_frames(folder: Path, n: int = 8) -> tuple[str, np.ndarray, Documents]:
    """A run whose images are in files, two of them, as Resource and Datum tell of it."""
    frames = np.arange(n * 6 * 5.0).reshape(n, 6, 5)
    run = compose_run()
    image = {"source": "", "dtype": "array", "shape": [6, 5], "dtype_numpy": "<f8"}
    keys = {"image": {**image, "external": "FILESTORE:"}, "x": {**image, "dtype": "number"}}
    keys["x"].update(shape=[], dtype_numpy="<f8")
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    name = f"{run.start_doc['uid']}.h5"
    with h5py.File(folder / "data" / name, "w") as file:
        file["entry/data/data"] = frames
    resource = run.compose_resource(
        spec="AD_HDF5", root=str(folder / "data"), resource_path=name, resource_kwargs={}
    )
    documents.append(("resource", resource.resource_doc))
    for i in range(n):
        datum = resource.compose_datum(datum_kwargs={"frame": i})
        event = stream.compose_event(
            data={"x": float(i), "image": datum["datum_id"]},
            timestamps={"x": 1.0, "image": 1.0},
            filled={"image": False},
        )
        documents += [("datum", datum), ("event", event)]
    documents.append(("stop", run.compose_stop()))
    return run.start_doc["uid"], frames, documents


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at", [2, 4, 9, 12, 19])
def test_old_references_to_files_are_completed_by_the_next_process(
    folder: Path, other: Catalog, monkeypatch: pytest.MonkeyPatch, at: int, late: bool
) -> None:
    uid, frames, documents = old_frames(folder)
    if late:
        # Events come before what they refer to.
        data = [named for named in documents if named[0] == "datum"]
        documents = [*(d for d in documents[:-1] if d[0] != "datum"), *data, documents[-1]]
    left_behind(folder, monkeypatch, documents[:at], documents[at:])
    store = other.writer()
    assert store.flush(60) and store.error is None
    store.close()
    found = [doc["data"] for name, doc in other.documents(uid) if name == "event"]
    assert [data["x"] for data in found] == list(range(8))
    np.testing.assert_array_equal([np.squeeze(data["image"]) for data in found], frames)


@pytest.mark.parametrize("at", [2, 5, 9])
def test_renamed_data_keys_are_completed_by_the_next_process(
    folder: Path, other: Catalog, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    run = compose_run()
    keys = {k: {"source": "", "dtype": "number", "shape": []} for k in ("a'b", "time", "x")}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for i in range(8):
        data = {"a'b": float(i), "time": 10.0 + i, "x": -float(i)}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 1.0))
        documents.append(("event", event))
    documents.append(("stop", run.compose_stop()))
    left_behind(folder, monkeypatch, documents[:at], documents[at:])
    store = other.writer()
    assert store.flush(60) and store.error is None
    store.close()
    found = [d["data"] for name, d in other.documents(run.start_doc["uid"]) if name == "event"]
    assert found == [{"a_b": float(i), "time_": 10.0 + i, "x": -float(i)} for i in range(8)]


def test_what_is_kept_of_a_run_with_files_does_not_grow_with_it(
    folder: Path, other: Catalog
) -> None:
    _, _, documents = old_frames(folder, 60)
    router = RunRouter(other._open_run, lambda *failure: pytest.fail(str(failure)), "claim")
    sizes = []
    for n, (name, doc) in enumerate(documents[:-1]):
        router(name, doc)
        if n in (22, 122):
            router.flush(force=True)
            sizes.append(len(pack(router.state())))
    assert sizes[1] < sizes[0] + 200


# ---- databroker ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
def test_documents_wait_for_databroker_in_this_process_and_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_catalog(databroker.temp()) as catalog:
        network = Network(catalog, monkeypatch)
        uid, patterns, documents = a_run(12)
        store = catalog.writer()
        give(store, documents[:5])
        assert store.flush(60)
        network.down = True
        with Heard("does not answer"):
            give(store, documents[5:8])
        network.down = False
        assert store.flush(60) and store.error is None
        network.down = True
        give(store, documents[8:])
        assert store.close() is False and store.error is None
        assert "state.msgpack" in kept(tmp_path)
        assert store._ended.wait(60)
        network.down = False
        store = catalog.writer()
        assert store.flush(60) and store.error is None
        assert_whole(catalog, uid, patterns)
        assert kept(tmp_path) == []


@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
def test_a_document_that_databroker_has_twice_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A database without unique indexes keeps what is sent again, since its answer was lost."""
    with open_catalog(databroker.temp()) as catalog:
        network = Network(catalog, monkeypatch)
        uid, patterns, documents = a_run(6)
        store = catalog.writer()
        for n, document in enumerate(documents):
            network.loses = network.n_requests + 1 if n in (1, 2, 4, 7) else None
            give(store, [document])
            assert store.flush(60) and store.error is None
        assert_whole(catalog, uid, patterns)
        assert [name for name, _ in catalog.documents(uid)].count("descriptor") == 1


# ---- what nobody thought of ----------------------------------------------------------------------


class Shelf:
    """Stores runs in memory, all that a writer needs of a catalog."""

    def __init__(self) -> None:
        self.runs: dict[str, list[str]] = {}
        self.open = threading.Event()
        self.open.set()

    def __call__(self, start: Any, claim: str, state: Any = None) -> "ShelfRun":
        assert self.open.wait(60)
        return ShelfRun(self.runs.setdefault(start["uid"], []))


class ShelfRun:
    def __init__(self, names: list[str]) -> None:
        self.lost: list[Exception] = []
        self._names = names

    def __call__(self, name: str, doc: Any) -> None:
        self._names.append(name)

    def flush(self, *, force: bool) -> bool:
        return False

    def state(self) -> None:
        return None


def test_an_odd_file_on_disk_does_not_end_the_writer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool" / "odd").mkdir(parents=True)
    (tmp_path / "spool" / "odd" / "state.msgpack").write_bytes(pack({"first": 0, "state": {}}))
    shelf = Shelf()
    store = CatalogWriter(shelf, spool=tmp_path / "spool")
    uid, _, documents = a_run(3)
    give(store, documents)
    assert store.flush(30) and store.error is None
    assert shelf.runs[uid] == ["descriptor", *["event"] * 3, "stop"]
    assert "cannot be read" in caplog.text
    assert store.close(30)
    assert "state.msgpack" in kept(tmp_path)


@pytest.mark.parametrize("place", ["recovering.leftovers", "spool.Spool.take"])
def test_the_writer_goes_on_after_an_error_and_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    real = {"recovering.leftovers": leftovers, "spool.Spool.take": Spool.take}[place]
    failed = []

    def once(*args: Any, **options: Any) -> Any:
        if not failed:
            failed.append(1)
            raise OSError("a disk that is gone")
        return real(*args, **options)

    monkeypatch.setattr(f"bluesky_cmf.catalogs.{place}", once)
    shelf = Shelf()
    store = CatalogWriter(shelf, spool=tmp_path / "spool")
    uid, _, documents = a_run(3)
    give(store, documents)
    assert store.close(30) is False
    assert shelf.runs[uid][-1] == "stop"
    assert "a disk that is gone" in str(store.error) and "a disk that is gone" in caplog.text


def test_what_an_error_kept_from_being_written_is_written_without_more_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = RunRouter.flush, []

    def once(self: RunRouter, *, force: bool) -> bool:
        if not failed:
            failed.append(1)
            raise RuntimeError("nobody thought of it")
        return real(self, force=force)

    monkeypatch.setattr(RunRouter, "flush", once)
    store = CatalogWriter(Shelf(), spool=tmp_path / "spool")
    give(store, a_run(3)[2])
    with store._changed:
        assert store._changed.wait_for(lambda: store._written == store._received, 20)
    assert store.close(30) is False and "nobody thought of it" in str(store.error)


def test_documents_that_are_lost_on_disk_are_a_failure_and_their_run_does_not_look_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluesky_cmf.catalogs.spool.MEMORY", 0)
    shelf = Shelf()
    shelf.open.clear()
    store = CatalogWriter(shelf, spool=tmp_path / "spool")
    uid, _, documents = a_run(3)
    spool = store._spool
    give(store, documents[:1])
    with spool._changed:
        assert spool._changed.wait_for(lambda: not spool._parcels, 60)
    give(store, documents[1:])
    with spool._changed:
        assert spool._changed.wait_for(lambda: all(p.path for p in spool._parcels), 60)
    for path in (tmp_path / "spool").rglob("*.docs"):
        path.write_bytes(b"\xc1")
    shelf.open.set()
    assert store.flush(30) is False and "documents are lost" in str(store.error)
    assert "stop" not in shelf.runs[uid]
    assert store.close(30) is False
