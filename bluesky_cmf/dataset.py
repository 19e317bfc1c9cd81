"""One dataset: its factorization and its analysis run; arrivals in, documents out."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from . import __version__
from .documents import (
    PATTERN_NUMBER,
    AnalysisRun,
    Axis,
    Emit,
    Independent,
    Point,
    component_record,
)
from .errors import CMFError, NoLinesError, PatternError
from .fitting import Fitting
from .intake import Arrival, Refused
from .judging import pattern_of
from .nmf.results import FitResult, RowFit
from .recipe import Change, Component, NoisyIntegrator, Recipe
from .unknowns import Alarm, tell

__all__ = ["Dataset"]

logger = logging.getLogger(__name__)

#: Patterns that wait, from which on what can be put off is.
_HURRY = 8

Array = npt.NDArray[Any]


@dataclass(eq=False)
class Dataset:
    """Patterns of one run, or of one session, and what is made of them.

    Used by one thread at a time. Documents are handed to ``emit``. In run scope the analysis run
    opens with the first pattern, usable or not, so that what is wrong can be seen at once; with
    ``lazy`` it opens with the first usable one, which says what weights are drawn against.
    """

    recipe: Recipe
    components: tuple[Component, ...]
    raw_start: Mapping[str, Any]
    emit: Emit
    lazy: bool = False
    error: Exception | None = None
    #: What no component explains, until somebody takes it.
    alarms: list[Alarm] = field(init=False, default_factory=list)
    _model: Fitting | None = field(init=False, default=None)
    _run: AnalysisRun | None = field(init=False, default=None)
    _axis: Axis | None = field(init=False, default=None)
    _variables: tuple[Independent, ...] = field(init=False, default=(PATTERN_NUMBER,))
    _points: list[Point] = field(init=False, default_factory=list)
    _refused: list[Refused] = field(init=False, default_factory=list)
    #: Came before the first pattern with lines, where the width of lines is fitted to one.
    _held: list[tuple[Arrival, NoLinesError]] = field(init=False, default_factory=list)
    _n_refused: int = field(init=False, default=0)
    _published: int = field(init=False, default=0)
    _fit_failed: bool = field(init=False, default=False)
    #: The fit has converged, and nothing has come or changed since.
    _at_rest: bool = field(init=False, default=False)

    @property
    def shaped(self) -> bool:
        """Whether components that are found in the data have a shape yet."""
        return self._model is not None

    @property
    def result(self) -> FitResult | None:
        """The latest fit."""
        return None if self._model is None else self._model.result

    @property
    def patterns(self) -> npt.NDArray[Any] | None:
        """The patterns as they are fitted, (N, G)."""
        return None if self._model is None else self._model.patterns()

    @property
    def reconstruction(self) -> npt.NDArray[Any] | None:
        """What the fit makes of the patterns, (N, G)."""
        return None if self._model is None else self._model.reconstruction()

    def take(
        self, arrivals: Sequence[Arrival], *, lag: Callable[[], int], converge: bool = False
    ) -> None:
        """Add patterns, refit once, and publish them; ``lag`` tells how many wait by then."""
        for arrival in arrivals:
            try:
                self._append(arrival)
            except NoLinesError as error:
                self._hold(arrival, error)
            except Exception as error:
                self._refuse_arrival(arrival, error)
        self._refit(lag=lag, converge=converge)

    def refuse(self, refused: Refused) -> None:
        """Publish a pattern that cannot be used, with the reason."""
        self._n_refused += 1
        self.note(refused.error, quiet=self._n_refused > 1)
        if self._run is None and self.lazy:
            self._refused.append(refused)
            return
        if self._run is None and not self._points:
            self._variables = refused.variables or (PATTERN_NUMBER,)
        self._open_run().reject(refused.run, refused.seq_num, str(refused.error))

    def note(self, error: Exception, *, quiet: bool = False) -> None:
        """Keep an error; log it unless it is the one that was kept before, or ``quiet``."""
        known = self.error is not None and str(self.error) == str(error)
        self.error = error
        level = logging.DEBUG if known or quiet else logging.ERROR
        trace = None if isinstance(error, CMFError) else error
        logger.log(level, "run %s: %s", self.raw_start["uid"][:8], error, exc_info=trace)

    def improve(self, budget: float, *, interrupted: Callable[[], bool]) -> bool:
        """Spend idle time on a better fit; tell whether more time may bring more."""
        model = self._model
        if model is None or not self._published or self._fit_failed:
            return False
        try:
            if not model.settled and model.improve(budget, interrupted):
                self._at_rest = False
                self._snapshot_if_due()
        except Exception as error:
            self._fault(error)
            return False
        self._tell_faults()
        return not model.settled

    def change(self, change: Change) -> None:
        """Change the constraints while running."""
        after = change.apply(self.components, shaped=self.shaped)
        name = change.component.name
        if self._model is None:
            # An analysis run of refused patterns may be open: its components cannot change.
            reopens = change.action in ("add", "remove") or self._newly_strained(after)
            if self._run is not None and reopens:
                self._continue_run(change.action, name, after)
            self.components = after
            return
        self._refit()
        # The data keys of an analysis run cannot change.
        reopens = change.action in ("add", "remove") or self._newly_strained(after)
        if reopens:
            # This analysis run ends here, and it ends with a converged fit as every other.
            self._converge()
        self._model.change(change)
        self._at_rest = False
        if not reopens:
            self.components = after
            self._open_run().constraint(change.action, name, self._model.n_patterns)
            self._refit(again=True)
        else:
            self._continue_run(change.action, name, after)

    def lasting(self) -> list[Alarm]:
        """Give what was found unexplained and has lasted for some patterns, once."""
        return [] if self._model is None else self._model.lasting()

    def _newly_strained(self, after: Sequence[Component]) -> bool:
        """Whether there are strains after a change that the analysis run has no keys for."""
        known = () if self._run is None else self._run.strained
        return self._run is not None and any(c.strain and c.name not in known for c in after)

    def finish(self, exit_status: str, reason: str) -> None:
        """Fit to convergence, publish the last snapshot and close the analysis run."""
        for arrival, error in self._held:
            self._refuse_arrival(arrival, error)
        self._held.clear()
        if self._points:
            self._refit()
        converged = self._converge() if self._points else True
        if self._run is None and not self._points and not self._refused:
            return
        run = self._open_run()
        if self._n_refused > 1:
            uid = self.raw_start["uid"][:8]
            logger.warning("run %s: %d patterns were rejected in all", uid, self._n_refused)
        if not converged:
            exit_status, reason = "fail", f"the fit failed: {self.error}"
        for point in self._points[self._published :]:
            run.reject(point.source_run, point.source_seq_num, reason)
        if self._model is not None:
            self._model.tell_doubts()
        self._tell_faults()
        run.close(exit_status, reason, device=self._device())
        self._run = None

    # --- patterns --------------------------------------------------------------------------

    def _refuse_arrival(self, arrival: Arrival, error: Exception) -> None:
        """Account for a pattern, whatever is wrong with it; the next one gets its turn."""
        fault = error if isinstance(error, CMFError) else PatternError(repr(error))
        self.refuse(Refused(arrival.run, arrival.seq_num, fault, arrival.variables))

    def _hold(self, arrival: Arrival, error: NoLinesError) -> None:
        """Keep a pattern that came before the first one with lines, until there is a model."""
        if not self._held:
            logger.warning(
                "run %s: %s. Patterns are kept until one with lines has come",
                self.raw_start["uid"][:8],
                error,
            )
        self._held.append((arrival, error))

    def _append_held(self) -> None:
        """Add the patterns that waited for the first one with lines, in order."""
        held, self._held = self._held, []
        for arrival, _ in held:
            try:
                self._append(arrival)
            except Exception as error:
                self._refuse_arrival(arrival, error)

    def _append(self, arrival: Arrival) -> None:
        loaded = arrival.loaded()
        measured = pattern_of(
            loaded.pattern,
            loaded.x,
            integrate=self._integrate(),
            collections=loaded.collections,
            errors="counts" if self.recipe.errors == "counts" else loaded.errors,
        )
        model = self._model
        if model is None:
            given = loaded.x is not None or self.recipe.integrator is not None
            model = Fitting(self.recipe, self.components, measured.x, measured.y, given=given)
        pattern = model.prepared(
            measured.x,
            measured.y,
            variance=measured.variance,
            monitor=loaded.monitor,
            doubt=loaded.doubt or measured.doubt,
        )
        if self._model is None:
            self._open_model(model, arrival)
            self._append_held()
        if self._run is None and not self._points:
            # The first pattern says what weights are drawn against.
            self._variables = arrival.variables or (PATTERN_NUMBER,)
        point = self._point(arrival, loaded.values)
        model.append(pattern)
        self._points.append(point)

    def _integrate(self) -> Callable[[Array], tuple[Array, ...]] | None:
        integrator = self.recipe.integrator
        if integrator is not None and self.recipe.errors == "counts":
            # `LiveNMF` has seen to it that it can.
            return cast(NoisyIntegrator, integrator).with_variance
        return integrator

    def _open_model(self, model: Fitting, arrival: Arrival) -> None:
        """Take the model that the first usable pattern has made."""
        integrator, self._model = self.recipe.integrator, model
        name, units = arrival.x_name, arrival.x_units
        if integrator is not None:
            name, units = integrator.name, integrator.units
        self._axis = Axis(name, units, model.axis)
        if self._run is not None:
            # It was opened by a pattern that was refused.
            self._run.axis = self._axis

    def _point(self, arrival: Arrival, values: Mapping[str, float]) -> Point:
        position = []
        for variable in self._variables:
            if variable is PATTERN_NUMBER:
                position.append(float(len(self._points) + 1))
            elif variable.field == "time":
                position.append(arrival.time - float(self.raw_start.get("time", 0.0)))
            else:
                position.append(values.get(variable.field, math.nan))
        return Point(arrival.run, arrival.stream, arrival.seq_num, tuple(position))

    # --- fits ------------------------------------------------------------------------------

    def _refit(
        self,
        *,
        lag: Callable[[], int] = lambda: 0,
        again: bool = False,
        converge: bool = False,
    ) -> None:
        """Refit where there is something new, or ``again``, and publish what was not yet."""
        model = self._model
        if model is None or not (again or self._published < len(self._points)):
            return
        try:
            self._at_rest = False
            result = model.refit(converge=converge)
            self._at_rest = converge and result.converged
            rows = model.rows(self._published)
        except Exception as error:
            self._fault(error)
            return
        self._fit_failed = False
        run = self._open_run()
        points = self._points[self._published :]
        waiting = lag()
        run.primary(
            points,
            rows,
            components=result.components,
            n_patterns=result.n_patterns,
            lag=waiting,
            seconds=result.seconds,
        )
        self._published = len(self._points)
        self._tell_faults()
        self._look(rows, hurried=waiting > _HURRY)
        self._snapshot_if_due()
        if run.wants_latest():
            self._latest()

    def _look(self, rows: RowFit, *, hurried: bool) -> None:
        """Look for what no component explains, and tell of it."""
        model, axis = self._model, self._axis
        if model is None or axis is None:
            return
        try:
            found = model.look(rows, hurried=hurried)
        except Exception as error:
            # The fit is not affected.
            self.note(error)
            return
        for alarm in found:
            told = tell(
                alarm,
                axis=axis.name,
                units=axis.units,
                step=float(np.median(np.diff(axis.values))),
                known=any(component.fixed for component in self.components),
            )
            seq_num = self._points[alarm.since - 1].source_seq_num
            self.alarms.append(replace(alarm, text=told, since_seq_num=seq_num))
            self._open_run().alarm(self.alarms[-1])
            logger.warning("run %s: %s", self.raw_start["uid"][:8], told)

    def _snapshot_if_due(self) -> None:
        result = self.result
        if result is not None and self._open_run().wants_snapshot(result.n_patterns):
            self._snapshot()

    def _snapshot(self) -> None:
        """Publish components and weights, with the weights of all patterns brought up to date."""
        if self._model is not None:
            self._open_run().snapshot(self._model.refresh(), self._points)

    def _converge(self) -> bool:
        """Fit to convergence and publish it; tell whether that was possible."""
        if self._model is None or self._published < len(self._points):
            return False
        try:
            known = self._model.result if self._at_rest else None
            result = self._model.refit(converge=True) if known is None else known
        except Exception as error:
            self._fault(error)
            return False
        self._open_run().snapshot(result, self._points)
        self._latest()
        return True

    def _latest(self) -> None:
        """Publish the newest pattern with its reconstruction."""
        if self._model is not None and self._points:
            self._open_run().latest(*self._model.newest(), self._points[-1])

    # --- faults ----------------------------------------------------------------------------

    def _fault(self, error: Exception) -> None:
        """Keep an error of the fit, and publish it once: the figure and the store show it."""
        known = self.error is not None and str(self.error) == str(error)
        self.note(error)
        if not known:
            told = str(error) if isinstance(error, CMFError) else f"{type(error).__name__}: {error}"
            self._open_run().fault(f"the fit failed: {told}", len(self._points))
        self._fit_failed = True

    def _tell_faults(self) -> None:
        """Publish what went wrong with the device, and with the errors of patterns."""
        model = self._model
        if model is None:
            return
        while model.faults:
            fault = model.faults.pop(0)
            self.error = CMFError(fault)
            self._open_run().fault(fault, len(self._points))
        while model.doubts:
            # Nothing has failed: it is no `error`.
            self._open_run().fault(model.doubts.pop(0), len(self._points))

    def _device(self) -> str:
        return str(self.recipe.device if self._model is None else self._model.device)

    # --- the analysis run ------------------------------------------------------------------

    def _open_run(self, continues: str | None = None) -> AnalysisRun:
        if self._run is None:
            self._run = AnalysisRun(
                self.emit,
                raw_start=self.raw_start,
                names=[component.name for component in self.components],
                variables=self._variables,
                metadata=self._metadata(continues),
                axis=self._axis,
                parents=[point.source_run for point in self._points[: self._published]],
            )
            for refused in self._refused:
                self._run.reject(refused.run, refused.seq_num, str(refused.error))
            self._refused.clear()
        return self._run

    def _continue_run(self, action: str, name: str, after: tuple[Component, ...]) -> None:
        """Close the analysis run and open the next one over the same patterns."""
        before = self._run
        if before is not None:
            before.constraint(action, name, len(self._points))
            before.close(device=self._device())
        self._run, self.components = None, after
        run = self._open_run(continues=None if before is None else before.uid)
        self._refit(again=True)
        if self.result is not None and not run.fit_id:
            self._snapshot()

    def _metadata(self, continues: str | None) -> dict[str, Any]:
        return {
            **self.recipe.metadata,
            "components": self._records(),
            "preprocess": self.recipe.preprocess.describe(),
            "integrator": None
            if self.recipe.integrator is None
            else self.recipe.integrator.describe(),
            "width": None if self._model is None else self._model.described_width,
            "seed": self.recipe.seed,
            "loss": self.recipe.loss,
            "device": self._device(),
            "versions": _versions(),
            **({} if continues is None else {"continues": continues}),
        }

    def _records(self) -> list[dict[str, Any]]:
        shapes = {} if self._model is None else self._model.shapes()
        return [
            component_record(
                component.name,
                fixed=component.fixed,
                origin=component.origin,
                values=shapes.get(component.name) if component.fixed else None,
                strain=component.strain,
            )
            for component in self.components
        ]


def _versions() -> dict[str, str]:
    return {
        "bluesky_cmf": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
