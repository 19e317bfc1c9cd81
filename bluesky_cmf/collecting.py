"""The patterns of stored runs, as a fit takes them: one array, its axis and its positions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack, cast

import numpy as np
import numpy.typing as npt
import torch

from .catalogs import Catalog, open_catalog
from .dataset import Dataset
from .documents import Axis
from .errors import InputError, PatternError
from .fitting import Fitting
from .intake import (
    Arrival,
    Files,
    Handlers,
    Intake,
    Opened,
    Refused,
    as_handlers,
    as_source,
    is_dark,
)
from .phases import Phase
from .preprocess import Preprocess
from .recipe import FrameIntegrator, Recipe, known_and_free
from .sources import replay

__all__ = ["Collected", "Options", "collect", "collect_documents"]

Array = npt.NDArray[Any]


class Options(TypedDict, total=False):
    """Options of `collect` and `collect_documents`, as those of `LiveNMF`."""

    x: str | npt.ArrayLike | None
    independent: str | Sequence[str] | None
    stream: str
    phases: Sequence[Phase]
    preprocess: Preprocess | None
    integrator: FrameIntegrator | None
    skip: Callable[[Mapping[str, Any]], bool] | None
    handlers: Handlers | None
    root_map: Mapping[str, str] | None


@dataclass(frozen=True, eq=False)
class Collected:
    """Patterns of stored runs: N patterns, F points, D independent variables, L phases.

    Attributes
    ----------
    x : ndarray (F,)
        The axis, as it is fitted.
    X : ndarray (N, F)
        The patterns after the steps before the fit.
    positions : ndarray (N, D)
        Values of the independent variables; NaN where one is not known.
    variables : tuple of str
        Their names.
    x_label : str
        The axis and its unit.
    variable_labels : tuple of str
        The independent variables and their units.
    known : ndarray (L, F)
        The phases on the axis, after the same steps; lines of CIFs that come without a width have
        that of the first pattern.
    names : tuple of str
        Names of the phases.
    sources : tuple of (str, int)
        Uid of the run that each of the N patterns is from, and its ``seq_num`` there.
    rejected : tuple of (int, str)
        ``seq_num`` and reason of the patterns that could not be used.
    """

    x: Array = field(repr=False)
    X: Array = field(repr=False)
    positions: Array = field(repr=False)
    variables: tuple[str, ...]
    x_label: str
    variable_labels: tuple[str, ...]
    known: Array = field(repr=False)
    names: tuple[str, ...]
    sources: tuple[tuple[str, int], ...] = field(repr=False)
    rejected: tuple[tuple[int, str], ...]

    @property
    def position(self) -> Array:
        """What patterns are drawn against, (N,): the first variable that changes, else the first.

        The number of the pattern stands for one that is not known throughout.
        """
        values = self.positions[:, self._drawn]
        return values if np.isfinite(values).all() else np.arange(len(values), dtype=float)

    @property
    def position_label(self) -> str:
        """Name and unit of `position`."""
        known = np.isfinite(self.positions[:, self._drawn]).all()
        return self.variable_labels[self._drawn] if known else "pattern"

    @property
    def _drawn(self) -> int:
        return int((np.ptp(self.positions, axis=0) > 0).argmax())


def collect(
    catalog: Any, uid: str | Sequence[str], pattern: str, **options: Unpack[Options]
) -> Collected:
    """Collect the patterns of stored runs, as `LiveNMF` would fit them.

    Documents take the road that they take there, so that all their forms are understood, and the
    same patterns are rejected for the same reasons.

    Parameters
    ----------
    catalog
        Whatever `open_catalog` takes. What is opened here is closed here; a folder has to be a
        catalog already.
    uid : str or sequence of str
        The run's uid, or its first characters; or those of several runs, whose patterns follow
        each other.
    pattern : str
        Data key of the patterns, as that of `LiveNMF`.
    x, independent, stream, phases, preprocess, integrator, skip, handlers, root_map
        As those of `LiveNMF`.

    Returns
    -------
    Collected

    Raises
    ------
    InputError
        Where an argument is of the wrong kind.
    CatalogError
        If the catalog cannot be opened or read.
    RunNotFoundError
        If it holds no run, or more than one, with this uid.
    DataKeyError
        Where the runs have no such data key.
    PatternError, AxisError
        Where they hold no pattern that can be used; the message is the reason of the last.
    """
    uids = [uid] if isinstance(uid, str) else list(uid)
    if not uids:
        raise InputError("uid: expected the uid of a run, or of several, got none")
    collector = _Collector(pattern, **options)
    opened = open_catalog(catalog, create=False)
    try:
        for each in uids:
            replay(opened, each, collector)
        # Files that runs refer to are read now.
        return collector.collected()
    finally:
        if not isinstance(catalog, Catalog):
            opened.close()


def collect_documents(
    documents: Iterable[tuple[str, Mapping[str, Any]]], pattern: str, **options: Unpack[Options]
) -> Collected:
    """Collect the patterns out of documents, wherever they come from.

    Parameters
    ----------
    documents : iterable of (str, mapping)
        Names and documents of one run, or of several.
    pattern, x, independent, stream, phases, preprocess, integrator, skip, handlers, root_map
        As those of `collect`.

    Returns
    -------
    Collected

    Raises
    ------
    InputError
        Where an argument is of the wrong kind.
    DataKeyError, PatternError, AxisError
        As `collect` does.
    """
    collector = _Collector(pattern, **options)
    for name, doc in documents:
        collector(name, doc)
    return collector.collected()


class _Collector:
    """A callback that keeps the patterns of runs, and makes one dataset of them."""

    def __init__(self, pattern: str, **options: Unpack[Options]) -> None:
        steps = options.get("preprocess") or Preprocess()
        source = as_source(
            pattern,
            x=options.get("x"),
            independent=options.get("independent"),
            stream=options.get("stream", "primary"),
            monitor=steps.monitor,
        )
        files = Files(*as_handlers(options.get("handlers"), options.get("root_map")))
        self._intake = Intake(source, files=files, skip=options.get("skip") or is_dark)
        phases = options.get("phases", ())
        self._names = tuple(phase.name for phase in phases)
        self._components = known_and_free(phases, max(len(phases), 1))
        integrator = options.get("integrator")
        self._recipe = Recipe(steps, integrator, "cpu", torch.float64, 0, "frobenius", {})
        self._starts: list[Mapping[str, Any]] = []
        self._arrivals: list[Arrival] = []
        self._refused: list[Refused] = []

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document."""
        for item in self._intake(name, doc):
            if isinstance(item, Opened):
                self._starts.append(item.start)
            elif isinstance(item, Arrival):
                self._arrivals.append(item)
            elif isinstance(item, Refused):
                self._refused.append(item)

    def collected(self) -> Collected:
        """Make the patterns of what has come; what is in files is read now."""
        if not self._starts:
            raise PatternError("no raw run: analyses, dark frames and what `skip` names have none")
        patterns = _Unfitted(
            self._recipe, self._components, self._starts[0], lambda name, doc: None, lazy=True
        )
        for refused in self._refused:
            patterns.refuse(refused)
        patterns.take(self._arrivals, lag=lambda: 0)
        if patterns.n_patterns:
            return patterns.collected(self._names)
        runs = ", ".join(repr(start["uid"][:8]) for start in self._starts)
        stream = self._intake.source.stream
        raise patterns.error or PatternError(f"no pattern in stream {stream!r} of run {runs}")


class _Unfitted(Dataset):
    """A dataset of which the patterns alone are wanted: nothing is fitted, or published."""

    def _refit(self, **how: Any) -> None:
        pass

    @property
    def n_patterns(self) -> int:
        return len(self._points)

    def collected(self, names: Sequence[str]) -> Collected:
        """Give what was collected; there is a pattern, and so a model with its axis."""
        model, axis = cast(Fitting, self._model), cast(Axis, self._axis)
        shapes = model.shapes()
        known = np.zeros((len(names), len(axis.values)))
        for k, name in enumerate(names):
            known[k] = shapes[name]
        return Collected(
            x=axis.values,
            X=model.patterns(),
            positions=np.array([point.position for point in self._points], dtype=float),
            variables=tuple(variable.key for variable in self._variables),
            x_label=_labelled(axis.name, axis.units),
            variable_labels=tuple(_labelled(v.key, v.units) for v in self._variables),
            known=known,
            names=tuple(names),
            sources=tuple((point.source_run, point.source_seq_num) for point in self._points),
            rejected=tuple((refused.seq_num, str(refused.error)) for refused in self._refused),
        )


def _labelled(name: str, units: str) -> str:
    return f"{name} ({units})" if units else name
