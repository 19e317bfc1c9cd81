"""An analysis run as a NeXus file: plots that h5web, NeXpy or silx show as they stand.

``/entry`` holds one NXdata for each thing to look at; who opens the file sees the weights first:

* ``weights``: one signal (N,) for each component, against the independent variable; likewise
  ``fractions`` and ``strains`` where the run has them;
* ``components``: one signal (G,) for each component, against the axis of the patterns;
* ``patterns``, ``reconstruction``, ``difference`` (N, G), where the patterns are given;
* ``quality``: R-factor and unexplained fraction of each pattern.

Beside them, ``fit`` (NXprocess) says how it was fitted, ``columns`` holds the rest of the table,
``rejected``, ``constraints``, ``faults`` and other streams what happened.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..documents import AnalysisArchive, Array, weight_keys
from .table import Fitted, file_names, fitted, result_table, written

__all__ = ["write_nexus"]

#: What stands in other groups, or is told once.
_TOLD = ("pattern", "r_factor", "unexplained")
#: Streams beside those that the groups above are made of.
_DRAWN = ("primary", "weights", "components", "latest")


def write_nexus(
    path: str | Path,
    analysis: AnalysisArchive,
    *,
    patterns: Array | None = None,
    reconstruction: Array | None = None,
    overwrite: bool = False,
) -> None:
    """Write an analysis run as a NeXus file.

    Parameters
    ----------
    path : str or Path
        An HDF5 file; its folder is made.
    analysis, patterns, reconstruction
        As `bluesky_cmf.exports.result_table` takes them.
    overwrite : bool, optional
        Whether a file that is there may be replaced.

    Raises
    ------
    InputError
        Where the run holds no pattern, an array has another shape, or the file is there or cannot
        be written.

    References
    ----------
    NXdata: M. Könnecke et al., J. Appl. Cryst. 48, 301 (2015), and the NeXus manual.
    """
    import h5py

    known = fitted(analysis, patterns, reconstruction)
    table = result_table(analysis, patterns=patterns, reconstruction=reconstruction)
    with written(path, overwrite=overwrite) as place, h5py.File(place, "w") as file:
        file.attrs.update({"NX_class": "NXroot", "default": "entry", "file_name": Path(path).name})
        file.attrs["creator"] = f"bluesky_cmf {__version__}"
        _Entry(file.create_group("entry"), analysis, table, known).write()


class _Entry:
    """The one NXentry of a file."""

    def __init__(
        self,
        group: Any,
        analysis: AnalysisArchive,
        table: Mapping[str, Array],
        known: Fitted | None,
    ) -> None:
        self._entry, self._analysis, self._table, self._known = group, analysis, table, known
        self._variables = self._independent()

    def write(self) -> None:
        self._entry.attrs.update({"NX_class": "NXentry", "default": "weights"})
        self._write_facts()
        keys = weight_keys(self._analysis.names)
        self._curves("weights", keys, title="weights", names=self._analysis.names)
        for name, prefix in (("fractions", "fraction_"), ("strains", "strain_")):
            found = [key for key in self._table if _is_value(key, prefix)]
            self._curves(name, found, title=name)
        self._curves("quality", ["r_factor", "unexplained"], title="what is not explained")
        self._write_components(keys)
        if self._known is not None:
            self._write_images(self._known)
        told = {*_TOLD, *self._variables}
        rest = {key: values for key, values in self._table.items() if key not in told}
        drawn = {key for name in ("weights", "fractions", "strains") for key in self._drawn(name)}
        self._collection("columns", {k: v for k, v in rest.items() if k not in drawn})
        self._write_streams()

    # --- what is known of the run ----------------------------------------------------------

    def _write_facts(self) -> None:
        start = self._analysis.start or {}
        stop = self._analysis.stop or {}
        facts = {
            "title": f"{start.get('plan_name', 'unknown')}: weights of {self._shown_names()}",
            "start_time": _moment(start.get("time")),
            "end_time": _moment(stop.get("time")),
            "entry_identifier": start.get("uid"),
            "experiment_identifier": start.get("original_run_uid"),
        }
        for name, value in facts.items():
            if value is not None:
                self._entry[name] = value
        sample = start.get("sample_name") or start.get("sample")
        if sample:
            group = self._group("sample", "NXsample")
            group["name"] = sample if isinstance(sample, str) else json.dumps(sample, default=str)
        self._write_fit(start.get("cmf") or {}, stop.get("time"))

    def _write_fit(self, recipe: Mapping[str, Any], end: float | None) -> None:
        group = self._group("fit", "NXprocess")
        group["program"], group["version"] = "bluesky_cmf", __version__
        if (moment := _moment(end)) is not None:
            group["date"] = moment
        group["objective"] = float(self._analysis.objective or 0.0)
        group["converged"] = bool(self._analysis.converged)
        note = group.create_group("configuration")
        note.attrs["NX_class"] = "NXnote"
        note["type"], note["data"] = "application/json", json.dumps(recipe, default=str)

    def _shown_names(self) -> str:
        return ", ".join(self._analysis.names)

    # --- plots -----------------------------------------------------------------------------

    def _independent(self) -> list[str]:
        """Name what is drawn against: the variables whose values are all known, else the number."""
        known = [
            key
            for key in self._analysis.variables
            if key in self._table and np.isfinite(self._table[key]).all()
        ]
        return known or ["pattern"]

    def _curves(
        self, name: str, keys: Sequence[str], *, title: str, names: Sequence[str] = ()
    ) -> None:
        """Write columns of the table as curves against the independent variable."""
        keys = [key for key in keys if key in self._table]
        if not keys:
            return
        group = self._data(name, keys[0], [self._variables[0]], title)
        if keys[1:]:
            group.attrs["auxiliary_signals"] = _texts(keys[1:])
        for k, key in enumerate(keys):
            group[key] = self._table[key]
            group[key].attrs["long_name"] = names[k] if names else key
            if f"{key}_error" in self._table:
                group[f"{key}_errors"] = self._table[f"{key}_error"]
        for variable in self._variables:
            self._axis(group, variable, self._table[variable], 0)

    def _write_components(self, keys: Sequence[str]) -> None:
        analysis = self._analysis
        labels = [key.replace("weight_", "component_", 1) for key in keys]
        components = np.asarray(analysis.components)
        group = self._data("components", labels[0], [self._axis_name], "components")
        if labels[1:]:
            group.attrs["auxiliary_signals"] = _texts(labels[1:])
        for label, name, fixed, values in zip(
            labels, analysis.names, analysis.fixed, components, strict=True
        ):
            group[label] = values
            group[label].attrs.update({"long_name": name, "held": bool(fixed)})
        self._pattern_axis(group, 0)

    def _write_images(self, known: Fitted) -> None:
        number = self._variables[0]
        # A map needs an axis that goes one way.
        steps = np.diff(self._table[number])
        if not ((steps > 0).all() or (steps < 0).all()):
            number = "pattern"
        images = {}
        for name in ("patterns", "reconstruction", "difference"):
            group = self._data(name, name, [number, self._axis_name], name)
            images[name] = group.create_dataset(
                name, known.patterns.shape, np.float32, chunks=(1, known.patterns.shape[1])
            )
            for variable in {number, *self._variables}:
                self._axis(group, variable, self._table[variable], 0)
            self._pattern_axis(group, 1)
        for rows, patterns, fit in known.chunks():
            images["patterns"][rows] = patterns
            images["reconstruction"][rows] = fit
            images["difference"][rows] = patterns - fit

    def _data(self, name: str, signal: str, axes: Sequence[str], title: str) -> Any:
        group = self._group(name, "NXdata")
        group.attrs.update({"signal": signal, "axes": _texts(axes)})
        group["title"] = title
        return group

    def _axis(self, group: Any, name: str, values: Array, dimension: int) -> None:
        group[name] = values
        group.attrs[f"{name}_indices"] = np.array([dimension])
        units = self._analysis.units.get(name)
        if units:
            group[name].attrs["units"] = units

    def _pattern_axis(self, group: Any, dimension: int) -> None:
        axis = self._analysis.axis
        if axis is None:
            return
        group[self._axis_name] = axis.values
        group.attrs[f"{self._axis_name}_indices"] = np.array([dimension])
        group[self._axis_name].attrs["long_name"] = axis.name
        if axis.units:
            group[self._axis_name].attrs["units"] = axis.units

    @property
    def _axis_name(self) -> str:
        name = "x" if self._analysis.axis is None else self._analysis.axis.name
        name = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
        return f"axis_{name}" if name in self._variables else name

    # --- the rest --------------------------------------------------------------------------

    def _drawn(self, name: str) -> list[str]:
        """Columns of the table that stand in a group of curves, with their errors."""
        group = self._entry.get(name, {})
        return [*group, *(f"{key.removesuffix('_errors')}_error" for key in group)]

    def _write_streams(self) -> None:
        for stream in self._analysis.streams:
            if stream in _DRAWN:
                continue
            columns = self._analysis.columns(stream)
            names = file_names(self._analysis, columns.get("source_seq_num"))
            self._collection(stream, columns | ({} if names is None else {"file": names}))

    def _collection(self, name: str, columns: Mapping[str, Array]) -> None:
        group = self._group(name, "NXcollection")
        for key, values in columns.items():
            group[key] = values if values.dtype.kind in "fiub" else _texts(values)

    def _group(self, name: str, kind: str) -> Any:
        group = self._entry.create_group(name)
        group.attrs["NX_class"] = kind
        return group


def _is_value(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and not key.endswith("_error")


def _texts(values: Any) -> Array:
    """Give texts as HDF5 has them, of any length; what is no text as JSON."""
    import h5py

    texts = [
        value if isinstance(value, str) else json.dumps(value, default=_plain) for value in values
    ]
    return np.array(texts, dtype=h5py.string_dtype())


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
