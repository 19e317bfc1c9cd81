"""The datasets of one callback: what the documents said goes in, and each finds its dataset."""

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt

from .dataset import Dataset
from .documents import Emit
from .errors import CMFError, DataKeyError
from .intake import Arrival, Closed, Opened, Refused
from .nmf.results import FitResult
from .recipe import Change, Component, Recipe
from .unknowns import Alarm

__all__ = ["MOST_ADDED", "Changed", "Datasets", "Item", "Reset"]

logger = logging.getLogger(__name__)

#: Most components that are added to a dataset for what is unexplained.
MOST_ADDED = 3
#: Seconds of idle time spent at once on a better fit; a pattern interrupts it.
_IDLE_SECONDS = 0.05


@dataclass(frozen=True)
class Changed:
    """The user has changed a constraint of the latest dataset."""

    change: Change


@dataclass(frozen=True)
class Reset:
    """The user has asked for a new beginning."""


Item = Opened | Arrival | Refused | Closed | Changed | Reset


class Datasets:
    """Hand items to the datasets that they belong to: one for each run, or one for a session.

    `handle` and `improve` are called by one thread at a time; the rest by any.

    Parameters
    ----------
    recipe : Recipe
        How to fit.
    components : sequence of Component
        What to fit, until it is changed.
    session : bool
        Whether the patterns of all runs are one dataset.
    emit : callable
        Gets the documents of the analysis runs.
    patient : bool
        Whether a page of patterns is fitted to convergence before it is published, as nobody
        waits for it: what is published with each pattern is then as good as in the end.

    Attributes
    ----------
    error : Exception or None
        The last thing that went wrong.
    """

    def __init__(
        self,
        recipe: Recipe,
        components: Sequence[Component],
        *,
        session: bool,
        emit: Emit,
        patient: bool = False,
    ) -> None:
        self.error: Exception | None = None
        self._patient = patient
        self._recipe, self._session, self._emit = recipe, session, emit
        #: For datasets to come; and what the user sees of the latest one's: changes are checked
        #: against it.
        self._components = self._current = tuple(components)
        self._lock = threading.RLock()
        self._open: dict[str, Dataset] = {}
        self._starts: dict[str, Mapping[str, Any]] = {}
        self._latest: Dataset | None = None
        self._result: FitResult | None = None
        self._counting = threading.Lock()
        self._waiting: Counter[str] = Counter()
        #: The thread in which somebody is told of an alarm, and the changes that are asked for
        #: there.
        self._told_in: int | None = None
        self._asked: list[Changed] = []

    # --- in any thread ---------------------------------------------------------------------

    @property
    def result(self) -> FitResult | None:
        """The latest fit; it stays after the end, until the next dataset has one."""
        latest = self._latest
        return self._result if latest is None or latest.result is None else latest.result

    @property
    def patterns(self) -> npt.NDArray[Any] | None:
        """The patterns of the latest dataset, (N, G); while nothing is handled."""
        return None if self._latest is None else self._latest.patterns

    @property
    def reconstruction(self) -> npt.NDArray[Any] | None:
        """What the fit makes of the patterns of the latest dataset, (N, G); likewise."""
        return None if self._latest is None else self._latest.reconstruction

    @property
    def open_result(self) -> FitResult | None:
        """The latest fit of a dataset that is open."""
        dataset = self._newest()
        return None if dataset is None else dataset.result

    def strained(self, name: str) -> bool:
        """Whether a component is held with a strain, once all changes so far have been made."""
        with self._lock:
            return any(c.name == name and c.strain is not None for c in self._current)

    def expect(self, item: Item) -> None:
        """Count a pattern that is on its way to `handle`."""
        if isinstance(item, Arrival):
            with self._counting:
                self._waiting[self._key(item.run)] += 1

    def plan(self, action: str, component: Component, put: Callable[[Item], None]) -> None:
        """Check a change of constraints, and put it in line behind what has come before."""
        change = Change(action, component)
        with self._lock:
            dataset = self._newest()
            self._current = change.apply(self._current, shaped=dataset is not None)
            if threading.get_ident() == self._told_in:
                # What answers an alarm holds for the dataset that raised it, however many
                # patterns, or the end of its run, wait in line.
                self._asked.append(Changed(change))
            else:
                put(Changed(change))

    def plan_addition(
        self,
        name: str | None,
        component: Callable[[str], Component],
        put: Callable[[Item], None],
    ) -> str:
        """Do the same for a component whose name may be left to be chosen; give the name."""
        with self._lock:
            taken = {known.name for known in self._current}
            chosen = name or _unused(taken)
            self.plan("add", component(chosen), put)
        return chosen

    def fault(self, error: Exception, what: str) -> None:
        """Keep an error, and log it unless it is the one that was kept before."""
        if repr(error) != repr(self.error):
            logger.error("%s: %s", what, error, exc_info=error)
        self.error = error

    # --- in the worker's thread ------------------------------------------------------------

    def handle(self, items: list[Item]) -> None:
        """Handle items in order; patterns of one dataset that follow each other go together."""
        gathered: dict[str, list[Arrival]] = {}
        for item in items:
            if isinstance(item, Arrival):
                gathered.setdefault(self._key(item.run), []).append(item)
            else:
                self._take(gathered)
                self._guard(item)
        self._take(gathered)

    def improve(self, interrupted: Callable[[], bool]) -> bool:
        """Spend a little idle time on a better fit; tell whether there is more to do."""
        dataset = self._newest()
        return dataset is not None and dataset.improve(_IDLE_SECONDS, interrupted=interrupted)

    def _take(self, gathered: dict[str, list[Arrival]]) -> None:
        for key, arrivals in gathered.items():
            dataset = self._dataset(key, arrivals[0].run)
            with self._counting:
                self._waiting[key] -= len(arrivals)
            try:
                converge = self._patient and len(arrivals) > 1
                dataset.take(arrivals, lag=partial(self._lag, key), converge=converge)
            except Exception as error:
                dataset.note(error)
            self._answer(dataset)
            self._note(dataset)
        gathered.clear()

    def _answer(self, dataset: Dataset) -> None:
        """Do what was asked for where something is not explained."""
        answer = self._recipe.on_unknown
        alarms, dataset.alarms = dataset.alarms, []
        lasting = dataset.lasting()
        if answer == "add":
            for alarm in lasting:
                self._add(dataset, alarm)
        elif callable(answer):
            for alarm in alarms:
                self._ask(answer, alarm)
            asked, self._asked = self._asked, []
            for changed in asked:
                self._change(dataset, changed.change)

    def _ask(self, answer: Callable[[Alarm], object], alarm: Alarm) -> None:
        self._told_in = threading.get_ident()
        try:
            answer(alarm)
        except (Exception, SystemExit) as error:
            self.fault(
                error if isinstance(error, Exception) else CMFError(f"SystemExit: {error}"),
                "on_unknown: the function that was given raised",
            )
        finally:
            self._told_in = None

    def _add(self, dataset: Dataset, alarm: Alarm) -> None:
        """Add a component that starts from what is unexplained, as a user would."""
        added = sum(component.seeded for component in dataset.components)
        if added >= MOST_ADDED:
            logger.warning(
                "run %s: no component is added: %d were, as many as are added by themselves",
                dataset.raw_start["uid"][:8],
                added,
            )
            return
        with self._lock:
            taken = {known.name for known in (*dataset.components, *self._current)}
            component = Component(_unused(taken), pattern=alarm.residual, seeded=True)
            change = Change("add", component)
            if dataset is self._newest():
                self._current = change.apply(self._current)
        self._change(dataset, change)

    def _lag(self, key: str) -> int:
        """Count the patterns of a dataset that have arrived and are not taken yet."""
        return self._waiting[key]

    def _guard(self, item: Item) -> None:
        try:
            self._do(item)
        except Exception as error:
            self.fault(error, f"{type(item).__name__.lower()} could not be handled")

    def _do(self, item: Item) -> None:
        if isinstance(item, Opened):
            self._starts[item.run] = item.start
        elif isinstance(item, Refused):
            self._refuse(item)
        elif isinstance(item, Closed):
            self._close_run(item)
        elif isinstance(item, Changed):
            self._apply(item.change)
        elif isinstance(item, Reset):
            for key in list(self._open):
                status = "success" if self._session else "abort"
                self._finish(key, status, "" if self._session else "the run was not stopped")

    def _refuse(self, refused: Refused) -> None:
        key = self._key(refused.run)
        if refused.skipped:
            # In a session it is told why the pattern is not there; alone it is nobody's.
            if key in self._open:
                self._open[key].refuse(refused)
            return
        if self._session and isinstance(refused.error, DataKeyError):
            # Another kind of scan between those of the session.
            self.fault(refused.error, f"run {refused.run[:8]}")
            return
        dataset = self._dataset(key, refused.run)
        dataset.refuse(refused)
        self._note(dataset)

    def _close_run(self, closed: Closed) -> None:
        self._starts.pop(closed.run, None)
        if not self._session:
            self._finish(closed.run, closed.exit_status, closed.reason)
            with self._counting:
                self._waiting.pop(closed.run, None)

    def _finish(self, key: str, exit_status: str, reason: str) -> None:
        dataset = self._open.get(key)
        if dataset is None:
            return
        try:
            dataset.finish(exit_status, reason)
        except Exception as error:
            dataset.note(error)
        del self._open[key]
        self._note(dataset)
        if dataset is self._latest:
            with self._lock:
                other = self._newest()
                self._current = self._components if other is None else other.components

    def _apply(self, change: Change) -> None:
        dataset = self._newest()
        if dataset is None:
            with self._lock:
                self._components = change.apply(self._components, shaped=False)
                self._current = self._components
            return
        self._change(dataset, change)
        self._answer(dataset)
        self._note(dataset)

    def _change(self, dataset: Dataset, change: Change) -> None:
        try:
            dataset.change(change)
        except Exception as error:
            dataset.note(error)
            with self._lock:
                if dataset is self._newest():
                    self._current = dataset.components

    def _dataset(self, key: str, run: str) -> Dataset:
        if key not in self._open:
            start = self._starts[run]
            self._open[key] = Dataset(
                self._recipe, self._components, start, self._emit, self._session
            )
        self._latest = self._open[key]
        return self._latest

    def _newest(self) -> Dataset | None:
        """Give the latest dataset while it is open, else the newest that is."""
        newest = [*self._open.values()]
        return self._latest if self._latest in newest else newest[-1] if newest else None

    def _key(self, run: str) -> str:
        return "session" if self._session else run

    def _note(self, dataset: Dataset) -> None:
        if dataset.error is not None:
            self.error = dataset.error
        if dataset.result is not None:
            self._result = dataset.result


def _unused(taken: set[str]) -> str:
    """Give a name to a component that nobody has named."""
    labels = (f"unknown {number}" for number in itertools.count(1))
    return next(label for label in labels if label not in taken)
