"""The documents of an analysis run, read back: from the stream or from a catalog."""

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from event_model import unpack_event_page

from ..unknowns import Alarm
from . import schema
from .schema import Array, Document

__all__ = ["AnalysisReader", "Latest"]


@dataclass(frozen=True)
class Latest:
    """The newest pattern (F,), its reconstruction (F,) and its ``seq_num`` in the raw run."""

    pattern: Array
    reconstruction: Array
    source_seq_num: int


class AnalysisReader:
    """What is known of one analysis run, kept up to date by its documents.

    Feed it ``(name, document)``; it follows the analysis run that started last and passes over
    everything else. Weights are the best known: the last snapshot's where there is one, and
    those published with the pattern after it.

    Attributes
    ----------
    start, stop : dict or None
        The documents themselves.
    names : tuple of str
        The components, in order.
    fixed : tuple of bool
        Which of them are held, as of the last change.
    strained : tuple of str
        Those that had a strain when the run began.
    variables : tuple of str
        Data keys of the independent variables.
    units : dict
        Unit of each independent variable, ``""`` where there is none.
    axis : Axis or None
        Axis of the patterns, once a snapshot has come.
    components : ndarray (K, F) or None
        As of the last snapshot.
    objective, converged, fit_id : float or None, bool, int
        Of the last snapshot.
    fit_patterns : int
        Number of patterns in the fit of the last snapshot.
    latest : Latest or None
        The newest pattern.
    changes : list of (int, str, str)
        Changes of constraints: number of patterns then, action, component.
    rejected : list of (int, str)
        ``source_seq_num`` and reason of the patterns that could not be used.
    faults : list of str
        What went wrong beside the scan, and how it went on.
    alarms : list of Alarm
        What no component explained; those before the last of `changes` are of another model.
    """

    def __init__(self) -> None:
        self._reset(None)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> bool:
        """Take a document; tell whether it belongs to the analysis run that is followed."""
        if name == "start":
            if not schema.is_analysis(doc):
                return False
            self._reset(dict(doc))
            return True
        if self.start is None:
            return False
        return self._take(name, doc)

    @property
    def uid(self) -> str | None:
        """Unique identifier of the run that is followed."""
        return None if self.start is None else str(self.start["uid"])

    @property
    def n_patterns(self) -> int:
        """Number of patterns whose weights are known."""
        return max(self.n_before + self._n(self._rows), self._n(self._snapshot))

    @property
    def n_before(self) -> int:
        """Number of patterns published before the first one that is known from ``primary``.

        They came in the runs that this one continues, or before somebody subscribed; their
        weights are NaN until a snapshot brings them.
        """
        return self._before + self._missed

    @property
    def positions(self) -> Array:
        """Values of the independent variables, (N, D)."""
        return self._table(range(len(self.variables)))

    @property
    def weights(self) -> Array:
        """Best known weights, (N, K)."""
        first = len(self.variables)
        return self._table(range(first, first + len(self.names)))

    @property
    def fractions(self) -> Array:
        """Best known fractions of the fitted intensity, (N, K).

        Weight times area of the component, by the sum of these. NaN where a pattern has no
        weight at all, and where the run was written by a version that had no fractions.
        """
        first = len(self.variables) + len(self.names)
        return self._table(range(first, first + len(self.names)))

    @property
    def strains(self) -> Array:
        """Best known strains, (N, K), NaN where a component has none or is not there."""
        first = len(self.variables) + 2 * len(self.names)
        columns = list(self._strain_keys)
        strains = np.full((self.n_patterns, len(self.names)), np.nan)
        strains[:, columns] = self._table(range(first, first + len(columns)))
        return strains

    @property
    def strain_errors(self) -> Array:
        """Standard errors of strains as published with each pattern of this run, (n, K)."""
        columns = list(self._strain_keys)
        published = self._published("strain_error", len(columns)) if columns else None
        n = self._n(self._rows)
        errors = np.full((n, len(self.names)), np.nan)
        if published is not None:
            errors[:, columns] = published
        return errors

    @property
    def errors(self) -> Array:
        """Standard errors of weights as published with each pattern of this run, (n, K)."""
        return self._published("error", len(self.names))

    @property
    def fraction_errors(self) -> Array:
        """Standard errors of fractions as published with each pattern of this run, (n, K)."""
        return self._published("fraction_error", len(self.names))

    @property
    def r_factor(self) -> Array:
        """R-factors as published with each pattern of this run, (n,)."""
        return self._published("r_factor", 1)[:, 0]

    @property
    def unexplained(self) -> Array:
        """Unexplained fractions as published with each pattern of this run, (n,)."""
        return self._published("unexplained", 1)[:, 0]

    @property
    def lag(self) -> Array:
        """Patterns that waited when each pattern of this run was published, (n,)."""
        return self._published("lag", 1)[:, 0]

    @property
    def fit_seconds(self) -> Array:
        """Duration of the refit that published each pattern of this run, (n,)."""
        return self._published("fit_seconds", 1)[:, 0]

    def _reset(self, start: Document | None) -> None:
        self.start = start
        self.stop: Document | None = None
        records = [] if start is None else start.get("cmf", {}).get("components", [])
        self.names = tuple(str(record["name"]) for record in records)
        self.fixed = tuple(bool(record["fixed"]) for record in records)
        self._weight_keys = schema.weight_keys(self.names)
        self._fraction_keys = schema.fraction_keys(self.names)
        cmf = {} if start is None else start.get("cmf", {})
        self.strained = schema.strained_names(cmf)
        self._strain_keys = schema.strain_keys(self.names, self.strained)
        dimensions = [] if start is None else start.get("hints", {}).get("dimensions", [])
        self.variables = tuple(key for keys, _stream in dimensions for key in keys)
        self.units: dict[str, str] = {}
        self.axis: schema.Axis | None = None
        self.components: Array | None = None
        self.objective: float | None = None
        self.converged = False
        self.fit_id = 0
        self.fit_patterns = 0
        self.latest: Latest | None = None
        self.changes: list[tuple[int, str, str]] = []
        self.rejected: list[tuple[int, str]] = []
        self.faults: list[str] = []
        self.alarms: list[Alarm] = []
        self._descriptors: dict[str, Mapping[str, Any]] = {}
        # Flat, row after row: to make an array of them is one copy, however many there are.
        self._rows, self._snapshot = array("d"), array("d")
        self._columns: dict[str, array[float]] = {}
        self._snapshot_fit = 0
        # A run that continues another one publishes only what came after its first snapshot.
        self._continues = start is not None and bool(start.get("cmf", {}).get("continues"))
        self._before = 0
        # Who subscribes late does not get the first events.
        self._missed = 0

    def _take(self, name: str, doc: Mapping[str, Any]) -> bool:
        if name == "descriptor":
            if doc.get("run_start") != self.uid:
                return False
            self._descriptors[doc["uid"]] = doc
            self._note_units(doc)
            return True
        if name == "stop":
            if doc.get("run_start") != self.uid:
                return False
            self.stop = dict(doc)
            return True
        if name in ("event", "event_page") and doc["descriptor"] in self._descriptors:
            self._take_events(name, doc)
            return True
        return False

    def _take_events(self, name: str, doc: Mapping[str, Any]) -> None:
        stream = self._descriptors[doc["descriptor"]]["name"]
        take = getattr(self, f"_take_{stream}", None)
        if take is None:
            return
        if stream == "weights":
            self._take_weights(doc["data"], paged=name == "event_page")
            return
        events = [doc] if name == "event" else unpack_event_page(doc)
        for event in events:
            if stream == "primary" and not self._rows:
                self._missed = int(event["seq_num"]) - 1
            take(event["data"])

    def _note_units(self, descriptor: Mapping[str, Any]) -> None:
        for key in self.variables:
            if key in descriptor["data_keys"]:
                self.units[key] = descriptor["data_keys"][key].get("units") or ""

    def _take_primary(self, data: Mapping[str, Any]) -> None:
        keys, parts = self._weight_keys, self._fraction_keys
        strains = self._strain_keys.values()
        row = [float(data[key]) for key in (*self.variables, *keys)]
        row += [float(data.get(key, math.nan)) for key in parts]
        row += [float(data[key]) for key in strains]
        columns = {
            key: [float(data[key])] for key in ("r_factor", "unexplained", "lag", "fit_seconds")
        }
        columns["error"] = [float(data[f"{key}_error"]) for key in keys]
        columns["fraction_error"] = [float(data.get(f"{key}_error", math.nan)) for key in parts]
        columns["strain_error"] = [float(data[f"{key}_error"]) for key in strains]
        self._rows.extend(row)
        for key, values in columns.items():
            self._columns.setdefault(key, array("d")).extend(values)

    def _take_components(self, data: Mapping[str, Any]) -> None:
        self.fit_id = int(data["fit_id"])
        self.fit_patterns = int(data["n_patterns"])
        self.components = np.asarray(data["components"])
        self.objective = float(data["objective"])
        self.converged = bool(data["converged"])
        x = np.asarray(data["x"])
        for descriptor in self._descriptors.values():
            if descriptor["name"] == "components":
                key = descriptor["data_keys"]["x"]
                name = (key.get("dims") or ["x"])[0]
                self.axis = schema.Axis(name, key.get("units") or "", x)

    def _take_weights(self, data: Mapping[str, Any], *, paged: bool) -> None:
        fits = data["fit_id"] if paged else [data["fit_id"]]
        keys = (*self.variables, *self._weight_keys)
        columns = [data[key] if paged else [data[key]] for key in keys]
        unknown = [math.nan] * len(fits)
        for key in self._fraction_keys:
            part = data.get(key, unknown)
            columns.append(part if paged or part is unknown else [part])
        for key in self._strain_keys.values():
            columns.append(data[key] if paged else [data[key]])
        for fit, row in zip(map(int, fits), zip(*columns, strict=True), strict=True):
            if fit != self._snapshot_fit:
                self._snapshot_fit, self._snapshot = fit, array("d")
            self._snapshot.extend(map(float, row))
            self._before += self._continues and fit == 1

    def _take_latest(self, data: Mapping[str, Any]) -> None:
        self.latest = Latest(
            np.asarray(data["pattern"]),
            np.asarray(data["reconstruction"]),
            int(data["source_seq_num"]),
        )

    def _take_constraints(self, data: Mapping[str, Any]) -> None:
        action, component = str(data["action"]), str(data["component"])
        self.changes.append((int(data["n_patterns"]), action, component))
        if action in ("fix", "release"):
            held = dict(zip(self.names, self.fixed, strict=True))
            held[component] = action == "fix"
            self.fixed = tuple(held[name] for name in self.names)

    def _take_rejected(self, data: Mapping[str, Any]) -> None:
        self.rejected.append((int(data["source_seq_num"]), str(data["reason"])))

    def _take_faults(self, data: Mapping[str, Any]) -> None:
        self.faults.append(str(data["fault"]))

    def _take_alarms(self, data: Mapping[str, Any]) -> None:
        ends = [(float(first), float(last)) for first, last in np.asarray(data["ranges"])]
        self.alarms.append(
            Alarm(
                # Where there were fewer, the first one stands for those that are missing.
                tuple(dict.fromkeys(ends)),
                since=int(data["since"]),
                n_patterns=int(data["n_patterns"]),
                significance=float(data["significance"]),
                share=float(data["share"]),
                since_seq_num=int(data["since_seq_num"]),
                text=str(data["alarm"]),
            )
        )

    def _table(self, columns: Iterable[int]) -> Array:
        snapshot, rows = self._matrix(self._snapshot), self._matrix(self._rows)
        unknown = self.n_patterns - len(rows) - len(snapshot)
        gap = np.full((max(0, unknown), self._width), np.nan)
        published = rows[max(0, len(snapshot) - self.n_before) :]
        return np.concatenate([snapshot, gap, published])[:, list(columns)]

    def _matrix(self, values: "array[float]") -> Array:
        return np.array(values).reshape(self._n(values), self._width)

    @property
    def _width(self) -> int:
        return len(self.variables) + 2 * len(self.names) + len(self._strain_keys)

    def _n(self, values: "array[float]") -> int:
        return len(values) // max(self._width, 1)

    def _published(self, key: str, width: int) -> Array:
        values = np.array(self._columns.get(key, array("d")))
        return values.reshape(len(values) // max(width, 1), width)
