"""Bluesky's own plans run through it, also those that are interrupted."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from ophyd.sim import SynAxis

from bluesky_cmf import LiveNMF
from tests import asyncstreams
from tests.streams import Collector, Detector, mixtures

X, H, PATTERNS = mixtures(20)


@pytest.fixture
def beamline() -> Iterator[tuple[RunEngine, LiveNMF, Collector]]:
    RE = RunEngine({}, call_returns_result=False)
    live, out = LiveNMF("chi_I", x="chi_Q", n_components=2), Collector()
    live.subscribe(out)
    RE.subscribe(live)
    yield RE, live, out
    assert live.close(60)


def detector(n: int = 1000) -> Detector:
    return Detector(np.tile(PATTERNS, (n // len(PATTERNS) + 1, 1)), X)


def motors() -> tuple[SynAxis, SynAxis]:
    return SynAxis(name="m1"), SynAxis(name="m2")


PLANS = {
    "count": (lambda det, m1, m2: bp.count([det], 7), ["elapsed"], 7),
    "scan": (lambda det, m1, m2: bp.scan([det], m1, 0, 1, 6), ["m1"], 6),
    "rel_scan": (lambda det, m1, m2: bp.rel_scan([det], m1, -1, 1, 5), ["m1"], 5),
    "list_scan": (lambda det, m1, m2: bp.list_scan([det], m1, [3, 1, 2]), ["m1"], 3),
    "grid_scan": (
        lambda det, m1, m2: bp.grid_scan([det], m1, 0, 1, 3, m2, 0, 1, 4, snake_axes=True),
        ["m1", "m2"],
        12,
    ),
    "inner product": (lambda det, m1, m2: bp.scan([det], m1, 0, 1, m2, 0, 2, 4), ["m1", "m2"], 4),
    "adaptive": (
        lambda det, m1, m2: bp.adaptive_scan([det], "m1", m1, 0, 1, 0.2, 0.5, 0.1, False),
        ["m1"],
        None,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_decomposed_against_what_it_scans(beamline: Any, name: str) -> None:
    RE, live, out = beamline
    plan, keys, expected = PLANS[name]
    RE(plan(detector(), *motors()))
    assert live.wait(60) and live.error is None
    data = out.data("primary")
    (stop,) = out.named("stop")
    assert stop["num_events"]["primary"] == len(data["n_patterns"])
    assert expected in (None, len(data["n_patterns"]))
    assert all(np.isfinite(data[key]).all() for key in keys)


def test_a_spiral_has_both_of_its_motors(beamline: Any) -> None:
    RE, live, out = beamline
    RE(bp.rel_spiral([detector()], *motors(), 1, 1, 0.3, 6))
    assert live.wait(60) and live.error is None
    data = out.data("primary")
    assert len(data["m1"]) == len(data["m2"]) > 5
    assert len(np.unique(data["m1"])) > 3


def test_a_flyer_that_keeps_its_frames_in_files_is_decomposed(tmp_path: Path) -> None:
    RE = RunEngine({}, call_returns_result=False)
    live, out = LiveNMF("det", x="chi_Q", n_components=2), Collector()
    live.subscribe(out)
    RE.subscribe(live)
    det = asyncstreams.array_detector(PATTERNS, tmp_path, x=X)
    motor = asyncstreams.sim_motor()
    RE(asyncstreams.fly(det, 12, motor=motor))
    assert live.wait(60) and live.error is None
    assert out.data("primary")["pattern"].tolist() == list(range(1, 13))
    assert out.named("stop")[0]["exit_status"] == "success"
    live.close()


def test_nested_runs_of_one_plan_are_kept_apart(beamline: Any) -> None:
    RE, live, out = beamline
    outer_det, inner_det = detector(), detector()
    motor, _ = motors()

    @bpp.set_run_key_decorator("inner")
    @bpp.run_decorator(md={"plan_name": "inner"})
    def inner() -> Any:
        for _ in range(3):
            yield from bps.trigger_and_read([inner_det])

    @bpp.set_run_key_decorator("outer")
    @bpp.run_decorator(md={"plan_name": "outer"})
    def outer() -> Any:
        for position in range(4):
            yield from bps.mv(motor, position)
            yield from bps.trigger_and_read([outer_det, motor])
            yield from inner()

    RE(outer())
    assert live.wait(60) and live.error is None
    names = {start["uid"]: start["plan_name"] for start in out.named("start")}
    counts = [(names[s["run_start"]], s["num_events"]["primary"]) for s in out.named("stop")]
    assert sorted(counts) == [("inner", 3)] * 4 + [("outer", 4)]


def paused_after(RE: RunEngine, det: Any, motor: Any, n: int) -> Iterator[Any]:
    """A scan that asks for a pause after ``n`` of its points."""

    def step(detectors: Any, step: Any, pos_cache: Any) -> Any:
        yield from bps.one_nd_step(detectors, step, pos_cache)
        nonlocal n
        n -= 1
        if n == 0:
            yield from bps.pause()

    return bp.scan([det], motor, 0, 9, 10, per_step=step)


@pytest.mark.parametrize(
    ("end", "status", "least"),
    [
        ("resume", "success", 10),
        ("stop", "success", 4),
        ("abort", "abort", 4),
        ("halt", "abort", 4),
    ],
)
def test_a_pause_ends_in_any_way(beamline: Any, end: str, status: str, least: int) -> None:
    RE, live, out = beamline
    with pytest.raises(RunEngineInterrupted):
        RE(paused_after(RE, detector(), motors()[0], 4))
    assert live.wait(60), "a run that is paused is not waited for"
    assert out.named("stop") == []
    getattr(RE, end)()
    assert live.wait(60)
    (stop,) = out.named("stop")
    assert stop["exit_status"] == status
    assert stop["num_events"]["primary"] >= least
    assert live.error is None


INTERRUPTED = """
import os, signal, sys
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
import bluesky.plans as bp
from ophyd.sim import SynAxis
from bluesky_cmf import LiveNMF
from tests.streams import Detector, mixtures
import numpy as np

x, H, patterns = mixtures(20)
live = LiveNMF("chi_I", x="chi_Q", n_components=2)
phase, sent, stops = sys.argv[1], [], []

def out(name, doc):
    if name == "stop":
        stops.append(doc)
    elif phase == "wait" and name == "start":
        scanned.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

def count(name, doc):
    if name == "event":
        sent.append(doc)
        if phase == "scan" and len(sent) % 5 == 0:
            # Two that come at once may be one for the process: so again, until it is heard.
            os.kill(os.getpid(), signal.SIGINT)

import threading
scanned = threading.Event()
live.subscribe(out)
RE = RunEngine({}, call_returns_result=False)
RE.subscribe(live)
RE.subscribe(count)
det = Detector(np.tile(patterns, (50, 1)), x)
interrupted = False
try:
    RE(bp.scan([det], SynAxis(name="m"), 0, 1, 900 if phase == "scan" else 20))
except RunEngineInterrupted:
    interrupted = True
    RE.abort()
scanned.set()
while not stops:
    try:
        live.wait(60)
    except KeyboardInterrupt:
        interrupted = True
stop, = stops
print(interrupted, stop["exit_status"], len(sent), stop["num_events"]["primary"], flush=True)
"""


@pytest.mark.parametrize(("phase", "status"), [("scan", "abort"), ("wait", "success")])
def test_an_interrupt_by_the_keyboard_costs_no_pattern(phase: str, status: str) -> None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, phase],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    interrupted, found, sent, published = done.stdout.splitlines()[-1].split()
    # An interrupt may find the wait over already: it is heeded, and no pattern the less is there.
    assert interrupted == "True" or phase == "wait"
    assert found == status
    assert sent == published and int(sent) >= 5


LEAVING = """
import logging, threading, time
from bluesky_cmf import LiveNMF
from tests.streams import mixtures, run_documents

x, H, patterns = mixtures(20)
live = LiveNMF("chi_I", x="chi_Q", n_components=2)
going_on = threading.Event()

def out(name, doc):
    if name == "start":
        while not threading._SHUTTING_DOWN:
            time.sleep(0.01)
        print("leaving", flush=True)
        going_on.wait(60)
    if name == "stop":
        print(doc["num_events"]["primary"], flush=True)

live.subscribe(out)
# What the interrupt is answered with lets the documents go on.
logging.getLogger("bluesky_cmf.worker").addFilter(lambda record: going_on.set() or True)
for name, doc in run_documents(patterns, x=x):
    live(name, doc)
"""


def test_an_interrupt_in_the_exit_costs_no_pattern() -> None:
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "leaving\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "20" in out and "are finished first" in err
    assert process.returncode == 0
