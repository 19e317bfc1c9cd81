import logging
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bluesky_cmf.worker import Inline, Worker, remaining

#: Seconds after which something that has to happen is taken to hang.
SOON = 20.0


class Gate:
    """Handles batches, each of them only once it is let through."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.entered = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)

    def __call__(self, batch: list[Any]) -> None:
        self.batches.append(list(batch))
        self.entered.release()
        assert self._passes.acquire(timeout=SOON)

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=SOON)

    def let_through(self, batches: int = 1) -> None:
        self._passes.release(batches)


@pytest.fixture
def make() -> Iterator[Callable[..., Worker[Any]]]:
    made: list[Worker[Any]] = []

    def worker(handle: Callable[[list[Any]], None], **options: Any) -> Worker[Any]:
        made.append(Worker(handle, name=f"worker {len(made)}", **options))
        return made[-1]

    yield worker
    for each in made:
        assert each.close(SOON)


def thread_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_items_are_handled_in_the_order_they_were_put(make: Callable[..., Worker[int]]) -> None:
    handled: list[int] = []
    worker = make(handled.extend)

    assert all(worker.put(n) for n in range(1000))

    assert worker.wait(SOON)
    assert handled == list(range(1000))


def test_nothing_is_lost_under_many_producers(make: Callable[..., Worker[tuple[int, int]]]) -> None:
    handled: list[tuple[int, int]] = []
    worker = make(handled.extend, max_batch=7)
    together = threading.Barrier(8)

    def produce(producer: int) -> None:
        together.wait(SOON)
        for n in range(500):
            worker.put((producer, n))

    producers = [threading.Thread(target=produce, args=(k,)) for k in range(8)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join(SOON)

    assert worker.wait(SOON)
    assert len(handled) == 8 * 500
    for k in range(8):
        assert [n for producer, n in handled if producer == k] == list(range(500))


def test_items_that_came_while_handling_are_handled_together(
    make: Callable[..., Worker[int]],
) -> None:
    gate = Gate()
    worker = make(gate)
    worker.put(0)
    gate.wait_until_entered()

    for n in range(1, 11):
        assert worker.put(n)
    assert len(worker) == 10

    gate.let_through(2)
    assert worker.wait(SOON)
    assert gate.batches == [[0], list(range(1, 11))]
    assert len(worker) == 0


def test_a_batch_is_never_larger_than_it_may_be(make: Callable[..., Worker[int]]) -> None:
    gate = Gate()
    worker = make(gate, max_batch=4)
    worker.put(0)
    gate.wait_until_entered()
    for n in range(1, 11):
        worker.put(n)

    gate.let_through(4)

    assert worker.wait(SOON)
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_wait_says_whether_everything_was_handled_in_time(make: Callable[..., Worker[int]]) -> None:
    gate = Gate()
    worker = make(gate)
    assert worker.wait(0.0)
    worker.put(1)
    gate.wait_until_entered()

    assert not worker.wait(0.0)
    assert not worker.wait(0.01)

    gate.let_through()
    assert worker.wait(SOON)
    assert worker.wait()


def test_wait_is_over_only_after_the_last_batch(make: Callable[..., Worker[int]]) -> None:
    gate = Gate()
    worker = make(gate, max_batch=1)
    worker.put(1)
    worker.put(2)
    gate.let_through()
    gate.wait_until_entered()
    gate.wait_until_entered()

    assert not worker.wait(0.01)

    gate.let_through()
    assert worker.wait(SOON)


def test_close_handles_what_waits_and_ends_the_thread(make: Callable[..., Worker[int]]) -> None:
    gate = Gate()
    worker = make(gate, max_batch=10)
    worker.put(0)
    gate.wait_until_entered()
    for n in range(1, 100):
        worker.put(n)
    assert not worker.close(0.01)

    gate.let_through(11)

    assert worker.close(SOON)
    assert [n for batch in gate.batches for n in batch] == list(range(100))
    assert not thread_of("worker 0")


def test_nothing_is_taken_after_close(make: Callable[..., Worker[int]]) -> None:
    handled: list[int] = []
    worker = make(handled.extend)
    assert worker.put(1)
    assert worker.close(SOON)

    assert worker.put(2) is False

    assert worker.wait(0.0)
    assert worker.close(0.0)
    assert handled == [1]


def test_a_worker_that_got_nothing_has_no_thread_to_end(make: Callable[..., Worker[int]]) -> None:
    worker = make(lambda batch: None)

    assert not thread_of("worker 0")
    assert worker.close(0.0)
    assert worker.put(1) is False


def test_the_thread_is_a_daemon_with_a_name(make: Callable[..., Worker[int]]) -> None:
    gate = Gate()
    make(gate).put(1)
    gate.wait_until_entered()

    (thread,) = thread_of("worker 0")
    gate.let_through()

    assert thread.daemon


def test_a_worker_may_be_closed_from_its_own_thread(make: Callable[..., Worker[int]]) -> None:
    answers: list[bool] = []
    worker: Worker[int] = make(lambda batch: answers.append(worker.close()))

    worker.put(1)

    assert worker.close(SOON)
    assert answers == [True]


def test_what_handling_raises_is_logged_and_the_next_items_are_handled(
    make: Callable[..., Worker[int]], caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[int] = []

    def handle(batch: list[int]) -> None:
        if 2 in batch:
            raise ValueError("two")
        handled.extend(batch)

    worker = make(handle, max_batch=1)
    for n in (1, 2, 3):
        worker.put(n)

    assert worker.wait(SOON)
    assert handled == [1, 3]
    (record,) = caplog.records
    assert record.name == "bluesky_cmf.worker"
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "worker 0: 1 items could not be handled"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "two"


def test_preparing_is_done_once_and_first_in_the_thread(make: Callable[..., Worker[int]]) -> None:
    calls: list[tuple[str, str]] = []

    def note(what: str) -> None:
        calls.append((what, threading.current_thread().name))

    worker = make(lambda batch: note("handle"), max_batch=1, prepare=lambda: note("prepare"))
    assert not calls
    worker.put(1)
    worker.put(2)

    assert worker.wait(SOON)
    assert calls == [("prepare", "worker 0"), ("handle", "worker 0"), ("handle", "worker 0")]


def test_idle_work_is_done_once_each_time_that_nothing_waits(
    make: Callable[..., Worker[str]],
) -> None:
    calls: list[str] = []
    rested = threading.Semaphore(0)

    def idle() -> None:
        calls.append("idle")
        rested.release()

    worker = make(calls.extend, idle=idle)
    for item in ("a", "b"):
        worker.put(item)
        assert worker.wait(SOON)
        assert rested.acquire(timeout=SOON)

    assert worker.close(SOON)
    assert calls == ["a", "idle", "b", "idle"]


def test_a_worker_does_not_wait_for_itself(make: Callable[..., Worker[int]]) -> None:
    answers: list[bool] = []
    worker = make(lambda batch: answers.append(worker.wait()))
    worker.put(1)
    assert worker.wait(SOON)
    assert answers == [False]


def test_not_even_an_exit_ends_the_thread(
    make: Callable[..., Worker[int]], caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[int] = []

    def handle(batch: list[int]) -> None:
        if not handled:
            handled.extend(batch)
            raise SystemExit
        handled.extend(batch)

    worker = make(handle)
    for item in (1, 2):
        worker.put(item)
        assert worker.wait(SOON)
    assert handled == [1, 2]
    assert "could not be handled" in caplog.text


def test_what_is_put_while_inline_handles_waits_for_it() -> None:
    order: list[str] = []

    def handle(batch: list[str]) -> None:
        order.append(f"begin {batch[0]}")
        if batch == ["a"]:
            assert inline.put("b")
            assert inline.wait(SOON) is False
        order.append(f"end {batch[0]}")

    inline: Inline[str] = Inline(handle)
    inline.put("a")
    assert order == ["begin a", "end a", "begin b", "end b"]
    assert inline.wait(SOON)


def test_an_item_does_not_wait_for_more_than_one_spell_of_idle_work(
    make: Callable[..., Worker[str]],
) -> None:
    calls: list[str] = []
    idling, proceed = threading.Event(), threading.Event()

    def idle() -> bool:
        calls.append("idle")
        idling.set()
        assert proceed.wait(SOON)

    worker = make(calls.extend, idle=idle)
    worker.put("a")
    assert worker.wait(SOON)
    assert idling.wait(SOON)
    worker.put("b")
    before = len(calls)
    proceed.set()

    assert worker.wait(SOON)
    assert calls[before] == "b"


def test_idle_work_that_fails_is_logged_and_items_are_still_handled(
    make: Callable[..., Worker[int]], caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[int] = []
    failed = threading.Semaphore(0)

    def idle() -> bool:
        failed.release()
        raise RuntimeError("no better fit")

    worker = make(handled.extend, idle=idle)
    for n in (1, 2):
        worker.put(n)
        assert worker.wait(SOON)
        assert failed.acquire(timeout=SOON)

    assert worker.close(SOON)
    assert handled == [1, 2]
    assert {record.getMessage() for record in caplog.records} == {
        "worker 0: work between items failed"
    }


class Item:
    """Something that can be referred to weakly."""


@pytest.mark.parametrize("fails", [False, True])
def test_an_item_is_let_go_of_once_it_is_handled(
    make: Callable[..., Worker[Item]], fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # A record that pytest keeps would hold the exception, and that holds the batch.
    caplog.set_level(logging.CRITICAL, "bluesky_cmf.worker")
    resting = threading.Event()

    def handle(batch: list[Item]) -> None:
        resting.clear()
        if fails:
            raise ValueError("not this one")

    def idle() -> bool:
        resting.set()
        return False

    worker = make(handle, idle=idle)
    item = Item()
    reference = weakref.ref(item)
    worker.put(item)
    del item
    assert worker.wait(SOON)

    assert resting.wait(SOON)
    assert reference() is None


def run_script(script: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


def test_what_waits_at_interpreter_exit_is_handled_while_thread_pools_still_work() -> None:
    script = """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        from bluesky_cmf.worker import Worker, at_exit

        leaving = threading.Event()
        pool = ThreadPoolExecutor(1)

        def handle(batch):
            leaving.wait(20)
            for item in batch:
                pool.submit(print, item, flush=True).result()

        worker = Worker(handle, name="slow", max_batch=1)
        at_exit(worker.close, stage="fits")
        at_exit(leaving.set, stage="fits")
        for n in range(5):
            worker.put(n)
    """

    assert run_script(script).split() == ["0", "1", "2", "3", "4"]


def test_at_exit_fits_go_before_writers_and_these_before_servers() -> None:
    script = """
        from bluesky_cmf.worker import at_exit

        at_exit(lambda: print("live"), stage="fits")
        at_exit(lambda: print("first-writer"), stage="writers")
        at_exit(lambda: print("server"), stage="servers")
        at_exit(lambda: print("second-writer"), stage="writers")
    """

    assert run_script(script).split() == ["live", "second-writer", "first-writer", "server"]


# --- without a thread -----------------------------------------------------------------------


def test_inline_handles_each_item_in_the_thread_of_the_caller() -> None:
    handled: list[tuple[int, threading.Thread]] = []
    inline: Inline[int] = Inline(
        lambda batch: handled.extend((n, threading.current_thread()) for n in batch)
    )

    assert inline.put(1)
    assert inline.put(2)

    assert handled == [(1, threading.current_thread()), (2, threading.current_thread())]
    assert len(inline) == 0
    assert inline.wait(0.0)


def test_inline_hands_on_what_is_raised_and_goes_on() -> None:
    handled: list[int] = []

    def handle(batch: list[int]) -> None:
        handled.extend(batch)
        if batch == [1]:
            raise ValueError("one")

    inline = Inline(handle)
    with pytest.raises(ValueError, match="one"):
        inline.put(1)

    assert inline.put(2)
    assert handled == [1, 2]


def test_inline_may_be_put_to_while_it_handles() -> None:
    handled: list[int] = []

    def handle(batch: list[int]) -> None:
        handled.extend(batch)
        if batch[0] < 3:
            inline.put(batch[0] + 1)

    inline = Inline(handle)
    inline.put(1)

    assert handled == [1, 2, 3]


def test_inline_takes_nothing_after_close() -> None:
    handled: list[int] = []
    inline = Inline(handled.extend)

    assert inline.close()

    assert inline.put(1) is False
    assert not handled


# --- timeouts -------------------------------------------------------------------------------


def test_one_timeout_is_shared_by_several_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("bluesky_cmf.worker.time.monotonic", lambda: now[0])
    left = remaining(5.0)

    assert left() == 5.0
    now[0] = 103.0
    assert left() == 2.0
    now[0] = 110.0
    assert left() == 0.0


def test_no_timeout_stays_none() -> None:
    assert remaining(None)() is None
