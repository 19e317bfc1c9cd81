"""The patterns of stored runs, as a fit takes them: one array, its axis and its positions."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .catalogs import Catalog, open_catalog
from .dataset import Dataset
from .documents import AnalysisReader
from .errors import InputError, PatternError
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

__all__ = ["Collected", "collect"]

Array = npt.NDArray[Any]


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
    catalog: Any,
    uid: str | Sequence[str],
    pattern: str,
    *,
    x: str | npt.ArrayLike | None = None,
    independent: str | Sequence[str] | None = None,
    stream: str = "primary",
    phases: Sequence[Phase] = (),
    preprocess: Preprocess | None = None,
    integrator: FrameIntegrator | None = None,
    skip: Callable[[Mapping[str, Any]], bool] | None = None,
    handlers: Handlers | None = None,
    root_map: Mapping[str, str] | None = None,
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
    pattern, x, independent, stream, phases, preprocess, integrator, skip, handlers, root_map
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
    PatternError
        Where they hold no pattern that can be used; the message is the reason of the last.
    """
    uids = [uid] if isinstance(uid, str) else list(uid)
    if not uids:
        raise InputError("uid: expected the uid of a run, or of several, got none")
    steps = preprocess or Preprocess()
    # Where the steps divide by a monitor, it is read with the pattern.
    monitor = getattr(steps, "monitor", None)
    extra: dict[str, Any] = {} if monitor is None else {"monitor": monitor}
    intake = Intake(
        as_source(pattern, x=x, independent=independent, stream=stream, **extra),
        files=Files(*as_handlers(handlers, root_map)),
        skip=is_dark if skip is None else skip,
    )
    collector = _Collector(intake, _recipe(steps, integrator), phases)
    with ExitStack() as stack:
        opened = open_catalog(catalog, create=False)
        if not isinstance(catalog, Catalog):
            stack.callback(opened.close)
        for each in uids:
            replay(opened, each, collector)
        return collector.collected(uids)


class _Collector:
    """A callback that keeps the patterns of runs, and makes one dataset of them."""

    def __init__(self, intake: Intake, recipe: Recipe, phases: Sequence[Phase]) -> None:
        self._intake, self._recipe = intake, recipe
        self._components = known_and_free(phases, max(len(phases), 1))
        self._n_phases = len(phases)
        self._start: Mapping[str, Any] | None = None
        self._items: list[Arrival | Refused] = []

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        for item in self._intake(name, doc):
            if isinstance(item, Opened):
                self._start = item.start if self._start is None else self._start
            elif isinstance(item, (Arrival, Refused)):
                self._items.append(item)

    def collected(self, uids: Sequence[str]) -> Collected:
        """Make the patterns of what has come; files are read now."""
        runs = ", ".join(repr(uid) for uid in uids)
        if self._start is None:
            raise PatternError(f"{runs}: no raw run, but an analysis, or one that is passed over")
        reader = AnalysisReader()

        def keep(name: str, doc: dict[str, Any]) -> None:
            reader(name, doc)

        dataset = Dataset(self._recipe, self._components, self._start, keep, lazy=True)
        for item in self._items:
            if isinstance(item, Refused):
                dataset.refuse(item)
        dataset.take([i for i in self._items if isinstance(i, Arrival)], lag=lambda: 0)
        result, axis = dataset.result, reader.axis
        if result is None or axis is None:
            raise dataset.error or PatternError(
                f"{runs}: no pattern in stream {self._intake.source.stream!r}"
            )
        return Collected(
            x=axis.values,
            X=dataset.patterns(),
            positions=reader.positions,
            variables=reader.variables,
            x_label=_labelled(axis.name, axis.units),
            variable_labels=tuple(_labelled(v, reader.units.get(v, "")) for v in reader.variables),
            known=np.array(result.components[: self._n_phases], dtype=float),
            names=result.names[: self._n_phases],
            rejected=tuple(reader.rejected),
        )


def _recipe(steps: Preprocess, integrator: FrameIntegrator | None) -> Recipe:
    return Recipe(steps, integrator, "cpu", torch.float64, 0, "frobenius", {})


def _labelled(name: str, units: str) -> str:
    return f"{name} ({units})" if units else name
