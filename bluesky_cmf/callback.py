"""`LiveNMF`: the callback between a RunEngine and whoever wants to know."""

import itertools
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy.typing as npt
import torch

from .dataset import Dataset
from .documents import Emit
from .emitter import Emitter
from .errors import DataKeyError, InputError
from .intake import (
    Arrival,
    Closed,
    Files,
    Handlers,
    Intake,
    Opened,
    Refused,
    as_handlers,
    as_source,
    is_dark,
)
from .nmf.kernels import warm_up
from .nmf.numerics import beta_of, check_numerics
from .nmf.results import FitResult
from .phases import Phase
from .preprocess import Preprocess
from .recipe import (
    Change,
    Component,
    FrameIntegrator,
    Pattern,
    Recipe,
    held_pattern,
    known_and_free,
)
from .worker import Inline, Worker, at_exit, remaining

__all__ = ["LiveNMF"]

logger = logging.getLogger(__name__)

#: Seconds of idle time spent at once on a better fit; a pattern interrupts it.
_IDLE_SECONDS = 0.05
#: Seconds after which a thread that runs Python code has to let another one go on.
_SWITCH_SECONDS = 0.0005


@dataclass(frozen=True)
class _Changed:
    """The user has changed a constraint of the latest dataset."""

    change: Change


@dataclass(frozen=True)
class _Reset:
    """The user has asked for a new beginning."""


_Item = Opened | Arrival | Refused | Closed | _Changed | _Reset


class LiveNMF:
    """Decompose the patterns of running Bluesky runs, and publish what is found.

    A Bluesky callback: ``RE.subscribe(live)``. It copies each pattern and returns; the fit runs
    on a thread of its own and never disturbs the scan. What it finds it publishes as documents of
    an *analysis run* to everyone who has subscribed with `subscribe`.

    Parameters
    ----------
    pattern : str
        Data key of the patterns, (F,) each: exact, else the one key that ends in it.
    x : str or array_like (F,), optional
        Axis of the patterns: a data key (in the event, the configuration or the start document)
        or an array; by default the index.
    independent : str or sequence of str, optional
        Data keys that weights are drawn against; by default the dimensions in the hints of the
        start document. They may stand in the event, the configuration or the start document.
    stream : str, optional
        Name of the stream that carries the patterns.
    n_components : int, optional
        K; by default one more than there are phases.
    phases : sequence of Phase, optional
        Known components, held fixed; the rest is free.
    preprocess : Preprocess, optional
        What is done to patterns and phases before the fit.
    scope : {"run", "session"}, optional
        ``"run"``: each run is a dataset. ``"session"``: the patterns of all runs until `reset`.
    device : str or torch.device, optional
        ``"auto"``: CUDA where there is one, else the CPU.
    background : bool, optional
        False: fit and publish in the caller's thread, for replay and tests. True also lowers the
        interpreter's switch interval to 0.5 ms, so that the scan never waits long for its turn.
    seed : int, optional
        Seed of the draws among the starts of the last, converged refit.
    dtype : torch.dtype, optional
        What patterns are stored in.
    loss : {"frobenius", "kullback-leibler", "itakura-saito"} or float, optional
        What the fit lowers: half the squared difference, or a beta-divergence; Kullback and
        Leibler's is right for counts.
    negative : {"reject", "clip", "offset"}, optional
        What becomes of patterns with negative values: ``Preprocess(negative=…)`` in short.
    integrator : Integrator, optional
        Makes patterns of 2-D frames; `bluesky_cmf.Integrator` does it with pyFAI. The axis is
        its own then, and ``x`` is left out.
    skip : callable, optional
        Tells by the start document which runs are passed over, ``skip(start) -> bool``. By
        default those that take dark or flat frames, by the metadata in use (`is_dark`).
    handlers : mapping of str to callable, optional
        Handlers of files by the ``spec`` of resource documents, before those that are installed.
    root_map : mapping of str to str, optional
        Folders as documents name them, and where they are on this machine.

    Attributes
    ----------
    error : Exception or None
        The last thing that went wrong; nothing is ever raised in the scan.

    Raises
    ------
    InputError
        Where an argument is of the wrong kind, or there are more phases than components.

    Examples
    --------
    >>> live = LiveNMF("chi_I", x="chi_Q", n_components=3)
    >>> token = live.subscribe(lambda name, doc: None)
    >>> live.result is None
    True
    """

    def __init__(
        self,
        pattern: str,
        *,
        x: str | npt.ArrayLike | None = None,
        independent: str | Sequence[str] | None = None,
        stream: str = "primary",
        n_components: int | None = None,
        phases: Sequence[Phase] = (),
        preprocess: Preprocess | None = None,
        scope: Literal["run", "session"] = "run",
        device: str | torch.device = "auto",
        background: bool = True,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        loss: str | float = "frobenius",
        negative: Literal["reject", "clip", "offset"] | None = None,
        integrator: FrameIntegrator | None = None,
        skip: Callable[[Mapping[str, Any]], bool] | None = None,
        handlers: Handlers | None = None,
        root_map: Mapping[str, str] | None = None,
    ) -> None:
        if scope not in ("run", "session"):
            raise InputError(f"scope: expected 'run' or 'session', got {scope!r}")
        if not isinstance(preprocess, Preprocess | None):
            raise InputError(f"preprocess: expected a Preprocess, got {preprocess!r}")
        if skip is not None and not callable(skip):
            raise InputError(f"skip: expected f(start) -> bool, got {skip!r}")
        if integrator is not None and (x is not None or not callable(integrator)):
            raise InputError(
                f"integrator: expected an Integrator and no x, got {integrator!r} and x={x!r}"
            )
        preprocess = preprocess or Preprocess()
        if negative is not None:
            preprocess = replace(preprocess, negative=negative)
        _check_signs(phases, preprocess)
        source = as_source(pattern, x=x, independent=independent, stream=stream)
        self._intake = Intake(
            source,
            files=Files(*as_handlers(handlers, root_map)),
            remember=scope == "session",
            skip=is_dark if skip is None else skip,
        )
        #: Several RunEngines may call at the same time.
        self._taking = threading.Lock()
        self._scope = scope
        self._components = known_and_free(phases, n_components)
        metadata = {
            "pattern": pattern,
            "x": x if isinstance(x, str) else None if x is None else "array",
            "stream": stream,
            "scope": scope,
        }
        check_numerics(device=device, dtype=dtype, seed=seed)
        beta = beta_of(loss)
        self._recipe = Recipe(preprocess, integrator, device, dtype, seed, loss, metadata)
        # What the user sees of the latest dataset's components; changes are checked against it.
        self._current = self._components
        self._lock = threading.RLock()
        self._datasets: dict[str, Dataset] = {}
        self._starts: dict[str, Mapping[str, Any]] = {}
        self._latest: Dataset | None = None
        self._result: FitResult | None = None
        self._arrived: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._error: Exception | None = None
        self._closed = self._refusing = False
        self._exit_registered = False
        if background:
            _put_the_scan_first(beta)
        self._emitter = Emitter(background=background)
        self._worker: Worker[_Item] | Inline[_Item] = (
            Worker(self._handle, name="bluesky_cmf fit", idle=self._idle, prepare=_leave_a_core)
            if background
            else Inline(self._handle)
        )

    # --- documents in ----------------------------------------------------------------------

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document; never raises."""
        self._take_in(lambda: self._intake(name, doc), f"a {name!r} document could not be read")

    # --- documents out ---------------------------------------------------------------------

    def subscribe(self, callback: Emit) -> int:
        """Let a callback have the documents of the analysis runs.

        Parameters
        ----------
        callback : callable
            Called as ``callback(name, document)`` from one thread, in order. It is held strongly.
            A late subscriber first gets the open runs' start and descriptors. What it raises is
            logged once and does not reach the others.

        Returns
        -------
        int
            A token for `unsubscribe`.
        """
        if not callable(callback):
            raise InputError(f"callback: expected f(name, document), got {callback!r}")
        return self._emitter.subscribe(callback)

    def unsubscribe(self, token: int) -> None:
        """Take a subscriber away again; an unknown token is passed over."""
        self._emitter.unsubscribe(token)

    @property
    def result(self) -> FitResult | None:
        """The latest fit; it stays after the end, until the next dataset has one."""
        latest = self._latest
        return self._result if latest is None or latest.result is None else latest.result

    @property
    def error(self) -> Exception | None:
        """The last thing that went wrong, None where nothing has."""
        return self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all that was received is fitted and published.

        Parameters
        ----------
        timeout : float, optional
            Seconds.

        Returns
        -------
        bool
            True once every pattern received is fitted and emitted and the analysis run of every
            stopped run is closed; False at the timeout.
        """
        left = remaining(timeout)
        return self._worker.wait(left()) and self._emitter.wait(left())

    # --- constraints -----------------------------------------------------------------------

    def fix(self, name: str, pattern: Pattern | None = None) -> None:
        """Hold a component at a pattern, or at the shape that it has.

        Like the other changes it applies to the latest dataset from its next refit on; where
        none is open, to those to come.

        Parameters
        ----------
        name : str
            The component.
        pattern : Phase or array_like (F,), optional
            What to hold it at. A phase goes through the steps that patterns go through; an array
            is taken as it is, on the axis that is fitted, as ``result.components`` are.

        Raises
        ------
        ComponentError
            Where no component has this name.
        InputError
            Where the pattern cannot be used.
        """
        held = self._shape(name) if pattern is None else held_pattern(pattern)
        self._check_length(name, held)
        self._change("fix", Component(name, True, held))

    def release(self, name: str) -> None:
        """Let a component go free; it starts from where it was held.

        Raises
        ------
        ComponentError
            Where no component has this name.
        """
        self._change("release", Component(name))

    def add_component(
        self, name: str | None = None, pattern: Pattern | None = None, fixed: bool = False
    ) -> str:
        """Add a component; without a pattern it is found in the data.

        The analysis run is closed, and another one over the same patterns continues it.

        Returns
        -------
        str
            Its name; ``unknown <number>`` where none was given.

        Raises
        ------
        ComponentError
            Where the name is taken.
        InputError
            Where the pattern cannot be used, or ``fixed`` is set without one.
        """
        if name is not None and (not isinstance(name, str) or not name):
            raise InputError(f"name: expected a name for the component, got {name!r}")
        if fixed and pattern is None:
            raise InputError("pattern: a fixed component needs a pattern to hold, got None")
        with self._lock:
            taken = {component.name for component in self._current}
            unknown = (f"unknown {number}" for number in itertools.count(1))
            chosen = name or next(label for label in unknown if label not in taken)
            values = held_pattern(pattern)
            self._check_length(chosen, values)
            self._change("add", Component(chosen, fixed, values))
        return chosen

    def remove_component(self, name: str) -> None:
        """Take a component out; the analysis run is closed and continued by another one.

        Raises
        ------
        ComponentError
            Where no component has this name.
        InputError
            Where it is the last one.
        """
        self._change("remove", Component(name))

    # --- end -------------------------------------------------------------------------------

    def reset(self) -> None:
        """Close what is open and begin anew with the next pattern.

        A session ends with success; a run that has not stopped ends with ``abort``.
        """
        self._begin_anew()
        self._error = None
        with self._taking:
            self._intake.forget()

    def close(self, timeout: float | None = None) -> bool:
        """Close what is open, publish it, and end the threads; later documents are passed over.

        Returns
        -------
        bool
            False where ``timeout`` seconds were not enough.
        """
        if not self._closed:
            self._begin_anew()
        self._closed = True
        left = remaining(timeout)
        return self._worker.close(left()) and self._emitter.close(left())

    # --- in the worker's thread ------------------------------------------------------------

    def _handle(self, items: list[_Item]) -> None:
        """Handle items in order; patterns of one dataset that follow each other go together."""
        gathered: dict[str, list[Arrival]] = {}
        for item in items:
            if isinstance(item, Arrival):
                gathered.setdefault(self._scope_key(item.run), []).append(item)
            else:
                self._take(gathered)
                self._guard(item)
        self._take(gathered)

    def _take(self, gathered: dict[str, list[Arrival]]) -> None:
        for key, arrivals in gathered.items():
            dataset = self._dataset(key, arrivals[0].run)
            self._taken[key] += len(arrivals)
            try:
                dataset.take(arrivals, lag=partial(self._lag, key))
            except Exception as error:
                dataset.note(error)
            self._note(dataset)
        gathered.clear()

    def _lag(self, key: str) -> int:
        """Count the patterns of a dataset that have arrived and are not taken yet."""
        return self._arrived[key] - self._taken[key]

    def _guard(self, item: _Item) -> None:
        try:
            self._do(item)
        except Exception as error:
            self._fault(error, f"{type(item).__name__.strip('_').lower()} could not be handled")

    def _do(self, item: _Item) -> None:
        if isinstance(item, Opened):
            self._starts[item.run] = item.start
        elif isinstance(item, Refused):
            self._refuse(item)
        elif isinstance(item, Closed):
            self._close_run(item)
        elif isinstance(item, _Changed):
            self._apply(item.change)
        elif isinstance(item, _Reset):
            for key in list(self._datasets):
                status = "success" if self._scope == "session" else "abort"
                reason = "" if self._scope == "session" else "the run was not stopped"
                self._finish(key, status, reason)

    def _refuse(self, refused: Refused) -> None:
        key = self._scope_key(refused.run)
        if refused.skipped:
            # In a session it is told why the pattern is not there; alone it is nobody's.
            if key in self._datasets:
                self._datasets[key].refuse(refused)
            return
        if self._scope == "session" and isinstance(refused.error, DataKeyError):
            # Another kind of scan between those of the session.
            self._fault(refused.error, f"run {refused.run[:8]}")
            return
        dataset = self._dataset(key, refused.run)
        dataset.refuse(refused)
        self._note(dataset)

    def _close_run(self, closed: Closed) -> None:
        self._starts.pop(closed.run, None)
        if self._scope == "run":
            self._finish(closed.run, closed.exit_status, closed.reason)

    def _finish(self, key: str, exit_status: str, reason: str) -> None:
        dataset = self._datasets.get(key)
        if dataset is None:
            return
        try:
            dataset.finish(exit_status, reason)
        except Exception as error:
            dataset.note(error)
        del self._datasets[key]
        self._arrived.pop(key, None)
        self._taken.pop(key, None)
        self._note(dataset)
        if dataset is self._latest:
            with self._lock:
                other = self._open_dataset()
                self._current = self._components if other is None else other.components

    def _apply(self, change: Change) -> None:
        dataset = self._open_dataset()
        if dataset is None:
            with self._lock:
                self._components = change.apply(self._components, shaped=False)
                self._current = self._components
            return
        try:
            dataset.change(change)
        except Exception as error:
            dataset.note(error)
            with self._lock:
                self._current = dataset.components
        self._note(dataset)

    def _idle(self) -> bool:
        dataset, worker = self._open_dataset(), self._worker
        if dataset is None:
            return False
        return dataset.improve(_IDLE_SECONDS, interrupted=lambda: len(worker) > 0)

    def _dataset(self, key: str, run: str) -> Dataset:
        if key not in self._datasets:
            start = self._starts[run]
            lazy = self._scope == "session"
            dataset = Dataset(self._recipe, self._components, start, self._emitter, lazy)
            self._datasets[key] = dataset
        self._latest = self._datasets[key]
        return self._latest

    def _open_dataset(self) -> Dataset | None:
        """Give the latest dataset while it is open, else the newest that is."""
        newest = [*self._datasets.values()]
        return self._latest if self._latest in newest else newest[-1] if newest else None

    def _scope_key(self, run: str) -> str:
        return run if self._scope == "run" else "session"

    # --- details ---------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        self._take_in(self._intake.rest, "what waited for files could not be taken")
        self._put(_Reset())

    def _take_in(self, take: Callable[[], Iterable[_Item]], failure: str) -> None:
        items: list[_Item] = []
        try:
            with self._taking:
                # What comes before an error is kept.
                items.extend(take())
        except Exception as error:
            self._fault(error, failure)
        try:
            for item in items:
                if isinstance(item, Arrival):
                    self._arrived[self._scope_key(item.run)] += 1
                self._put(item)
        except Exception as error:
            self._fault(error, failure)

    def _put(self, item: _Item) -> None:
        if not self._exit_registered:
            # Not before the first document: whoever was set up until then (a catalog, a server)
            # is closed after this one.
            self._exit_registered = True
            at_exit(self.close, stage="fits")
        if not self._worker.put(item) and not self._refusing:
            self._refusing = True
            logger.warning("LiveNMF is closed: what comes now is passed over")

    def _change(self, action: str, component: Component) -> None:
        change = Change(action, component)
        with self._lock:
            dataset = self._open_dataset()
            self._current = change.apply(self._current, shaped=dataset is not None)
            self._put(_Changed(change))

    def _shape(self, name: str) -> npt.NDArray[Any] | None:
        """Give the shape that a component has now, before anything else is done with it."""
        result = self._open_result()
        if result is None or name not in result.names:
            return None
        shape = result.components[result.names.index(name)]
        return shape if shape.any() else None

    def _check_length(self, name: str, pattern: Phase | npt.NDArray[Any] | None) -> None:
        result = self._open_result()
        if result is None or pattern is None or isinstance(pattern, Phase):
            return
        expected = result.components.shape[1]
        if len(pattern) != expected:
            raise InputError(
                f"pattern: expected a Phase or the {expected} points that are fitted for "
                f"component {name!r}, got {len(pattern)}"
            )

    def _open_result(self) -> FitResult | None:
        dataset = self._open_dataset()
        return None if dataset is None else dataset.result

    def _note(self, dataset: Dataset) -> None:
        if dataset.error is not None:
            self._error = dataset.error
        if dataset.result is not None:
            self._result = dataset.result

    def _fault(self, error: Exception, what: str) -> None:
        if repr(error) != repr(self._error):
            logger.error("%s: %s", what, error, exc_info=error)
        self._error = error


def _check_signs(phases: Sequence[Phase], preprocess: Preprocess) -> None:
    """Refuse phases with negative values where the fit would refuse them at every pattern."""
    for phase in phases if isinstance(phases, Sequence) else ():
        if isinstance(phase, Phase) and phase.signed and preprocess.negative == "reject":
            raise InputError(
                f"phases: {phase.name!r} may be negative (signed=True); say what becomes of "
                "negative values (negative='clip' or 'offset')"
            )


def _put_the_scan_first(beta: float) -> None:
    """Do now what would hold the interpreter at the first pattern, and let it change hands fast.

    By default a thread that wants the interpreter waits for 5 ms while another one runs Python
    code; a step of a scan asks for it dozens of times.
    """
    warm_up(beta=beta)
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))


def _leave_a_core() -> None:
    """Let torch use all cores but one: the scan comes first."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 2) - 1)))
