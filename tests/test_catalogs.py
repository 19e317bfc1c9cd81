"""Catalogs keep what they are given, show it while it comes, and say what is wrong."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import databroker
import event_model
import httpx
import numpy as np
import pytest
import tiled.profiles
from bluesky import RunEngine
from bluesky.plans import scan
from event_model import DocumentNames, schema_validators
from tiled.client import from_uri
from tiled.server import SimpleTiledServer

from bluesky_cmf.catalogs import Catalog, CatalogWriter, open_catalog, patience
from bluesky_cmf.catalogs.tiled_nodes import plain_node
from bluesky_cmf.documents import read_analysis
from bluesky_cmf.errors import CatalogError, RunNotFoundError
from tests.streams import mixtures, run_documents

# databroker.temp() is a Tiled application in this process: its client imports Starlette's test
# client, which warns of the httpx that Tiled is made for.
# Zarr warns of the format of strings in arrays.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`"),
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]


@pytest.fixture(autouse=True)
def _spool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLUESKY_CMF_SPOOL", str(tmp_path / "spool"))


@pytest.fixture(scope="module")
def empty_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was opened once."""
    folder = tmp_path_factory.mktemp("catalogs") / "empty"
    open_catalog(folder).close()
    return folder


@pytest.fixture(scope="module")
def folder(empty_catalog: Path) -> Path:
    return Path(shutil.copytree(empty_catalog, empty_catalog.with_name("folder")))


@pytest.fixture
def new_folder(empty_catalog: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty_catalog, tmp_path / "catalog"))


@pytest.fixture(scope="module")
def server(empty_catalog: Path) -> Iterator[Any]:
    # Over a folder that was made into a catalog here: Tiled's own server has to know it for one.
    directory = shutil.copytree(empty_catalog, empty_catalog.with_name("server"))
    server = SimpleTiledServer(directory)
    yield server
    server.close()
    # The server leaves its log files open.
    for name in ("tiled", "uvicorn.access", "uvicorn.error"):
        log = logging.getLogger(name)
        for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
            log.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="module")
def catalogs(folder: Path, server: Any) -> Iterator[Callable[[str], Catalog]]:
    opened = {
        "server": open_catalog(server.uri),
        "folder": open_catalog(folder),
        "broker": open_catalog(databroker.temp()),
    }
    yield opened.__getitem__
    for catalog in opened.values():
        catalog.close()


@pytest.fixture(params=["folder", "server", "broker"])
def any_catalog(request: pytest.FixtureRequest, catalogs: Callable[[str], Catalog]) -> Catalog:
    return catalogs(request.param)


@pytest.fixture(params=["folder", "broker"])
def catalog(request: pytest.FixtureRequest, catalogs: Callable[[str], Catalog]) -> Catalog:
    return catalogs(request.param)


@pytest.fixture
def tiled_catalog(catalogs: Callable[[str], Catalog]) -> Catalog:
    return catalogs("folder")


@pytest.fixture
def broker_catalog(catalogs: Callable[[str], Catalog]) -> Catalog:
    """The quickest, for what is the writer's alone."""
    return catalogs("broker")


@dataclass
class Run:
    """A hand-made run, document by document."""

    metadata: dict[str, Any] = field(default_factory=dict)
    uid: str | None = None
    docs: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bundle = event_model.compose_run(uid=self.uid, metadata=self.metadata)
        self.uid = self.bundle.start_doc["uid"]
        self.docs.append(("start", self.bundle.start_doc))

    def stream(self, name: str, keys: dict[str, Any], **more: Any) -> Any:
        made = self.bundle.compose_descriptor(
            name=name, data_keys={k: {"source": "test", **v} for k, v in keys.items()}, **more
        )
        self.docs.append(("descriptor", made.descriptor_doc))
        return made

    def event(self, stream: Any, **data: Any) -> None:
        now = time.time()
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, now), validate=False)
        self.docs.append(("event", event))

    def stop(self) -> None:
        self.docs.append(("stop", self.bundle.compose_stop()))

    def store(self, writer: Any) -> None:
        for name, doc in self.docs:
            writer(name, doc)


NUMBER = {"dtype": "number", "shape": []}
STRING = {"dtype": "string", "shape": []}


def array(*shape: int, **more: Any) -> dict[str, Any]:
    return {"dtype": "array", "shape": list(shape), **more}


def stored(catalog: Catalog, run: Run, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    writer = catalog.writer(**options)
    run.store(writer)
    assert writer.flush(30) and writer.error is None
    writer.close()
    return list(catalog.documents(run.uid))


def events(docs: list[tuple[str, Any]], stream: str = "primary") -> list[dict[str, Any]]:
    uids = {d["uid"] for n, d in docs if n == "descriptor" and d["name"] == stream}
    return [doc for name, doc in docs if name == "event" and doc["descriptor"] in uids]


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the package itself has logged."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("bluesky_cmf")]


def all_valid(docs: list[tuple[str, Any]]) -> bool:
    for name, doc in docs:
        schema_validators[DocumentNames[name]].validate(doc)
    return True


def until(condition: Callable[[], Any], seconds: float) -> Any:
    """Ask until there is an answer; the deadline is the assertion."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (answer := condition()):
        assert time.monotonic() < deadline, "nothing came in time"
        pause.wait(0.2)
    return answer


# ---- what is stored comes back -----------------------------------------------------------------


def a_run_of_everything(n: int = 7) -> Run:
    run = Run({"sample": {"name": "BaTiO3"}, "scan_id": 17})
    primary = run.stream(
        "primary",
        {
            "two_theta": array(2000, dtype_numpy="<f8"),
            "intensity": array(2000, dtype_numpy="<f4"),
            "components": array(3, 50),
            "temperature": NUMBER,
            "count": {"dtype": "integer", "shape": []},
            "label": STRING,
            "good": {"dtype": "boolean", "shape": []},
        },
        object_keys={
            "det": ["two_theta", "intensity", "components", "count", "good"],
            "stage": ["temperature", "label"],
        },
        hints={"stage": {"fields": ["temperature"]}, "det": {"fields": []}},
        configuration={"det": {"data": {}, "timestamps": {}, "data_keys": {}}},
    )
    rng = np.random.default_rng(0)
    for i in range(n):
        intensity = rng.random(2000).astype("f4")
        intensity[i] = np.nan
        run.event(
            primary,
            two_theta=np.linspace(1, 2, 2000) + i,
            intensity=intensity,
            components=rng.random((3, 50)),
            temperature=np.float64(150 + i) if i else 150,
            count=np.int64(i),
            label=f"at {i}",
            good=bool(i % 2),
        )
    run.stop()
    return run


def a_small_run(n: int = 3) -> Run:
    run = Run()
    stream = run.stream("primary", {"x": NUMBER, "y": array(4)})
    for i in range(n):
        run.event(stream, x=float(i), y=np.full(4, i, float))
    run.stop()
    return run


def test_documents_come_back_as_they_were_with_every_kind_of_value(any_catalog: Catalog) -> None:
    run = a_run_of_everything()
    docs = stored(any_catalog, run)
    assert [name for name, _ in docs] == [name for name, _ in run.docs]
    assert all_valid(docs)
    for (_, new), (_, old) in zip(docs[2:-1], run.docs[2:-1], strict=True):
        assert new["seq_num"] == old["seq_num"] and new["time"] == old["time"]
        assert new["timestamps"] == old["timestamps"]
        assert new["data"].keys() == old["data"].keys()
        for key, value in old["data"].items():
            np.testing.assert_array_equal(new["data"][key], value)
            assert isinstance(new["data"][key], np.ndarray) == isinstance(value, np.ndarray)
        assert new["data"]["intensity"].dtype == np.float32
        assert new["data"]["components"].shape == (3, 50)
    assert docs[0][1] == run.docs[0][1] and docs[-1][1] == run.docs[-1][1]
    new, old = docs[1][1], run.docs[1][1]
    assert {key: new[key] for key in ("uid", "run_start", "object_keys", "hints")} == {
        key: old[key] for key in ("uid", "run_start", "object_keys", "hints")
    }


def test_a_run_of_the_run_engine_comes_back_whole(catalog: Catalog) -> None:
    from ophyd.sim import SynAxis, SynGauss

    motor = SynAxis(name="motor")
    detector = SynGauss("detector", motor, "motor", center=0, Imax=1, sigma=1)
    seen: list[tuple[str, Any]] = []
    RE = RunEngine()
    writer = catalog.writer()
    RE.subscribe(writer)
    RE.subscribe(lambda name, doc: seen.append((name, doc)))
    (uid,) = RE(scan([detector], motor, -1, 1, 5))
    assert writer.flush(30)
    docs = list(catalog.documents(uid))
    assert [name for name, _ in docs] == [name for name, _ in seen]
    assert [e["data"]["motor"] for e in events(docs)] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert [e["data"] for e in events(docs)] == [e["data"] for e in events(seen)]
    assert docs[1][1]["object_keys"] == seen[1][1]["object_keys"]
    assert all_valid(docs)


def test_several_streams_play_back_in_the_order_in_which_it_happened(catalog: Catalog) -> None:
    run = Run()
    a = run.stream("primary", {"x": NUMBER})
    b = run.stream("other", {"y": NUMBER})
    for i in range(6):
        run.event(a, x=float(i))
        if i % 2:
            run.event(b, y=float(i))
    run.stop()
    docs = stored(catalog, run)
    assert [d["data"] for n, d in docs if n == "event"] == [
        d["data"] for n, d in run.docs if n == "event"
    ]


def test_interleaved_runs_are_kept_apart(catalog: Catalog) -> None:
    runs = [Run({"number": i}) for i in range(2)]
    streams = [run.stream("primary", {"x": NUMBER, "y": array(20)}) for run in runs]
    for i in range(4):
        for number, (run, stream) in enumerate(zip(runs, streams, strict=True)):
            run.event(stream, x=100.0 * number + i, y=np.full(20, float(number)))
    for run in runs:
        run.stop()
    writer = catalog.writer()
    for pair in zip(*(run.docs for run in runs), strict=True):
        for name, doc in pair:
            writer(name, doc)
    assert writer.flush(30)
    for number, run in enumerate(runs):
        back = events(list(catalog.documents(run.uid)))
        assert [e["data"]["x"] for e in back] == [100.0 * number + i for i in range(4)]
        assert {float(e["data"]["y"][0]) for e in back} == {float(number)}


def test_a_page_comes_back_as_events(catalog: Catalog) -> None:
    run = Run()
    stream = run.stream("weights", {f"w{i}": NUMBER for i in range(8)})
    values = np.arange(3000.0)
    page = stream.compose_event_page(
        data={f"w{i}": (values + i).tolist() for i in range(8)},
        timestamps={f"w{i}": [1.0] * 3000 for i in range(8)},
        seq_num=list(range(1, 3001)),
        time=[time.time()] * 3000,
        validate=False,
    )
    run.docs.append(("event_page", page))
    run.stop()
    back = events(stored(catalog, run), "weights")
    assert [e["data"]["w7"] for e in back] == (values + 7).tolist()
    assert len({e["uid"] for e in back}) == 3000


def test_a_change_of_configuration_stays_with_its_events(catalog: Catalog) -> None:
    run = Run()

    def configured(exposure: float) -> Any:
        return run.stream(
            "primary",
            {"x": NUMBER},
            object_keys={"det": ["x"]},
            configuration={
                "det": {
                    "data": {"exposure": exposure},
                    "timestamps": {"exposure": time.time()},
                    "data_keys": {"exposure": {"source": "test", **NUMBER}},
                }
            },
        )

    for exposure in (0.1, 0.5):
        stream = configured(exposure)
        for i in range(2):
            run.event(stream, x=float(i))
    run.stop()
    docs = stored(catalog, run)
    descriptors = {d["uid"]: d for n, d in docs if n == "descriptor"}
    assert [
        descriptors[e["descriptor"]]["configuration"]["det"]["data"]["exposure"]
        for e in (doc for name, doc in docs if name == "event")
    ] == [0.1, 0.1, 0.5, 0.5]


def test_a_rewound_plan_keeps_every_measured_event(tiled_catalog: Catalog) -> None:
    run = Run()
    stream = run.stream("primary", {"x": NUMBER})
    for i, seq_num in enumerate((1, 2, 2, 3)):
        run.event(stream, x=float(i))
        run.docs[-1] = ("event", {**run.docs[-1][1], "seq_num": seq_num})
    run.stop()
    once = events(stored(tiled_catalog, run))
    again = events(list(tiled_catalog.documents(run.uid)))
    assert [e["seq_num"] for e in once] == [1, 2, 2, 3]
    assert len({e["uid"] for e in once}) == 4
    assert [e["uid"] for e in once] == [e["uid"] for e in again]


def test_data_in_files_come_back_as_arrays(server: Any, tmp_path: Path) -> None:
    import h5py

    directory = Path(server.directory) / "data"
    with h5py.File(directory / "frames.h5", "w") as file:
        file["entry/data/data"] = np.arange(4 * 6 * 5.0).reshape(4, 6, 5)
    run = Run()
    stream = run.stream(
        "primary",
        {"image": array(1, 6, 5, external="STREAM:", dtype_numpy="<f8"), "x": NUMBER},
        object_keys={"det": ["image"], "stage": ["x"]},
    )
    resource = run.bundle.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{directory / 'frames.h5'}",
        data_key="image",
        parameters={"dataset": "/entry/data/data", "chunk_shape": (1, 6, 5)},
    )
    run.docs.append(("stream_resource", resource.stream_resource_doc))
    for i in range(4):
        doc = resource.compose_stream_datum(indices={"start": i, "stop": i + 1})
        run.docs.append(("stream_datum", {**doc, "descriptor": stream.descriptor_doc["uid"]}))
        run.event(stream, x=float(i))
    run.stop()
    with open_catalog(server.uri) as catalog:
        docs = stored(catalog, run)
    assert all_valid(docs)
    images = [np.squeeze(e["data"]["image"]) for e in events(docs)]
    np.testing.assert_array_equal(images, np.arange(120.0).reshape(4, 6, 5))
    assert [e["data"]["x"] for e in events(docs)] == [0.0, 1.0, 2.0, 3.0]
    assert {e["filled"]["image"] for e in events(docs)} == {True}


# ---- hard data -----------------------------------------------------------------------------------


def test_descriptors_that_understate_their_data_cost_nothing(catalog: Catalog) -> None:
    run = Run()
    stream = run.stream(
        "primary",
        {"chi_I": {"dtype": "number", "shape": []}, "frame": array(), "mode": NUMBER},
    )
    frames = [np.arange(12, dtype="u2").reshape(3, 4) + i for i in range(3)]
    for i in range(3):
        run.event(stream, chi_I=np.full(10, i, "f4"), frame=frames[i], mode="fast")
    run.stop()
    before = [dict(doc) for _, doc in run.docs]
    back = events(stored(catalog, run))
    for i, event in enumerate(back):
        np.testing.assert_array_equal(event["data"]["frame"], frames[i])
        assert event["data"]["chi_I"].dtype == np.float32
        assert event["data"]["frame"].dtype == np.uint16
        assert event["data"]["mode"] == "fast"
    assert [dict(doc) for _, doc in run.docs] == before


def test_arrays_that_change_their_length_come_back_with_their_own(catalog: Catalog) -> None:
    run = Run()
    stream = run.stream("primary", {"y": array(10)})
    lengths = [10, 10, 7, 12, 1, 0, 30, 10]
    rows = [np.arange(n, dtype=float) for n in lengths]
    writer = catalog.writer()
    for number, row in enumerate(rows):
        run.event(stream, y=row.tolist() if number % 2 else row)
    run.stop()
    for number, (name, doc) in enumerate(run.docs):
        writer(name, doc)
        assert number not in (3, 5, 8) or writer.flush(30)
    assert writer.flush(30)
    back = [e["data"]["y"] for e in events(list(catalog.documents(run.uid)))]
    assert [len(row) for row in back] == lengths
    for new, old in zip(back, rows, strict=True):
        np.testing.assert_array_equal(new, old)


def test_other_readers_see_short_arrays_filled_with_nan(tiled_catalog: Catalog) -> None:
    run = Run()
    stream = run.stream("primary", {"y": array(2)})
    writer = tiled_catalog.writer()
    for row in ([1.0, 2.0], [3.0], [4.0, 5.0, 6.0]):
        run.event(stream, y=np.array(row))
    for name, doc in run.docs:
        writer(name, doc)
        writer.flush(30)
    table = tiled_catalog._client[run.uid]["primary"]["y"].read()
    nan = np.nan
    np.testing.assert_array_equal(table, [[1, 2, nan], [3, nan, nan], [4, 5, 6]])


def test_integers_first_and_fractions_later_are_both_kept(catalog: Catalog) -> None:
    run = Run()
    stream = run.stream("primary", {"motor": NUMBER, "ratio": {"dtype": "integer", "shape": []}})
    writer = catalog.writer()
    for motor, ratio in ((0, 0.5), (0.1, 2), (1, 0.25)):
        run.event(stream, motor=motor, ratio=ratio)
    run.stop()
    for name, doc in run.docs:
        writer(name, doc)
        assert writer.flush(30)
    back = events(list(catalog.documents(run.uid)))
    assert [e["data"]["motor"] for e in back] == [0, 0.1, 1]
    assert [e["data"]["ratio"] for e in back] == [0.5, 2, 0.25]


def test_names_that_no_database_column_may_have_are_stored(tiled_catalog: Catalog) -> None:
    keys = ["I(q)", "2theta", "det-x", "50%", "weight", "Weight", "x" * 70]
    run = Run()
    stream = run.stream("primary", {**dict.fromkeys(keys, NUMBER), "a (b)": STRING, "n": NUMBER})
    for i in range(3):
        numbers = {key: 10.0 * n + i for n, key in enumerate(keys)}
        run.event(stream, **numbers, **{"a (b)": f"number {i}", "n": i})
    run.stop()
    back = events(stored(tiled_catalog, run))
    expected = [doc for name, doc in run.docs if name == "event"]
    assert [e["data"] for e in back] == [e["data"] for e in expected]
    assert [e["timestamps"] for e in back] == [e["timestamps"] for e in expected]


def test_data_keys_that_tiled_cannot_name_are_kept_under_other_names(
    tiled_catalog: Catalog,
) -> None:
    run = Run()
    stream = run.stream(
        "primary",
        {"time": NUMBER, "x": NUMBER, "a/b": array(3), "it's": NUMBER},
        object_keys={"det": ["time", "a/b", "it's"], "stage": ["x"]},
        hints={"det": {"fields": ["a/b"]}},
        validate=False,
    )
    run.event(stream, **{"time": 5.0, "x": 1.0, "a/b": np.arange(3.0), "it's": 7.0})
    page = event_model.pack_event_page(run.docs.pop()[1])
    run.docs.append(("event_page", {**page, "filled": {}}))
    run.stop()
    docs = stored(tiled_catalog, run)
    (event,) = events(docs)
    np.testing.assert_array_equal(event["data"].pop("a_b"), [0, 1, 2])
    assert event["data"] == {"time_": 5.0, "x": 1.0, "it_s": 7.0}
    assert docs[1][1]["hints"] == {"det": {"fields": ["a_b"]}}
    assert set(docs[1][1]["object_keys"]["det"]) == {"time_", "a_b", "it_s"}


# ---- the writer ------------------------------------------------------------------------------


def test_a_reader_sees_events_while_the_run_is_open(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluesky_cmf.catalogs.writer._PACE", 0.05)
    monkeypatch.setattr("bluesky_cmf.catalogs.tiled_stream._FIRST_BATCH", 0.1)
    run = Run()
    stream = run.stream("primary", {"x": NUMBER, "y": array(100)})
    writer = catalog.writer()

    def seen() -> int:
        try:
            docs = list(catalog.documents(run.uid))
        except RunNotFoundError:
            return 0
        assert docs[-1][0] != "stop"
        return len(events(docs))

    run.event(stream, x=0.0, y=np.zeros(100))
    run.store(writer)
    until(lambda: seen() == 1, 60)
    run.docs.clear()
    for i in range(1, 4):
        run.event(stream, x=float(i), y=np.full(100, i))
    run.store(writer)
    until(lambda: seen() == 4, 60)


def test_rows_of_which_only_the_arrays_have_arrived_are_left_out(tiled_catalog: Catalog) -> None:
    run = Run()
    stream = run.stream("primary", {"x": NUMBER, "y": array(4)})
    for i in range(3):
        run.event(stream, x=float(i), y=np.full(4, i, float))
    stored(tiled_catalog, run)
    node = tiled_catalog._client[run.uid]["primary"].base["y"]
    node.patch(np.full((2, 4), 9.0), offset=(3,), extend=True)
    back = events(list(tiled_catalog.documents(run.uid)))
    assert [float(e["data"]["y"][0]) for e in back] == [0, 1, 2]


def test_the_document_may_be_used_again_after_the_call(broker_catalog: Catalog) -> None:
    run = Run()
    stream = run.stream("primary", {"y": array(50)})
    writer = broker_catalog.writer()
    run.store(writer)
    buffer = np.zeros(50)
    for i in range(5):
        buffer[:] = i
        now = time.time()
        writer(
            "event",
            stream.compose_event(data={"y": buffer}, timestamps={"y": now}, validate=False),
        )
    writer.flush(30)
    back = events(list(broker_catalog.documents(run.uid)))
    assert [float(e["data"]["y"].mean()) for e in back] == [0, 1, 2, 3, 4]


def test_the_newest_pattern_of_an_analysis_run_is_stored_only_on_request(
    broker_catalog: Catalog,
) -> None:
    run = Run({"analysis_stage": "cmf"})
    primary = run.stream("primary", {"weight": NUMBER})
    latest = run.stream("latest", {"pattern": array(5)})
    for i in range(3):
        run.event(primary, weight=float(i))
        run.event(latest, pattern=np.full(5, i, float))
    run.stop()
    without = stored(broker_catalog, run)
    assert {doc["name"] for name, doc in without if name == "descriptor"} == {"primary"}
    assert len(events(without)) == 3

    raw = Run({"analysis_stage": "raw"})
    raw.event(raw.stream("latest", {"pattern": array(5)}), pattern=np.zeros(5))
    assert len(events(stored(broker_catalog, raw), "latest")) == 1


def test_the_newest_pattern_is_stored_if_it_is_asked_for(
    catalogs: Callable[[str], Catalog],
) -> None:
    run = Run({"analysis_stage": "cmf"})
    run.event(run.stream("latest", {"pattern": array(5)}), pattern=np.zeros(5))
    assert len(events(stored(catalogs("broker"), run, latest=True), "latest")) == 1


def test_a_run_that_fails_is_logged_once_and_the_others_go_on(
    tiled_catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Run(), Run()
    stored(tiled_catalog, first)
    for run in (first, second):
        stream = run.stream("primary", {"x": NUMBER})
        for i in range(3):
            run.event(stream, x=float(i))
        run.stop()
    writer = tiled_catalog.writer()
    first.store(writer)  # The catalog has a run with this uid.
    second.store(writer)
    assert writer.flush(30) is False
    (line,) = ours(caplog)
    assert first.uid in line
    assert writer.error is not None
    assert len(events(list(tiled_catalog.documents(second.uid)))) == 3


def test_a_run_whose_start_did_not_come_is_left_out_with_a_warning(
    broker_catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run()
    stream = run.stream("primary", {"x": NUMBER})
    for i in range(3):
        run.event(stream, x=float(i))
    writer = broker_catalog.writer()
    for name, doc in run.docs[1:]:
        writer(name, doc)
    writer.flush(30)
    assert writer.error is None
    (line,) = ours(caplog)
    assert "Subscribe the writer before the scan" in line


def test_kinds_of_documents_that_are_not_stored_are_passed_over(
    broker_catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    run = a_small_run()
    run.docs.insert(2, ("bulk_events", {"": []}))
    assert len(events(stored(broker_catalog, run))) == 3
    assert ours(caplog) == []


def test_a_document_that_makes_no_sense_is_told_once_and_the_others_are_stored(
    broker_catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    run = a_small_run()
    odd: list[tuple[str, Any]] = [
        *(("event", {}), ("event", None), ("stop", {}), ("start", {"time": 0.0})),
        ("descriptor", {"run_start": run.uid}),
    ]
    run.docs[2:2] = odd
    writer = broker_catalog.writer()
    run.store(writer)
    assert writer.flush(30) is False
    assert isinstance(writer.error, (KeyError, AttributeError))
    (line,) = ours(caplog)
    assert "makes no sense" in line
    assert len(events(list(broker_catalog.documents(run.uid)))) == 3
    assert writer.close(30) is False


def test_a_start_document_that_cannot_be_stored_costs_its_run_alone(
    broker_catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    refused, run = a_small_run(), a_small_run()
    refused.docs[0] = ("start", {**refused.docs[0][1], "device": threading.Lock()})
    writer = broker_catalog.writer()
    refused.store(writer)
    run.store(writer)
    assert writer.flush(30) is False
    assert writer.error is not None
    (line,) = ours(caplog)
    assert refused.uid in line
    assert len(events(list(broker_catalog.documents(run.uid)))) == 3


# ---- a network that fails --------------------------------------------------------------------


class Network:
    """Lets requests that append through, or fails them: one fault a request, in order."""

    def __init__(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: list[Callable[[str], Any]] = []
        self._patch = client.context.http_client.patch
        monkeypatch.setattr(client.context.http_client, "patch", self)
        monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
        monkeypatch.setattr("tiled.client.utils.TILED_RETRY_ATTEMPTS", 1)

    def __call__(self, url: str, **options: Any) -> Any:
        fault = self.faults.pop(0) if self.faults else None
        if fault is None:
            return self._patch(url, **options)
        if fault is answer_lost:
            self._patch(url, **options)
        return fault(url)


def unreachable(url: str) -> Any:
    raise httpx.ConnectError("the network is down")


def answer_lost(url: str) -> Any:
    raise httpx.ReadTimeout("no answer")


def restarting(url: str) -> Any:
    return httpx.Response(503, request=httpx.Request("PATCH", url))


def too_busy(url: str) -> Any:
    headers = {"Retry-After": "0.01"}
    return httpx.Response(429, headers=headers, request=httpx.Request("PATCH", url))


@pytest.fixture
def network(tiled_catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(tiled_catalog._client, monkeypatch)


@pytest.mark.parametrize("fault", [unreachable, answer_lost, restarting, too_busy])
def test_a_network_that_fails_for_a_while_costs_no_row_and_doubles_none(
    tiled_catalog: Catalog, network: Network, fault: Callable[[str], Any]
) -> None:
    run = a_small_run(4)
    writer = tiled_catalog.writer()
    for number, (name, doc) in enumerate(run.docs):
        if number == 3:
            # The first row is written: those that follow are appended to the array and the table.
            assert writer.flush(30)
            network.faults = [fault, fault, None, fault, fault]  # type: ignore[list-item]
        writer(name, doc)
    assert writer.flush(30) and writer.error is None
    assert network.faults == []
    back = events(list(tiled_catalog.documents(run.uid)))
    assert [e["data"]["x"] for e in back] == [0, 1, 2, 3]
    assert [e["data"]["y"].tolist() for e in back] == [[float(i)] * 4 for i in range(4)]


def test_a_server_that_refuses_rows_costs_the_open_run_and_not_the_next(
    tiled_catalog: Catalog, network: Network
) -> None:
    """One that does not answer costs nothing, however long: see test_outages."""

    def refuse(url: str) -> Any:
        assert "/table/" in url
        return httpx.Response(400, json={"detail": "no"}, request=httpx.Request("PATCH", url))

    lost, run = a_small_run(), a_small_run()
    writer = tiled_catalog.writer()
    for number, (name, doc) in enumerate(lost.docs):
        if number == 3:
            assert writer.flush(30)
            network.faults = [None, refuse]  # type: ignore[list-item]
        writer(name, doc)
    assert writer.flush(30) is False
    assert isinstance(writer.error, httpx.HTTPStatusError)
    run.store(writer)
    writer.flush(30)
    assert len(events(list(tiled_catalog.documents(run.uid)))) == 3
    # What looks like a whole run is one.
    assert [name for name, _ in tiled_catalog.documents(lost.uid)][-1] != "stop"


def test_a_data_key_that_is_refused_half_way_comes_back_with_the_rows_that_were_stored(
    tiled_catalog: Catalog, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(url: str) -> Any:
        assert url.endswith("/primary/y")
        request = httpx.Request("PATCH", url)
        return httpx.Response(400, json={"detail": "no such array"}, request=request)

    run = a_small_run()
    writer = tiled_catalog.writer()
    for number, (name, doc) in enumerate(run.docs):
        if number == 3:
            assert writer.flush(30)
            network.faults = [refuse]
        writer(name, doc)
    assert writer.flush(30) is False
    assert "no such array" in str(writer.error)
    docs = list(tiled_catalog.documents(run.uid))
    assert docs[-1][0] == "stop" and all_valid(docs)
    assert [e["data"]["x"] for e in events(docs)] == [0, 1, 2]
    nan = [np.nan] * 4
    np.testing.assert_array_equal([e["data"]["y"] for e in events(docs)], [[0.0] * 4, nan, nan])
    assert "'y' has 1 of 3 rows" in caplog.text


def test_a_closed_writer_says_once_that_it_stores_nothing(
    broker_catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    writer = broker_catalog.writer()
    assert writer.close(30)
    Run().store(writer)
    Run().store(writer)
    (line,) = ours(caplog)
    assert "closed" in line


def test_a_flush_that_runs_out_of_time_says_so() -> None:
    released = threading.Event()
    store = SimpleNamespace(lost=[], flush=lambda force: False)

    class Slow:
        lost: list[Exception] = []  # noqa: RUF012

        def __call__(self, name: str, doc: Any) -> None:
            released.wait(30)

        def flush(self, *, force: bool) -> bool:
            return store.flush(force)

    writer = CatalogWriter(lambda start, claim, state: Slow())
    run = Run()
    run.stop()
    run.store(writer)
    assert writer.flush(0.05) is False
    released.set()
    assert writer.flush(30) is True
    writer.close()


# ---- opening and closing ---------------------------------------------------------------------


def test_a_folder_survives_a_restart_and_can_be_open_twice(new_folder: Path) -> None:
    run = a_small_run()
    before = set(threading.enumerate())
    with open_catalog(new_folder) as first, open_catalog(str(new_folder)) as second:
        first_docs = stored(first, run)
        first.close()
        assert len(list(second.documents(run.uid))) == len(first_docs)
        assert second.spec == str(new_folder.resolve())
    until(lambda: not any("run" in t.name for t in set(threading.enumerate()) - before), 20)
    with open_catalog(new_folder, create=False) as again:
        docs = list(again.documents(run.uid))
        assert again.uids() == [run.uid]
    np.testing.assert_equal(docs, first_docs)


def test_a_closed_catalog_says_so(tmp_path: Path, server: Any) -> None:
    catalog = open_catalog(server.uri)
    catalog.close()
    catalog.close()
    with pytest.raises(CatalogError, match="is closed"):
        catalog.writer()
    with pytest.raises(CatalogError, match="is closed"):
        catalog.documents("abcdefgh")


def test_a_client_or_a_broker_is_taken_and_left_open(server: Any) -> None:
    client = from_uri(server.uri)
    run = Run()
    run.stop()
    with open_catalog(client) as catalog:
        stored(catalog, run)
        assert open_catalog(catalog) is catalog
    assert client[run.uid].metadata["start"]["uid"] == run.uid
    client.context.close()

    broker = databroker.temp()
    for given in (broker, broker.v2):
        run = Run()
        run.stop()
        with open_catalog(given) as catalog:
            stored(catalog, run)
        assert broker[run.uid].start["uid"] == run.uid


def test_databroker_temp_is_a_catalog_in_memory(capfd: pytest.CaptureFixture[str]) -> None:
    with open_catalog("databroker:temp") as catalog:
        assert len(stored(catalog, a_run_of_everything(2))) == 5
        assert catalog.spec == "databroker:temp"
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def profile(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "beamline.yml").write_text(f"my-beamline:\n  uri: {server.uri}\n")
    monkeypatch.setattr(tiled.profiles, "paths", [tmp_path / "profiles"])
    monkeypatch.chdir(tmp_path)
    return "my-beamline"


def test_a_profile_is_opened_by_its_name(profile: str) -> None:
    run = a_small_run()
    for spec in (profile, f"tiled:{profile}", f"databroker:{profile}"):
        with open_catalog(spec) as catalog:
            assert catalog.spec.endswith(f":{profile}")
            if spec == profile:
                stored(catalog, run)
            assert len(list(catalog.documents(run.uid))) == len(run.docs)


def test_a_folder_of_the_same_name_is_taken_before_a_profile(
    profile: str, tmp_path: Path, empty_catalog: Path
) -> None:
    shutil.copytree(empty_catalog, profile)
    with open_catalog(profile) as catalog:
        assert catalog.spec == str(tmp_path / profile)


def test_an_api_key_is_not_shown(server: Any) -> None:
    with open_catalog(server.uri) as catalog:
        assert server.api_key in server.uri
        assert server.api_key not in catalog.spec + repr(catalog)


def test_what_is_no_catalog_is_refused_with_what_to_do(
    tmp_path: Path, profile: str, server: Any
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "catalog.db").write_text("not a database, " * 100)
    refused = {
        str(tmp_path / "file"): "is a file",
        str(tmp_path / "full"): "is not empty and holds no catalog",
        str(tmp_path / "broken"): "cannot be opened as a catalog",
        str(tmp_path / "file" / "below"): "cannot be opened as a catalog|is a file",
        "tiled:nowhere": "no Tiled profile named 'nowhere'. Known profiles: my-beamline",
        "databroker:nowhere": "no Tiled profile named 'nowhere'",
        "http://127.0.0.1:9/api/v1": "does not answer.*Check the address",
        server.uri.replace(server.api_key, "wrong"): "Cannot open.*Invalid API key",
        "ftp://somewhere": "expected a folder",
        "https://[": "address of the server cannot be read",
        "x" * 5000: "x… cannot be opened as a catalog: File name too long",
        "a\0b": "cannot be opened as a catalog: embedded null byte",
        "~nobody-of-this-name/catalog": "cannot be opened as a catalog",
        " ": "expected a folder",
    }
    for spec, message in refused.items():
        with pytest.raises(CatalogError, match=message):
            open_catalog(spec)
    with pytest.raises(CatalogError, match="got a int"):
        open_catalog(3)
    with pytest.raises(CatalogError, match="no catalog in the folder"):
        open_catalog(tmp_path / "new", create=False)
    assert not (tmp_path / "new").exists()
    assert sorted(os.listdir(tmp_path / "full")) == ["notes.txt"]


def test_a_folder_that_another_process_uses_is_refused(new_folder: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True);"
            "sys.stdin.read()",
            str(new_folder / "storage.duckdb"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(CatalogError, match="open in another process"):
            open_catalog(new_folder)
    finally:
        holder.communicate(b"")


def test_runs_are_found_by_the_beginning_of_their_uid(catalog: Catalog) -> None:
    run = Run()
    twin = Run(uid=run.uid[:8] + str(uuid.uuid4())[8:])
    stored(catalog, run)
    stored(catalog, twin)
    assert catalog.uids(2) == [twin.uid, run.uid]
    assert next(catalog.documents(run.uid[:20]))[1]["uid"] == run.uid
    with pytest.raises(RunNotFoundError, match="More than one run"):
        catalog.documents(run.uid[:8])
    with pytest.raises(RunNotFoundError, match="first 5 characters or more, got 'abc'"):
        catalog.documents("abc")
    with pytest.raises(RunNotFoundError, match="no run with the uid 'ffffffff-0'"):
        catalog.documents("ffffffff-0")


def test_a_process_that_never_closes_ends_by_itself_with_everything_written(
    new_folder: Path,
) -> None:
    """The catalog is opened after the fit has begun, and still closed after it."""
    script = """
import gc, sys
gc.disable()  # To go through all that is imported takes seconds, also at the exit.
import event_model, numpy as np
from bluesky_cmf import LiveNMF, open_catalog

live = LiveNMF("y", n_components=2)
run = event_model.compose_run()
stream = run.compose_descriptor(
    name="primary", data_keys={"y": {"source": "", "dtype": "array", "shape": [2000]}}
)
callbacks = [live]

def give(name, doc):
    for callback in callbacks:
        callback(name, doc)

def event(i):
    data = {"y": np.full(2000, i + 1.0)}
    return stream.compose_event(data=data, timestamps={"y": 1.0}, validate=False)

give("start", run.start_doc)
give("descriptor", stream.descriptor_doc)
live("event", event(99))
writer = open_catalog(sys.argv[1]).writer()
live.subscribe(writer)
callbacks.append(writer)
writer("start", run.start_doc)
writer("descriptor", stream.descriptor_doc)
for i in range(20):
    give("event", event(i))
give("stop", run.compose_stop())
print(run.start_doc["uid"])
gc.freeze()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(new_folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (uid,) = done.stdout.split()
    with open_catalog(new_folder) as catalog:
        docs = list(catalog.documents(uid))
        (analysis_uid,) = set(catalog.uids()) - {uid}
        analysis = read_analysis(catalog.documents(analysis_uid))
    assert [float(e["data"]["y"][0]) for e in events(docs)] == list(range(1, 21))
    assert docs[-1][0] == "stop"
    assert analysis.start is not None and analysis.start["original_run_uid"] == uid
    assert analysis.stop is not None and analysis.converged
    assert analysis.n_patterns == 21


def test_a_folder_logs_into_itself_and_leaves_the_logging_of_the_process_alone(
    tmp_path: Path, new_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("test.catalogs")
    handler = logging.FileHandler(tmp_path / "mine.log", mode="w")
    log.addHandler(handler)
    access = logging.getLogger("uvicorn.access")
    access.addHandler(handler)

    def state() -> list[Any]:
        names = ("tiled", "tiled.server.app", "uvicorn.error", "uvicorn.access")
        logs = [logging.getLogger(name) for name in names]
        return [(log.handlers[:], log.level, log.propagate) for log in logs]

    before = state()
    try:
        with open_catalog(new_folder):
            log.warning("while open")
            assert handler in access.handlers
            assert [level for _, level, _ in state()] == [level for _, level, _ in before]
            logging.getLogger("tiled.server.app").warning("something odd")
            logging.getLogger("uvicorn.error").info("nothing special")
        log.warning("after")
        assert state() == before
    finally:
        log.removeHandler(handler)
        access.removeHandler(handler)
        handler.close()
    lines = (tmp_path / "mine.log").read_text().splitlines()
    assert [line for line in lines if "HTTP" not in line] == ["while open", "after"]
    assert capfd.readouterr().err == ""
    (line,) = (new_folder / "error.log").read_text().splitlines()
    assert line.endswith("WARNING something odd")


def test_a_table_is_read_by_the_client_that_is_asked_though_an_older_one_is_remembered(
    tmp_path: Path,
) -> None:
    x, _, patterns = mixtures(4)
    documents = run_documents(patterns, x=x)
    uid = documents[0][1]["uid"]
    remembered = []
    with open_catalog(tmp_path / "folder") as catalog:
        with open_catalog(tmp_path / "folder") as older:
            store = older.writer()
            for name, doc in documents:
                store(name, doc)
            assert store.flush(60)
            store.close()
            table = plain_node(older._client[uid]["primary"])["internal"]
            # What dask makes of a table is alive for as long as anybody holds it.
            remembered.append(super(type(table), table).read())
        events = [doc for name, doc in catalog.documents(uid) if name == "event"]
    assert [event["data"]["temperature"] for event in events] == [0.0, 1.0, 2.0, 3.0]
    assert len(remembered) == 1
