"""A table that grows by rows, in blocks that are never reallocated; snapshots stay as they are."""

from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["Frozen", "Rows"]

#: Rows of a block: what one change copies, where a snapshot holds the block.
_BLOCK_ROWS = 256


class Frozen:
    """The first rows of a table as they were when it was frozen.

    Parameters
    ----------
    blocks : tuple of Tensor
        Blocks that nobody writes to any more, but beyond ``length``.
    length : int
        Number of rows, N.
    """

    def __init__(self, blocks: tuple[torch.Tensor, ...], length: int) -> None:
        self._blocks, self._length = blocks, length

    def tensor(self) -> torch.Tensor:
        """Give the rows in one piece, (N, width): a copy."""
        return torch.cat(self._blocks)[: self._length]


class Rows:
    """N rows of ``width`` float64 numbers that can be appended to and changed in place.

    Parameters
    ----------
    width : int
        Numbers in a row.
    device : torch.device
        Where they are.
    """

    def __init__(self, width: int, *, device: torch.device) -> None:
        self._empty = torch.zeros(0, width, dtype=torch.float64, device=device)
        self._blocks: list[torch.Tensor] = []
        self._arrays: list[np.ndarray] = []
        self._shared: list[bool] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, count: int) -> None:
        """Append rows of zeros."""
        self._length += count
        while len(self._blocks) * _BLOCK_ROWS < self._length:
            block = self._empty.new_zeros(_BLOCK_ROWS, self._empty.shape[1])
            self._blocks.append(block)
            self._shared.append(False)
            if block.device.type == "cpu":
                self._arrays.append(block.numpy())

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield where the rows from ``start`` to ``stop`` begin and end, block by block."""
        while start < stop:
            end = min(stop, (start // _BLOCK_ROWS + 1) * _BLOCK_ROWS)
            yield start, end
            start = end

    def write(self, start: int, values: torch.Tensor) -> None:
        """Write rows (M, width) from ``start`` on."""
        for begin, end in self.spans(start, start + len(values)):
            self.view(begin, end)[:] = values[begin - start : end - start]

    def view(self, start: int, stop: int) -> torch.Tensor:
        """Rows of one block to write to; a snapshot that holds the block keeps the old one."""
        number, first = divmod(start, _BLOCK_ROWS)
        self._own(number)
        return self._blocks[number][first : first + stop - start]

    def array(self, start: int, stop: int) -> np.ndarray:
        """Give what `view` does, as kernels for the CPU take it."""
        number, first = divmod(start, _BLOCK_ROWS)
        self._own(number)
        return self._arrays[number][first : first + stop - start]

    def _own(self, number: int) -> None:
        if self._shared[number]:
            self._shared[number] = False
            if self._arrays:
                self._arrays[number] = array = self._arrays[number].copy()
                self._blocks[number] = torch.from_numpy(array)
            else:
                self._blocks[number] = self._blocks[number].clone()

    def tensor(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows in one piece, (M, width): a copy."""
        stop = self._length if stop is None else stop
        first, last = start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)
        offset = first * _BLOCK_ROWS
        blocks = [self._empty, *self._blocks[first:last]]
        return torch.cat(blocks)[start - offset : max(start, stop) - offset]

    def sum(self, start: int, stop: int) -> float:
        """Give the sum over some rows, to the host."""
        total = 0.0
        for begin, end in self.spans(start, stop):
            number, first = divmod(begin, _BLOCK_ROWS)
            block = self._arrays[number] if self._arrays else self._blocks[number]
            total += float(block[first : first + end - begin].sum())
        return total

    def frozen(self) -> Frozen:
        """Take a snapshot: a few references, no copy."""
        # Rows that are appended later lie beyond the snapshot, but are zero-extended in place.
        self._shared = [True] * len(self._blocks)
        return Frozen((self._empty, *self._blocks), self._length)

    def replace(self, values: torch.Tensor) -> None:
        """Put other rows, (M, width), in the place of all of them."""
        width = values.shape[1]
        self._empty = self._empty.new_zeros(0, width)
        self._blocks, self._arrays, self._shared, self._length = [], [], [], 0
        self.extend(len(values))
        self.write(0, values)
