"""What one drawing shows: everything that is known of an analysis run, as arrays and texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from ..documents import PATTERN_NUMBER, AnalysisReader, Array, Latest
from ..unknowns import Alarm

__all__ = ["Abscissa", "Amounts", "Components", "Story", "View"]

#: What is drawn of each component: `AnalysisReader` has a table of the name.
Amounts = Literal["weights", "fractions"]

#: Where the maxima of the components differ by more than this, bare weights mislead the eye.
_COMPARABLE = 5.0
#: Alarms that are told; the ranges of all are shaded.
_ALARMS = 2


@dataclass(frozen=True)
class Abscissa:
    """What weights are drawn against: values (N,), a label, and whether they go one way only."""

    values: Array
    label: str
    ordered: bool
    is_number: bool = False


@dataclass(frozen=True)
class Components:
    """The components (K, F) on their axis (F,), with the axis' label."""

    x: Array
    label: str
    values: Array


@dataclass(frozen=True)
class View:
    """One drawing.

    Attributes
    ----------
    dataset : str
        Unique identifier of the first run of those that continue each other.
    headline, status : str
        What was measured, and how the fit stands.
    trouble : tuple of str
        What a reader of the figure must know before believing it.
    names, fixed, slots : tuple
        Of each component: its name, whether it is held, and the number of its colour.
    abscissa : Abscissa
        What the rows are drawn against.
    weights, errors : ndarray (N, K)
        Weights, or fractions, in units of ``weight_label``; errors are NaN where none was
        published.
    most : float
        What they cannot exceed: 1 for fractions.
    strained : tuple of int
        Components that have a strain.
    strains, strain_errors : ndarray (N, K)
        NaN where there is none.
    marks : tuple of (float, str)
        Changes of constraints, on the abscissa.
    unexplained : tuple of (float, float)
        Where on the axis something stands out that the components do not explain.
    onsets : tuple of (float, str)
        Since when, on the abscissa.
    components : Components or None
        As of the last snapshot.
    latest : Latest or None
        The newest pattern that was published.
    r_factor, lag : ndarray (N,)
        As published, NaN where nothing was.
    ended : bool
        Whether the run has stopped.
    """

    dataset: str
    headline: str
    status: str
    trouble: tuple[str, ...]
    names: tuple[str, ...]
    fixed: tuple[bool, ...]
    slots: tuple[int, ...]
    abscissa: Abscissa
    weights: Array
    errors: Array
    weight_label: str
    most: float
    strained: tuple[int, ...]
    strains: Array
    strain_errors: Array
    marks: tuple[tuple[float, str], ...]
    unexplained: tuple[tuple[float, float], ...]
    onsets: tuple[tuple[float, str], ...]
    components: Components | None
    latest: Latest | None
    r_factor: Array
    lag: Array
    ended: bool

    def with_trouble(self, *lines: str) -> "View":
        """Give the same view with more to warn of."""
        return replace(self, trouble=(*self.trouble, *lines))


@dataclass(frozen=True)
class _Past:
    """What the runs published that the present one continues: rows are patterns from the first."""

    uid: str | None = None
    names: tuple[str, ...] = ()
    slots: dict[str, int] = field(default_factory=dict)
    errors: dict[tuple[str, str], Array] = field(default_factory=dict)
    r_factor: Array = field(default_factory=lambda: np.empty(0))
    lag: Array = field(default_factory=lambda: np.empty(0))
    changes: tuple[tuple[int, str, str], ...] = ()
    rejected: tuple[tuple[int, str], ...] = ()


class Story:
    """An analysis run, and the runs before it that it continues.

    Parameters
    ----------
    start : mapping
        Start document of the analysis run.
    before : Story, optional
        The run that it continues.
    """

    def __init__(self, start: Mapping[str, Any], before: "Story | None" = None) -> None:
        self.reader = AnalysisReader()
        self.reader("start", start)
        self._past = _Past() if before is None else before._as_past()
        self._dataset: str = str(start["uid"]) if before is None else before._dataset
        self._slots = _slots(self.reader.names, self._past.slots)

    @property
    def continues(self) -> bool:
        """Whether it goes on from another run."""
        return self._past.uid is not None

    def view(self, show: Amounts = "weights") -> View:
        """Gather what there is to draw now."""
        reader = self.reader
        weights: Array = getattr(reader, show)
        n = reader.n_patterns
        abscissa = _abscissa(reader, n)
        scales, weight_label, most = np.ones(weights.shape[1]), "fraction of the intensity", 1.0
        if show == "weights":
            (scales, weight_label), most = _scales(reader.components, len(scales)), np.inf
        rejected = (*self._past.rejected, *reader.rejected)
        alarms = _standing(reader)
        return View(
            dataset=self._dataset,
            headline=_headline(reader.start or {}),
            status=_status(reader, n),
            trouble=_trouble(reader, rejected, weights, alarms, show),
            names=reader.names,
            fixed=reader.fixed,
            slots=tuple(self._slots[name] for name in reader.names),
            abscissa=abscissa,
            weights=weights * scales,
            errors=self._errors(n, show) * scales,
            weight_label=weight_label,
            most=most,
            strained=tuple(reader.names.index(name) for name in reader.strained),
            strains=reader.strains,
            strain_errors=self._strain_errors(n),
            marks=_marks(self._changes(), abscissa),
            unexplained=tuple(ends for alarm in alarms for ends in alarm.ranges),
            onsets=_onsets(alarms, abscissa),
            components=_components(reader),
            latest=reader.latest,
            r_factor=self._rows(self._past.r_factor, reader.r_factor, n),
            lag=self._rows(self._past.lag, reader.lag, n),
            ended=reader.stop is not None,
        )

    def _as_past(self) -> _Past:
        reader, n = self.reader, self.reader.n_patterns
        tables = {show: self._errors(n, show) for show in get_args(Amounts)}
        tables["strains"] = self._strain_errors(n)
        errors = {
            (table, name): column
            for table, columns in tables.items()
            for name, column in zip(reader.names, columns.T, strict=True)
        }
        return _Past(
            reader.uid,
            reader.names,
            self._slots,
            {**self._past.errors, **errors},
            self._rows(self._past.r_factor, reader.r_factor, n),
            self._rows(self._past.lag, reader.lag, n),
            self._changes(),
            (*self._past.rejected, *reader.rejected),
        )

    def _rows(self, past: Array, published: Array, n: int) -> Array:
        """Put what was published before and in this run where it belongs among N patterns."""
        rows = np.full(n, np.nan)
        rows[: len(past)] = past[:n]
        first = self.reader.n_before
        rows[first : first + len(published)] = published[: n - first]
        return rows

    def _errors(self, n: int, show: Amounts) -> Array:
        reader = self.reader
        published = reader.errors if show == "weights" else reader.fraction_errors
        return self._columns(show, published, n)

    def _strain_errors(self, n: int) -> Array:
        return self._columns("strains", self.reader.strain_errors, n)

    def _columns(self, table: str, published: Array, n: int) -> Array:
        """Put what was published of each component where it belongs, (N, K)."""
        nothing = np.empty(0)
        columns = [
            self._rows(self._past.errors.get((table, name), nothing), published[:, k], n)
            for k, name in enumerate(self.reader.names)
        ]
        return np.column_stack(columns) if columns else np.empty((n, 0))

    def _changes(self) -> tuple[tuple[int, str, str], ...]:
        """All changes of constraints; a run that continues another has added or removed some."""
        changes = dict.fromkeys(self._past.changes)
        if self.continues:
            n, before, now = self.reader.n_before, self._past.names, self.reader.names
            told = {(action, name) for _n, action, name in changes}
            implied = [("add", name) for name in now if name not in before]
            implied += [("remove", name) for name in before if name not in now]
            changes |= dict.fromkeys((n, *change) for change in implied if change not in told)
        return (*changes, *self.reader.changes)


def _slots(names: Sequence[str], before: Mapping[str, int]) -> dict[str, int]:
    """Give each component the number of a colour: its old one, or one that is free."""
    slots = {name: before[name] for name in names if name in before}
    free = (slot for slot in range(len(names) + len(before) + 1) if slot not in slots.values())
    # A generator would look at the slots while they are being given away.
    unused = list(free)
    for name in names:
        if name not in slots:
            slots[name] = unused.pop(0)
    return slots


def _labelled(name: str, units: str) -> str:
    return f"{name} ({units})" if units else name


def _abscissa(reader: AnalysisReader, n: int) -> Abscissa:
    """Choose what rows are drawn against: the one dimension of the scan, else their number."""
    start = reader.start or {}
    dimensions = [keys for keys, _stream in start.get("hints", {}).get("dimensions", [])]
    number = np.arange(1.0, n + 1)
    if len(dimensions) != 1 or not dimensions[0]:
        scanned = " × ".join(_labelled(key, reader.units.get(key, "")) for key in reader.variables)
        label = "pattern number" + (f", of a scan over {scanned}" if scanned else "")
        return Abscissa(number, label, ordered=True, is_number=True)
    values = reader.positions
    if not np.isfinite(values).all():
        label = f"pattern number ({', '.join(reader.variables)} not known for some)"
        return Abscissa(number, label, ordered=True, is_number=True)
    varying = np.ptp(values, axis=0) > 0 if n else np.zeros(1, dtype=bool)
    column = int(varying.argmax())
    return _along(reader, values[:, column], column)


def _along(reader: AnalysisReader, values: Array, column: int) -> Abscissa:
    key = reader.variables[column]
    if key == PATTERN_NUMBER.key:
        label = "pattern number"
    else:
        others = [other for other in reader.variables if other != key]
        label = _labelled(key, reader.units.get(key, ""))
        label += f", moved with {', '.join(others)}" if others else ""
    steps = np.diff(values)
    return Abscissa(values, label, ordered=bool((steps >= 0).all() or (steps <= 0).all()))


def _scales(components: Array | None, k: int) -> tuple[Array, str]:
    """Tell by what weights are multiplied for drawing.

    A free component has maximum 1, a fixed one what its pattern has. Where these differ, the
    sizes of weights say nothing, so that the height each component reaches is drawn instead.
    """
    if components is None or len(components) != k:
        return np.ones(k), "weight"
    maxima = components.max(axis=1, initial=0.0)
    alive = maxima[maxima > 0]
    if not alive.size or alive.max() <= _COMPARABLE * alive.min():
        return np.ones(k), "weight"
    return maxima, "weight × maximum of component"


def _components(reader: AnalysisReader) -> Components | None:
    axis, values = reader.axis, reader.components
    if axis is None or values is None:
        return None
    return Components(axis.values, _labelled(axis.name, axis.units), values)


def _marks(
    changes: Sequence[tuple[int, str, str]], abscissa: Abscissa
) -> tuple[tuple[float, str], ...]:
    """Place changes of constraints, each between the patterns that it came between."""
    x = abscissa.values
    marks: dict[tuple[float, int], list[str]] = {}
    for n, action, name in changes:
        if not len(x):
            break
        last, following = (x[min(max(i, 0), len(x) - 1)] for i in (n - 1, n))
        # Where positions jump to and fro, only the pattern before it is a place at all.
        place = (last + following) / 2 if abscissa.ordered else last
        place = n + 0.5 if abscissa.is_number else float(place)
        marks.setdefault((place, n), []).append(f"{action} {name}")
    return tuple((place, f"{', '.join(texts)} (after {n})") for (place, n), texts in marks.items())


def _standing(reader: AnalysisReader) -> list[Alarm]:
    """Give the alarms that are of the present model: what changed it begins anew."""
    changed = reader.changes[-1][0] if reader.changes else 0
    return [alarm for alarm in reader.alarms if alarm.n_patterns > changed]


def _onsets(alarms: Sequence[Alarm], abscissa: Abscissa) -> tuple[tuple[float, str], ...]:
    """Place the patterns since when something is not explained."""
    x, places = abscissa.values, dict.fromkeys(alarm.since for alarm in alarms)
    return tuple(
        (float(x[since - 1]), f"not explained from {since} on")
        for since in places
        if since <= len(x)
    )


def _headline(start: Mapping[str, Any]) -> str:
    sample = start.get("sample_name") or start.get("sample")
    if isinstance(sample, Mapping):
        sample = sample.get("name")
    scan_id, plan = start.get("scan_id"), start.get("plan_name")
    parts = [
        str(sample) if sample else "",
        f"scan {scan_id}" if scan_id is not None else "",
        str(plan) if plan and plan != "unknown" else "",
    ]
    return "  ·  ".join(part for part in parts if part) or "Constrained NMF"


def _status(reader: AnalysisReader, n: int) -> str:
    start = reader.start or {}
    raw = str(start.get("original_run_uid", ""))[:8]
    parts = [
        f"analysis {(reader.uid or '')[:8]}" + (f" of run {raw}" if raw else ""),
        f"{n:,} pattern{'' if n == 1 else 's'}",
    ]
    if reader.objective is not None:
        of = "" if reader.fit_patterns == n else f" (first {reader.fit_patterns:,} patterns)"
        parts.append(f"objective {reader.objective:.4g}{of}")
    parts.append(_state(reader, n))
    seconds = reader.fit_seconds
    if len(seconds):
        parts.append(f"fit {seconds[-1] * 1e3:.3g} ms")
    return "  ·  ".join(parts)


def _state(reader: AnalysisReader, n: int) -> str:
    if reader.converged and reader.fit_patterns == n:
        return "converged"
    return "running" if reader.stop is None else "not converged"


def _trouble(
    reader: AnalysisReader,
    rejected: Sequence[tuple[int, str]],
    weights: Array,
    alarms: Sequence[Alarm],
    show: Amounts,
) -> tuple[str, ...]:
    lines = []
    stop = reader.stop or {}
    if stop.get("exit_status", "success") != "success":
        lines.append(f"{stop['exit_status']}: {stop.get('reason') or 'no reason given'}")
    elif stop and len(weights) and _state(reader, len(weights)) != "converged":
        lines.append("the run ended before its fit converged")
    lines += list(dict.fromkeys(reader.faults))[-2:]
    lines += [alarm.text for alarm in alarms[-_ALARMS:]]
    if rejected:
        seq_num, reason = rejected[-1]
        many = "1 pattern" if len(rejected) == 1 else f"{len(rejected):,} patterns"
        last = "" if len(rejected) == 1 else "last "
        lines.append(f"{many} rejected, {last}seq_num {seq_num}: {reason}")
    undrawn = int((~np.isfinite(weights)).any(axis=1).sum())
    if undrawn:
        patterns = "1 pattern is" if undrawn == 1 else f"{undrawn:,} patterns are"
        lines.append(f"{patterns} not drawn: {show} not received, or no numbers")
    return tuple(lines)
