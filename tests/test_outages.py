"""A catalog that does not answer for a while, or not before the process ends, costs nothing."""

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest
import zarr
from event_model import compose_run
from servers import Server
from streams import mixtures, run_documents

from bluesky_cmf import LiveNMF, open_catalog
from bluesky_cmf.catalogs import Catalog, patience, writer
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


def until(condition: Callable[[], Any]) -> Any:
    deadline, pause = time.monotonic() + 60, threading.Event()
    while not (answer := condition()):
        assert time.monotonic() < deadline, "nothing came in time"
        pause.wait(0.02)
    return answer


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
        until(lambda: live.result is not None)
        assert store.flush(60)
        server.kill()
        for callback in (live, store):
            give(callback, documents[15:30])
        until(lambda: "does not answer" in caplog.text)
        assert not store.flush(0.1) and store.error is None
        for callback in (live, store):
            give(callback, documents[30:])
        until(lambda: [name for name in kept(tmp_path) if name.endswith(".docs")])
        server.start()
        assert live.wait(60) and store.flush(60)
        assert_whole(catalog, uid, patterns)
        result = read_analysis(catalog.documents(analysis[0]))
        assert result.n_patterns == 40 and result.converged and result.stop is not None
        until(lambda: "answers again" in caplog.text)
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
