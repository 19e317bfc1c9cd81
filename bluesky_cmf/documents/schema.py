"""The schema of the analysis run: its metadata, its data keys and how they are named."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from event_model import DocumentNames, schema_validators

__all__ = [
    "MOST_RANGES",
    "PATTERN_NUMBER",
    "STAGE",
    "Array",
    "Axis",
    "Document",
    "Emit",
    "Independent",
    "Point",
    "alarm_keys",
    "component_keys",
    "component_record",
    "constraint_keys",
    "fault_keys",
    "fraction_keys",
    "independents",
    "is_analysis",
    "latest_keys",
    "primary_keys",
    "rejected_keys",
    "start_metadata",
    "strain_keys",
    "strained_names",
    "weight_keys",
    "weights_keys",
]

Array = npt.NDArray[Any]
Document = dict[str, Any]
Emit = Callable[[str, Document], None]
DataKeys = dict[str, dict[str, Any]]

#: Ranges of the axis that an alarm names; where there are fewer, the first one is repeated.
MOST_RANGES = 5

#: The value of ``analysis_stage`` by which every sink and source knows an analysis run.
STAGE = "cmf"

#: Metadata of the raw start document that describe its own plan or its own run, not the sample.
_NOT_CARRIED = frozenset(
    [
        "uid",
        "time",
        "hints",
        "detectors",
        "motors",
        "plan_args",
        "plan_pattern",
        "plan_pattern_args",
        "plan_pattern_module",
        "num_points",
        "num_intervals",
        "versions",
        "original_run_uid",
        "parent_uids",
        "analysis_stage",
        "cmf",
    ]
)

#: Data keys that the schema claims: an independent variable of that name gets a prefix.
_CLAIMED = frozenset(
    [
        "r_factor",
        "unexplained",
        "n_patterns",
        "lag",
        "fit_seconds",
        "source_run",
        "source_stream",
        "source_seq_num",
        "fit_id",
        "pattern",
        "components",
        "x",
        "objective",
        "converged",
        "action",
        "component",
        "reason",
        "fault",
        "alarm",
        "x_first",
        "x_last",
        "ranges",
        "since",
        "since_seq_num",
        "significance",
        "share",
        "reconstruction",
        "seq_num",
    ]
)
#: How the keys of components begin: an independent variable whose name does gets a prefix, too.
_PREFIXES = ("weight_", "fraction_", "strain_")

#: What a fraction is, and what it is not: of mass, for which nobody has told the densities.
_FRACTION = "weight * area of the component / sum of these: part of the fitted intensity; {name}"


@dataclass(frozen=True)
class Axis:
    """The axis of the patterns: its name, its unit and its F values."""

    name: str
    units: str
    values: Array


@dataclass(frozen=True)
class Independent:
    """A variable that weights are drawn against.

    ``field`` is its name in the raw run, ``key`` its data key in ``primary`` and ``dimension``
    the number of the scan dimension it belongs to.
    """

    field: str
    key: str
    units: str = ""
    dimension: int = 0


#: What weights are drawn against where the scan names no dimension: the number of the pattern.
PATTERN_NUMBER = Independent("pattern", "pattern")


@dataclass(frozen=True)
class Point:
    """Where one pattern comes from, and the values of the independent variables there."""

    source_run: str
    source_stream: str
    source_seq_num: int
    position: tuple[float, ...]


def is_analysis(start: Mapping[str, Any]) -> bool:
    """Tell whether a start document opens an analysis run."""
    return start.get("analysis_stage") == STAGE


def weight_keys(names: Sequence[str]) -> list[str]:
    """Give each component its data key.

    Parameters
    ----------
    names : sequence of str
        Component names.

    Returns
    -------
    list of str
        ``weight_<name>``, with anything but letters, digits and ``_`` turned into ``_``; a key
        that is taken gets ``_2``, ``_3``, ….

    Examples
    --------
    >>> weight_keys(["BaTiO3 (cubic)", "unknown 1", "unknown.1"])
    ['weight_BaTiO3__cubic_', 'weight_unknown_1', 'weight_unknown_1_2']
    """
    keys: list[str] = []
    # A component called "a_error" would otherwise take the key of the error of "a".
    taken: set[str] = set()
    for name in names:
        base = "weight_" + re.sub(r"[^A-Za-z0-9_]", "_", name)
        key, number = base, 1
        while {key, f"{key}_error"} & taken:
            number += 1
            key = f"{base}_{number}"
        taken |= {key, f"{key}_error"}
        keys.append(key)
    return keys


def fraction_keys(names: Sequence[str]) -> list[str]:
    """Give the data key of each component's fraction: that of its weight under another name.

    Examples
    --------
    >>> fraction_keys(["cubic", "weight_x", "a b", "a.b"])
    ['fraction_cubic', 'fraction_weight_x', 'fraction_a_b', 'fraction_a_b_2']
    """
    return [f"fraction_{key.removeprefix('weight_')}" for key in weight_keys(names)]


def strain_keys(names: Sequence[str], strained: Sequence[str]) -> dict[int, str]:
    """Give the components that are strained, by number, their data key.

    Parameters
    ----------
    names, strained : sequence of str
        All components, and those that are strained.

    Returns
    -------
    dict of int to str
        ``strain_<name>``, by the same rule as the weight's.

    Examples
    --------
    >>> strain_keys(["unknown 1", "BaTiO3 (cubic)"], ["BaTiO3 (cubic)"])
    {1: 'strain_BaTiO3__cubic_'}
    """
    keys = enumerate(zip(names, weight_keys(names), strict=True))
    return {
        k: f"strain_{key.removeprefix('weight_')}" for k, (name, key) in keys if name in strained
    }


def strained_names(cmf: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the components that are strained, by the ``cmf`` metadata of a start document."""
    records = cmf.get("components") or ()
    return tuple(str(record["name"]) for record in records if record.get("strain"))


def independents(dimensions: Iterable[Iterable[str]]) -> tuple[Independent, ...]:
    """Give the fields of the scan's dimensions their data keys in ``primary``.

    Parameters
    ----------
    dimensions : iterable of iterable of str
        The raw fields of each dimension.

    Returns
    -------
    tuple of Independent
        ``time`` becomes ``elapsed``; a name that the schema claims gets the prefix ``raw_``.

    Examples
    --------
    >>> [v.key for v in independents([["temperature"], ["time"], ["x"], ["weight_kg"]])]
    ['temperature', 'elapsed', 'raw_x', 'raw_weight_kg']
    """
    found: dict[str, Independent] = {}
    for dimension, fields in enumerate(dimensions):
        for field in fields:
            key = "elapsed" if field == "time" else field
            while key in _CLAIMED or key in found or key.startswith(_PREFIXES):
                key = f"raw_{key}"
            if all(field != variable.field for variable in found.values()):
                units = "s" if field == "time" else ""
                found[key] = Independent(field, key, units, dimension)
    return tuple(found.values())


def component_record(
    name: str,
    *,
    fixed: bool,
    origin: str,
    values: Array | None,
    strain: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Describe one component for the ``cmf`` metadata, with a hash of what it is held at.

    Where it has a strain, with the bounds of that.
    """
    digest = None
    if values is not None:
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    record = {"name": name, "fixed": fixed, "origin": origin, "sha256": digest}
    return record if strain is None else {**record, "strain": list(strain)}


def start_metadata(
    raw_start: Mapping[str, Any], variables: Sequence[Independent], cmf: Mapping[str, Any]
) -> dict[str, Any]:
    """Compose the metadata of the start document from the raw run's and ours."""
    return {
        # BestEffortCallback and LiveTable look these up without asking whether they are there.
        "plan_name": "unknown",
        "plan_type": "generator",
        **_carried(raw_start),
        "original_run_uid": raw_start["uid"],
        "parent_uids": [raw_start["uid"]],
        "analysis_stage": STAGE,
        "hints": _hints(raw_start.get("hints") or {}, variables),
        "cmf": dict(cmf),
    }


def _carried(raw_start: Mapping[str, Any]) -> Document:
    """Give what is carried over of a raw run's metadata; what no document may hold is left out."""
    carried: Document = _nameable({k: v for k, v in raw_start.items() if k not in _NOT_CARRIED})
    whole = {"uid": "", "time": 0.0, **carried}
    for error in schema_validators[DocumentNames.start].iter_errors(whole):
        if error.absolute_path:
            carried.pop(error.absolute_path[0], None)
    return carried


def _nameable(value: Any) -> Any:
    """Rename keys that no document may hold: a dot or a slash in them becomes ``_``."""
    if isinstance(value, Mapping):
        return {re.sub("[./]", "_", str(k)) or "_": _nameable(v) for k, v in value.items()}
    return [_nameable(part) for part in value] if isinstance(value, list) else value


def _hints(raw_hints: Mapping[str, Any], variables: Sequence[Independent]) -> dict[str, Any]:
    groups: dict[int, list[str]] = {}
    for variable in variables:
        groups.setdefault(variable.dimension, []).append(variable.key)
    hints: dict[str, Any] = {"dimensions": [[keys, "primary"] for keys in groups.values()]}
    if "gridding" in raw_hints and len(groups) == len(raw_hints.get("dimensions") or ()):
        hints["gridding"] = raw_hints["gridding"]
    return hints


def primary_keys(
    names: Sequence[str],
    variables: Sequence[Independent],
    strained: Sequence[str] = (),
    *,
    errors: str | None = None,
) -> DataKeys:
    """Describe an event of ``primary``: one pattern.

    Parameters
    ----------
    names : sequence of str
        The components.
    variables : sequence of Independent
        Variables that each pattern comes with.
    strained : sequence of str, optional
        Components that have a strain.
    errors : str, optional
        Where the noise of patterns comes from: ``"counts"``, the data key of their standard
        errors, or None: the residual.
    """
    keys = _variable_keys(variables)
    error = _number(source=_error_source(errors))
    for key, name in zip(weight_keys(names), names, strict=True):
        keys |= {key: _number(source=name), f"{key}_error": dict(error)}
    for key, name in zip(fraction_keys(names), names, strict=True):
        keys |= {key: _number(source=_FRACTION.format(name=name)), f"{key}_error": dict(error)}
    for k, key in strain_keys(names, strained).items():
        keys[key] = _number(source=f"lattice expansion of {names[k]}: d becomes d (1 + strain)")
        keys[f"{key}_error"] = _number(source=f"{error['source']}; joint with those of the weights")
    keys["r_factor"] = _number(source="sqrt(sum((x - wH)^2) / sum(x^2))")
    keys["unexplained"] = _number(source="sum(max(x - wH, 0)) / sum(x)")
    keys |= {"n_patterns": _integer(), "lag": _integer(), "fit_seconds": _number(units="s")}
    return keys | {"source_run": _text(36), "source_stream": _text(), "source_seq_num": _integer()}


def component_keys(axis: Axis, components: Array) -> DataKeys:
    """Describe an event of ``components``: one snapshot."""
    return {
        "fit_id": _integer(),
        "n_patterns": _integer(),
        "components": _array(components, ["component", axis.name]),
        "x": _array(axis.values, [axis.name], source=axis.name, units=axis.units),
        "objective": _number(source="half the squared Frobenius norm of X - WH"),
        "converged": _key("boolean", "|b1"),
    }


def weights_keys(
    names: Sequence[str], variables: Sequence[Independent], strained: Sequence[str] = ()
) -> DataKeys:
    """Describe a row of ``weights``: one pattern of a snapshot."""
    keys = _variable_keys(variables) | {"fit_id": _integer(), "pattern": _integer()}
    keys |= {key: _number(source=n) for key, n in zip(weight_keys(names), names, strict=True)}
    for key, name in zip(fraction_keys(names), names, strict=True):
        keys[key] = _number(source=_FRACTION.format(name=name))
    strains = strain_keys(names, strained).items()
    return keys | {key: _number(source=f"lattice expansion of {names[k]}") for k, key in strains}


def latest_keys(axis: Axis, pattern: Array) -> DataKeys:
    """Describe an event of ``latest``: the newest pattern and its reconstruction."""
    row = _array(pattern, [axis.name])
    return {"pattern": row, "reconstruction": dict(row), "source_seq_num": _integer()}


def constraint_keys() -> DataKeys:
    """Describe an event of ``constraints``: a change while running."""
    return {"action": _text(), "component": _text(), "n_patterns": _integer()}


def rejected_keys() -> DataKeys:
    """Describe an event of ``rejected``: a pattern that could not be used."""
    return {"source_run": _text(36), "source_seq_num": _integer(), "reason": _text()}


def fault_keys() -> DataKeys:
    """Describe an event of ``faults``: what went wrong, and how it goes on."""
    return {"fault": _text(), "n_patterns": _integer()}


def _error_source(errors: str | None) -> str:
    """Say what a standard error is worth: what it takes as exact, and whence its noise comes."""
    noise = {
        None: "taken from the residual",
        "counts": "of counting, from the patterns themselves",
    }.get(errors, f"from the standard errors in {errors!r}")
    return f"standard error, given the components' shapes at this fit; noise {noise}"


def alarm_keys(axis: Axis) -> DataKeys:
    """Describe an event of ``alarms``: something that no component explains."""
    where = {"source": axis.name, "units": axis.units}
    ranges = _key("array", "<f8", (MOST_RANGES, 2), dims=["range", "end"], **where)
    return {
        "alarm": _text(),
        "x_first": _number(**where),
        "x_last": _number(**where),
        "ranges": ranges,
        "since": _integer(),
        "since_seq_num": _integer(),
        "significance": _number(
            source="standard deviations of a normal variable, all places looked at accounted for"
        ),
        "share": _number(source="intensity left at the significant places since then / all"),
        "n_patterns": _integer(),
    }


def _variable_keys(variables: Sequence[Independent]) -> DataKeys:
    return {v.key: _number(source=v.field, units=v.units) for v in variables}


def _key(
    dtype: str,
    dtype_numpy: str,
    shape: Sequence[int] = (),
    *,
    source: str = "bluesky_cmf",
    units: str = "",
    dims: Sequence[str] = (),
) -> dict[str, Any]:
    return {
        "source": source,
        "dtype": dtype,
        "dtype_numpy": dtype_numpy,
        "shape": list(shape),
        "units": units,
        "dims": list(dims),
    }


def _number(**kwargs: Any) -> dict[str, Any]:
    return _key("number", "<f8", **kwargs)


def _integer() -> dict[str, Any]:
    return _key("integer", "<i8")


def _text(length: int = 0) -> dict[str, Any]:
    return _key("string", f"<U{length}")


def _array(values: Array, dims: Iterable[str], **kwargs: Any) -> dict[str, Any]:
    return _key("array", values.dtype.str, values.shape, dims=list(dims), **kwargs)
