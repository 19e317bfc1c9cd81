"""What a refit gives back: frozen views, numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .fractions import areas, fractions
from .rows import Frozen

__all__ = ["FitResult", "RowFit", "relative", "scales", "spread_strains"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RowFit:
    """How some rows of X are explained: M patterns, K components.

    Attributes
    ----------
    weights : ndarray (M, K)
        Weights of the components.
    covariance : ndarray (M, K, K)
        Covariances of the weights of each row, given the components' shapes; 0 where a weight
        is held or at its bound, NaN where they are not defined.
    r_factor : ndarray (M,)
        ``sqrt(sum((x - wH)²) / sum(x²))``.
    unexplained : ndarray (M,)
        Intensity above the reconstruction, as a fraction: ``sum(max(x - wH, 0)) / sum(x)``.
    reconstruction : ndarray (F,)
        wH of the last of the rows.
    strains, strain_errors : ndarray (M, K)
        Strains of the components that have some, and their standard errors, joint with those of
        the weights; NaN for the others, and where a weight is zero. The error is 0 at a bound.
    """

    weights: Array
    covariance: Array
    r_factor: Array
    unexplained: Array
    reconstruction: Array
    strains: Array = field(default_factory=lambda: np.empty(0))
    strain_errors: Array = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        if not self.strains.size:
            none = np.full(self.weights.shape, np.nan)
            object.__setattr__(self, "strains", none)
            object.__setattr__(self, "strain_errors", none)

    @cached_property
    def errors(self) -> Array:
        """Standard errors of the weights, (M, K): square roots of the covariances' diagonals."""
        variance = np.diagonal(self.covariance, axis1=1, axis2=2)
        errors: Array = np.sqrt(variance.clip(0))
        return errors


@dataclass(frozen=True, eq=False)
class FitResult:
    """A frozen view of one refit: N patterns, K components, F points.

    Attributes
    ----------
    names : tuple of str
        Names of the components, in order.
    fixed : tuple of bool
        Which components are held.
    objective : float
        What the loss says over all N patterns; for ``"frobenius"`` half the squared Frobenius
        norm of X - WH, in float64.
    n_patterns : int
        N.
    converged : bool
        Whether the refit reached its tolerance.
    seconds : float
        Duration of the refit.
    weights, components, r_factor : ndarray
        (N, K), (K, F) and (N,); made on first access, as of the refit.
    strains : ndarray (N, K)
        Strains, NaN where a component has none or its weight is zero.
    """

    names: tuple[str, ...]
    fixed: tuple[bool, ...]
    _objective: float | torch.Tensor
    n_patterns: int
    converged: bool
    seconds: float
    _W: Frozen = field(repr=False)
    _H: torch.Tensor | Array = field(repr=False)
    _scalable: tuple[int, ...] = field(repr=False)
    _squared_residual: Frozen = field(repr=False)
    _squared_norm: torch.Tensor = field(repr=False)
    _strains: Frozen | None = field(repr=False, default=None)
    _strained: tuple[int, ...] = field(repr=False, default=())

    @property
    def objective(self) -> float:
        """What the loss says over all N patterns, in float64."""
        return float(self._objective)

    @cached_property
    def weights(self) -> Array:
        """Weights of the components, (N, K)."""
        return _frozen((self._W.tensor() * self._scale).to(self._shapes.dtype))

    @cached_property
    def strains(self) -> Array:
        """Strains of the components that have some, (N, K), in float64; NaN elsewhere."""
        W = self._W.tensor()
        own = W.new_zeros(len(W), 0) if self._strains is None else self._strains.tensor()
        return _frozen(spread_strains(own, W, self._strained))

    @cached_property
    def _shapes(self) -> torch.Tensor:
        """The components as the fit has them, (K, F)."""
        return torch.as_tensor(self._H)

    @cached_property
    def _scale(self) -> torch.Tensor:
        """What components are divided by, and weights multiplied, (K,)."""
        return scales(self._shapes, self._scalable).to(torch.float64)

    @cached_property
    def components(self) -> Array:
        """The components, (K, F)."""
        return _frozen(self._shapes / self._scale.to(self._shapes.dtype)[:, None])

    def fractions(self, x: npt.ArrayLike | None = None) -> Array:
        """Give the part that each component has in the intensity of each pattern's fit.

        Parameters
        ----------
        x : array_like (F,), optional
            Axis that components are integrated over; by default the points are taken as evenly
            spaced.

        Returns
        -------
        ndarray (N, K)
            Weight times area of the component, by the sum of these; NaN where that is zero.

        Raises
        ------
        InputError
            Where the axis has another length than the components.
        """
        return fractions(self.weights, areas(self.components, x))

    @cached_property
    def r_factor(self) -> Array:
        """R-factor of each pattern, (N,)."""
        squared = self._squared_residual.tensor()[:, 0]
        return _frozen(relative(squared, self._squared_norm[: len(squared)]).sqrt())


def scales(H: torch.Tensor, scalable: Sequence[int]) -> torch.Tensor:
    """Maxima of some components, (K,), 1 for the others and where one is zero throughout."""
    scale = H.new_ones(len(H))
    for k in scalable:
        scale[k] = H[k].max()
    return scale.masked_fill_(scale <= 0, 1.0)


def spread_strains(own: torch.Tensor, W: torch.Tensor, strained: Sequence[int]) -> torch.Tensor:
    """Give what belongs to strained components (M, S) its columns of (M, K).

    It is NaN for the others, and where nothing of a component is there.
    """
    strains = torch.full_like(W, torch.nan)
    columns = list(strained)
    strains[:, columns] = torch.where(W[:, columns] > 0, own, torch.nan)
    return strains


def relative(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Divide, with 0/0 = 0: an empty pattern is explained by nothing, and by that alone."""
    empty = torch.where(part > 0, torch.inf, 0.0)
    return torch.where(whole > 0, part / whole.clamp_min(torch.finfo(whole.dtype).tiny), empty)


def _frozen(tensor: torch.Tensor) -> Array:
    values: Array = np.array(tensor.cpu().numpy())
    values.flags.writeable = False
    return values
