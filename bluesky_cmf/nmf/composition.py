"""What a factorization is made of: components, their strains, weights that are held, penalties."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy.typing as npt
import torch

from ..errors import InputError
from .blocks import Blocks
from .components import Components, as_patterns
from .constraints import checked_flag
from .divergencefit import DivergenceFit
from .families import Family
from .fit import Fit
from .held import HeldWeights
from .kernels import warm_up
from .leastsquares import LeastSquares
from .numerics import beta_of
from .rules import Rules
from .strainedfactors import StrainedFactors
from .strainedfit import StrainedFit

__all__ = ["Composition"]

Patterns = npt.ArrayLike | torch.Tensor


@dataclass(eq=False)
class Composition:
    """What is asked of a fit, much of which may change between two of them, and how one is built.

    Attributes
    ----------
    components : Components
        Their names, which are held, and their values in float64.
    loss : str or float
        As that of `StreamingNMF`.
    dtype : torch.dtype
        What patterns are rounded to.
    alpha, l1_ratio : float
        Penalty on both factors.
    sum_to_one : bool
        Whether the weights of a pattern add up to 1.
    held : HeldWeights
        Weights that are held.
    families : dict of str to Family
        Components that are strained.
    """

    components: Components
    loss: str | float
    dtype: torch.dtype
    alpha: float = 0.0
    l1_ratio: float = 0.0
    sum_to_one: bool = False
    held: HeldWeights = field(init=False)
    families: dict[str, Family] = field(init=False, default_factory=dict)
    #: Strains of the rows so far, by component, for a fit that is built anew.
    _strains: dict[str, torch.Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._beta = beta_of(self.loss)
        self.held = HeldWeights(self.names, device=self.device)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components, in order."""
        return tuple(self.components.names)

    @property
    def device(self) -> torch.device:
        """Where the components are."""
        return self.components.H.device

    @property
    def rules(self) -> Rules:
        """What a fit has to keep to."""
        free = tuple(self.components.free)
        settled = self.alpha > 0 or self.sum_to_one
        scalable = [k for k in free if not settled and not self.held.scale(self.names[k])]
        return Rules(
            free,
            beta=self._beta,
            l1=self.alpha * self.l1_ratio,
            l2=self.alpha * (1 - self.l1_ratio),
            total=1.0 if self.sum_to_one else None,
            scalable=tuple(scalable),
            interchangeable=tuple(k for k in free if not self.held.holds(self.names[k])),
            holds_weights=self.held.used,
        )

    def fit(self, X: Blocks, *, seed: int) -> Fit:
        """Build what fits patterns, from the components as they are."""
        held, H = self.held.rows(), self.components.H
        if self.families:
            families = {self.components.index(name): f for name, f in self.families.items()}
            strains = [self._strains.get(self.names[k]) for k in sorted(families)]
            return StrainedFit(
                X, H, self.rules, seed=seed, held=held, families=families, strains=strains
            )
        kind = LeastSquares if self._beta == 2 else DivergenceFit
        return kind(X, H, self.rules, seed=seed, held=held)

    def follow(self, fit: Fit) -> None:
        """Note where a fit that was built of it has brought components and strains."""
        factors = fit.factors
        self.components.H = factors.shapes
        if isinstance(factors, StrainedFactors):
            columns = factors.strains.tensor().unbind(1)
            names = [self.names[k] for k in factors.tables.strained]
            self._strains = dict(zip(names, columns, strict=True))

    def strain(self, families: Mapping[str, Family]) -> None:
        """Hold components at families of shapes."""
        if not isinstance(families, Mapping):
            raise InputError(f"families: expected a Family by the name of each, got {families!r}")
        # All that may fail comes first.
        shapes = [self._shape_of(name, family) for name, family in families.items()]
        if families and self.device.type == "cpu":
            warm_up(strained=True)
        for (name, family), shape in zip(families.items(), shapes, strict=True):
            self.components.pin(self.components.index(name), shape)
            self._unstrain(name)
            self.families[name] = family

    def fix(self, name: str, pattern: Patterns | None, family: Family | None) -> None:
        """Hold a component at a pattern (F,), at the shape that it has, or at a family's."""
        k = self.components.index(name)
        values = None if pattern is None else self._pattern(pattern)
        if family is not None:
            self.strain({name: family})
            return
        self.components.pin(k, values)
        if values is not None:
            self._unstrain(name)

    def release(self, name: str) -> None:
        """Let a component go free."""
        self.components.fixed[self.components.index(name)] = False
        self._unstrain(name)

    def add(
        self, name: str | None, pattern: Patterns | None, fixed: bool, family: Family | None
    ) -> str:
        """Append a component and return its name."""
        fixed = checked_flag("fixed", fixed)
        if fixed and pattern is None:
            raise InputError("pattern: a fixed component needs a pattern to hold, got None")
        name = self.components.new_name(name)
        values = None if pattern is None else self._pattern(pattern)
        if family is not None:
            self._shape_of(name, family)
        self.components.add(name, values, fixed=fixed)
        self.held.add(name)
        if family is not None:
            self.strain({name: family})
        return name

    def remove(self, name: str) -> None:
        """Take a component out."""
        k = self.components.index(name)
        if len(self.components) == 1:
            raise InputError(f"name: {name!r} is the only component; add another one first")
        self.components.remove(k)
        self.held.remove(name)
        self._unstrain(name)

    def _unstrain(self, name: str) -> None:
        self.families.pop(name, None)
        self._strains.pop(name, None)

    def _shape_of(self, name: str, family: Family) -> torch.Tensor:
        """Check a family of shapes, and give the one without strain."""
        if self._beta != 2:
            raise InputError(
                f"loss: a strain is fitted by least squares, expected 'frobenius' where component "
                f"{name!r} has one, got {self.loss!r}; leave its strain out, or the loss"
            )
        n_features = self.components.H.shape[1]
        if not isinstance(family, Family) or len(family.shape) != n_features:
            raise InputError(
                f"families: expected a Family of {n_features} points for {name!r}, got {family!r}"
            )
        return self._pattern(family.shape)

    def _pattern(self, values: Patterns) -> torch.Tensor:
        patterns = as_patterns(
            values,
            self.components.H.shape[1],
            argument="pattern",
            dtype=self.dtype,
            device=self.device,
        )
        if len(patterns) != 1:
            raise InputError(f"pattern: expected one pattern, got {len(patterns)}")
        return patterns[0].to(torch.float64)
