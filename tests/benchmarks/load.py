"""Events as fast as they come: what a call costs the scan, and whether all is there at the end.

``python -m tests.benchmarks.load`` sends 100,000 events of 1,000 points, 2,000 a second, to a
`LiveNMF` with the figure's reader as its subscriber, from a thread that stands for the
RunEngine's, and prints a table. It ends by itself.
"""

import argparse
import resource
import threading
import time
from typing import Any

import event_model
import numpy as np

from bluesky_cmf import LiveNMF, Phase
from bluesky_cmf.documents import AnalysisReader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=2000.0, help="events a second")
    parser.add_argument("--components", type=int, default=4)
    options = parser.parse_args()
    documents = Documents(options.events, options.points)
    known = [Phase.from_array(f"known {k}", documents.x, documents.H[k]) for k in range(2)]
    live = LiveNMF("intensity", x=documents.x, n_components=options.components, phases=known)
    reader, seen = AnalysisReader(), threading.Event()
    live.subscribe(reader)
    live.subscribe(lambda name, doc: seen.set() if name == "stop" else None)
    seconds = np.zeros(options.events)
    peak_lag, before = 0, memory()
    scan = threading.Thread(target=feed, args=(live, documents, options.rate, seconds))
    started = time.perf_counter()
    scan.start()
    while scan.is_alive():
        scan.join(0.25)
        peak_lag = max(peak_lag, len(live._worker))
    fed = time.perf_counter() - started
    done = live.wait(600)
    drained = time.perf_counter() - started - fed
    seen.wait(60)
    matrix = options.events * options.points * 4 / 2**20
    micro = np.percentile(seconds, [50, 99, 99.9, 100]) * 1e6
    print(f"{options.events:,} events of {options.points:,} points, {options.rate:,.0f} a second")
    print(f"  fed in                    {fed:9.1f} s  ({options.events / fed:,.0f} a second)")
    print(f"  __call__, median          {micro[0]:9.1f} us")
    print(f"  __call__, 99 %            {micro[1]:9.1f} us")
    print(f"  __call__, 99.9 % / most   {micro[2]:9.1f} us / {micro[3] / 1e3:.1f} ms")
    print(f"  most that waited          {peak_lag:9,} events")
    print(f"  drained and converged in  {drained:9.1f} s  (all handled: {done})")
    print(f"  patterns published        {reader.n_patterns:9,}, rejected {len(reader.rejected)}")
    print(f"  converged                 {reader.converged!s:>9}, error: {live.error}")
    print(f"  memory                    {memory() - before:9.0f} MiB  (data matrix {matrix:.0f})")
    live.close()


class Documents:
    """A run that is made up as it goes: nothing of it is kept."""

    def __init__(self, events: int, points: int) -> None:
        rng = np.random.default_rng(0)
        self.n, self.x = events, np.linspace(1.0, 20.0, points)
        centres = rng.uniform(1.5, 19.5, (4, 12))
        width = 0.05
        self.H = np.array(
            [np.exp(-0.5 * ((self.x - c[:, None]) / width) ** 2).sum(0) + 0.01 for c in centres]
        )
        t = np.linspace(0, 1, events)
        bumps = [np.exp(-(((t - c) / 0.2) ** 2)) for c in (0.1, 0.4, 0.6, 0.9)]
        self.W = np.array(bumps).T
        self.noise = np.abs(1 + 0.02 * rng.standard_normal((64, points)))
        self.bundle = event_model.compose_run(metadata={"plan_name": "load"}, validate=False)
        keys = {"intensity": {"source": "load", "dtype": "array", "shape": []}}
        self.stream = self.bundle.compose_descriptor(name="primary", data_keys=keys, validate=False)

    def event(self, i: int) -> dict[str, Any]:
        pattern = (self.W[i] @ self.H) * self.noise[i % 64]
        return self.stream.compose_event(
            data={"intensity": pattern}, timestamps={"intensity": 0.0}, validate=False
        )


def feed(live: LiveNMF, documents: Documents, rate: float, seconds: np.ndarray) -> None:
    live("start", documents.bundle.start_doc)
    live("descriptor", documents.stream.descriptor_doc)
    began = time.perf_counter()
    for i in range(documents.n):
        event = documents.event(i)
        wait = began + i / rate - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        before = time.perf_counter()
        live("event", event)
        seconds[i] = time.perf_counter() - before
    live("stop", documents.bundle.compose_stop(validate=False))


def memory() -> float:
    """The most that the process has taken, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
