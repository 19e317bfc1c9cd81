"""One dataset's factorization: patterns and phases on one axis, on a device that may be lost."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from .errors import AxisError, PatternError
from .judging import check_values
from .nmf.results import FitResult, RowFit
from .nmf.streaming import StreamingNMF
from .phases import Phase, resample
from .profiles import Width
from .recipe import Change, Component, Recipe
from .widths import fit_width

__all__ = ["Fitting"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
T = TypeVar("T")

#: Points at the lower end of the axis that a width is fitted to, at least.
_FEWEST_POINTS = 500


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

    Attributes
    ----------
    axis : ndarray (G,)
        What is left of it, and fitted.
    width : Width or None
        What was fitted of the lines of phases from CIFs.
    faults : list of str
        What has gone wrong with the device, until somebody takes it.
    """

    def __init__(
        self, recipe: Recipe, components: Sequence[Component], x: Array, y: Array, *, given: bool
    ) -> None:
        self._recipe, self._x, self._given = recipe, x, given
        self._numbers = np.float64 if recipe.dtype == torch.float64 else np.float32
        self.axis = recipe.preprocess.axis(x)
        self.faults: list[str] = []
        self.width: Width | None = None
        self._fit_width(components, recipe.preprocess.crop(x, y))
        #: What each component is held at, or started from, and whether it is held.
        self._held = {c.name: (self._values(c), c.fixed) for c in components}
        #: The components as of the last snapshot, and the patterns where the device has its own.
        self._shapes: dict[str, Array] = {}
        self._kept: list[Array] = []
        self._n_patterns = 0
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

    def prepared(self, x: Array, y: Array) -> Array:
        """Bring a pattern onto the axis that is fitted, (G,), and through the steps.

        Raises
        ------
        PatternError
            Where it cannot be used.
        AxisError
            Where its axis does not cover what is fitted.
        """
        if not self._given and len(y) != len(self._x):
            raise PatternError(f"expected {len(self._x)} points, got {len(y)}")
        same = np.array_equal(x, self._x)
        x, y = (x, y) if same else (self.axis, resample(x, y, self.axis, what="the pattern"))
        preprocess = self._recipe.preprocess
        check_values(preprocess.crop(x, y))
        pattern = preprocess(x, y)
        # What was cut off, or is too small for the numbers of the fit, may have been all of it.
        with np.errstate(all="ignore"):
            nothing = not pattern.astype(self._numbers).any()
        if nothing:
            raise PatternError("every point is zero after the steps before the fit")
        return pattern

    def append(self, pattern: Array) -> None:
        """Add a pattern (G,)."""
        self._steadily(lambda nmf: nmf.append(pattern))
        self._n_patterns += 1
        if self.device.type != "cpu":
            self._kept.append(pattern.astype(self._numbers))

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
        """Give what is known of each pattern from ``start`` on."""
        return self._steadily(lambda nmf: nmf.rows(start))

    def patterns(self) -> Array:
        """Give all patterns as they are fitted, (N, G)."""
        return self._steadily(lambda nmf: nmf.patterns())

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
        values = self._values(change.component)
        if change.action == "fix":
            self._steadily(lambda nmf: nmf.fix(name, values))
        elif change.action == "release":
            self._steadily(lambda nmf: nmf.release(name))
        elif change.action == "add":
            self._steadily(lambda nmf: nmf.add_component(name, values, fixed))
        else:
            self._steadily(lambda nmf: nmf.remove_component(name))
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
        )

    def _fit_width(self, components: Sequence[Component], y: Array) -> None:
        """Fit the width of the instrument's lines where phases from CIFs have none."""
        phases = [c.pattern for c in components if isinstance(c.pattern, Phase)]
        if any(phase.needs_width for phase in phases):
            # Where a lattice is a little off, its lines are displaced least at the lower end.
            low = slice(0, max(_FEWEST_POINTS, len(self.axis) // 3))
            self.width = fit_width(phases, self.axis[low], y[low])
            logger.info("width of the lines, fitted to the first pattern: %s", self.width)

    def _values(self, component: Component) -> Array | None:
        """Bring a component's pattern onto the fitted axis, by the steps that data go through.

        An array is on that axis already, as the components of a result are.
        """
        pattern = component.pattern
        if isinstance(pattern, Phase):
            if pattern.needs_width and self.width is not None:
                pattern = pattern.with_width(self.width)
            # A phase has to cover what is fitted, not what is cropped away.
            return self._recipe.preprocess(self.axis, pattern.on(self.axis))
        if pattern is not None and len(pattern) != len(self.axis):
            raise AxisError(
                f"component {component.name!r} is held at an array of {len(pattern)} points, "
                f"but {len(self.axis)} are fitted; fix it again, at a Phase or at an array as long"
            )
        return pattern

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


def _is_of_device(error: Exception) -> bool:
    """Tell whether an error is the device's: its memory is full, or it is gone."""
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
        return True
    return isinstance(error, RuntimeError) and "CUDA" in str(error)
