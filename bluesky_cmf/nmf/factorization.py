"""Factors that follow rows as they arrive: what all losses have in common."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .blocks import Blocks
from .covariance import Noises, on_host
from .results import scales
from .rows import Rows
from .rules import Rules

__all__ = ["Factorization", "free_weights", "spread"]


class Factorization(ABC):
    """W (N, K) and H (K, F) for the rows of X so far, in float64, changed in place.

    Parameters
    ----------
    X : Blocks
        The data; rows appended to it are taken in by `follow`.
    H : Tensor (K, F)
        Components to start from.
    rules : Rules
        What is asked of the factors.
    held : Rows, optional
        Weights that are held, (N, K), NaN where they are free.

    Attributes
    ----------
    n_components : int
        K.
    W, squared : Rows
        Weights, and squared residuals as of the last solve of each row.
    """

    def __init__(
        self, X: Blocks, H: torch.Tensor, rules: Rules, *, held: Rows | None = None
    ) -> None:
        self.X, self.rules, self.held = X, rules, held
        self.H = H.clone(memory_format=torch.contiguous_format)
        self.H /= self.scale[:, None]
        self.n_components = len(H)
        self.W, self.squared = Rows(len(H), device=X.device), Rows(1, device=X.device)

    def __len__(self) -> int:
        return len(self.W)

    @property
    def scale(self) -> torch.Tensor:
        """What the components are to be divided by, and the weights multiplied, (K,)."""
        return scales(self.H, self.rules.scalable)

    @property
    def shapes(self) -> torch.Tensor:
        """The components with the scale that is pinned, (K, F)."""
        return self.H / self.scale[:, None]

    @property
    @abstractmethod
    def objective(self) -> float:
        """What is to be lowered, for W and H as they are."""

    def follow(self, most: int | None = None) -> int:
        """Take in rows of X that are new, with exact weights; give the number of the first."""
        first = len(self.W)
        stop = len(self.X) if most is None else min(len(self.X), first + most)
        if stop > first:
            self.W.extend(stop - first)
            self.squared.extend(stop - first)
            self._take_in(first, stop)
        return first

    @abstractmethod
    def resolve(self, start: int, stop: int) -> None:
        """Solve for the weights of rows anew, exactly, given H."""

    @abstractmethod
    def descend(self, passes: int) -> None:
        """Lower the objective over the free components, given W."""

    @abstractmethod
    def covariance(
        self, W: torch.Tensor, start: int, squared: torch.Tensor, noises: Noises
    ) -> npt.NDArray[Any]:
        """Estimate covariances of weights (M, K), as (M, K, K), given the components' shapes.

        Without a noise that is known, a row's is taken from its squared residual of (M,).
        """

    @abstractmethod
    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Give what is needed to go on later, as plain arrays."""

    @abstractmethod
    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `state` gave, as it is."""

    def shapeless(self) -> list[int]:
        """Tell which free components hold nothing but zeros."""
        largest = self.H.amax(1).tolist()
        return [k for k in self.rules.free if largest[k] <= 0]

    def rounded(self, dtype: torch.dtype) -> torch.Tensor | npt.NDArray[Any]:
        """Copy the components into what results are given in."""
        return self.H.to(dtype, copy=True)

    def reseed(self, k: int, pattern: torch.Tensor) -> None:
        """Give a component another shape, (F,); weights stay until they are solved for."""
        self.H[k] = pattern

    def reconstruct(self, W: torch.Tensor, start: int) -> torch.Tensor:
        """Reconstruct rows from ``start`` on, (M, F), of weights (M, K)."""
        return W @ self.H

    def unexplained(self, start: int, stop: int) -> float:
        """Tell how much of some rows is left, relative to them, as of their last solve."""
        return self.squared.sum(start, stop) / max(self.X.squared_norm(start, stop), 1e-300)

    @abstractmethod
    def _take_in(self, first: int, stop: int) -> None:
        """Solve for the weights of rows that are new."""


def free_weights(W: torch.Tensor, held: Rows | None, start: int) -> npt.NDArray[Any]:
    """Tell which weights (M, K) of rows from ``start`` on are positive and not held."""
    free: npt.NDArray[Any] = on_host(W) > 0
    if held is not None:
        free &= np.isnan(on_host(held.tensor(start, start + len(W))))
    return free


def spread(total: torch.Tensor, free: npt.NDArray[Any], n_features: int) -> npt.NDArray[Any]:
    """Divide sums over points (M,) by the points that are left beside the free weights (M, K)."""
    # With one point for each weight nothing is left to take the noise from.
    spare = n_features - free.sum(1)
    share: npt.NDArray[Any] = on_host(total) / np.where(spare > 0, spare, math.nan)
    return share
