"""A table that grows by rows, in blocks that are never reallocated; snapshots stay as they are."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch

__all__ = ["BLOCK_ROWS", "Frozen", "Rows"]

#: Rows of a block: what one change copies, where a snapshot holds the block. And blocks of a
#: page: so many references are copied with it, and a snapshot takes one for each page.
BLOCK_ROWS, _PAGE_BLOCKS = 256, 64


class Frozen:
    """The first rows of a table as they were when it was frozen.

    Parameters
    ----------
    pages : tuple of list of Tensor or ndarray
        Blocks that nobody writes to any more.
    length : int
        Number of rows, N.
    empty : Tensor (0, width)
        What there is without rows.
    """

    def __init__(self, pages: tuple[list[Any], ...], length: int, empty: torch.Tensor) -> None:
        self._pages, self._length, self._empty = pages, length, empty

    def tensor(self) -> torch.Tensor:
        """Give the rows in one piece, (N, width): a copy."""
        return _joined(self._empty, chain.from_iterable(self._pages))[: self._length]


class Rows:
    """N rows of ``width`` float64 numbers that can be appended to and changed in place.

    Parameters
    ----------
    width : int
        Numbers in a row.
    device : torch.device
        Where they are.

    Notes
    -----
    A snapshot costs a reference for each page, whatever it holds; the first change after it copies
    a block, and the references of its page.
    """

    def __init__(self, width: int, *, device: torch.device) -> None:
        self._empty = torch.zeros(0, width, dtype=torch.float64, device=device)
        self._on_host = device.type == "cpu"
        self._clear()

    def _clear(self) -> None:
        #: Blocks, by page: arrays on the host, else tensors. Those that no snapshot holds.
        self._pages: list[list[Any]] = []
        self._own_pages: set[int] = set()
        self._own_blocks: set[int] = set()
        self._n_blocks = self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, count: int) -> None:
        """Append rows of zeros."""
        self._length += count
        while self._n_blocks * BLOCK_ROWS < self._length:
            self._append_block()

    def _append_block(self) -> None:
        page = self._n_blocks // _PAGE_BLOCKS
        if page == len(self._pages):
            self._pages.append([])
            self._own_pages.add(page)
        shape = BLOCK_ROWS, self._empty.shape[1]
        block = np.zeros(shape) if self._on_host else self._empty.new_zeros(shape)
        self._own_page(page).append(block)
        self._own_blocks.add(self._n_blocks)
        self._n_blocks += 1

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield where the rows from ``start`` to ``stop`` begin and end, block by block."""
        while start < stop:
            end = min(stop, (start // BLOCK_ROWS + 1) * BLOCK_ROWS)
            yield start, end
            start = end

    def write(self, start: int, values: torch.Tensor) -> None:
        """Write rows (M, width) from ``start`` on."""
        for begin, end in self.spans(start, start + len(values)):
            self.view(begin, end)[:] = values[begin - start : end - start]

    def view(self, start: int, stop: int) -> torch.Tensor:
        """Rows of one block to write to; a snapshot that holds the block keeps the old one."""
        return torch.as_tensor(self._writable(start, stop))

    def array(self, start: int, stop: int) -> np.ndarray:
        """Give what `view` does, as kernels for the CPU take it."""
        rows: np.ndarray = self._writable(start, stop)
        return rows

    def _writable(self, start: int, stop: int) -> Any:
        number, first = divmod(start, BLOCK_ROWS)
        if number in self._own_blocks:
            block = self._pages[number // _PAGE_BLOCKS][number % _PAGE_BLOCKS]
        else:
            block = self._own_block(number)
        return block[first : first + stop - start]

    def replaced(self, row: int, supply: Callable[[], Any]) -> tuple[Any, Any]:
        """Give the block of a row, and what takes its place; the caller copies one to the other.

        Where no snapshot holds the block, that is the same.
        """
        number = row // BLOCK_ROWS
        old = self._block(number)
        if number in self._own_blocks:
            return old, old
        page, place = divmod(number, _PAGE_BLOCKS)
        new = self._own_page(page)[place] = supply()
        self._own_blocks.add(number)
        return old, new

    def _own_block(self, number: int) -> Any:
        """Copy a block that a snapshot holds."""
        page, place = divmod(number, _PAGE_BLOCKS)
        blocks = self._own_page(page)
        block = blocks[place].copy() if self._on_host else blocks[place].clone()
        blocks[place] = block
        self._own_blocks.add(number)
        return block

    def _own_page(self, page: int) -> list[Any]:
        """Copy the references of a page that a snapshot holds."""
        if page not in self._own_pages:
            self._pages[page] = list(self._pages[page])
            self._own_pages.add(page)
        return self._pages[page]

    def tensor(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows in one piece, (M, width): a copy."""
        stop = self._length if stop is None else stop
        first, last = start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)
        offset = first * BLOCK_ROWS
        rows = _joined(self._empty, (self._block(number) for number in range(first, last)))
        return rows[start - offset : max(start, stop) - offset]

    def sum(self, start: int, stop: int) -> float:
        """Give the sum over some rows, to the host."""
        total = 0.0
        for begin, end in self.spans(start, stop):
            number, first = divmod(begin, BLOCK_ROWS)
            rows = self._block(number)[first : first + end - begin]
            # A reduction has machinery that takes longer than a row.
            total += sum(rows[0].tolist()) if end - begin == 1 else float(rows.sum())
        return total

    def _block(self, number: int) -> Any:
        page, place = divmod(number, _PAGE_BLOCKS)
        return self._pages[page][place]

    def frozen(self) -> Frozen:
        """Take a snapshot: a few references, no copy."""
        # From now on whoever writes has to copy first.
        self._own_pages.clear()
        self._own_blocks.clear()
        return Frozen(tuple(self._pages), self._length, self._empty)

    def replace(self, values: torch.Tensor) -> None:
        """Put other rows, (M, width), in the place of all of them."""
        width = values.shape[1]
        self._empty = self._empty.new_zeros(0, width)
        self._clear()
        self.extend(len(values))
        self.write(0, values)


def _joined(empty: torch.Tensor, blocks: Iterable[Any]) -> torch.Tensor:
    """Copy blocks, all of them arrays or all tensors, into one tensor; ``empty`` without any."""
    parts = list(blocks)
    if not parts:
        return empty
    if isinstance(parts[0], np.ndarray):
        return torch.from_numpy(np.concatenate(parts))
    return torch.cat(parts)
