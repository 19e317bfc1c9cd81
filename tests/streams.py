"""Documents and devices that several test files share."""

from collections import defaultdict
from typing import Any

import numpy as np
from bluesky import RunEngine
from event_model import DocumentNames, compose_run, schema_validators, unpack_event_page
from ophyd import Component, Device, Signal
from ophyd.sim import SynAxis


class Collector:
    """A subscriber that validates every document and sorts them."""

    def __init__(self) -> None:
        self.documents: list[tuple[str, dict[str, Any]]] = []
        self._streams: dict[str, str] = {}

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        schema_validators[DocumentNames[name]].validate(doc)
        if name == "descriptor":
            self._streams[doc["uid"]] = doc["name"]
        self.documents.append((name, doc))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [doc for kind, doc in self.documents if kind == name]

    def events(self, stream: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name, doc in self.documents:
            if name in ("event", "event_page") and self._streams[doc["descriptor"]] == stream:
                found += [doc] if name == "event" else unpack_event_page(doc)
        return found

    def data(self, stream: str) -> dict[str, np.ndarray]:
        """The columns of a stream."""
        columns = defaultdict(list)
        for event in self.events(stream):
            for key, value in event["data"].items():
                columns[key].append(value)
        return {key: np.array(values) for key, values in columns.items()}


class Detector(Device):
    """Gives one prepared pattern per trigger; the axis is its configuration."""

    chi_I = Component(Signal, kind="hinted")
    chi_Q = Component(Signal, kind="config")

    def __init__(self, patterns: np.ndarray, x: np.ndarray, *, name: str = "det") -> None:
        super().__init__("", name=name)
        self._patterns = iter(patterns)
        self.chi_Q.put(x)
        self.chi_I.put(patterns[0])

    def trigger(self) -> Any:
        self.chi_I.put(next(self._patterns))
        return super().trigger()


class EventAxisDetector(Detector):
    """The same with the axis in every event, as some beamlines have it."""

    chi_Q = Component(Signal, kind="normal")


def axis(name: str = "temperature") -> SynAxis:
    return SynAxis(name=name)


def engine() -> RunEngine:
    return RunEngine({}, call_returns_result=False)


def mixtures(n: int = 20, *, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Two phases that change hands over n patterns: x (F,), components (2, F), patterns (n, F)."""
    x = np.linspace(1.0, 5.0, 200)
    H = np.stack([np.exp(-(((x - c) / 0.1) ** 2)) for c in (2.0, 3.5)])
    share = np.linspace(0.0, 1.0, n)[:, None]
    patterns = (1 - share) * H[0] + share * H[1]
    patterns += noise * np.random.default_rng(seed).random(patterns.shape)
    return x, H, patterns


def run_documents(
    patterns: Any,
    *,
    x: Any = None,
    key: str = "chi_I",
    x_key: str = "chi_Q",
    metadata: dict[str, Any] | None = None,
    positions: Any = None,
    paged: bool = False,
    stop: bool = True,
) -> list[tuple[str, dict[str, Any]]]:
    """A run composed by hand: patterns, with the axis in each event and a temperature."""
    hints = {"dimensions": [[["temperature"], "primary"]]}
    run = compose_run(metadata={"hints": hints, "plan_name": "scan", **(metadata or {})})
    array = {"source": "det", "dtype": "array", "shape": []}
    keys = {key: array, "temperature": {**array, "dtype": "number", "units": "K"}}
    if x is not None:
        keys[x_key] = {**array, "units": "1/angstrom"}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    documents: list[tuple[str, Any]] = [("start", run.start_doc)]
    documents.append(("descriptor", stream.descriptor_doc))
    rows = []
    for n, pattern in enumerate(patterns):
        data = {key: pattern, "temperature": float(n if positions is None else positions[n])}
        if x is not None:
            data[x_key] = x
        rows.append(data)
    if paged:
        columns = {k: [row[k] for row in rows] for k in rows[0]}
        stamps = {k: [0.0] * len(rows) for k in columns}
        documents.append(("event_page", stream.compose_event_page(columns, stamps)))
    else:
        for data in rows:
            documents.append(("event", stream.compose_event(data, dict.fromkeys(data, 0.0))))
    if stop:
        documents.append(("stop", run.compose_stop()))
    return documents
