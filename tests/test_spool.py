"""What waits comes out as it went in, from memory or from files, and a full disk loses none."""

import enum
import errno
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bluesky_cmf.catalogs.packing import pack, unpack
from bluesky_cmf.catalogs.spool import Spool, leftovers, spool_folder


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
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | ARRAYS,
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
    assert len(spool) == 100
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
    spool.hold({"written": 1})
    spool.put(*event(2))
    assert spool.save(30)
    assert list(leftovers(tmp_path)) == []
    spool.close(keep=True)
    (leftover,) = leftovers(tmp_path)
    assert leftover.state == {"written": 1}
    assert list(leftovers(tmp_path)) == []
    leftover.leave()
    (leftover,) = leftovers(tmp_path)
    assert [d["seq_num"] for docs in leftover.documents() for _, d in docs] == [1, 2]
    leftover.remove()
    assert list(leftovers(tmp_path)) == [] and files(tmp_path) == []


def test_what_was_taken_after_the_state_stays_with_it_until_it_is_released(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.hold({})
    spool.put(*event(0))
    spool.answered()
    assert taken(spool) == [0]
    spool.put(*event(1))
    assert spool.save(30)
    spool.close(keep=True)
    (leftover,) = leftovers(tmp_path)
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
    spool.hold({})
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
        spool.hold({})
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
