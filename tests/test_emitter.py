import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from event_model import compose_run

from bluesky_cmf.emitter import Emitter

SOON = 20.0
Document = tuple[str, dict[str, Any]]


class Run:
    """The documents of a run, one after the other."""

    def __init__(self) -> None:
        self._bundle = compose_run()
        self._streams: list[Any] = []
        self.start: Document = ("start", self._bundle.start_doc)

    def descriptor(self, name: str = "primary") -> Document:
        key = {"source": "x", "dtype": "number", "shape": []}
        self._streams.append(self._bundle.compose_descriptor(name=name, data_keys={"x": key}))
        return ("descriptor", self._streams[-1].descriptor_doc)

    def event(self) -> Document:
        return ("event", self._streams[-1].compose_event({"x": 1.0}, {"x": 0.0}))

    def stop(self) -> Document:
        return ("stop", self._bundle.compose_stop())


@pytest.fixture(params=[True, False], ids=["background", "inline"])
def emitter(request: pytest.FixtureRequest) -> Iterator[Emitter]:
    made = Emitter(background=request.param)
    yield made
    assert made.close(SOON)


@pytest.fixture
def background() -> Iterator[Emitter]:
    made = Emitter(background=True)
    yield made
    assert made.close(SOON)


def collector() -> tuple[list[Document], Callable[[str, dict[str, Any]], None]]:
    got: list[Document] = []
    return got, lambda name, doc: got.append((name, doc))


def emit(emitter: Emitter, *documents: Document) -> list[Document]:
    for name, doc in documents:
        emitter(name, doc)
    return list(documents)


def test_every_subscriber_gets_every_document_in_order(emitter: Emitter) -> None:
    run = Run()
    (one, first), (two, second) = collector(), collector()
    emitter.subscribe(first)
    emitter.subscribe(second)

    sent = emit(emitter, run.start, run.descriptor(), *(run.event() for _ in range(50)), run.stop())

    assert emitter.wait(SOON)
    assert one == two == sent


@pytest.mark.parametrize("background", [True, False])
def test_documents_come_from_one_thread(background: bool) -> None:
    emitter, threads = Emitter(background=background), set()
    emitter.subscribe(lambda name, doc: threads.add(threading.current_thread()))
    run = Run()

    emit(emitter, run.start, run.descriptor(), run.event(), run.stop())

    assert emitter.wait(SOON)
    assert len(threads) == 1
    assert (threading.current_thread() in threads) is not background
    assert emitter.close(SOON)


def test_who_subscribes_late_first_gets_the_open_runs_and_then_goes_on(emitter: Emitter) -> None:
    open_run, closed_run, other = Run(), Run(), Run()
    primary = open_run.descriptor()
    emit(emitter, closed_run.start, closed_run.descriptor(), open_run.start, primary)
    emit(emitter, open_run.event(), closed_run.stop(), other.start)
    snapshots = open_run.descriptor("components")
    emit(emitter, snapshots, open_run.event())

    got, late = collector()
    emitter.subscribe(late)
    later = emit(emitter, open_run.event(), open_run.stop(), other.stop())

    assert emitter.wait(SOON)
    assert got == [open_run.start, primary, snapshots, other.start, *later]


def test_who_unsubscribes_gets_nothing_more(emitter: Emitter) -> None:
    (one, first), (two, second) = collector(), collector()
    token = emitter.subscribe(first)
    assert emitter.subscribe(second) != token
    run = Run()
    before = emit(emitter, run.start, run.descriptor())

    emitter.unsubscribe(token)
    emitter.unsubscribe(token)
    after = emit(emitter, run.event(), run.stop())

    assert emitter.wait(SOON)
    assert one == before
    assert two == [*before, *after]


def test_a_subscriber_that_raises_disturbs_no_other_and_is_logged_once(
    emitter: Emitter, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def broken(name: str, doc: dict[str, Any]) -> None:
        seen.append(name)
        raise ValueError("the window is gone")

    emitter.subscribe(broken)
    got, sound = collector()
    emitter.subscribe(sound)
    run = Run()

    sent = emit(emitter, run.start, run.descriptor(), run.event(), run.stop())

    assert emitter.wait(SOON)
    assert got == sent
    assert seen == ["start", "descriptor", "event", "stop"]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("bluesky_cmf.emitter", logging.ERROR)
    assert "broken" in record.getMessage()
    assert "raised on a 'start' document" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the window is gone"


def test_a_subscriber_that_raises_while_it_is_welcomed_stays_subscribed(
    emitter: Emitter, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def broken(name: str, doc: dict[str, Any]) -> None:
        seen.append(name)
        raise ValueError("not yet")

    run = Run()
    emit(emitter, run.start, run.descriptor())
    emitter.subscribe(broken)
    emit(emitter, run.event(), run.stop())

    assert emitter.wait(SOON)
    assert seen == ["start", "descriptor", "event", "stop"]
    assert len(caplog.records) == 1


def test_a_callback_that_nobody_else_holds_is_called(emitter: Emitter) -> None:
    names: list[str] = []
    emitter.subscribe(lambda name, doc: names.append(name))
    run = Run()

    emit(emitter, run.start, run.stop())

    assert emitter.wait(SOON)
    assert names == ["start", "stop"]


def test_who_is_subscribed_by_a_subscriber_gets_the_start_once(emitter: Emitter) -> None:
    got, nested = collector()

    def welcoming(name: str, doc: dict[str, Any]) -> None:
        if name == "start":
            emitter.subscribe(nested)

    emitter.subscribe(welcoming)
    run = Run()
    sent = [run.start]
    emit(emitter, run.start)
    # In the background the subscription is in the queue once the start is delivered.
    assert emitter.wait(SOON)
    sent += emit(emitter, run.descriptor(), run.event(), run.stop())

    assert emitter.wait(SOON)
    assert got == sent


def test_a_slow_subscriber_holds_nobody_up_who_emits(background: Emitter) -> None:
    inside, proceed = threading.Event(), threading.Event()

    def slow(name: str, doc: dict[str, Any]) -> None:
        inside.set()
        assert proceed.wait(SOON)

    background.subscribe(slow)
    got, quick = collector()
    background.subscribe(quick)
    run = Run()
    sent = emit(background, run.start)
    assert inside.wait(SOON)

    sent += emit(background, run.descriptor(), *(run.event() for _ in range(20)), run.stop())

    assert not background.wait(0.01)
    proceed.set()
    assert background.wait(SOON)
    assert got == sent


def test_close_delivers_what_waits_and_takes_nothing_more(emitter: Emitter) -> None:
    got, callback = collector()
    emitter.subscribe(callback)
    run = Run()
    sent = emit(emitter, run.start, run.descriptor(), run.event())

    assert emitter.close(SOON)

    emit(emitter, run.stop())
    assert emitter.wait(0.0)
    assert got == sent
