"""A Tiled server that is killed in the middle of scans and comes back: what is lost, what doubled.

``python -m tests.benchmarks.outage`` kills the server once for 10 s in a scan of 200 events, and
then at many moments of shorter scans, the k-th request among them.
"""

import argparse
import logging
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from bluesky.plans import scan

from bluesky_cmf import LiveNMF, open_catalog
from bluesky_cmf.documents import read_analysis

from ..servers import Server
from ..streams import Detector, axis, engine, mixtures


@dataclass(frozen=True)
class Outcome:
    """What a scan took and what the catalog holds of it."""

    seconds: float
    raw: int
    analysis: int
    doubled: int
    complete: bool
    wrong: str = ""


def a_scan(server: Server, n: int, exposure: float, begin: Callable[[Any], None]) -> Outcome:
    """Scan with a writer of raw and analysis runs, and read both back.

    Parameters
    ----------
    server
        It runs, or will again.
    n
        Events.
    exposure
        Seconds of one.
    begin
        Called with the catalog before the scan.
    """
    x, _, patterns = mixtures(n)
    detector, motor = Detector(patterns, x), axis()
    RE = engine()
    started: list[str] = []
    with open_catalog(server.uri) as catalog:
        writer = catalog.writer()
        live = LiveNMF("chi_I", x="chi_Q", n_components=2, device="cpu")
        live.subscribe(writer)
        live.subscribe(lambda name, doc: started.append(doc["uid"]) if name == "start" else None)
        RE.subscribe(live)
        RE.subscribe(writer)
        begin(catalog)
        since = time.perf_counter()

        def one_shot(detectors: Any, step: Any, pos_cache: Any) -> Any:
            from bluesky.plan_stubs import one_nd_step, sleep

            yield from sleep(exposure)
            yield from one_nd_step(detectors, step, pos_cache)

        (uid,) = RE(scan([detector], motor, 0, n - 1, n, per_step=one_shot))
        seconds = time.perf_counter() - since
        live.wait(120)
        written = writer.flush(300)
        live.close()
        if not written:
            return Outcome(seconds, 0, 0, 0, False, f"not written: {writer.error}")
        docs = list(catalog.documents(uid))
        analysis = list(catalog.documents(started[0]))
    return _outcome(seconds, patterns, docs, analysis)


def _outcome(seconds: float, patterns: np.ndarray, docs: Any, analysis: Any) -> Outcome:
    raw = [doc for name, doc in docs if name == "event"]
    wrong = []
    if not all(
        np.array_equal(event["data"]["det_chi_I"], row)
        for event, row in zip(raw, patterns, strict=False)
    ):
        wrong.append("raw values")
    if [event["data"]["temperature"] for event in raw] != list(range(len(patterns))):
        wrong.append("raw order")
    doubled = _doubled(raw)
    for stream in {d["name"] for n, d in analysis if n == "descriptor"}:
        uids = {d["uid"] for n, d in analysis if n == "descriptor" and d["name"] == stream}
        rows = [d for n, d in analysis if n == "event" and d["descriptor"] in uids]
        doubled += _doubled(rows)
        seq = [row["seq_num"] for row in rows]
        if seq != list(range(1, len(seq) + 1)):
            wrong.append(f"{stream}: {seq[:3]}…{seq[-3:]}")
    read = read_analysis(iter(analysis))
    complete = docs[-1][0] == analysis[-1][0] == "stop"
    return Outcome(seconds, len(raw), read.n_patterns, doubled, complete, "; ".join(wrong))


def _doubled(events: Any) -> int:
    return sum(count - 1 for count in Counter(event["seq_num"] for event in events).values())


def killed_at(server: Server, after: float, down: float) -> Callable[[Any], None]:
    """Kill the server so many seconds after the beginning, and start it again."""

    def outage() -> None:
        time.sleep(after)
        server.kill()
        time.sleep(down)
        server.start()

    return lambda catalog: threading.Thread(target=outage).start()


def killed_in_request(server: Server, number: int, delay: float) -> Callable[[Any], None]:
    """Kill the server so many seconds after the k-th writing request was sent."""
    lock, sent = threading.Lock(), 0

    def outage() -> None:
        time.sleep(delay)
        server.kill()
        server.start()

    def request(request: httpx.Request) -> None:
        nonlocal sent
        if request.method == "GET":
            return
        with lock:
            sent += 1
            if sent == number:
                threading.Thread(target=outage).start()

    return lambda catalog: catalog._client.context.http_client.event_hooks["request"].append(
        request
    )


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--events", type=int, default=200)
    options.add_argument("--exposure", type=float, default=0.1, help="seconds of an event")
    options.add_argument("--down", type=float, default=10.0, help="seconds without a server")
    options.add_argument("--kills", type=int, default=24, help="kills in shorter scans")
    options.add_argument("--first", type=int, default=1, help="the first request to kill in")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    logging.getLogger("bluesky_cmf").setLevel(logging.CRITICAL)
    chance = random.Random(given.seed)
    print(f"{'':34} {'scan':>8} {'raw':>5} {'analysis':>8} {'doubled':>7} complete")
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "catalog") as server:

        def show(what: str, n: int, exposure: float, begin: Callable[[Any], None]) -> bool:
            got = a_scan(server, n, exposure, begin)
            print(
                f"{what:34} {got.seconds:7.2f}s {got.raw:5} {got.analysis:8} {got.doubled:7} "
                f"{'yes' if got.complete else 'NO':8} {got.wrong}",
                flush=True,
            )
            return got.complete and not got.doubled and not got.wrong and got.raw == n

        n, exposure = given.events, given.exposure
        good = []
        if n:
            good.append(show("undisturbed", n, exposure, lambda catalog: None))
            middle = 0.5 * n * exposure - 0.25 * given.down
            kill = killed_at(server, middle, given.down)
            good.append(show(f"killed for {given.down:g} s", n, exposure, kill))
        for kill_number in range(given.first, given.first + given.kills):
            delay = chance.choice([0.0, 0.002, 0.005, 0.01, 0.02, 0.05])
            what = f"killed {1e3 * delay:.0f} ms into request {kill_number}"
            good.append(show(what, 40, 0.05, killed_in_request(server, kill_number, delay)))
    print(f"{sum(good)} of {len(good)} complete and without duplicates")


if __name__ == "__main__":
    main()
