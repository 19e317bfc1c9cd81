"""Weights that are held: of single patterns, single entries, or a component's whole column."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .rows import Rows

__all__ = ["HeldWeights"]


class HeldWeights:
    """Which weights are held and at what.

    Parameters
    ----------
    names : sequence of str
        Names of the K components.
    device : torch.device
        Where the table is.

    Attributes
    ----------
    used : bool
        Whether any weight is held.
    """

    def __init__(self, names: Sequence[str], *, device: torch.device) -> None:
        self._device = device
        self._columns = dict.fromkeys(names, math.nan)
        self._table: Rows | None = None
        self.used = False

    def append(self, first: int, count: int, weights: npt.ArrayLike | None) -> None:
        """Follow patterns from number ``first`` on, with the weights that are held for them."""
        if weights is None and not self.used:
            return
        K = len(self._columns)
        values = np.full(K, math.nan) if weights is None else _checked(weights)
        if values.shape not in ((K,), (count, K)):
            raise InputError(
                f"weights: expected {K} weights a pattern, (K,) or ({count}, K), NaN where free, "
                f"got shape {values.shape}"
            )
        table = self.rows(first)
        table.extend(count)
        values = np.where(np.isnan(values), list(self._columns.values()), values)
        held = torch.from_numpy(np.broadcast_to(values, (count, K)).copy())
        begin = first
        while begin < first + count:
            end = table.bound(begin, first + count)
            table.view(begin, end)[:] = held[begin - first : end - first]
            begin = end
        self.used = self.used or not np.isnan(values).all()

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
            self._table = self._filled(torch.cat([values, free], 1))

    def remove(self, name: str) -> None:
        """Follow a component that is removed."""
        if self._table is not None:
            values, k = self._table.tensor(), self._place(name)
            self._table = self._filled(torch.cat([values[:, :k], values[:, k + 1 :]], 1))
        del self._columns[name]
        self._look()

    def rows(self, n_patterns: int) -> Rows:
        """Give the table, (N, K) with NaN where weights are free; it grows with `append`."""
        if self._table is None:
            columns = torch.tensor(list(self._columns.values()), dtype=torch.float64)
            self._table = self._filled(columns.expand(n_patterns, len(columns)))
        return self._table

    def scale(self, name: str) -> bool:
        """Whether a weight of this component is held that says what its scale is."""
        if not self.used:
            return False
        column = 0.0 if self._table is None else self._table.tensor()[:, self._place(name)]
        return self._columns[name] > 0 or bool((torch.as_tensor(column) > 0).any())

    def state(self, n_patterns: int) -> dict[str, npt.NDArray[np.float64]]:
        """Give what is held, as plain arrays: (N, K) and (K,)."""
        values = self.rows(n_patterns).tensor().cpu().numpy()
        return {"held_weights": values, "held_columns": np.array(list(self._columns.values()))}

    def restore(self, values: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> None:
        """Take what `state` gave."""
        self._columns = dict(zip(self._columns, columns.tolist(), strict=True))
        self._table = self._filled(torch.from_numpy(np.array(values, dtype=float)))
        self._look()

    def _write(self, name: str, values: npt.NDArray[np.float64], n_patterns: int) -> None:
        table = self.rows(n_patterns).tensor()
        table[:, self._place(name)] = torch.from_numpy(np.broadcast_to(values, n_patterns).copy())
        self._columns[name] = float(values) if values.ndim == 0 else math.nan
        self._table = self._filled(table)
        self._look()

    def _filled(self, values: torch.Tensor) -> Rows:
        table = Rows(values.shape[1], device=self._device)
        table.replace(values)
        return table

    def _look(self) -> None:
        """See whether anything is held still; an empty table is dropped."""
        table = None if self._table is None else self._table.tensor()
        held = table is not None and not bool(table.isnan().all())
        self.used = held or not all(map(math.isnan, self._columns.values()))
        if not self.used:
            self._table = None

    def _place(self, name: str) -> int:
        return list(self._columns).index(name)


def _checked(weights: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        values = np.asarray(weights, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"weights: expected numbers, got {error}") from error
    wrong = values[(values < 0) | np.isinf(values)]
    if wrong.size:
        raise InputError(
            "weights: expected finite numbers of at least 0, NaN where they are free, "
            f"got {wrong[0]:.4g}"
        )
    return values
