"""Catch-up after a crash: processes killed at random moments of a scan, and what is left of it.

``python -m tests.benchmarks.crash --kills 20`` starts a Tiled server, a scan, and an analysis that
follows it, each in a process of its own. The analysis is killed (SIGKILL) while the scan runs and
started again. In the second table the process that scans and analyses is killed; the run has no
end then, and is followed until patience is at its end.
"""

import argparse
import math
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bluesky import RunEngine
from bluesky.plan_stubs import mv, trigger_and_read
from bluesky.preprocessors import run_decorator, stage_decorator

from bluesky_cmf import LiveNMF, Phase, open_catalog, replay
from bluesky_cmf.catalogs import Catalog
from bluesky_cmf.documents import AnalysisReader, read_analysis
from bluesky_cmf.errors import RunNotFoundError
from bluesky_cmf.patterns import write_pattern
from bluesky_cmf.simulation import HeatingRamp, simulated_beamline
from tests.servers import Server

#: What the objectives of the same data may differ by.
AGREE = 1e-3
PATTERN, AXIS = "det_intensity", "det_two_theta"


def main() -> None:
    """Run a measurement, or the scan that is a part of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--only", choices=["analysis", "scan"], help="what is killed")
    parser.add_argument("--patterns", type=int, default=80)
    parser.add_argument("--exposure", type=float, default=0.02, help="seconds")
    parser.add_argument("--travel", type=float, default=0.04, help="seconds between two exposures")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--scan", metavar="URI", help=argparse.SUPPRESS)
    parser.add_argument("--live", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scan:
        run_scan(options)
    else:
        measure(options)


# --- the process that scans ------------------------------------------------------------------


def run_scan(options: argparse.Namespace) -> None:
    """Scan once for each line of the standard input, and tell how far it is."""
    ramp = HeatingRamp(n_patterns=options.patterns)
    beamline = simulated_beamline(ramp, exposure=options.exposure, travel=options.travel)
    RE = RunEngine(context_managers=[])
    with open_catalog(options.scan) as catalog:
        RE.subscribe(catalog.writer())
        RE.subscribe(_tell)
        if options.live:
            live = LiveNMF(PATTERN, x=AXIS, n_components=ramp.n_components, phases=_phases(ramp))
            live.subscribe(catalog.writer())
            RE.subscribe(live)
        for _line in sys.stdin:
            RE(_scan(beamline, ramp))


def _scan(beamline: Any, ramp: HeatingRamp) -> Iterator[Any]:
    hints = {"dimensions": [[[ramp.variable], "primary"]]}

    @stage_decorator([beamline.det])
    @run_decorator(md={"plan_name": "heat", "hints": hints})
    def inner() -> Iterator[Any]:
        # The run is open: the scan goes on once somebody follows it.
        sys.stdin.readline()
        for position in ramp.positions:
            yield from mv(beamline.stage, float(position))
            yield from trigger_and_read([beamline.det, beamline.stage])

    return inner()


def _tell(name: str, doc: Any) -> None:
    print(name, doc["uid"] if name != "event" else doc["seq_num"], flush=True)


def _phases(ramp: HeatingRamp) -> list[Phase]:
    return [Phase.from_array(*reference) for reference in ramp.references]


# --- the measurement -------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a followed run came to, beside an undisturbed replay of the same data."""

    killed_at: int
    patterns: int
    expected: int
    objective: float
    undisturbed: float
    status: str
    left: int
    seconds: float

    @property
    def difference(self) -> float:
        return abs(self.objective / self.undisturbed - 1.0)

    @property
    def good(self) -> bool:
        return self.patterns == self.expected and self.difference < AGREE


class Bench:
    """The server, and what is run against it."""

    def __init__(self, options: argparse.Namespace, folder: Path, uri: str) -> None:
        self._options, self._uri = options, uri
        self._random = random.Random(options.seed)
        self._ramp = HeatingRamp(n_patterns=options.patterns)
        self._files = [folder / f"{reference.name}.xy" for reference in self._ramp.references]
        for file, reference in zip(self._files, self._ramp.references, strict=True):
            write_pattern(file, reference.x, reference.y)

    def analysis_killed(self, catalog: Catalog, scan: "subprocess.Popen[str]") -> Outcome:
        """Kill the analysis in mid-scan, start it again, and let it come to its end."""
        uid = _begin(scan)
        with self._follow(uid) as first:
            _ = _line(first)
            _say(scan)
            moment = self._wait_for_moment(scan)
            first.kill()
        with self._follow(uid) as second:
            _until(scan, "stop")
            began = time.perf_counter()
            output, errors = second.communicate(timeout=300)
        seconds = time.perf_counter() - began
        return self._outcome(catalog, uid, output, errors, moment, seconds, self._options.patterns)

    def scan_killed(self, catalog: Catalog) -> Outcome:
        """Kill the process that scans and analyses, and follow what it has left."""
        with self.scanning(live=True) as scan:
            uid = _begin(scan)
            _say(scan)
            moment = self._wait_for_moment(scan)
            scan.kill()
        began = time.perf_counter()
        with self._follow(uid, "--patience", "2") as analysis:
            output, errors = analysis.communicate(timeout=300)
        seconds = time.perf_counter() - began
        return self._outcome(catalog, uid, output, errors, moment, seconds, None)

    def scanning(self, *, live: bool = False) -> "subprocess.Popen[str]":
        """Start the process that scans."""
        options = self._options
        words = [sys.executable, "-m", "tests.benchmarks.crash", "--scan", self._uri]
        words += ["--patterns", str(options.patterns), "--exposure", str(options.exposure)]
        words += ["--travel", str(options.travel), *(["--live"] if live else [])]
        return _start(words)

    def _follow(self, uid: str, *more: str) -> "subprocess.Popen[str]":
        words = [sys.executable, "-m", "bluesky_cmf", "replay", self._uri, uid, "--follow"]
        words += ["--pattern", PATTERN, "--x", AXIS, "--save", *more]
        words += ["--components", str(self._ramp.n_components)]
        for file in self._files:
            words += ["--phase", str(file)]
        return _start(words)

    def _wait_for_moment(self, scan: "subprocess.Popen[str]") -> int:
        """Wait for a random moment of the scan; give the number of patterns by then."""
        options = self._options
        number = self._random.randrange(1, options.patterns)
        _until(scan, "event", str(number))
        time.sleep(self._random.uniform(0.0, options.exposure + options.travel))
        return number

    def _outcome(
        self,
        catalog: Catalog,
        uid: str,
        output: str,
        errors: str,
        moment: int,
        seconds: float,
        expected: int | None,
    ) -> Outcome:
        found = re.search(r"^analysis run +(\S+)", output, re.MULTILINE)
        if found is None:
            # A scan may be killed before its first pattern is stored.
            nothing = expected is None and _stored(catalog, uid) == 0
            if not nothing:
                print(f"  {uid}: {output} {errors}", file=sys.stderr)
            value = 1.0 if nothing else math.nan
            return Outcome(moment, 0, 0, value, 1.0, "nothing", 0, seconds)
        analysis = read_analysis(catalog.documents(found[1]))
        undisturbed = self._undisturbed(catalog, uid)
        status = str((analysis.stop or {}).get("exit_status"))
        left = len(catalog.unfinished_analyses(uid))
        wanted = _stored(catalog, uid) if expected is None else expected
        return Outcome(
            moment,
            analysis.n_patterns,
            wanted,
            float(analysis.objective or math.nan),
            float(undisturbed.objective or math.nan),
            status,
            left,
            seconds,
        )

    def _undisturbed(self, catalog: Catalog, uid: str) -> AnalysisReader:
        """Replay the run at once, in this process."""
        live = LiveNMF(
            PATTERN,
            x=AXIS,
            n_components=self._ramp.n_components,
            phases=[Phase.from_file(file) for file in self._files],
            background=False,
        )
        reader = AnalysisReader()
        live.subscribe(reader)
        replay(catalog, uid, live)
        live.close()
        return reader


def measure(options: argparse.Namespace) -> None:
    """Kill, start again, and print the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(folder / "catalog") as server, open_catalog(server.uri) as catalog:
            bench = Bench(options, folder, server.uri)
            if options.only != "scan":
                print("the analysis is killed, and started again while the scan goes on")
                with bench.scanning() as scan:
                    _table([bench.analysis_killed(catalog, scan) for _ in _numbered(options.kills)])
            if options.only != "analysis":
                print("the process that scans and analyses is killed, and the run followed")
                _table([bench.scan_killed(catalog) for _ in _numbered(options.kills)])


def _numbered(n: int) -> Iterator[int]:
    for number in range(n):
        print(f"  {number + 1} of {n}", end="\r", file=sys.stderr, flush=True)
        yield number


def _table(outcomes: Sequence[Outcome]) -> None:
    # "nothing": the process was killed before the catalog held a pattern of the run.
    print("  killed at  patterns      of    objective   difference  ends as  left behind  seconds")
    for o in outcomes:
        print(
            f"  {o.killed_at:>9}  {o.patterns:>8}  {o.expected:>6}  {o.objective:>11.6g}"
            f"  {o.difference:>11.1e}  {o.status:>7}  {o.left:>11}  {o.seconds:>7.1f}"
            f"{'' if o.good else '   BAD'}"
        )
    good = sum(o.good for o in outcomes)
    worst = max((o.difference for o in outcomes), default=math.nan)
    seconds = np.median([o.seconds for o in outcomes]) if outcomes else math.nan
    print(f"  {good} of {len(outcomes)} whole and within {AGREE:g}; ", end="")
    print(f"largest difference {worst:.1e}; {seconds:.1f} s from the end to the result (median)\n")


def _stored(catalog: Catalog, uid: str) -> int:
    try:
        return [name for name, _ in catalog.documents(uid)].count("event")
    except RunNotFoundError:
        return 0


# --- processes, which talk in lines ----------------------------------------------------------


def _start(words: Sequence[str]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)


def _begin(scan: "subprocess.Popen[str]") -> str:
    _say(scan)
    return _until(scan, "start")


def _say(process: "subprocess.Popen[str]") -> None:
    print(file=_stdin(process), flush=True)


def _until(process: "subprocess.Popen[str]", name: str, value: str | None = None) -> str:
    while True:
        found, _, rest = _line(process).partition(" ")
        if found == name and value in (None, rest):
            return rest


def _line(process: "subprocess.Popen[str]") -> str:
    if process.stdout is None or not (line := process.stdout.readline()):
        raise RuntimeError(f"the process {process.args} has ended: {process.communicate()}")
    return line.strip()


def _stdin(process: "subprocess.Popen[str]") -> Any:
    return process.stdin


if __name__ == "__main__":
    main()
