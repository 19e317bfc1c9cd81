"""XHᵀ of the held components: they never change, so each row is multiplied with them once."""

from collections.abc import Sequence

import numpy as np
import torch

from .blocks import Blocks
from .kernels import kernels_for
from .rows import Rows

__all__ = ["HeldProducts"]


class HeldProducts:
    """XHᵀ of some components, (N, number of them), kept up with the rows of X.

    Factors for the same data and held components may share them.

    Parameters
    ----------
    X : Blocks
        The data.
    H : Tensor (K, F)
        Components.
    held : sequence of int
        Those of them that never change.
    """

    def __init__(self, X: Blocks, H: torch.Tensor, held: Sequence[int]) -> None:
        #: Numbers of the components, as kernels take them.
        self.constant = np.array(held, dtype=np.int64)
        self._X = X
        self.restart(H)

    def restart(self, H: torch.Tensor) -> None:
        """Begin anew, with the shapes of the same components of H (K, F)."""
        #: The shapes, (number of them, F), as kernels take them.
        self.shapes = H[self.constant.tolist()].numpy()
        self._table = Rows(len(self.constant), device=self._X.device)

    def follow(self, stop: int) -> None:
        """Multiply the rows up to ``stop`` that are new."""
        done = len(self._table)
        if done < stop:
            self._table.extend(stop - done)
            for first, last, rows in self._X.arrays(done, stop):
                for begin, end in self._table.spans(first, last):
                    self._multiply(rows[begin - first : end - first], begin, end)

    def room(self, number: int) -> np.ndarray:
        """Give where the products of a row go, (1, number of them), to one who multiplies it.

        The products of all rows before it have to be there.
        """
        self._table.extend(max(0, number + 1 - len(self._table)))
        return self._table.array(number, number + 1)

    def array(self, start: int, stop: int) -> np.ndarray:
        """Give the products of rows of one block of a table, (M, number of them)."""
        self.follow(stop)
        return self._table.array(start, stop)

    def _multiply(self, rows: np.ndarray, start: int, stop: int) -> None:
        kernels = kernels_for(self._X.device)
        kernels.times_by_row(rows, self.shapes, self._table.array(start, stop))  # type: ignore[union-attr]
