"""Weights that are held: of single patterns, single entries, or a component's whole column."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .rows import Rows

__all__ = ["HeldWeights"]

#: Beyond it squares, which are what is summed, overflow.
_LARGEST = 1e140


class HeldWeights:
    """Which weights are held and at what.

    Parameters
    ----------
    names : sequence of str
        Names of the K components.
    device : torch.device
        Where the table is.
    """

    def __init__(self, names: Sequence[str], *, device: torch.device) -> None:
        self._device = device
        self._columns = dict.fromkeys(names, math.nan)
        self._table: Rows | None = None
        # Components that have a held weight, and those of which one says what the scale is.
        self._holding: set[str] = set()
        self._scaling: set[str] = set()

    @property
    def used(self) -> bool:
        """Whether any weight is held."""
        return self._table is not None

    def append(self, first: int, count: int, weights: npt.ArrayLike | None) -> None:
        """Follow patterns from number ``first`` on, with the weights that are held for them."""
        if weights is None and self._table is None:
            return
        K = len(self._columns)
        values = np.full(K, math.nan) if weights is None else _checked(weights)
        if values.shape not in ((K,), (count, K)):
            raise InputError(
                f"weights: expected {K} weights a pattern, (K,) or ({count}, K), NaN where free, "
                f"got shape {values.shape}"
            )
        if self._table is None and np.isnan(values).all():
            return
        if self._table is None:
            self._table = self._filled(self._free(first))
        self._table.extend(count)
        values = np.where(np.isnan(values), list(self._columns.values()), values)
        held = torch.from_numpy(np.broadcast_to(values, (count, K)).copy())
        self._table.write(first, held)
        self._note(np.atleast_2d(values))

    def fix(self, name: str, weights: npt.ArrayLike, n_patterns: int) -> None:
        """Hold a component's column: at one number, or at one for each pattern so far."""
        values = _checked(weights)
        if values.shape not in ((), (n_patterns,)):
            raise InputError(
                f"weights: expected one number or one for each of {n_patterns} patterns, "
                f"got shape {values.shape}"
            )
        self._write(name, values, n_patterns)

    def release(self, name: str, n_patterns: int) -> None:
        """Let a component's column go free."""
        self._write(name, np.array(math.nan), n_patterns)

    def add(self, name: str) -> None:
        """Follow a component that is added."""
        self._columns[name] = math.nan
        if self._table is not None:
            values = self._table.tensor()
            free = values.new_full((len(values), 1), math.nan)
            self._put(torch.cat([values, free], 1))

    def remove(self, name: str) -> None:
        """Follow a component that is removed."""
        k = self._place(name)
        del self._columns[name]
        if self._table is not None:
            values = self._table.tensor()
            self._put(torch.cat([values[:, :k], values[:, k + 1 :]], 1))

    def rows(self) -> Rows | None:
        """Give the table, (N, K) with NaN where weights are free; it grows with `append`."""
        return self._table

    def holds(self, name: str) -> bool:
        """Whether a weight of this component is held."""
        return name in self._holding

    def scale(self, name: str) -> bool:
        """Whether a weight of this component is held that says what its scale is."""
        return name in self._scaling

    def state(self, n_patterns: int) -> dict[str, npt.NDArray[np.float64]]:
        """Give what is held, as plain arrays: (N, K) and (K,)."""
        values = self._free(n_patterns) if self._table is None else self._table.tensor()
        columns = np.array(list(self._columns.values()))
        return {"held_weights": values.cpu().numpy(), "held_columns": columns}

    def restore(self, values: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> None:
        """Take what `state` gave."""
        self._columns = dict(zip(self._columns, columns.tolist(), strict=True))
        self._put(torch.from_numpy(np.array(values, dtype=float)))

    def _write(self, name: str, values: npt.NDArray[np.float64], n_patterns: int) -> None:
        self._columns[name] = float(values) if values.ndim == 0 else math.nan
        table = self._free(n_patterns) if self._table is None else self._table.tensor()
        table[:, self._place(name)] = torch.from_numpy(np.broadcast_to(values, n_patterns).copy())
        self._put(table)

    def _put(self, values: torch.Tensor) -> None:
        """Take a table; one in which nothing is held is dropped."""
        columns = np.array([list(self._columns.values())])
        held = np.concatenate([values.cpu().numpy(), columns])
        self._holding, self._scaling = set(), set()
        self._note(held)
        self._table = self._filled(values) if self._holding else None

    def _note(self, values: npt.NDArray[np.float64]) -> None:
        """Note whose weights are among these, (M, K)."""
        for name, column in zip(self._columns, values.T, strict=True):
            if not np.isnan(column).all():
                self._holding.add(name)
            if (column > 0).any():
                self._scaling.add(name)

    def _free(self, n_patterns: int) -> torch.Tensor:
        shape = (n_patterns, len(self._columns))
        return torch.full(shape, math.nan, dtype=torch.float64, device=self._device)

    def _filled(self, values: torch.Tensor) -> Rows:
        table = Rows(values.shape[1], device=self._device)
        table.replace(values)
        return table

    def _place(self, name: str) -> int:
        return list(self._columns).index(name)


def _checked(weights: npt.ArrayLike | torch.Tensor | None) -> npt.NDArray[np.float64]:
    try:
        if weights is None:
            raise TypeError("None")
        if isinstance(weights, torch.Tensor):
            weights = weights.detach().cpu().numpy()
        values = np.asarray(weights, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"weights: expected numbers, got {error}") from error
    wrong = values[(values < 0) | (values > _LARGEST)]
    if wrong.size:
        raise InputError(
            f"weights: expected numbers from 0 to {_LARGEST:g}, NaN where they are free, "
            f"got {wrong[0]:.4g}"
        )
    return values
