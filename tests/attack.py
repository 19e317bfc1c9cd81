"""Document streams as no beamline should send them, and what has to hold all the same.

``python -m tests.attack --examples 20000`` sends that many through `LiveNMF` and prints what it
found; the test suite sends some hundreds.
"""

import argparse
import atexit
import copy
import logging
import math
import shutil
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from bluesky_cmf import LiveNMF
from tests.streams import Collector

F = 12
X = np.linspace(1.0, 5.0, F)
GOOD = np.exp(-((X[None, :] - np.array([[2.0], [3.0], [4.0]])) ** 2)) + 0.05

Documents = list[tuple[str, dict[str, Any]]]

#: What stands in the place of a pattern, as a beamline might send it.
patterns = st.sampled_from(
    [
        *([*GOOD, *(2 * GOOD)] * 5),
        GOOD[0].tolist(),
        (100 * GOOD[1]).astype(np.int32),
        (100 * GOOD[2]).astype(np.uint16),
        GOOD[0].astype(np.float32),
        GOOD[None, 0],
        GOOD[1][::-1],
        np.where(X > 3, np.nan, GOOD[0]),
        np.where(X > 3, np.inf, GOOD[0]),
        GOOD[1] - 0.5,
        np.zeros(F),
        np.full(F, 1e300),
        np.full(F, 1e-300),
        [0.0],
        [],
        GOOD[0][:-1],
        np.append(GOOD[0], 1.0),
        GOOD,
        GOOD[0].reshape(3, 4),
        "a text",
        None,
        3.5,
        True,
        {"nested": [1.0]},
        [1.0, "two"],
        [[1.0], [2.0, 3.0]],
        np.array(["a", "b"]),
        GOOD[0] + 1j,
        [None] * F,
        "datum/that/never/came",
    ]
)
axes = st.sampled_from(
    [X] * 30
    + [X.tolist(), X[::-1], X + 0.01, X[:-1], np.full(F, np.nan), np.zeros(F), [0.0]]
    + [np.linspace(0.5, 6.0, 40), np.linspace(2.0, 3.0, F), "axis", None, X[None]]
)
metadata = st.sampled_from(
    [
        *({}, {}, {}, {"dark_frame": True}, {"analysis_stage": "cmf"}, {"image_type": "Dark"}),
        *({"hints": None}, {"hints": {"dimensions": "nonsense"}}, {"scan_id": "seven"}),
        *({"hints": {"dimensions": [[["temperature"], "primary"]]}}, {"sample": {"a.b/c": [1]}}),
    ]
)
data_keys = st.sampled_from(
    ["chi_I", "chi_I", "chi_I", "det_chi_I", "other", "chi_I both"]  # the last two are faulty
)
stop_statuses = st.sampled_from(["success", "success", "abort", "fail", "nonsense", None])
actions = st.sampled_from(
    ["event"] * 12
    + ["page"] * 3
    + ["again", "descriptor", "other stream", "stop", "start", "rewind", "garbage", "early event"]
    + ["datum event", "change", *["frames"] * 4, "reset"]
)
garbage = st.sampled_from(
    [
        ("event", {}),
        ("event", {"descriptor": "nobody", "data": {}}),
        ("event", {"descriptor": ["unhashable"]}),
        ("descriptor", {}),
        ("descriptor", {"run_start": "nobody", "uid": "nothing"}),
        ("start", {}),
        ("stop", {}),
        ("stop", {"run_start": "nobody"}),
        ("datum", {}),
        ("datum_page", {"resource": "r"}),
        ("stream_datum", {"descriptor": "nobody"}),
        ("stream_resource", {}),
        ("resource", {}),
        ("event_page", {"descriptor": "nobody"}),
        ("no such kind", {}),
        ("event", None),
    ]
)


@dataclass
class _Run:
    """A run as it is made up, and what is to be accounted for of it."""

    uid: str
    start: dict[str, Any]
    #: Data keys of its descriptors, by uid.
    descriptors: dict[str, dict[str, Any]] = field(default_factory=dict)
    seq_num: int = 0
    events: Documents = field(default_factory=list)
    stopped: bool = False
    #: Descriptors of values in files, by uid: what came of each `seq_num`.
    in_files: dict[str, "_InFiles"] = field(default_factory=dict)
    #: Patterns that went in otherwise.
    count: int = 0

    @property
    def expected(self) -> int:
        return self.count + sum(known.expected for known in self.in_files.values())

    @property
    def passed_over(self) -> bool:
        dark = self.start.get("dark_frame") or self.start.get("image_type") == "Dark"
        return bool(dark or self.start.get("analysis_stage"))


@dataclass
class _InFiles:
    """A descriptor whose patterns are in a file; with events beside it, or without."""

    resource: dict[str, Any]
    has_events: bool
    named: bool = False
    next_index: int = 0
    frames: Counter[int] = field(default_factory=Counter)
    events: Counter[int] = field(default_factory=Counter)

    @property
    def expected(self) -> int:
        """A frame and an event of one number are a pattern; so is each of them alone."""
        if not self.has_events:
            return self.frames.total()
        if not self.named:
            return self.events.total()
        return (self.frames | self.events).total()


@st.composite
def streams(draw: Any) -> tuple[Documents, dict[str, int], dict[str, Any]]:
    """Documents of up to three interleaved runs, how many patterns each sent, and how to fit."""
    made = _Stream(draw)
    for _ in range(draw(st.integers(1, 30))):
        made.act(draw(actions))
    if draw(st.booleans()):
        for run in made.runs:
            made.stop(run)
    options = {"x": draw(st.sampled_from(["chi_Q", "chi_Q", None]))}
    options |= {"negative": draw(st.sampled_from(["reject", "clip", "offset"]))}
    sent = {run.uid: run.expected for run in made.runs if not run.passed_over}
    return made.documents, sent, options


class _Stream:
    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.documents: Documents = []
        self.runs: list[_Run] = []
        self.count = self.uids = 0

    def act(self, action: str) -> None:
        run = self.run(new=action == "start")
        if action in ("descriptor", "change"):
            self.describe(run, "primary")
        elif action == "other stream":
            uid = self.describe(run, "baseline")
            self.send("event", self.event(run, uid, X, X))
        elif action == "stop":
            self.stop(run)
        elif action == "rewind":
            run.seq_num = max(0, run.seq_num - 2)
        elif action == "garbage":
            name, doc = self.draw(garbage)
            self.send(name, copy.deepcopy(doc))
        elif action == "early event":
            stranger = {"descriptor": self.uid(), "uid": self.uid(), "seq_num": 1, "time": 0.0}
            self.send("event", {**stranger, "data": {"chi_I": X}, "timestamps": {}, "filled": {}})
        elif action == "again":
            if run.events:
                name, doc = self.draw(st.sampled_from(run.events))
                self.send(name, doc)
                self.account(run, doc["descriptor"])
        elif action == "page":
            self.page(run)
        elif action == "datum event":
            self.datum_event(run)
        elif action == "frames":
            self.frames(run)
        elif action == "reset":
            self.send("reset", {})
        else:
            self.measure(run)

    def run(self, *, new: bool) -> _Run:
        """Take one of the runs, or begin one."""
        if not self.runs or (new and len(self.runs) < 3):
            start = {"uid": self.uid(), "time": time.time(), **self.draw(metadata)}
            self.runs.append(_Run(start["uid"], start))
            self.send("start", start)
        return self.runs[self.draw(st.integers(0, len(self.runs) - 1))]

    def describe(self, run: _Run, stream: str) -> str:
        uid, key = self.uid(), self.draw(data_keys)
        array = {"source": "attack", "dtype": "array", "shape": []}
        names = ["chi_I_1", "chi_I_2 chi_I", "x_chi_I"] if key == "chi_I both" else [key]
        # What another stream reads would be the position where a stream has none.
        position = "temperature" if stream == "primary" else "room"
        keys = dict.fromkeys([*names, "chi_Q", position], array)
        doc = {"uid": uid, "run_start": run.uid, "name": stream, "time": time.time()}
        self.send("descriptor", {**doc, "data_keys": keys, "configuration": {}, "hints": {}})
        if not run.stopped:
            usable = stream == "primary" and key in ("chi_I", "det_chi_I")
            run.descriptors[uid] = {"key": key, "usable": usable, "stream": stream, "seen": 0}
        return uid

    def event(self, run: _Run, descriptor: str, pattern: Any, x: Any) -> dict[str, Any]:
        run.seq_num += 1
        self.count += 1
        key = run.descriptors.get(descriptor, {}).get("key", "chi_I")
        data = {key: pattern, "chi_Q": x, "temperature": float(self.count)}
        data = {name: value for name, value in data.items() if value is not None}
        return {
            "uid": self.uid(),
            "descriptor": descriptor,
            "seq_num": run.seq_num,
            "time": time.time(),
            "data": data,
            "timestamps": dict.fromkeys(data, 0.0),
            "filled": {},
        }

    def primary(self, run: _Run) -> str:
        known = [uid for uid, told in run.descriptors.items() if told["stream"] == "primary"]
        return (
            known[-1] if known and self.draw(st.integers(0, 9)) else self.describe(run, "primary")
        )

    def measure(self, run: _Run) -> None:
        descriptor = self.primary(run)
        doc = self.event(run, descriptor, self.draw(patterns), self.draw(axes))
        run.events.append(("event", doc))
        self.send("event", doc)
        self.account(run, descriptor)

    def page(self, run: _Run) -> None:
        descriptor = self.primary(run)
        events = [
            self.event(run, descriptor, self.draw(patterns), X)
            for _ in range(self.draw(st.integers(1, 4)))
        ]
        columns: dict[str, list[Any]] = {}
        for event in events:
            for key in events[0]["data"]:
                columns.setdefault(key, []).append(event["data"].get(key))
        page = {key: [event[key] for event in events] for key in ("uid", "seq_num", "time")}
        page |= {"descriptor": descriptor, "data": columns, "filled": {}}
        page["timestamps"] = {key: [0.0] * len(events) for key in columns}
        self.send("event_page", page)
        for _ in events:
            self.account(run, descriptor)

    def datum_event(self, run: _Run) -> None:
        """An event whose pattern is in a file; its datum comes after it, or never."""
        descriptor = self.primary(run)
        resource, datum = self.uid(), self.uid()
        doc = self.event(run, descriptor, f"{resource}/0", X)
        key = run.descriptors.get(descriptor, {}).get("key", "chi_I")
        doc["filled"] = {key: False}
        self.send("event", doc)
        self.account(run, descriptor)
        if self.draw(st.booleans()):
            named = {"uid": resource, "run_start": run.uid, "spec": "ATTACK"}
            place = {"root": "", "resource_path": datum, "resource_kwargs": {}}
            self.send("resource", {**named, **place})
            doc = {"datum_id": f"{resource}/0", "resource": resource, "datum_kwargs": {}}
            self.send("datum", doc)

    def frames(self, run: _Run) -> None:
        """Frames of a file, and events beside them: in either order, some of them missing."""
        if not run.in_files or not self.draw(st.integers(0, 4)):
            self.describe_in_files(run)
        if not run.in_files:
            return  # the run is over
        uid, known = list(run.in_files.items())[-1]
        n = self.draw(st.integers(0, 3))
        first = self.draw(st.sampled_from([known.next_index + 1] * 4 + [1]))
        datum = {"stream_resource": known.resource["uid"], "uid": self.uid(), "descriptor": uid}
        datum["indices"] = {"start": known.next_index, "stop": known.next_index + n}
        datum["seq_nums"] = {"start": first, "stop": first + n}
        known.next_index += n
        events = []
        for number in range(first, first + self.draw(st.sampled_from([n] * 4 + [0, n + 1]))):
            event = self.event(run, uid, None, None)
            # Such a pattern is complete when the later of the two comes: it has no place.
            event["data"]["temperature"] = math.nan
            events.append({**event, "seq_num": number})
        mixed = [("stream_datum", datum), *(("event", event) for event in events)]
        for name, doc in mixed if self.draw(st.booleans()) else reversed(mixed):
            self.send(name, doc)
        if not known.named and self.draw(st.booleans()):
            self.name(run, known)
        if not run.stopped:
            known.frames.update(range(first, first + n))
            known.events.update(event["seq_num"] for event in events)

    def describe_in_files(self, run: _Run) -> None:
        uid, resource, has_events = self.uid(), self.uid(), self.draw(st.booleans())
        key = {"source": "attack", "dtype": "array", "shape": [1, F], "external": "STREAM:"}
        number = {"source": "attack", "dtype": "number", "shape": []}
        keys = {"chi_I": key, **({"temperature": number} if has_events else {})}
        axis = {"data": {"chi_Q": X}, "timestamps": {}, "data_keys": {"chi_Q": number}}
        doc = {"uid": uid, "run_start": run.uid, "name": "primary", "time": time.time()}
        doc |= {"data_keys": keys, "configuration": {"det": axis}, "hints": {}}
        self.send("descriptor", doc)
        place = {"mimetype": "application/x-hdf5", "uri": f"file://localhost{frames_file()}"}
        named = {"uid": resource, "run_start": run.uid, "data_key": "chi_I", **place}
        if not run.stopped:
            known = _InFiles({**named, "parameters": {"dataset": "/frames"}}, has_events)
            run.in_files[uid] = known
            if self.draw(st.integers(0, 2)):
                self.name(run, known)

    def name(self, run: _Run, known: _InFiles) -> None:
        """Say where frames are; perhaps only after them."""
        self.send("stream_resource", known.resource)
        known.named = known.named or not run.stopped

    def account(self, run: _Run, descriptor: str) -> None:
        told = run.descriptors.get(descriptor)
        if told is None or run.stopped or told["stream"] != "primary":
            return
        if told["usable"] or not told["seen"]:
            # Of a stream without the data key one event is rejected, and says why.
            run.count += 1
        told["seen"] += 1

    def stop(self, run: _Run) -> None:
        status = self.draw(stop_statuses)
        stop = {"uid": self.uid(), "run_start": run.uid, "time": time.time()}
        self.send("stop", {**stop, **({} if status is None else {"exit_status": status})})
        if not run.stopped:
            faulty = [t for t in run.descriptors.values() if t["stream"] == "primary"]
            run.count += sum(not t["usable"] and not t["seen"] for t in faulty)
        run.stopped = True

    def send(self, name: str, doc: Any) -> None:
        self.documents.append((name, doc))

    def uid(self) -> str:
        self.uids += 1
        return str(uuid.uuid5(uuid.NAMESPACE_OID, str(self.uids)))


@cache
def frames_file() -> Path:
    """A file of frames, as long as the process lives."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    with h5py.File(folder / "frames.h5", "w") as file:
        file["/frames"] = np.tile(GOOD, (100, 1))
    return folder / "frames.h5"


class _Handler:
    """A file that holds a pattern."""

    def __init__(self, path: str) -> None:
        pass

    def __call__(self) -> np.ndarray:
        return GOOD[0]


@dataclass
class Tally:
    """What came of the streams so far."""

    streams: int = 0
    patterns: int = 0
    published: int = 0
    rejected: int = 0


def hold(
    documents: Documents,
    expected: dict[str, int],
    options: dict[str, Any],
    *,
    background: bool,
    tally: Tally | None = None,
) -> None:
    """Send documents through `LiveNMF`, and hold what has to hold."""
    before = copy.deepcopy(documents)
    live = LiveNMF(
        "chi_I",
        **options,
        independent="temperature",
        n_components=2,
        background=background,
        handlers={"ATTACK": _Handler},
    )
    out = Collector()  # validates every document
    live.subscribe(out)
    for name, doc in documents:
        if name == "reset":
            live.reset()
        else:
            live(name, doc)
    assert live.close(60)
    counts, temperatures = _counts(out)
    assert {run: n for run, n in expected.items() if n} == dict(counts)
    for values in temperatures:
        known = [value for value in values if not math.isnan(value)]
        assert known == sorted(known), f"the order was lost: {values}"
    assert repr(before) == repr(documents), "a shared document was changed"
    if tally is not None:
        tally.streams += 1
        tally.patterns += sum(expected.values())
        tally.published += len(out.events("primary"))
        tally.rejected += len(out.events("rejected"))


def _counts(out: Collector) -> tuple[Counter[str], list[list[float]]]:
    """Patterns accounted for in each raw run, and the positions in each analysis run."""
    counts: Counter[str] = Counter()
    temperatures = []
    sources = ("primary", "rejected")
    for stream in sources:
        for event in out.events(stream):
            counts[event["data"]["source_run"]] += 1
    stops = {stop["run_start"]: stop for stop in out.named("stop")}
    assert len(stops) == len(out.named("start")), "an analysis run was left open"
    for start in out.named("start"):
        descriptors = [d for d in out.named("descriptor") if d["run_start"] == start["uid"]]
        primary = {d["uid"] for d in descriptors if d["name"] == "primary"}
        events = [e for e in out.named("event") if e["descriptor"] in primary]
        temperatures.append([e["data"].get("temperature", math.nan) for e in events])
        assert stops[start["uid"]]["num_events"].get("primary", 0) == len(events)
    return counts, temperatures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--background", action="store_true", help="fit in a thread of its own")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    tally, started = Tally(), time.monotonic()

    @seed(options.seed)
    @settings(
        max_examples=options.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(streams())
    def attack(stream: tuple[Documents, dict[str, int], dict[str, Any]]) -> None:
        hold(*stream, background=options.background, tally=tally)

    attack()
    print(
        f"{tally.streams:,} document streams: {tally.patterns:,} patterns in, "
        f"{tally.published:,} published and {tally.rejected:,} rejected with a reason, "
        f"{tally.patterns - tally.published - tally.rejected} unaccounted for, "
        f"0 exceptions to the caller ({time.monotonic() - started:.0f} s)"
    )


if __name__ == "__main__":
    main()
