"""The last patterns and what was left of them, to look back at once something was found."""

import numpy as np
import numpy.typing as npt

__all__ = ["Recent"]

Array = npt.NDArray[np.float64]

#: What the tables hold at most: a noise beyond it weighs nothing either way.
_LARGEST = float(np.finfo(np.float32).max)


class Recent:
    """A ring of the last patterns, their noise, their standardised residuals and active sets.

    Parameters
    ----------
    capacity : int
        Most patterns.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._total = 0
        self._tables: dict[str, npt.NDArray[np.generic]] = {}

    def __len__(self) -> int:
        return min(self._total, self._capacity)

    def add(self, **rows: npt.NDArray[np.generic]) -> None:
        """Add rows (M, …) to each table, at most as many as it holds."""
        count = len(next(iter(rows.values())))
        places = (self._total + np.arange(count)) % self._capacity
        for name, values in rows.items():
            if name not in self._tables:
                # Half the memory; what it is for needs no more digits.
                kind = np.float32 if values.dtype.kind == "f" else values.dtype
                self._tables[name] = np.zeros((self._capacity, *values.shape[1:]), dtype=kind)
            self._tables[name][places] = _bounded(values)
        self._total += count

    def table(self, name: str) -> Array:
        """Give one of the tables, the oldest row first: a copy, in float64."""
        order = (self._total - len(self) + np.arange(len(self))) % self._capacity
        found: Array = self._tables[name][order].astype(float)
        return found

    def replace(self, name: str, values: Array) -> None:
        """Put other rows in the place of those that `table` gives."""
        order = (self._total - len(self) + np.arange(len(self))) % self._capacity
        self._tables[name][order] = _bounded(values)


def _bounded(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.clip(values, -_LARGEST, _LARGEST) if values.dtype.kind == "f" else values
