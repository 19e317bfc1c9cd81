"""`LiveNMF`: the callback between a RunEngine and whoever wants to know."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy.typing as npt
import torch

from .datasets import Datasets, Item, Reset
from .documents import Emit
from .emitter import Emitter
from .errors import InputError
from .intake import Files, Handlers, Intake, as_handlers, as_source, is_dark
from .nmf.kernels import warm_up
from .nmf.numerics import beta_of, check_numerics
from .nmf.results import FitResult
from .phases import Phase
from .preprocess import Preprocess
from .recipe import (
    Component,
    FrameIntegrator,
    Pattern,
    Recipe,
    check_errors,
    held_pattern,
    known_and_free,
)
from .unknowns import OnUnknown
from .worker import Inline, Worker, at_exit, remaining

__all__ = ["LiveNMF"]

logger = logging.getLogger(__name__)

#: Seconds after which a thread that runs Python code has to let another one go on.
_SWITCH_SECONDS = 0.0005


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
    errors : "counts" or str, optional
        Where the noise of patterns is known from, which the errors of weights come from. By
        default it is estimated from the residual. ``"counts"``: the patterns (or frames, with an
        integrator that knows what becomes of it) are counts y, with the variance max(y, 1). Else
        the data key of standard errors, (F,) in the event, named as ``pattern`` is. Where they
        cannot be used (another length, NaN, infinity, negative, nothing but zeros), the pattern
        is used and its noise estimated, and the stream ``faults`` says so.
    skip : callable, optional
        Tells by the start document which runs are passed over, ``skip(start) -> bool``. By
        default those that take dark or flat frames, by the metadata in use (`is_dark`).
    on_unknown : {"warn", "add"} or callable, optional
        What becomes of an alarm: something stands out of the noise of the last patterns that no
        component explains. It is logged as a warning and published in the stream ``alarms``, and
        that is all (``"warn"``); or, where it lasts for three patterns, a free component is added
        that starts from it (``"add"``, for at most 3 of a dataset's components); or a function
        gets the `Alarm`. It is called in the fit's thread, so that the fit waits for it; changes
        of constraints that it makes hold for the dataset of the alarm, from its next refit on.
        What it raises is logged and kept in `error`.
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
        errors: str | None = None,
        on_unknown: OnUnknown = "warn",
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
        check_errors(errors, integrator)
        if on_unknown not in ("warn", "add") and not callable(on_unknown):
            raise InputError(f"on_unknown: expected 'warn', 'add' or f(alarm), got {on_unknown!r}")
        preprocess = preprocess or Preprocess()
        if negative is not None:
            preprocess = replace(preprocess, negative=negative)
        _check_signs(phases, preprocess)
        source = as_source(
            pattern,
            x=x,
            independent=independent,
            stream=stream,
            errors=None if errors == "counts" else errors,
            monitor=preprocess.monitor,
        )
        self._intake = Intake(
            source,
            files=Files(*as_handlers(handlers, root_map)),
            remember=scope == "session",
            skip=is_dark if skip is None else skip,
        )
        #: Several RunEngines may call at the same time.
        self._taking = threading.Lock()
        metadata = {
            "pattern": pattern,
            "x": x if isinstance(x, str) else None if x is None else "array",
            "stream": stream,
            "scope": scope,
            "errors": errors,
            "on_unknown": "call" if callable(on_unknown) else on_unknown,
        }
        check_numerics(device=device, dtype=dtype, seed=seed)
        beta = beta_of(loss)
        _check_strains(phases, beta)
        recipe = Recipe(
            preprocess, integrator, device, dtype, seed, loss, metadata, errors, on_unknown
        )
        self._closed = self._refusing = False
        self._exit_registered = False
        known = known_and_free(phases, n_components)
        if background:
            _put_the_scan_first(beta, strained=any(c.strain for c in known))
        self._emitter = Emitter(background=background)
        self._datasets = Datasets(
            recipe,
            known,
            session=scope == "session",
            emit=self._emitter,
            patient=not background,
        )
        self._background = background
        self._worker: Worker[Item] | Inline[Item] = (
            Worker(
                self._datasets.handle,
                name="bluesky_cmf fit",
                idle=self._idle,
                prepare=_leave_a_core,
            )
            if background
            else Inline(self._datasets.handle)
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
        return self._datasets.result

    @property
    def patterns(self) -> npt.NDArray[Any] | None:
        """The patterns of the latest dataset as they are fitted, (N, G); a copy.

        It waits until what was received is fitted, and stays after the end as `result` does.
        """
        self._worker.wait()
        return self._datasets.patterns

    @property
    def reconstruction(self) -> npt.NDArray[Any] | None:
        """What the fit makes of `patterns`, (N, G): components times weights, strains applied."""
        self._worker.wait()
        return self._datasets.reconstruction

    @property
    def error(self) -> Exception | None:
        """The last thing that went wrong, None where nothing has."""
        return self._datasets.error

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
            stopped run is closed; False at the timeout. An event whose file, or whose frame, was
            not named yet is received when it is.
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
        self._datasets.plan("fix", Component(name, True, held), self._put)

    def release(self, name: str) -> None:
        """Let a component go free; it starts from where it was held.

        Raises
        ------
        ComponentError
            Where no component has this name.
        """
        self._datasets.plan("release", Component(name), self._put)

    def add_component(
        self,
        name: str | None = None,
        pattern: Pattern | None = None,
        fixed: bool = False,
        *,
        origin: str | None = None,
    ) -> str:
        """Add a component; without a pattern it is found in the data.

        The analysis run is closed, and another one over the same patterns continues it.

        Parameters
        ----------
        name : str, optional
            Its name; ``unknown <number>`` by default.
        pattern : Phase or array_like (F,), optional
            What it starts from, or is held at; as `fix` takes it.
        fixed : bool, optional
            Whether it is held there.
        origin : str, optional
            Where an array comes from, for the metadata of the analysis run; a phase knows it.

        Returns
        -------
        str
            Its name; ``unknown <number>`` where none was given.

        Raises
        ------
        ComponentError
            Where the name is taken.
        InputError
            Where the pattern cannot be used, or ``fixed`` is set without one; where ``origin`` is
            given without an array.
        """
        if name is not None and (not isinstance(name, str) or not name):
            raise InputError(f"name: expected a name for the component, got {name!r}")
        if fixed and pattern is None:
            raise InputError("pattern: a fixed component needs a pattern to hold, got None")
        values = held_pattern(pattern)
        if origin is not None and (values is None or isinstance(values, Phase)):
            raise InputError(f"origin: expected with a pattern that is an array, got {origin!r}")
        self._check_length(name or "unknown", values)
        return self._datasets.plan_addition(
            name, lambda chosen: Component(chosen, fixed, values, told=origin), self._put
        )

    def remove_component(self, name: str) -> None:
        """Take a component out; the analysis run is closed and continued by another one.

        Raises
        ------
        ComponentError
            Where no component has this name.
        InputError
            Where it is the last one.
        """
        self._datasets.plan("remove", Component(name), self._put)

    # --- end -------------------------------------------------------------------------------

    def reset(self) -> None:
        """Close what is open and begin anew with the next pattern.

        A session ends with success; a run that has not stopped ends with ``abort``.
        """
        self._put(Reset())
        self._datasets.error = None
        with self._taking:
            self._intake.forget()

    def close(self, timeout: float | None = None) -> bool:
        """Close what is open, publish it, and end the threads; later documents are passed over.

        Returns
        -------
        bool
            False where ``timeout`` seconds were not enough, or at once where the fit's own
            thread asks (`on_unknown`): what was received is still fitted and published then.
        """
        if not self._closed:
            self._take_in(self._intake.rest, "what waited for files could not be taken")
            self._put(Reset())
        self._closed = True
        left = remaining(timeout)
        closed = self._worker.close(left())
        # Called by `on_unknown`, the fit goes on after it, and what it finds is yet to be told.
        return not self._worker.inside and closed and self._emitter.close(left())

    # --- details ---------------------------------------------------------------------------

    def _take_in(self, take: Callable[[], Iterable[Item]], failure: str) -> None:
        """Put what documents hold in line; one thread after the other where several call."""
        items: list[Item] = []
        with self._taking:
            try:
                # What comes before an error is kept.
                items.extend(take())
            except Exception as error:
                self._datasets.fault(error, failure)
            if self._background:
                self._put_all(items)
        if not self._background:
            # It is fitted here and now: nobody else need wait for that.
            self._put_all(items)

    def _put_all(self, items: list[Item]) -> None:
        """Put in line what one document holds: patterns of a page are fitted together."""
        try:
            for item in items:
                self._datasets.expect(item)
            if items:
                self._put(*items)
        except Exception as error:
            self._datasets.fault(error, "what a document holds could not be taken")

    def _idle(self) -> bool:
        worker = self._worker
        return self._datasets.improve(lambda: len(worker) > 0)

    def _put(self, *items: Item) -> None:
        if not self._exit_registered:
            # Not before the first document: whoever was set up until then (a catalog, a server)
            # is closed after this one.
            self._exit_registered = True
            at_exit(self.close, stage="fits")
        if not self._worker.put(*items) and not self._refusing:
            self._refusing = True
            logger.warning("LiveNMF is closed: what comes now is passed over")

    def _shape(self, name: str) -> npt.NDArray[Any] | None:
        """Give the shape that a component has now, before anything else is done with it."""
        result = self._datasets.open_result
        if result is None or name not in result.names:
            return None
        if self._datasets.strained(name):
            # It is held where it is, with its strain, which no one shape would have.
            return None
        shape = result.components[result.names.index(name)]
        return shape if shape.any() else None

    def _check_length(self, name: str, pattern: Phase | npt.NDArray[Any] | None) -> None:
        result = self._datasets.open_result
        if result is None or pattern is None or isinstance(pattern, Phase):
            return
        expected = result.components.shape[1]
        if len(pattern) != expected:
            raise InputError(
                f"pattern: expected a Phase or the {expected} points that are fitted for "
                f"component {name!r}, got {len(pattern)}"
            )


def _check_signs(phases: Sequence[Phase], preprocess: Preprocess) -> None:
    """Refuse phases with negative values where the fit would refuse them at every pattern."""
    for phase in phases if isinstance(phases, Sequence) else ():
        if isinstance(phase, Phase) and phase.signed and preprocess.negative == "reject":
            raise InputError(
                f"phases: {phase.name!r} may be negative (signed=True); say what becomes of "
                "negative values (negative='clip' or 'offset')"
            )


def _check_strains(phases: Sequence[Phase], beta: float) -> None:
    """Refuse strains where the loss is none that they are fitted by."""
    for phase in phases if isinstance(phases, Sequence) else ():
        if isinstance(phase, Phase) and phase.strain is not None and beta != 2:
            raise InputError(
                f"loss: expected 'frobenius' where a phase has a strain, as {phase.name!r} has; "
                "leave one of them out"
            )


def _put_the_scan_first(beta: float, *, strained: bool) -> None:
    """Do now what would hold the interpreter at the first pattern, and let it change hands fast.

    By default a thread that wants the interpreter waits for 5 ms while another one runs Python
    code; a step of a scan asks for it dozens of times.
    """
    warm_up(beta=beta)
    if strained:
        warm_up(strained=True)
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))


def _leave_a_core() -> None:
    """Let torch use all cores but one: the scan comes first."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 2) - 1)))
