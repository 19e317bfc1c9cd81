"""A run that grows is read to its end: each row once, whatever happens to the server."""

import logging
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import databroker
import event_model
import numpy as np
import pytest
from event_model import DocumentNames, schema_validators
from servers import Server
from streams import mixtures
from test_catalogs import NUMBER, Run, array, events
from test_cli import PNG, fact, interruptible, objective

from bluesky_cmf import LiveNMF
from bluesky_cmf.catalogs import Catalog, CatalogWriter, open_catalog
from bluesky_cmf.catalogs.following import followed
from bluesky_cmf.catalogs.tiled_read import TiledReading
from bluesky_cmf.cli import run as command
from bluesky_cmf.cli.console import FollowProgress
from bluesky_cmf.documents import read_analysis
from bluesky_cmf.errors import CatalogError, InputError, RunNotFoundError
from bluesky_cmf.sources import replay
from tests import asyncstreams

__all__ = ["interruptible"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`"),
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on how long pauses are."""
    monkeypatch.setattr("bluesky_cmf.catalogs.following._SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr("bluesky_cmf.catalogs.following._QUIET_PAUSE", 0.05)
    monkeypatch.setattr("bluesky_cmf.catalogs.following._REST", 0.1)
    monkeypatch.setattr("bluesky_cmf.catalogs.writer._PACE", 0.02)
    monkeypatch.setattr("bluesky_cmf.catalogs.tiled_stream._FIRST_BATCH", 0.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def catalogs(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Catalog]]:
    opened = {
        "server": open_catalog(server.uri),
        "folder": open_catalog(tmp_path_factory.mktemp("following") / "catalog"),
        "broker": open_catalog(databroker.temp()),
    }
    yield opened.__getitem__
    for catalog in opened.values():
        catalog.close()


@pytest.fixture(params=["folder", "server", "broker"])
def catalog(request: pytest.FixtureRequest, catalogs: Callable[[str], Catalog]) -> Catalog:
    return catalogs(request.param)


@pytest.fixture
def folder(catalogs: Callable[[str], Catalog]) -> Catalog:
    return catalogs("folder")


@pytest.fixture
def on_server(catalogs: Callable[[str], Catalog]) -> Catalog:
    return catalogs("server")


class Scan:
    """A run that is measured bit by bit: what was said to it so far stands in the catalog."""

    def __init__(self, catalog: Catalog, **metadata: Any) -> None:
        self.run = Run(metadata)
        self.uid = str(self.run.uid)
        self.writer: CatalogWriter = catalog.writer()
        self.primary = self.run.stream("primary", {"x": NUMBER, "y": array(50)})
        self.n = 0

    def measure(self, n: int) -> None:
        for _ in range(n):
            self.run.event(self.primary, x=float(self.n), y=np.full(50, self.n, float))
            self.n += 1
        self.write()

    def stop(self) -> None:
        self.run.stop()
        self.write()
        self.writer.close()

    def write(self) -> None:
        self.run.store(self.writer)
        self.run.docs.clear()
        assert self.writer.flush(60) and self.writer.error is None


def rows(docs: list[tuple[str, Any]], stream: str = "primary") -> list[int]:
    found = events(docs, stream)
    assert all(doc["data"]["y"].tolist() == [doc["data"]["x"]] * 50 for doc in found)
    return [int(doc["data"]["x"]) for doc in found]


# ---- rows ----------------------------------------------------------------------------------------


def test_rows_come_once_and_in_order_while_the_run_is_measured(catalog: Catalog) -> None:
    scan = Scan(catalog)
    scan.measure(3)
    docs = []
    for name, doc in catalog.documents(scan.uid, follow=True):
        docs.append((name, doc))
        if name == "event" and len(events(docs)) == scan.n:
            # All of it was read: more of it comes, and at last the end.
            scan.measure(scan.n) if scan.n < 20 else scan.stop()
    assert rows(docs) == list(range(24))
    assert [name for name, _ in docs][:2] == ["start", "descriptor"]
    assert docs[-1][0] == "stop" and docs[-1][1]["num_events"] == {"primary": 24}
    for name, doc in docs:
        schema_validators[DocumentNames[name]].validate(doc)


def test_a_run_that_is_written_by_another_thread_meanwhile_is_read_whole(catalog: Catalog) -> None:
    scan = Scan(catalog)
    scan.measure(1)

    def measure() -> None:
        for _ in range(15):
            scan.measure(2)
        scan.stop()

    thread = threading.Thread(target=measure)
    thread.start()
    docs = list(catalog.documents(scan.uid, follow=True))
    thread.join()
    assert rows(docs) == list(range(31))


def test_events_have_the_uids_that_a_replay_gives_them(on_server: Catalog) -> None:
    scan = Scan(on_server)
    scan.measure(2)
    followed = []
    for name, doc in on_server.documents(scan.uid, follow=True):
        followed.append((name, doc))
        if name == "event" and scan.n == 2:
            scan.measure(2)
            scan.stop()
    again = list(on_server.documents(scan.uid))
    assert [doc["uid"] for _, doc in followed] == [doc["uid"] for _, doc in again]


def test_a_stream_that_begins_later_is_read_too(catalog: Catalog) -> None:
    scan = Scan(catalog)
    scan.measure(2)
    docs: list[tuple[str, Any]] = []
    late: Any = None
    for name, doc in catalog.documents(scan.uid, follow=True):
        docs.append((name, doc))
        if len(events(docs)) == 2 and late is None:
            late = scan.run.stream("late", {"x": NUMBER, "y": array(50)})
            scan.run.event(late, x=7.0, y=np.full(50, 7.0))
            scan.measure(1)
        elif len(events(docs)) == 3 and events(docs, "late") and scan.n == 3:
            scan.measure(1)
            scan.stop()
    assert rows(docs) == [0, 1, 2, 3]
    assert rows(docs, "late") == [7]


def test_a_change_of_configuration_comes_before_its_first_event(catalog: Catalog) -> None:
    scan = Scan(catalog)
    run = scan.run
    run.docs.pop()

    def configured(exposure: float) -> Any:
        return run.stream(
            "primary",
            {"x": NUMBER, "y": array(50)},
            object_keys={"det": ["x", "y"]},
            configuration={
                "det": {
                    "data": {"exposure": exposure},
                    "timestamps": {"exposure": 0.0},
                    "data_keys": {"exposure": {"source": "test", **NUMBER}},
                }
            },
        )

    scan.primary = configured(0.1)
    scan.measure(2)
    docs: list[tuple[str, Any]] = []
    for name, doc in catalog.documents(scan.uid, follow=True):
        docs.append((name, doc))
        if name == "event" and len(events(docs)) == 2 and scan.n == 2:
            scan.primary = configured(0.5)
            scan.measure(2)
            scan.stop()
    exposure = {
        doc["uid"]: doc["configuration"]["det"]["data"]["exposure"]
        for name, doc in docs
        if name == "descriptor"
    }
    assert rows(docs) == [0, 1, 2, 3]
    assert [exposure[doc["descriptor"]] for doc in events(docs)] == [0.1, 0.1, 0.5, 0.5]
    names = [name for name, _ in docs]
    assert names == [
        "start",
        "descriptor",
        "event",
        "event",
        "descriptor",
        "event",
        "event",
        "stop",
    ]


def test_rows_of_which_only_the_arrays_have_arrived_wait_for_the_rest(folder: Catalog) -> None:
    scan = Scan(folder)
    scan.measure(3)
    node = folder._client[scan.uid]["primary"].base
    reading = TiledReading(folder._client[scan.uid])
    assert rows(list(reading.news(last=False))) == [0, 1, 2]
    node["y"].patch(np.full((1, 50), 3.0), offset=(3,), extend=True)
    assert list(reading.news(last=False)) == []
    row = [[4], [1.0], [3.0], [1.0], [1.0]]
    import pyarrow

    names = ["seq_num", "time", "x", "ts_x", "ts_y"]
    node["internal"].append_partition(0, pyarrow.table(dict(zip(names, row, strict=True))))
    ((name, doc),) = reading.news(last=False)
    assert (name, doc["data"]["x"], doc["data"]["y"].tolist()) == ("event", 3.0, [3.0] * 50)


def test_a_look_that_fails_half_way_loses_nothing(
    folder: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Scan(folder)
    other = scan.run.stream("other", {"x": NUMBER, "y": array(50)})
    for i in range(3):
        scan.run.event(other, x=float(i), y=np.full(50, i, float))
        scan.measure(1)
    reading = TiledReading(folder._client[scan.uid])
    docs = []
    with monkeypatch.context() as broken:
        tails = "bluesky_cmf.catalogs.tiled_read._StreamTail._read_rows"
        read = reading_fails_once_in(tails, broken)
        with pytest.raises(ZeroDivisionError):
            for named in reading.news(last=False):
                docs.append(named)
        assert read == ["other", "primary"]
    docs += list(reading.news(last=False))
    assert rows(docs) == rows(docs, "other") == [0, 1, 2]
    assert [name for name, _ in docs].count("start") == 1


def reading_fails_once_in(place: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the second stream fail after the first one was read."""
    from bluesky_cmf.catalogs import tiled_read

    original = tiled_read._StreamTail._read_rows
    calls: list[str] = []

    def failing(tail: Any) -> None:
        calls.append(tail._name)
        if len(calls) == 2:
            raise ZeroDivisionError
        original(tail)

    monkeypatch.setattr(place, failing)
    return calls


def test_events_wait_for_their_frames_in_files(server: Server, on_server: Catalog) -> None:
    import h5py

    file = server.folder / "data" / "frames.h5"
    images = np.arange(4 * 6 * 5.0).reshape(4, 6, 5)

    def expose(n: int) -> None:
        with h5py.File(file, "w") as frames:
            frames["entry/data/data"] = images[:n]

    run = Run()
    image = array(1, 6, 5, external="STREAM:", dtype_numpy="<f8")
    stream = run.stream("primary", {"image": image, "x": NUMBER})
    resource = run.bundle.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{file}",
        data_key="image",
        parameters={"dataset": "/entry/data/data", "chunk_shape": (1, 6, 5)},
    )
    writer = on_server.writer()

    def write() -> None:
        run.store(writer)
        run.docs.clear()
        assert writer.flush(60) and writer.error is None

    def frame(first: int, stop: int) -> None:
        datum = resource.compose_stream_datum(indices={"start": first, "stop": stop})
        run.docs.append(("stream_datum", {**datum, "descriptor": stream.descriptor_doc["uid"]}))

    run.event(stream, x=0.0)
    run.event(stream, x=1.0)
    write()
    reading = TiledReading(on_server._client[run.uid])
    assert [name for name, _ in reading.news(last=False)] == ["start"]
    run.docs.append(("stream_resource", resource.stream_resource_doc))
    expose(1)
    frame(0, 1)
    write()
    docs = list(reading.news(last=False))
    assert [doc["data"]["x"] for doc in events(docs)] == [0.0]
    # Two frames come before their events, and one of them before the server knows of it.
    expose(4)
    frame(1, 3)
    write()
    assert list(reading.news(last=False)) == []
    frame(3, 4)
    write()
    docs += reading.news(last=False)
    assert [doc["data"]["x"] for doc in events(docs)] == [0.0, 1.0]
    run.event(stream, x=2.0)
    run.event(stream, x=3.0)
    run.stop()
    write()
    docs += reading.news(last=False)
    assert docs[-1][0] == "stop" and reading.finished
    back = [np.squeeze(doc["data"]["image"]) for doc in events(docs)]
    np.testing.assert_array_equal(back, images)


def test_a_folder_bears_readers_while_its_tables_grow(folder: Catalog) -> None:
    # Tiled would end the process here.
    import pyarrow

    schema = pyarrow.schema([("a", pyarrow.int64())])
    table = folder._client.create_appendable_table(schema=schema, key="growing")
    done = threading.Event()
    failed: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                table.read(["a"])
            except Exception as error:
                failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for i in range(100):
            table.append_partition(0, pyarrow.table({"a": [i]}))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert table.read()["a"].tolist() == list(range(100))
    assert failed == []


# ---- ends ----------------------------------------------------------------------------------------


def test_a_run_that_grows_no_more_is_closed_once_patience_is_at_its_end(catalog: Catalog) -> None:
    scan = Scan(catalog)
    scan.measure(3)
    docs: list[tuple[str, Any]] = []
    replay(catalog, scan.uid, lambda *named: docs.append(named), follow=True, patience=0.1)
    assert rows(docs) == [0, 1, 2]
    name, stop = docs[-1]
    assert (name, stop["run_start"], stop["exit_status"]) == ("stop", scan.uid, "abort")
    assert stop["reason"] == "the stored run has no stop document and did not grow for 0.1 s"
    assert stop["num_events"] == {"primary": 3}


def test_an_interrupt_closes_the_run_with_all_that_was_read(folder: Catalog) -> None:
    scan = Scan(folder)
    scan.measure(3)
    docs: list[tuple[str, Any]] = []

    def take(name: str, doc: Any) -> None:
        docs.append((name, doc))
        if len(events(docs)) == 3 and name == "event":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(folder, scan.uid, take, follow=True)
    assert rows(docs) == [0, 1, 2]
    assert docs[-1][1]["exit_status"] == "abort" and "interrupted" in docs[-1][1]["reason"]


class AtWarning(logging.Handler):
    """Does something once the package says something."""

    def __init__(self, words: str, action: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._words, self._action = words, action
        self.heard = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            self.heard += 1
            if self.heard == 1:
                self._action()

    def __enter__(self) -> "AtWarning":
        logging.getLogger("bluesky_cmf").addHandler(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger("bluesky_cmf").removeHandler(self)


def test_a_run_that_is_not_there_yet_is_waited_for(catalog: Catalog) -> None:
    scan = Scan(catalog)

    def begin() -> None:
        scan.measure(2)
        scan.stop()

    with AtWarning("is waited for", begin) as waiting:
        docs = list(catalog.documents(scan.uid, follow=True))
    assert waiting.heard == 1
    assert rows(docs) == [0, 1]


def test_a_look_at_a_run_that_is_not_there_makes_no_other_request() -> None:
    looks, asked = 0, 0

    class Finished:
        finished, extent = True, 1

        def news(self, *, last: bool) -> Iterator[tuple[str, dict[str, Any]]]:
            yield "stop", {}

    def find() -> Finished | None:
        nonlocal looks
        looks += 1
        return Finished() if looks == 4 else None

    def absent() -> RunNotFoundError:
        nonlocal asked
        asked += 1
        return RunNotFoundError("No such run.")

    assert list(followed(find, absent, patience=None, where="here")) == [("stop", {})]
    assert (looks, asked) == (4, 1)


def test_a_run_that_never_comes_is_refused_once_patience_is_at_its_end(catalog: Catalog) -> None:
    with pytest.raises(RunNotFoundError, match="no run with the uid 'abcdefgh'"):
        list(catalog.documents("abcdefgh", follow=True, patience=0.05))


def test_a_patience_that_means_nothing_is_refused(folder: Catalog) -> None:
    with pytest.raises(InputError, match="only where it is followed"):
        folder.documents("abcdefgh", patience=1.0)
    for patience in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected seconds, 0 or more"):
            folder.documents("abcdefgh", follow=True, patience=patience)
    with pytest.raises(RunNotFoundError, match="first 5 characters"):
        folder.documents("abc", follow=True)


# ---- a server that goes away ---------------------------------------------------------------------


def test_a_restart_of_the_server_costs_no_row_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiled.client.utils.TILED_RETRY_ATTEMPTS", 1)
    with Server(tmp_path) as server, open_catalog(server.uri) as catalog:
        scan = Scan(catalog)
        scan.measure(3)
        docs: list[tuple[str, Any]] = []
        restart = threading.Thread(target=server.start)
        with (
            AtWarning("does not answer", restart.start) as away,
            AtWarning("answers again", lambda: scan.measure(2)) as back,
        ):
            # The patience is shorter than the server's absence, which does not count.
            for name, doc in catalog.documents(scan.uid, follow=True, patience=2.0):
                docs.append((name, doc))
                if name == "event" and len(events(docs)) == 3:
                    server.kill()
                elif name == "event" and len(events(docs)) == 5:
                    scan.stop()
        restart.join()
        assert (away.heard, back.heard) == (1, 1)
        assert rows(docs) == [0, 1, 2, 3, 4]
        assert docs[-1][0] == "stop"


def test_a_server_that_stays_away_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiled.client.utils.TILED_RETRY_ATTEMPTS", 1)
    monkeypatch.setattr("bluesky_cmf.catalogs.following._OUTAGE", 0.2)
    with Server(tmp_path) as server, open_catalog(server.uri) as catalog:
        scan = Scan(catalog)
        scan.measure(1)
        documents = catalog.documents(scan.uid, follow=True, patience=0.1)
        next(documents)
        server.kill()
        with pytest.raises(CatalogError, match="does not answer"):
            list(documents)


# ---- the command line ----------------------------------------------------------------------------


class Beamline:
    """A scan of mixtures of two phases that is measured while it is followed."""

    def __init__(self, catalog: Catalog) -> None:
        x, _, self.patterns = mixtures(8, noise=0.01)
        self.run = event_model.compose_run(
            metadata={"hints": {"dimensions": [[["temperature"], "primary"]]}}
        )
        self.stream = self.run.compose_descriptor(
            name="primary",
            data_keys={
                "chi_I": {"source": "test", **array(200)},
                "chi_Q": {"source": "test", **array(200)},
                "temperature": {"source": "test", **NUMBER},
            },
        )
        self.x, self.uid = x, str(self.run.start_doc["uid"])
        self.writer = catalog.writer()
        self.writer("start", self.run.start_doc)
        self.writer("descriptor", self.stream.descriptor_doc)
        self.n = 0

    def measure(self, n: int) -> None:
        for pattern in self.patterns[self.n : self.n + n]:
            data = {"chi_I": pattern, "chi_Q": self.x, "temperature": float(self.n)}
            event = self.stream.compose_event(data, dict.fromkeys(data, 0.0), validate=False)
            self.writer("event", event)
            self.n += 1
        assert self.writer.flush(60)

    def stop(self) -> None:
        self.writer("stop", self.run.compose_stop())
        assert self.writer.close()

    def replay(self, catalog: str, *options: str) -> list[str]:
        words = ["replay", catalog, self.uid, "--pattern=chi_I", "--x=chi_Q", "--components=2"]
        return [*words, *options]


def test_the_command_follows_a_run_and_ends_as_if_it_had_been_there_from_the_end(
    folder: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    beamline = Beamline(folder)
    beamline.measure(3)

    class Measuring(FollowProgress):
        """The rest of the scan is measured once its beginning was read."""

        def advance(self) -> None:
            super().advance()
            if self.count == 3:
                beamline.measure(5)
            elif self.count == 8:
                beamline.stop()

    monkeypatch.setattr("bluesky_cmf.cli.replaying.FollowProgress", Measuring)
    figure = tmp_path / "figure.png"
    words = beamline.replay(folder.spec, "--follow", "--save", f"--figure={figure}")
    assert command(words) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    lines = [line for line in output.splitlines() if line.startswith("following")]
    assert lines[0] == f"following {beamline.uid[:8]}: 0 patterns so far"
    assert lines[-1] == f"following {beamline.uid[:8]}: 8 patterns so far"
    assert figure.read_bytes().startswith(PNG)
    analysis = read_analysis(folder.documents(fact(output, "analysis run")))
    assert analysis.n_patterns == 8 and analysis.converged
    assert command(beamline.replay(folder.spec)) == 0
    undisturbed, _ = capsys.readouterr()
    assert objective(output) == pytest.approx(objective(undisturbed), rel=1e-3)


def test_the_command_fits_a_run_that_was_left_once_patience_is_at_its_end(
    folder: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    beamline = Beamline(folder)
    beamline.measure(8)
    words = beamline.replay(folder.spec, "--follow", "--patience=0.1", "--save")
    assert command(words) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "8 patterns so far, abort: the stored run has no stop document and did not" in output
    analysis = read_analysis(folder.documents(fact(output, "analysis run")))
    assert analysis.stop is not None and analysis.stop["exit_status"] == "abort"
    assert analysis.n_patterns == 8


def test_an_analysis_that_was_left_without_an_end_is_found(catalog: Catalog) -> None:
    raw = str(uuid.uuid4())
    left, done = (composed_analysis(raw) for _ in range(2))
    writer = catalog.writer()
    writer("start", left.start_doc)
    writer("start", done.start_doc)
    writer("stop", done.compose_stop())
    assert writer.flush(60)
    assert catalog.unfinished_analyses(raw) == [left.start_doc["uid"]]


def composed_analysis(raw: str) -> Any:
    return event_model.compose_run(metadata={"analysis_stage": "cmf", "original_run_uid": raw})


def test_the_command_names_an_analysis_that_a_killed_process_left(
    folder: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    beamline = Beamline(folder)
    beamline.measure(8)
    beamline.stop()
    left = composed_analysis(beamline.uid)
    writer = folder.writer()
    writer("start", left.start_doc)
    assert writer.flush(60)
    assert command(beamline.replay(folder.spec, "--follow", "--save")) == 0
    output, errors = capsys.readouterr()
    assert f"warning: The analysis run {left.start_doc['uid']} of this run has no end" in errors
    assert len(errors.splitlines()) == 1
    assert fact(output, "analysis run") != left.start_doc["uid"]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_command_shows_and_stores_what_it_has(
    folder: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    beamline = Beamline(folder)
    beamline.measure(6)

    class Interrupting(FollowProgress):
        def advance(self) -> None:
            super().advance()
            if self.count == 6:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("bluesky_cmf.cli.replaying.FollowProgress", Interrupting)
    figure = tmp_path / "figure.png"
    words = beamline.replay(folder.spec, "--follow", "--save", f"--figure={figure}")
    assert command(words) == 130
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "interrupted" in output
    assert figure.read_bytes().startswith(PNG)
    analysis = read_analysis(folder.documents(fact(output, "analysis run")))
    assert analysis.stop is not None and analysis.stop["exit_status"] == "abort"


def test_a_patience_without_a_run_to_follow_is_told_in_one_line(
    folder: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["replay", folder.spec, "abcdefgh", "--pattern=chi_I", "--patience=1"]
    assert command(words) == 2
    assert "--patience: a run is waited for only with --follow" in capsys.readouterr().err


def test_frames_in_files_of_a_stored_run_are_replayed_from_a_folder(tmp_path: Path) -> None:
    """The files lie outside the catalog, where the detector has put them."""
    frames = np.random.default_rng(0).random((6, 50))
    (tmp_path / "detector").mkdir()
    documents = asyncstreams.documents_of_arrays(frames, tmp_path / "detector")
    live = LiveNMF("det", n_components=2, background=False)
    with open_catalog(tmp_path / "catalog") as catalog:
        writer = catalog.writer()
        for name, doc in documents:
            writer(name, doc)
        assert writer.flush(60)
        replay(catalog, documents[0][1]["uid"], live)
    assert live.error is None
    assert live.result.n_patterns == 6
