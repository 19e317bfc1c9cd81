"""What a refit gives back: frozen views, numpy only."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["FitResult", "RowFit"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RowFit:
    """How some rows of X are explained: M patterns, K components.

    Attributes
    ----------
    weights : ndarray (M, K)
        Weights of the components.
    errors : ndarray (M, K)
        Standard errors of the weights, given the components' shapes; 0 where a weight is held
        at its bound, NaN where they are not defined.
    r_factor : ndarray (M,)
        ``sqrt(sum((x - wH)²) / sum(x²))``.
    unexplained : ndarray (M,)
        Intensity above the reconstruction, as a fraction: ``sum(max(x - wH, 0)) / sum(x)``.
    reconstruction : ndarray (F,)
        wH of the last of the rows.
    """

    weights: Array
    errors: Array
    r_factor: Array
    unexplained: Array
    reconstruction: Array


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
    """

    names: tuple[str, ...]
    fixed: tuple[bool, ...]
    objective: float
    n_patterns: int
    converged: bool
    seconds: float
    _W: torch.Tensor = field(repr=False)
    _H: torch.Tensor = field(repr=False)
    _squared_residual: torch.Tensor = field(repr=False)
    _squared_norm: torch.Tensor = field(repr=False)

    @cached_property
    def weights(self) -> Array:
        """Weights of the components, (N, K)."""
        return _frozen(self._W)

    @cached_property
    def components(self) -> Array:
        """The components, (K, F)."""
        return _frozen(self._H)

    @cached_property
    def r_factor(self) -> Array:
        """R-factor of each pattern, (N,)."""
        return _frozen(relative(self._squared_residual, self._squared_norm).sqrt())


def relative(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Divide, with 0/0 = 0: an empty pattern is explained by nothing."""
    return torch.where(whole > 0, part / whole.clamp_min(torch.finfo(whole.dtype).tiny), part)


def _frozen(tensor: torch.Tensor) -> Array:
    values: Array = np.array(tensor.cpu().numpy())
    values.flags.writeable = False
    return values
