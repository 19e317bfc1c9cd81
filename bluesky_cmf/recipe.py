"""What the user asks for: components, changes of constraints, and how to fit."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .errors import ComponentError, InputError
from .phases import Phase
from .preprocess import Preprocess
from .unknowns import OnUnknown

__all__ = [
    "Change",
    "Component",
    "FrameIntegrator",
    "NoisyIntegrator",
    "Pattern",
    "Recipe",
    "check_errors",
    "held_pattern",
    "known_and_free",
]

Array = npt.NDArray[Any]
Pattern = Phase | npt.ArrayLike

#: Most components: beyond it a number is a slip of the finger.
_MOST = 1000


@dataclass(frozen=True)
class Component:
    """A component as the user asks for it; without a pattern it is found in the data."""

    name: str
    fixed: bool = False
    pattern: Phase | Array | None = None
    #: Whether the pattern is no more than what was left unexplained, to start from.
    seeded: bool = False
    #: Where an array comes from, as whoever gave it says.
    told: str | None = None

    @property
    def origin(self) -> str:
        """Where its pattern comes from."""
        if self.seeded:
            return "found in the residual"
        if self.pattern is None:
            return "found in the data"
        return self.pattern.origin if isinstance(self.pattern, Phase) else self.told or "array"

    @property
    def strain(self) -> tuple[float, float] | None:
        """Bounds of its strain, where it is held at a phase that has one."""
        held = self.fixed and isinstance(self.pattern, Phase)
        return self.pattern.strain if held and isinstance(self.pattern, Phase) else None


@dataclass(frozen=True)
class Change:
    """A change of constraints: ``fix``, ``release``, ``add`` or ``remove``."""

    action: str
    component: Component

    def apply(
        self, components: Sequence[Component], *, shaped: bool = True
    ) -> tuple[Component, ...]:
        """Give the components after the change.

        Parameters
        ----------
        components : sequence of Component
            The components before.
        shaped : bool
            Whether components that are found in the data have a shape yet that can be held.

        Raises
        ------
        ComponentError
            Where the name is not known, or taken already.
        InputError
            Where there is no pattern to hold, or no component would be left.
        """
        name, names = self.component.name, [component.name for component in components]
        if self.action == "add":
            if name in names:
                raise ComponentError(f"name: {name!r} is taken; the components are {names}")
            return (*components, self.component)
        if name not in names:
            raise ComponentError(f"name: expected one of {names}, got {name!r}")
        if self.action == "remove":
            if len(components) == 1:
                raise InputError(f"name: {name!r} is the only component; add another one first")
            return tuple(c for c in components if c.name != name)
        held = self.action == "fix"
        new = self.component.pattern
        old = components[names.index(name)].pattern
        if held and not shaped and new is None and old is None:
            raise InputError(
                f"pattern: {name!r} has no shape while no pattern is fitted; give the one to hold"
            )
        if not held and isinstance(old, Phase):
            # What is free has no strain, and none when it is held again where it stands.
            old = replace(old, strain=None)
        return tuple(
            replace(
                c,
                fixed=held,
                pattern=old if new is None else new,
                seeded=c.seeded and new is None,
                told=c.told if new is None else self.component.told,
            )
            if c.name == name
            else c
            for c in components
        )


class FrameIntegrator(Protocol):
    """Makes patterns of frames, as `bluesky_cmf.frames.Integrator` does."""

    @property
    def name(self) -> str:
        """Name of the axis."""

    @property
    def units(self) -> str:
        """Unit of the axis."""

    def __call__(self, frame: Array) -> tuple[Array, Array]:
        """Give axis and pattern (F,) of a frame (rows, columns)."""

    def describe(self) -> dict[str, Any]:
        """Describe it in plain values."""


class NoisyIntegrator(FrameIntegrator, Protocol):
    """One that also knows the noise of the patterns that it makes of counts."""

    def with_variance(self, frame: Array) -> tuple[Array, Array, Array]:
        """Give axis, pattern and variance (F,) of a frame (rows, columns)."""


@dataclass(frozen=True)
class Recipe:
    """How datasets are fitted.

    ``errors`` says where the noise of patterns is known from: ``"counts"``, a data key, or nowhere.
    """

    preprocess: Preprocess
    integrator: FrameIntegrator | None
    device: str | torch.device
    dtype: torch.dtype
    seed: int
    loss: str | float
    metadata: Mapping[str, Any]
    errors: str | None = None
    on_unknown: OnUnknown = "warn"


def known_and_free(phases: Sequence[Phase], n_components: int | None) -> tuple[Component, ...]:
    """Give the phases and as many free components as are left."""
    if isinstance(phases, Phase) or not isinstance(phases, Iterable):
        raise InputError(f"phases: expected a list of phases, got {phases!r}")
    phases = list(phases)
    for k, phase in enumerate(phases):
        if not isinstance(phase, Phase):
            raise InputError(f"phases[{k}]: expected a Phase, got {type(phase).__name__}")
    n_components = len(phases) + 1 if n_components is None else n_components
    if not isinstance(n_components, int) or not max(1, len(phases)) <= n_components <= _MOST:
        raise InputError(
            f"n_components: expected a number from {max(1, len(phases))} (there are "
            f"{len(phases)} phases) to {_MOST}, got {n_components!r}"
        )
    known = [Component(phase.name, True, phase) for phase in phases]
    names = [component.name for component in known]
    if len(set(names)) < len(names):
        raise InputError(f"phases: expected names that differ, got {names}")
    labels = (f"unknown {number}" for number in itertools.count(1))
    free = (Component(label) for label in labels if label not in names)
    return (*known, *itertools.islice(free, n_components - len(known)))


def held_pattern(pattern: Pattern | None) -> Phase | npt.NDArray[Any] | None:
    """Check what a component is to be held at; numbers are copied.

    Raises
    ------
    InputError
        Where they are not finite, non-negative numbers (F,).
    """
    if pattern is None or isinstance(pattern, Phase):
        return pattern
    try:
        values = np.array(pattern)
        numbers = values.ndim == 1 and values.dtype.kind in "fiu"
    except ValueError as error:
        raise InputError(f"pattern: expected a Phase or numbers (F,), got {error}") from error
    if not numbers or not np.isfinite(values).all() or (values < 0).any():
        raise InputError(
            "pattern: expected a Phase or finite, non-negative numbers (F,), "
            f"got {values.dtype} of shape {values.shape}"
        )
    return values.astype(float)


def check_errors(errors: Any, integrator: FrameIntegrator | None) -> None:
    """Check where the noise of patterns is to be known from.

    Raises
    ------
    InputError
        Where that is neither ``"counts"`` nor a data key, or the integrator does not know it.
    """
    if errors is not None and (not isinstance(errors, str) or not errors):
        raise InputError(f"errors: expected 'counts', a data key or None, got {errors!r}")
    if errors is None or integrator is None:
        return
    if errors != "counts":
        raise InputError(
            f"errors: patterns are made of frames by the integrator, so expected 'counts' or None, "
            f"got {errors!r}"
        )
    if not callable(getattr(integrator, "with_variance", None)):
        raise InputError(
            "errors: 'counts' needs an integrator that knows the noise of its patterns "
            f"(with_variance(frame), as bluesky_cmf.Integrator has it), got {integrator!r}"
        )
