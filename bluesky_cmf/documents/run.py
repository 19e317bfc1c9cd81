"""A `FitResult` as the documents of an analysis run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from event_model import compose_run

from ..nmf.fractions import areas, fraction_errors, fractions
from ..nmf.results import FitResult, RowFit
from ..unknowns import Alarm
from . import schema
from .schema import Array, Axis, Emit, Independent, Point

__all__ = ["AnalysisRun"]

#: Seconds and growth between two snapshots: what is stored stays in proportion to N.
_SNAPSHOT_SECONDS = 1.0
_SNAPSHOT_GROWTH = 1.25
#: Seconds between two events of ``latest``.
_LATEST_SECONDS = 0.25


@dataclass
class AnalysisRun:
    """One analysis run, composed document by document.

    Parameters
    ----------
    emit : callable
        Gets each ``(name, document)``.
    raw_start : mapping
        Start document of the raw run (in session scope of the first one).
    names : sequence of str
        The components.
    variables : sequence of Independent
        Variables that each pattern comes with, in the order of `Point.position`.
    metadata : mapping
        What goes into the ``cmf`` dictionary of the start document.
    axis : Axis, optional
        Axis of the patterns; without it only `reject` and `close` can be used.
    parents : sequence of str, optional
        Raw runs whose patterns are there already, where this run continues another one.
    """

    emit: Emit
    raw_start: Mapping[str, Any]
    names: Sequence[str]
    variables: Sequence[Independent]
    metadata: Mapping[str, Any]
    axis: Axis | None = None
    parents: Sequence[str] = ()
    fit_id: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        metadata = schema.start_metadata(self.raw_start, self.variables, self.metadata)
        self._bundle = compose_run(metadata=metadata, validate=False)
        self._weight_keys = schema.weight_keys(self.names)
        self._fraction_keys = schema.fraction_keys(self.names)
        self._strain_keys = schema.strain_keys(self.names, self.strained)
        self._streams: dict[str, Any] = {}
        self._parents = dict.fromkeys([self.raw_start["uid"], *self.parents])
        self._snapshot_size, self._snapshot_time = 0, 0.0
        self._latest_time = 0.0
        self._faults: list[str] = []
        self._alarms: list[dict[str, Any]] = []
        self.emit("start", dict(self._bundle.start_doc))

    @property
    def uid(self) -> str:
        """Unique identifier of the analysis run."""
        return str(self._bundle.start_doc["uid"])

    @property
    def strained(self) -> tuple[str, ...]:
        """Components that have data keys for a strain."""
        return schema.strained_names(self.metadata)

    def primary(
        self,
        points: Sequence[Point],
        rows: RowFit,
        *,
        components: Array,
        n_patterns: int,
        lag: int,
        seconds: float,
    ) -> None:
        """Emit one event per pattern, in order.

        Parameters
        ----------
        points : sequence of Point
            Where the patterns come from.
        rows : RowFit
            How they are explained.
        components : ndarray (K, F)
            By what: the components of the same fit.
        n_patterns, lag, seconds
            Patterns in the fit, patterns that wait by now, and how long the refit took.
        """
        area = areas(components, self._axis().values)
        parts = fractions(rows.weights, area)
        part_errors = fraction_errors(rows.weights, rows.covariance, area)
        tables = rows.weights, rows.errors, parts, part_errors, rows.r_factor, rows.unexplained
        for i, (point, weights, errors, part, part_error, r_factor, unexplained) in enumerate(
            zip(points, *tables, strict=True)
        ):
            data: dict[str, Any] = self._position(point)
            data |= _with_errors(self._weight_keys, weights, errors)
            data |= _with_errors(self._fraction_keys, part, part_error)
            for k, key in self._strain_keys.items():
                data[key] = float(rows.strains[i, k])
                data[f"{key}_error"] = float(rows.strain_errors[i, k])
            data |= {
                "r_factor": float(r_factor),
                "unexplained": float(unexplained),
                "n_patterns": n_patterns,
                "lag": lag,
                "fit_seconds": seconds,
                "source_run": point.source_run,
                "source_stream": point.source_stream,
                "source_seq_num": point.source_seq_num,
            }
            self._parents[point.source_run] = None
            self._event("primary", self._primary_keys, data)

    def wants_snapshot(self, n_patterns: int) -> bool:
        """Tell whether it is time for the next snapshot: a second and 25 % after the last one."""
        grown = n_patterns > self._snapshot_size * _SNAPSHOT_GROWTH
        return grown and time.monotonic() - self._snapshot_time >= _SNAPSHOT_SECONDS

    def snapshot(self, result: FitResult, points: Sequence[Point]) -> None:
        """Emit the components and the revised weights of all patterns."""
        self.fit_id += 1
        self._snapshot_size, self._snapshot_time = result.n_patterns, time.monotonic()
        axis, components = self._axis(), result.components
        data = {
            "fit_id": self.fit_id,
            "n_patterns": result.n_patterns,
            "components": components,
            # A copy: subscribers share documents, and one of them might change it.
            "x": axis.values.copy(),
            "objective": float(result.objective),
            "converged": bool(result.converged),
        }
        self._event("components", lambda: schema.component_keys(axis, components), data)
        self._weights_page(result, points)

    def wants_latest(self) -> bool:
        """Tell whether it is time for the next event of ``latest``: a few times a second."""
        return time.monotonic() - self._latest_time >= _LATEST_SECONDS

    def latest(self, pattern: Array, reconstruction: Array, point: Point) -> None:
        """Emit the newest pattern and its reconstruction."""
        self._latest_time = time.monotonic()
        axis = self._axis()
        data = {
            "pattern": pattern,
            "reconstruction": reconstruction,
            "source_seq_num": point.source_seq_num,
        }
        self._event("latest", lambda: schema.latest_keys(axis, pattern), data)

    def constraint(self, action: str, component: str, n_patterns: int) -> None:
        """Emit a change of constraints: ``fix``, ``release``, ``add`` or ``remove``."""
        data = {"action": action, "component": component, "n_patterns": n_patterns}
        self._event("constraints", schema.constraint_keys, data)

    def reject(self, source_run: str, source_seq_num: int, reason: str) -> None:
        """Emit a pattern that could not be used, with the reason."""
        self._parents[source_run] = None
        data = {"source_run": source_run, "source_seq_num": source_seq_num, "reason": reason}
        self._event("rejected", schema.rejected_keys, data)

    def fault(self, fault: str, n_patterns: int) -> None:
        """Emit what went wrong beside the scan, and how it goes on."""
        self._faults.append(fault)
        self._event("faults", schema.fault_keys, {"fault": fault, "n_patterns": n_patterns})

    def alarm(self, alarm: Alarm) -> None:
        """Emit that something stands out that no component explains."""
        axis, ranges = self._axis(), [list(ends) for ends in alarm.ranges[: schema.MOST_RANGES]]
        told = {
            "alarm": alarm.text,
            "since": alarm.since,
            "since_seq_num": alarm.since_seq_num,
            "significance": alarm.significance,
            "share": alarm.share,
            "n_patterns": alarm.n_patterns,
        }
        self._alarms.append({**told, "ranges": ranges})
        filled = ranges + ranges[:1] * (schema.MOST_RANGES - len(ranges))
        first, last = ranges[0]
        data = {**told, "x_first": first, "x_last": last, "ranges": np.array(filled)}
        self._event("alarms", lambda: schema.alarm_keys(axis), data)

    def close(
        self, exit_status: str = "success", reason: str = "", *, device: str | None = None
    ) -> None:
        """Emit the stop document; ``device`` is where the fit ended."""
        stop = self._bundle.compose_stop(exit_status=exit_status, reason=reason, validate=False)
        cmf: dict[str, Any] = {
            "parent_uids": list(self._parents),
            "faults": list(self._faults),
            "alarms": list(self._alarms),
        }
        if device is not None:
            cmf["device"] = device
        self.emit("stop", {**stop, "cmf": cmf})

    def _primary_keys(self) -> schema.DataKeys:
        errors = self.metadata.get("errors")
        return schema.primary_keys(self.names, self.variables, self.strained, errors=errors)

    def _axis(self) -> Axis:
        if self.axis is None:
            raise RuntimeError("an analysis run without an axis holds rejected patterns only")
        return self.axis

    def _position(self, point: Point) -> dict[str, Any]:
        keys = (variable.key for variable in self.variables)
        return dict(zip(keys, point.position, strict=True))

    def _weights_page(self, result: FitResult, points: Sequence[Point]) -> None:
        n = result.n_patterns
        data: dict[str, list[Any]] = {
            variable.key: [point.position[i] for point in points[:n]]
            for i, variable in enumerate(self.variables)
        }
        data |= {"fit_id": [self.fit_id] * n, "pattern": list(range(1, n + 1))}
        parts = fractions(result.weights, areas(result.components, self._axis().values))
        for keys, table in ((self._weight_keys, result.weights), (self._fraction_keys, parts)):
            columns = table.astype(float).T.tolist()
            data |= dict(zip(keys, columns, strict=True))
        for k, key in self._strain_keys.items():
            data[key] = result.strains[:, k].tolist()
        now = [time.time()] * n
        stream = self._stream(
            "weights", lambda: schema.weights_keys(self.names, self.variables, self.strained)
        )
        page = stream.compose_event_page(
            data=data, timestamps={key: list(now) for key in data}, time=now, validate=False
        )
        self.emit("event_page", dict(page))

    def _event(
        self, name: str, keys: Callable[[], schema.DataKeys], data: Mapping[str, Any]
    ) -> None:
        now = time.time()
        event = self._stream(name, keys).compose_event(
            data=dict(data), timestamps=dict.fromkeys(data, now), time=now, validate=False
        )
        self.emit("event", dict(event))

    def _stream(self, name: str, keys: Callable[[], schema.DataKeys]) -> Any:
        if name not in self._streams:
            data_keys = keys()
            bundle = self._bundle.compose_descriptor(
                name=name,
                data_keys=data_keys,
                object_keys={"cmf": list(data_keys)},
                hints={"cmf": {"fields": self._weight_keys if name == "primary" else []}},
                validate=False,
            )
            self._streams[name] = bundle
            self.emit("descriptor", dict(bundle.descriptor_doc))
        return self._streams[name]


def _with_errors(keys: Sequence[str], values: Array, errors: Array) -> dict[str, float]:
    data: dict[str, float] = {}
    for key, value, error in zip(keys, values.tolist(), errors.tolist(), strict=True):
        data |= {key: value, f"{key}_error": error}
    return data
