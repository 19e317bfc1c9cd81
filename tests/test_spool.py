"""What waits comes out as it went in, from memory or from files, and a full disk loses none."""

import datetime
import enum
import errno
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bluesky_cmf.catalogs import leftovers as leftovers_module
from bluesky_cmf.catalogs.leftovers import LOCK, STATE, leftovers, spool_folder
from bluesky_cmf.catalogs.packing import pack, unpack
from bluesky_cmf.catalogs.routing import LOST
from bluesky_cmf.catalogs.spool import Spool


class Mode(enum.StrEnum):
    FAST = "fast"


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


ARRAYS = hnp.arrays(
    st.one_of(
        hnp.floating_dtypes(),
        hnp.integer_dtypes(),
        hnp.boolean_dtypes(),
        hnp.complex_number_dtypes(),
    ),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
)
TIMES = st.datetimes() | st.datetimes(timezones=st.just(datetime.UTC)) | st.dates() | st.uuids()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS | TIMES | ARRAYS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(VALUES)
def test_every_document_comes_back_exactly(value: Any) -> None:
    assert same(unpack(pack(value)), value)


def test_structured_arrays_and_numpy_scalars_keep_their_types_and_objects_are_refused() -> None:
    value = {
        "frame": np.array([(1, 2.5)], dtype=[("a", "<i2"), ("b", ">f4")]),
        "scalar": np.float32(1.5),
        "text": np.array(["a", "bcd"]),
        "long": [2**80, -(2**80)],
    }
    assert same(unpack(pack(value)), value)
    assert unpack(pack(OrderedDict(mode=Mode.FAST))) == {"mode": "fast"}
    for odd in (np.array([object()]), threading.Lock()):
        with pytest.raises((TypeError, ValueError)):
            pack({"odd": odd})


def event(i: int, size: int = 1000) -> tuple[str, dict[str, Any]]:
    return "event", {"seq_num": i, "data": {"y": np.full(size, i, "f4")}}


def taken(spool: Spool) -> list[int]:
    found: list[int] = []
    while documents := spool.take():
        found += [doc["seq_num"] for _, doc in documents]
    return found


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_what_memory_should_not_hold_waits_in_files_and_comes_out_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluesky_cmf.catalogs.spool._PARCEL", 20_000)
    spool = Spool(tmp_path, memory=50_000)
    for i in range(100):
        spool.put(*event(i))
    with spool._changed:
        assert spool._changed.wait_for(lambda: spool._in_memory <= 50_000, 30)
    assert len(files(tmp_path)) > 10
    first = spool.take()
    assert same(first[0][1], event(0)[1])
    for i in range(100, 110):
        spool.put(*event(i))
    assert [doc["seq_num"] for _, doc in first] + taken(spool) == list(range(110))
    assert [name for name in files(tmp_path) if name.endswith(".docs")] == []
    spool.close()
    assert files(tmp_path) == []


def test_what_is_held_can_be_taken_up_by_another_and_not_while_its_owner_lives(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path)
    spool.put(*event(0))
    assert taken(spool) == [0]
    spool.put(*event(1))
    spool.hold([{"start": {"uid": "a"}, "written": 1}], [event(0)])
    spool.put(*event(2))
    assert spool.save(30)
    assert list(leftovers(tmp_path, known=set())) == []
    spool.close(keep=True)
    (leftover,) = leftovers(tmp_path, known=set())
    assert leftover.claim == spool.claim
    assert leftover.runs == [{"start": {"uid": "a"}, "written": 1}]
    assert same(leftover.routing, [event(0)])
    assert list(leftovers(tmp_path, known=set())) == []
    leftover.leave()
    (leftover,) = leftovers(tmp_path, known=set())
    assert [d["seq_num"] for docs in leftover.documents() for _, d in docs] == [1, 2]
    leftover.remove()
    assert list(leftovers(tmp_path, known=set())) == [] and files(tmp_path) == []


def test_what_was_taken_after_the_state_stays_with_it_until_it_is_released(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.hold([], [])
    spool.put(*event(0))
    spool.answered()
    assert taken(spool) == [0]
    spool.put(*event(1))
    assert spool.save(30)
    spool.close(keep=True)
    (leftover,) = leftovers(tmp_path, known=set())
    assert [d["seq_num"] for docs in leftover.documents() for _, d in docs] == [0, 1]
    leftover.remove()


def test_a_full_disk_is_told_once_and_all_waits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bluesky_cmf.catalogs.spool._RETRY", 0.01)
    monkeypatch.setattr("bluesky_cmf.catalogs.spool.os.fsync", full)
    spool = Spool(tmp_path, memory=5_000)
    spool.hold([], [])
    with spool._changed:
        assert spool._changed.wait_for(lambda: spool._trouble is not None, 30)
    for i in range(20):
        spool.put(*event(i))
    assert spool.save(30) is False
    assert [name for name in files(tmp_path) if name != "lock"] == []
    assert taken(spool) == list(range(20))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "No space left on device" in line and "wait in memory" in line
    spool.close()


def test_a_disk_with_room_again_takes_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def full(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bluesky_cmf.catalogs.spool._RETRY", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr("bluesky_cmf.catalogs.spool.os.fsync", full)
        spool = Spool(tmp_path)
        spool.put(*event(0))
        spool.hold([], [])
        assert failed.wait(30)
    with spool._changed:
        assert spool._changed.wait_for(spool._saved, 30)
    assert files(tmp_path) == ["00000000.docs", "lock", "state.msgpack"]
    spool.close()


def test_each_catalog_has_a_folder_of_its_own_below_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLUESKY_CMF_SPOOL", str(tmp_path / "environment"))
    a, b = (spool_folder(f"http://host{sep}1/api") for sep in ("/", ":"))
    assert a != b and a.parent == b.parent == tmp_path / "environment"
    assert spool_folder("x", tmp_path / "given").parent == tmp_path / "given"


# ---- from several threads ------------------------------------------------------------------------


class Gate:
    """Keeps who calls it until it is opened, and passes the call on."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self._inner = inner
        self._open, self.reached = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.reached.set()
        assert self._open.wait(60)
        return self._inner(*args, **options)

    def open(self) -> None:
        self._open.set()


def beside(action: Callable[[], Any]) -> threading.Event:
    """Do something in another thread; what is given is set when it is done."""
    done = threading.Event()

    def do() -> None:
        action()
        done.set()

    threading.Thread(target=do, daemon=True).start()
    return done


def test_documents_are_taken_while_the_state_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    gate = Gate(pack)
    for module in ("spool", "leftovers"):
        monkeypatch.setattr(f"bluesky_cmf.catalogs.{module}.pack", gate, raising=False)
    held = beside(lambda: spool.hold([{"start": {"uid": "a"}}], []))
    assert gate.reached.wait(30)
    # This thread is the RunEngine's.
    assert beside(lambda: spool.put(*event(0))).wait(10)
    assert not held.is_set()
    gate.open()
    assert held.wait(30)
    assert spool.save(30)
    spool.close()


@pytest.mark.parametrize("forgetting", ["forget", "release"])
def test_a_state_that_is_being_written_does_not_outlive_what_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetting: str
) -> None:
    spool = Spool(tmp_path)
    gate = Gate(lambda descriptor: None)
    monkeypatch.setattr("bluesky_cmf.catalogs.spool.os.fsync", gate)
    spool.hold([], [])
    assert gate.reached.wait(30)
    spool.answered()
    done = beside(getattr(spool, forgetting))
    gate.open()
    assert done.wait(30)
    # What is at the files ends first.
    assert spool.take() == []
    assert files(tmp_path) == [LOCK]
    spool.close()


def test_an_error_that_nobody_thought_of_costs_neither_the_thread_nor_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def odd(descriptor: int) -> None:
        raise RuntimeError("an odd disk")

    monkeypatch.setattr("bluesky_cmf.catalogs.spool._RETRY", 0.01)
    spool = Spool(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("bluesky_cmf.catalogs.spool.os.fsync", odd)
        spool.hold([], [])
        spool.put(*event(0))
        with spool._changed:
            assert spool._changed.wait_for(lambda: spool._trouble is not None, 30)
        found: list[int] = []
        assert beside(lambda: found.extend(taken(spool))).wait(30)
    assert found == [0]
    assert "an odd disk" in caplog.text
    spool.put(*event(1))
    spool.hold([], [])
    assert spool.save(30)
    spool.close()


# ---- what cannot be written, or read again -------------------------------------------------------


def test_documents_whose_file_cannot_be_read_are_named_with_their_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, memory=0)
    for i in range(3):
        spool.put(*event(i))
    assert spool.save(30) is False  # There is no state: nothing was held.
    for path in tmp_path.rglob("*.docs"):
        path.write_bytes(b"\xc1")
    found = []
    while documents := spool.take():
        found += documents
    assert {name for name, _ in found} == {LOST}
    assert sum(doc["count"] for _, doc in found) == 3
    assert "documents are lost" in caplog.text
    spool.close()


def test_a_document_that_cannot_be_on_disk_costs_no_other_and_this_process_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {"run_start": "a", "uid": "b", "device": threading.Lock()}
    run = {"start": {"uid": "a", "device": threading.Lock()}, "owns": ["b"], "store": None}
    spool = Spool(tmp_path)
    for named in (event(0), ("descriptor", odd), event(1)):
        spool.put(*named)
    spool.hold([run, {"start": {"uid": "c"}}], [("stop", odd), event(2)])
    assert spool.save(30)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "lock is not plain data" in line and "Make room" not in line
    in_memory = spool.take()
    assert in_memory[1] == ("descriptor", odd) and len(in_memory) == 3
    spool.close(keep=True)
    (leftover,) = leftovers(tmp_path, known=set())
    assert [state["start"]["uid"] for state in leftover.runs] == ["a", "c"]
    assert leftover.runs[0]["store"] is None and leftover.runs[0]["owns"] == ["b"]
    (documents,) = leftover.documents()
    assert [name for name, _ in leftover.routing] == [LOST, "event"]
    assert [name for name, _ in documents] == ["event", LOST, "event"]
    lost = documents[1][1]
    assert (lost["of"], lost["ids"]) == ("descriptor", {"run_start": "a", "uid": "b"})
    assert "lock is not plain data" in lost["cause"]
    leftover.remove()


def test_times_and_uuids_are_plain_data_for_the_disk(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    doc = {"uid": "a", "began": now, "day": now.date(), "sample": uuid.uuid4()}
    spool = Spool(tmp_path)
    spool.hold([], [("start", doc)])
    assert spool.save(30)
    spool.close(keep=True)
    (leftover,) = leftovers(tmp_path, known=set())
    assert leftover.routing == [("start", doc)]
    leftover.remove()


def left(folder: Path) -> Path:
    spool = Spool(folder)
    spool.hold([], [event(0)])
    assert spool.save(30)
    spool.close(keep=True)
    assert spool.folder is not None
    return spool.folder


def test_what_another_process_removes_meanwhile_or_left_unreadable_stops_no_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = tmp_path / "gone" / STATE
    odd, good = left(tmp_path), left(tmp_path)
    (odd / STATE).write_bytes(pack({"first": 0, "state": {}}))
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone, *glob(self, pattern)])
    known: set[Path] = set()
    assert [found.folder for found in leftovers(tmp_path, known=known)] == [good]
    # And removed between the look at its age and the one inside.
    monkeypatch.setattr(leftovers_module, "_by_age", lambda paths: [gone])
    assert list(leftovers(tmp_path, known=known)) == []
    assert not gone.parent.exists()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "cannot be read" in line and str(odd) in line
    assert known == {odd, good}
