"""Shapes that stretch: a component as a function of one strain, tabulated and interpolated."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .bounds import strain_bounds

__all__ = ["TAPS", "Family", "Tables", "spline_weights"]

Array = npt.NDArray[Any]

#: Rows of a table that one strain takes part of: those of a cubic spline.
TAPS = 4
#: Fewest shapes that a cubic spline goes through.
_FEWEST = 4


@dataclass(frozen=True, eq=False)
class Family:
    """The shapes h(ε) of a component, F points each, for strains from ``bounds[0]`` to the other.

    Parameters
    ----------
    shapes : array_like (G, F)
        Shapes at G strains at even distances, the first and the last at the bounds; at least 4,
        and finely enough for a cubic spline in the strain to give those in between.
    bounds : (float, float)
        The least and the largest strain.
    shape : array_like (F,)
        What the component is called when one shape is asked for: h(0).

    Raises
    ------
    InputError
        Where a shape is another one, a value is negative or not finite, or the bounds are none.

    Examples
    --------
    >>> x, strains = np.linspace(1, 5, 400), np.linspace(-0.01, 0.01, 21)
    >>> line = lambda strain: np.exp(-((x * (1 + strain) - 3) / 0.1) ** 2)
    >>> family = Family([line(strain) for strain in strains], (-0.01, 0.01), line(0))
    >>> float(abs(family.at(0.0042) - line(0.0042)).max()) < 1e-5
    True
    """

    shapes: Array
    bounds: tuple[float, float]
    shape: Array

    def __init__(
        self, shapes: npt.ArrayLike, bounds: Sequence[float], shape: npt.ArrayLike
    ) -> None:
        values, reference = _numbers("shapes", shapes, 2), _numbers("shape", shape, 1)
        if len(values) < _FEWEST or values.shape[1:] != reference.shape:
            raise InputError(
                f"shapes: expected at least {_FEWEST} shapes of as many points as shape, "
                f"({len(reference)},), got {values.shape}"
            )
        object.__setattr__(self, "shapes", values)
        object.__setattr__(self, "shape", reference)
        object.__setattr__(self, "bounds", strain_bounds("bounds", bounds))

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def step(self) -> float:
        """Strain between two shapes of the table."""
        return (self.bounds[1] - self.bounds[0]) / (len(self) - 1)

    @cached_property
    def coefficients(self) -> Array:
        """Coefficients of the cubic B-splines, (G + 2, F), in float64."""
        G = len(self)
        matrix = np.zeros((G + 2, G + 2))
        for node in range(G):
            matrix[node + 1, node : node + 3] = 1 / 6, 4 / 6, 1 / 6
        # At the ends the first two pieces, and the last two, are one cubic: not-a-knot.
        matrix[0, :5] = matrix[-1, -5:] = 1, -4, 6, -4, 1
        padded = np.pad(self.shapes, ((1, 1), (0, 0)))
        return np.asarray(np.linalg.solve(matrix, padded))

    def at(self, strain: float) -> Array:
        """Give the shape at a strain, (F,)."""
        return self._combined(strain, 0)

    def derivative(self, strain: float) -> Array:
        """Give the derivative of the shape by the strain, (F,)."""
        return self._combined(strain, 1)

    def _combined(self, strain: float, order: int) -> Array:
        place = torch.tensor(strain, dtype=torch.float64)
        first, *weights = spline_weights(place, self.bounds[0], self.step, len(self) + 2)
        rows = self.coefficients[int(first) : int(first) + TAPS]
        return np.asarray(weights[order].numpy() @ rows)


def spline_weights(
    strain: torch.Tensor, low: Any, step: Any, rows: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tell which rows of a table make up a strain, and how.

    Parameters
    ----------
    strain : Tensor (…)
        Strains.
    low, step, rows : float or Tensor (…)
        Strain of the first shape, between two shapes, and the number of coefficients.

    Returns
    -------
    first : Tensor (…) of int64
        The first of the four rows.
    values, slopes : Tensor (…, 4)
        Their weights in the shape, and in its derivative.
    """
    place = (strain - low) / step
    last = torch.as_tensor(rows, device=strain.device) - TAPS
    first = torch.minimum(place.floor().long().clamp_min(0), last)
    u = place - first
    v = 1 - u
    values = [v**3, 3 * u**3 - 6 * u**2 + 4, 3 * v**3 - 6 * v**2 + 4, u**3]
    slopes = [-(v**2), 3 * u**2 - 4 * u, -3 * v**2 + 4 * v, u**2]
    width = torch.as_tensor(step, dtype=strain.dtype, device=strain.device)[..., None]
    return first, torch.stack(values, -1) / 6, torch.stack(slopes, -1) / 2 / width


def _numbers(argument: str, values: npt.ArrayLike, ndim: int) -> Array:
    try:
        array = np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{argument}: expected an array of numbers, got {error}") from error
    if array.ndim != ndim or not np.isfinite(array).all() or (array < 0).any():
        raise InputError(
            f"{argument}: expected finite, non-negative numbers of {ndim} dimensions, "
            f"got shape {array.shape}"
        )
    array.flags.writeable = False
    return array


class Tables:
    """All held components as rows of one table: four of a strain make up a shape, or one that is.

    Parameters
    ----------
    H : Tensor (K, F)
        The components.
    free : sequence of int
        Which are free.
    families : dict of int to Family
        Those that are strained, by number; they are held.

    Attributes
    ----------
    held, free, strained : list of int
        Numbers of the components that are held (first those that are strained), free, strained.
    rows : Tensor (R, F)
        The table, and ``products`` (R, R), the table times itself transposed.
    first, count : Tensor (P,) of int64
        Where the rows of each held component begin, and how many there are.
    low, high, step : Tensor (P,)
        Bounds of the strain, and its distance between two rows; zeros and 1 where there is none.
    """

    def __init__(self, H: torch.Tensor, free: Sequence[int], families: dict[int, Family]) -> None:
        self.strained, self.free = sorted(families), list(free)
        rest = [k for k in range(len(H)) if k not in families and k not in self.free]
        self.held = [*self.strained, *rest]
        parts = [torch.tensor(families[k].coefficients, device=H.device) for k in self.strained]
        parts += [H[k : k + 1] for k in rest]
        counts = [len(part) for part in parts]
        self.rows = torch.cat(parts).contiguous()
        self.products = self.rows @ self.rows.T
        self.count = torch.tensor(counts, device=H.device)
        self.first = self.count.cumsum(0) - self.count
        one, none = [1.0] * len(rest), [0.0] * len(rest)
        chosen = [families[k] for k in self.strained]
        self.low = H.new_tensor([*(family.bounds[0] for family in chosen), *none])
        self.high = H.new_tensor([*(family.bounds[1] for family in chosen), *none])
        self.step = H.new_tensor([*(family.step for family in chosen), *one])

    @property
    def order(self) -> list[int]:
        """Components in the order that rows are solved in: strained, other held, free ones."""
        return [*self.held, *self.free]

    @property
    def start(self) -> torch.Tensor:
        """Where strains start, (S,): at none, or at the bound next to it."""
        S = len(self.strained)
        return torch.zeros_like(self.low[:S]).clamp(self.low[:S], self.high[:S])

    def places(self, strains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tell the rows (M, P, 4) that strains (M, S) take, their weights, and the slopes."""
        M, P, S = len(strains), len(self.held), len(self.strained)
        index = self.first.expand(M, P)[..., None].repeat(1, 1, TAPS)
        values = strains.new_zeros(M, P, TAPS)
        slopes = values.clone()
        values[:, S:, 0] = 1.0
        first, weights, derivatives = spline_weights(
            strains, self.low[:S], self.step[:S], self.count[:S]
        )
        taps = torch.arange(TAPS, device=strains.device)
        index[:, :S] += first[..., None] + taps
        values[:, :S], slopes[:, :S] = weights, derivatives
        return index, values, slopes
