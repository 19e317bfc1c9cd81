"""One dataset's factorization: patterns and phases on one axis, on a device that may be lost."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from .errors import AxisError, PatternError
from .judging import check_values
from .nmf.families import Family
from .nmf.results import FitResult, RowFit
from .nmf.streaming import StreamingNMF
from .phases import Phase
from .prepared import Prepared
from .profiles import Width
from .recipe import Change, Component, Recipe
from .strains import family_of
from .unknowns import REMEMBERED, Alarm, Covariance, Watch
from .widths import instrument_width

__all__ = ["Fitting"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
T = TypeVar("T")

#: Patterns that are looked at for what is not explained where others wait; some more before them
#: are remembered.
_NEWEST = 4


class Fitting:
    """The model of one dataset, built on the axis of its first pattern.

    Where the device fails, or its memory is full, the fit goes on on the CPU: patterns are kept
    in the memory of the host as well, and components start from the last snapshot's.

    Parameters
    ----------
    recipe : Recipe
        How to fit.
    components : sequence of Component
        What to fit.
    x : ndarray (F,)
        The axis of the first pattern, increasing.
    y : ndarray (F,)
        The first pattern: phases from CIFs without a width get that of its lines.
    given : bool
        Whether the axis came with the pattern; without it, patterns have to be of its length.

    Raises
    ------
    NoLinesError
        Where the width of the lines is to be fitted, and the pattern has none.

    Attributes
    ----------
    axis : ndarray (G,)
        What is left of it, and fitted.
    width : Width or None
        What was fitted of the lines of phases from CIFs.
    faults : list of str
        What has gone wrong with the device, until somebody takes it.
    doubts : list of str
        What was wrong with the errors of patterns that are used all the same, likewise.
    """

    def __init__(
        self, recipe: Recipe, components: Sequence[Component], x: Array, y: Array, *, given: bool
    ) -> None:
        self._recipe, self._x, self._given = recipe, x, given
        self._numbers = np.float64 if recipe.dtype == torch.float64 else np.float32
        #: What patterns are taken onto, before neighbours are averaged.
        self._grid = recipe.preprocess.grid(x)
        self.axis = recipe.preprocess.axis(x)
        self.faults: list[str] = []
        self.doubts: list[str] = []
        self.width: Width | None = None
        self._fit_width(components, *(recipe.preprocess.crop(x, values) for values in (x, y)))
        #: What each component is held at, or started from, and whether it is held.
        self._held = {c.name: (self._values(c), c.fixed) for c in components}
        #: Those of them that have a strain, and whose strain was found at a bound.
        families = {c.name: self._family(c) for c in components}
        self._families = {name: f for name, f in families.items() if f is not None}
        self._at_bounds: set[str] = set()
        #: The components as of the last snapshot, and the patterns where the device has its own.
        self._shapes: dict[str, Array] = {}
        self._kept: list[Array] = []
        self._n_patterns = self._n_doubtful = 0
        #: The noise of patterns that nobody has asked about yet, by number.
        self._noises: dict[int, Covariance] = {}
        self._watch = Watch(self.axis)
        #: Patterns that were not looked at yet.
        self._unseen: list[Prepared] = []
        try:
            self._nmf = self._build(recipe.device)
        except Exception as error:
            if not _is_of_device(error):
                raise
            self._tell(error)
            self._nmf = self._build("cpu")

    @property
    def device(self) -> torch.device:
        """Where the fit runs by now."""
        return self._nmf.device

    @property
    def n_patterns(self) -> int:
        """Number of patterns, N."""
        return self._n_patterns

    @property
    def result(self) -> FitResult | None:
        """The latest fit."""
        return self._nmf.result

    @property
    def settled(self) -> bool:
        """Whether more time would bring nothing."""
        return self._nmf.settled

    @property
    def described_width(self) -> str | None:
        """What was fitted of the lines' width, in words."""
        return None if self.width is None else str(self.width)

    def prepared(
        self,
        x: Array,
        y: Array,
        *,
        variance: Array | None = None,
        monitor: float | None = None,
        doubt: str = "",
    ) -> Prepared:
        """Bring a pattern onto the axis that is fitted, (G,), and through the steps.

        Parameters
        ----------
        x, y : ndarray (F,)
            Increasing axis and intensities.
        variance : ndarray (F,), optional
            Variance of each intensity, where its noise is known.
        monitor : float, optional
            Value of the monitor, where patterns are divided by it.
        doubt : str, optional
            Why the noise is not known though it should be.

        Raises
        ------
        PatternError
            Where it cannot be used.
        AxisError
            Where its axis does not cover what is fitted.
        """
        if not self._given and len(y) != len(self._x):
            raise PatternError(f"expected {len(self._x)} points, got {len(y)}")
        pattern = self._recipe.preprocess.prepare(
            x, y, variance=variance, monitor=monitor, onto=self._grid
        )
        # What was cut off, or is too small for the numbers of the fit, may have been all of it.
        with np.errstate(all="ignore"):
            nothing = not pattern.values.astype(self._numbers).any()
        if nothing:
            raise PatternError("every point is zero after the steps before the fit")
        return replace(pattern, doubt=pattern.doubt or doubt)

    def append(self, prepared: Prepared) -> None:
        """Add a pattern (G,); its noise is kept until `rows` asks for it."""
        self._steadily(lambda nmf: nmf.append(prepared.values))
        if prepared.covariance is not None:
            self._noises[self._n_patterns] = prepared.covariance
        self._n_patterns += 1
        if prepared.doubt:
            self._doubt(prepared.doubt)
        self._unseen.append(prepared)
        if self.device.type != "cpu":
            self._kept.append(prepared.values.astype(self._numbers))

    def refit(self, *, converge: bool = False) -> FitResult:
        """Refit from where the last fit stood, or to convergence."""
        return self._steadily(lambda nmf: nmf.refit(converge=converge))

    def improve(self, budget: float, interrupted: Callable[[], bool]) -> bool:
        """Look for a better fit in the background; tell whether one was adopted."""
        return self._steadily(lambda nmf: nmf.improve(budget, interrupted=interrupted))

    def refresh(self) -> FitResult:
        """Bring the weights of all patterns up to date."""
        result = self._steadily(lambda nmf: nmf.refresh())
        self._shapes = dict(zip(result.names, result.components, strict=True))
        return result

    def rows(self, start: int) -> RowFit:
        """Give what is known of each pattern from ``start`` on, with its noise the first time."""
        noises = [self._noises.get(number) for number in range(start, self._n_patterns)]
        found = self._steadily(lambda nmf: nmf.rows(start, noises=noises))
        self._noises.clear()
        self._tell_bounds(start)
        return found

    def tell_doubts(self) -> None:
        """Say of how many patterns the noise was not known, where one was told of."""
        if self._n_doubtful > 1:
            self._note_doubt(
                f"errors: the noise of {self._n_doubtful} of {self._n_patterns} patterns was "
                "estimated from the residual"
            )

    def patterns(self) -> Array:
        """Give all patterns as they are fitted, (N, G)."""
        return self._steadily(lambda nmf: nmf.patterns())

    def reconstruction(self) -> Array:
        """Give what the fit makes of all patterns, (N, G)."""
        return self._steadily(lambda nmf: nmf.reconstruction())

    def look(self, rows: RowFit, *, hurried: bool = False) -> list[Alarm]:
        """Look at the patterns that came since the last look for what is not explained.

        Parameters
        ----------
        rows : RowFit
            What is known of each of them, as `rows` gives it after the refit.
        hurried : bool, optional
            Others wait already: only the newest few are looked at, and looked back from. What
            goes on is found in them all the same, a little later.
        """
        if not self._unseen:
            return []
        if hurried:
            del self._unseen[: -_NEWEST - REMEMBERED]
        passed = len(self._unseen) - _NEWEST if hurried else 0
        patterns = [prepared.values for prepared in self._unseen]
        variances = [prepared.variance for prepared in self._unseen]
        covariance = self._unseen[-1].covariance
        self._unseen.clear()
        return self._watch.look(
            np.stack(patterns),
            rows.weights[-len(patterns) :],
            self._stretched(rows.strains[-len(patterns) :]),
            first=self._n_patterns - len(patterns) + 1,
            free=[not fixed for _, fixed in self._held.values()],
            variances=variances,
            covariance=covariance,
            passed=max(0, passed),
        )

    def lasting(self) -> list[Alarm]:
        """Give what was found and has lasted for some patterns, once."""
        found, self._watch.lasting = self._watch.lasting, []
        return found

    def newest(self) -> tuple[Array, Array]:
        """Give the newest pattern (G,) and its reconstruction (G,)."""
        last = self._n_patterns - 1
        return self._steadily(lambda nmf: (nmf.patterns(last)[0], nmf.rows(last).reconstruction))

    def shapes(self) -> Mapping[str, Array]:
        """Give the components by name."""
        return self._steadily(lambda nmf: dict(zip(nmf.names, nmf.components, strict=True)))

    def change(self, change: Change) -> None:
        """Change the constraints, from the next refit on."""
        name, fixed = change.component.name, change.component.fixed
        values, family = self._values(change.component), self._family(change.component)
        if change.action == "fix":
            self._steadily(lambda nmf: nmf.fix(name, values, family=family))
        elif change.action == "release":
            self._steadily(lambda nmf: nmf.release(name))
        elif change.action == "add":
            self._steadily(lambda nmf: nmf.add_component(name, values, fixed, family=family))
        else:
            self._steadily(lambda nmf: nmf.remove_component(name))
        self._watch.reset()
        if values is not None or change.action in ("release", "remove"):
            self._families.pop(name, None)
            self._at_bounds.discard(name)
        if family is not None:
            self._families[name] = family
        if change.action == "remove":
            del self._held[name]
        else:
            known = self.shapes()[name] if values is None and change.action == "fix" else values
            before = self._held.get(name, (None, False))[0]
            self._held[name] = before if known is None else known, change.action == "fix" or fixed

    # --- details ---------------------------------------------------------------------------

    def _build(self, device: str | torch.device) -> StreamingNMF:
        return StreamingNMF(
            len(self.axis),
            len(self._held),
            names=list(self._held),
            components=[
                values if fixed else self._shapes.get(name, values)
                for name, (values, fixed) in self._held.items()
            ],
            fixed=[fixed for _, fixed in self._held.values()],
            device=device,
            dtype=self._recipe.dtype,
            seed=self._recipe.seed,
            loss=self._recipe.loss,
            families=self._families,
        )

    def _fit_width(self, components: Sequence[Component], x: Array, y: Array) -> None:
        """Fit the width of the instrument's lines where phases from CIFs have none."""
        phases = [c.pattern for c in components if isinstance(c.pattern, Phase)]
        if any(phase.needs_width for phase in phases):
            # What no fit can use is told as that.
            check_values(y)
            self.width = instrument_width(phases, x, y)
            logger.info("width of the lines, fitted to the first pattern: %s", self.width)

    def _values(self, component: Component) -> Array | None:
        """Bring a component's pattern onto the fitted axis, by the steps that data go through.

        An array is on that axis already, as the components of a result are.
        """
        pattern = component.pattern
        if isinstance(pattern, Phase):
            # A phase has to cover what is fitted, not what is cropped away.
            x = self._support(pattern)
            return self._recipe.preprocess(x, self._with_width(pattern).on(x), onto=self._grid)
        if pattern is not None and len(pattern) != len(self.axis):
            raise AxisError(
                f"component {component.name!r} is held at an array of {len(pattern)} points, "
                f"but {len(self.axis)} are fitted; fix it again, at a Phase or at an array as long"
            )
        return pattern

    def _family(self, component: Component) -> Family | None:
        """Tabulate a component over its strain, where it has one."""
        if component.strain is None or not isinstance(component.pattern, Phase):
            return None
        phase = self._with_width(component.pattern)
        return family_of(phase, self._support(phase), self._recipe.preprocess, onto=self._grid)

    def _support(self, phase: Phase) -> Array:
        """Give the axis that a phase is computed on before the steps."""
        if phase.powder is None:
            return self._grid
        # It is measured as the data are, so that interpolation does the same to both.
        return self._x[self._recipe.preprocess.resampling(self._x, self._grid).points]

    def _stretched(self, strains: Array) -> Array:
        """Give the components (K, G), or (M, K, G) where strains (M, K) stretch some."""
        shapes = self.shapes()
        still = np.stack(list(shapes.values()))
        if not self._families:
            return still
        moved = np.tile(still, (len(strains), 1, 1))
        for k, name in enumerate(shapes):
            if name in self._families:
                for i, strain in enumerate(np.nan_to_num(strains[:, k])):
                    moved[i, k] = self._families[name].at(float(strain))
        return moved

    def _with_width(self, phase: Phase) -> Phase:
        if phase.needs_width and self.width is not None:
            return phase.with_width(self.width)
        return phase

    def _tell_bounds(self, start: int) -> None:
        """Tell, once a component, that its strain has come to a bound."""
        for name, patterns in self._nmf.strains_at_bounds(start).items():
            if name not in self._at_bounds:
                self._at_bounds.add(name)
                low, high = self._families[name].bounds
                message = (
                    f"the strain of {name!r} is at a bound in pattern {patterns[0] + 1}, its "
                    f"weight too small; widen strain=({low:g}, {high:g})"
                )
                logger.warning("%s", message)
                self.faults.append(message)

    def _steadily(self, action: Callable[[StreamingNMF], T]) -> T:
        """Do something with the model, on the CPU where the device fails."""
        try:
            return action(self._nmf)
        except Exception as error:
            if self.device.type == "cpu" or not _is_of_device(error):
                raise
            self._move(error)
            return action(self._nmf)

    def _move(self, error: Exception) -> None:
        """Begin anew on the CPU with what the host's memory holds."""
        self._tell(error)
        self._nmf = self._build("cpu")
        if self._kept:
            self._nmf.append(np.stack(self._kept))
            self._nmf.refit()
        self._kept.clear()

    def _tell(self, error: Exception) -> None:
        first_line = str(error).strip().splitlines()[:1]
        message = f"the device failed ({''.join(first_line)}); the fit goes on on the CPU"
        logger.error("%s", message, exc_info=error)
        self.faults.append(message)

    def _doubt(self, doubt: str) -> None:
        """Count a pattern whose noise is not known though it should be; the first one is told."""
        self._n_doubtful += 1
        if self._n_doubtful == 1:
            self._note_doubt(
                f"errors: {doubt} (pattern {self._n_patterns}); the noise of such patterns is "
                "estimated from the residual"
            )

    def _note_doubt(self, message: str) -> None:
        logger.warning("%s", message)
        self.doubts.append(message)


def _is_of_device(error: Exception) -> bool:
    """Tell whether an error is the device's: its memory is full, or it is gone."""
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
        return True
    return isinstance(error, RuntimeError) and "CUDA" in str(error)
