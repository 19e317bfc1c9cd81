"""A stored run plays back to any callback as the scan did."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import event_model
import numpy as np
import pytest
from event_model import DocumentNames, schema_validators

from bluesky_cmf.catalogs import Catalog, open_catalog
from bluesky_cmf.errors import CatalogError, RunNotFoundError
from bluesky_cmf.sources import replay

# databroker's catalog in memory imports Starlette's test client.
pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay") / "catalog"


@pytest.fixture(scope="module")
def catalog(folder: Path) -> Iterator[Catalog]:
    with open_catalog(folder) as catalog:
        yield catalog


@pytest.fixture(scope="module")
def uid(catalog: Catalog) -> str:
    return store(catalog)


def store(catalog: Catalog, *, n: int = 5, stop: bool = True) -> str:
    run = event_model.compose_run()
    stream = run.compose_descriptor(
        name="primary",
        data_keys={
            "chi_I": {"source": "test", "dtype": "array", "shape": [2000]},
            "temperature": {"source": "test", "dtype": "number", "shape": []},
        },
    )
    writer = catalog.writer()
    writer("start", run.start_doc)
    writer("descriptor", stream.descriptor_doc)
    for i in range(n):
        data = {"chi_I": np.full(2000, i, "f4"), "temperature": 100.0 + i}
        now = dict.fromkeys(data, time.time())
        writer("event", stream.compose_event(data=data, timestamps=now, validate=False))
    if stop:
        writer("stop", run.compose_stop())
    assert writer.close()
    return str(run.start_doc["uid"])


class Recorder:
    """Keeps what it gets, and raises at one document if told to."""

    def __init__(self, at: int | None = None, error: BaseException | None = None) -> None:
        self.docs: list[tuple[str, Any]] = []
        self._at = at
        self._error = error

    def __call__(self, name: str, doc: Any) -> None:
        self.docs.append((name, doc))
        if self._error is not None and len(self.docs) == self._at:
            raise self._error

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.docs]


def test_a_replay_gives_the_documents_of_the_scan(catalog: Catalog, uid: str) -> None:
    got = Recorder()
    assert replay(catalog, uid, got) == 8
    assert got.names == ["start", "descriptor", *["event"] * 5, "stop"]
    assert [doc["data"]["temperature"] for name, doc in got.docs if name == "event"] == [
        100.0,
        101.0,
        102.0,
        103.0,
        104.0,
    ]
    assert got.docs[4][1]["data"]["chi_I"].dtype == np.float32
    for name, doc in got.docs:
        schema_validators[DocumentNames[name]].validate(doc)


def test_a_catalog_that_was_given_stays_open_and_one_that_was_opened_is_closed(
    catalog: Catalog, folder: Path, uid: str
) -> None:
    assert replay(str(folder), uid[:8], Recorder()) == 8
    assert replay(catalog, uid, Recorder()) == 8
    assert uid in catalog.uids()


def test_a_replayed_run_can_be_stored_elsewhere(catalog: Catalog, uid: str) -> None:
    first, second = Recorder(), Recorder()
    replay(catalog, uid, first)
    with open_catalog("databroker:temp") as other:
        replay(catalog, uid, other.writer())
        for writer in other._writers:
            assert writer.flush(30)
        replay(other, uid, second)
    assert first.names == second.names
    for (_, a), (_, b) in zip(first.docs[2:-1], second.docs[2:-1], strict=True):
        np.testing.assert_equal(a["data"], b["data"])


def test_a_run_without_stop_is_closed_for_the_callback(catalog: Catalog) -> None:
    got = Recorder()
    uid = store(catalog, stop=False)
    assert replay(catalog, uid, got) == 8
    assert got.names[-1] == "stop"
    stop = got.docs[-1][1]
    assert stop["run_start"] == uid and stop["exit_status"] == "abort"
    assert stop["reason"] == "the stored run has no stop document"
    assert stop["num_events"] == {"primary": 5}
    schema_validators[DocumentNames.stop].validate(stop)


def test_an_interrupted_replay_closes_the_run_and_goes_on_being_an_interrupt(
    catalog: Catalog, uid: str
) -> None:
    got = Recorder(at=4, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        replay(catalog, uid, got)
    assert got.names == ["start", "descriptor", "event", "event", "stop"]
    assert got.docs[-1][1]["exit_status"] == "abort"
    assert "interrupted" in got.docs[-1][1]["reason"]


def test_an_error_of_the_callback_is_raised_and_the_callback_left_alone(
    catalog: Catalog, uid: str
) -> None:
    got = Recorder(at=3, error=ZeroDivisionError("in the callback"))
    with pytest.raises(ZeroDivisionError, match="in the callback"):
        replay(catalog, uid, got)
    assert got.names == ["start", "descriptor", "event"]


def test_a_catalog_or_run_that_is_not_there_is_refused_before_any_document(
    catalog: Catalog, tmp_path: Path
) -> None:
    got = Recorder()
    with pytest.raises(CatalogError, match="no catalog in the folder"):
        replay(tmp_path / "nothing", "abcdefgh", got)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(RunNotFoundError, match="no run with the uid 'abcdefgh'"):
        replay(catalog, "abcdefgh", got)
    assert got.docs == []
