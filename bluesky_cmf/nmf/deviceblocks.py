"""The data matrix on a device: rows are sent while the host goes on, and told of by addresses."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .blocks import TILE, Blocks
from .pinned import PinnedRing

__all__ = ["DeviceBlocks", "blocks_on"]

#: Numbers that can be sent ahead of a row.
WORDS = 19


class DeviceBlocks(Blocks):
    """The rows of X on a device.

    One row of the host that is appended waits for what is to be told with it, so that both are sent
    at once; or for the first who wants to read it.

    Attributes
    ----------
    tiled : bool
        Whether all blocks are of whole tiles.
    """

    def __init__(self, n_features: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(n_features, dtype=dtype, device=device)
        self.tiled = True
        #: Where the row that waits is to go.
        self._waiting: torch.Tensor | None = None
        #: Rows whose norms the device has.
        self._n_norms = 0

    @cached_property
    def _ring(self) -> PinnedRing:
        return PinnedRing(WORDS, self.n_features, dtype=self.dtype, device=self.device)

    @cached_property
    def sent(self) -> torch.Tensor:
        """On the device, what was told last, and the row that was sent with it, in int64."""
        return torch.zeros(self._ring.size, dtype=torch.int64, device=self.device)

    def append(self, rows: torch.Tensor | npt.NDArray[Any]) -> None:
        """Append rows, (M, F): a tensor anywhere, or an array of the dtype they are stored in."""
        if isinstance(rows, torch.Tensor) or len(rows) != 1:
            super().append(rows)
            return
        self._flush()
        self._append_norms(rows)
        if not self._room:
            self._grow()
        self._ring.row[:] = rows[0]
        self._waiting = self._blocks[-1][-self._room]
        self._took(1)

    def send(self, words: tuple[int, ...], numbers: tuple[float, ...]) -> None:
        """Tell the device integers and then float64, all in all 19, and the row that waits."""
        self._ring.head[: len(words)] = words
        self._ring.numbers[len(words) : len(words) + len(numbers)] = numbers
        self._ring.send(self.sent)
        self._waiting = None

    def where_sent(self, row: int) -> int:
        """Tell where the next thing that is sent will have a row; else where it is in a block."""
        if self._waiting is not None and row == self._length - 1:
            return self.sent.data_ptr() + 8 * WORDS
        return self.place(row)

    def place(self, row: int) -> int:
        """Tell where a row is in memory, or will be."""
        number = bisect_right(self._offsets, row) - 1
        step = self.n_features * self.dtype.itemsize
        return self._blocks[number].data_ptr() + (row - self._offsets[number]) * step

    def promised_norms(self) -> int:
        """Tell where the norms are, to somebody who will write that of the last row there."""
        if self._n_norms < self._length - 1:
            _ = self.norm_table
        self._n_norms = self._length
        return self._norm_table.data_ptr()

    def tiles(self) -> torch.Tensor:
        """Tell where tiles of the rows are in memory; the last of them may be filled in part."""
        self._flush()
        step = TILE * self.n_features * self.dtype.itemsize
        places = [
            block.data_ptr() + step * number
            for block in self._blocks
            for number in range(len(block) // TILE)
        ]
        return torch.tensor(places, dtype=torch.int64).to(self.device)

    @property
    def norm_table(self) -> torch.Tensor:
        """Squared norms of the rows, in float64, and room for more."""
        if self._n_norms < self._length:
            news = torch.from_numpy(self.norms_array[self._n_norms : self._length])
            self._norm_table[self._n_norms : self._length] = news.to(self.device)
            self._n_norms = self._length
        return self._norm_table

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the rows from ``start`` to ``stop`` as they are stored, block by block: views."""
        self._flush()
        return super().pieces(start, stop)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Copy some rows as they are stored, (M, F), for numbers (M,) that rise."""
        self._flush()
        return super().take(rows)

    def fused(self) -> tuple[torch.Tensor, None] | None:
        """All rows as they are stored, (N, F), where one block holds them: a view."""
        self._flush()
        return super().fused()

    def _flush(self) -> None:
        if self._waiting is not None:
            self._ring.send_row(self._waiting)
            self._waiting = None

    def _as_stored(self, rows: torch.Tensor | npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.as_tensor(rows).to(self.dtype).contiguous().resolve_neg()
        if tensor.device.type == "cpu" and self.device.type == "cuda":
            # Nobody waits for the copy of pinned memory.
            tensor = tensor.pin_memory()
        return tensor

    def _write(self, rows: torch.Tensor) -> None:
        self._flush()
        first = len(self._blocks[-1]) - self._room
        self._blocks[-1][first : first + len(rows)].copy_(rows, non_blocking=True)
        self._took(len(rows))

    def _add_block(self, rows: int) -> None:
        self.tiled = self.tiled and rows % TILE == 0
        shape = rows, self.n_features
        self._blocks.append(torch.empty(shape, dtype=self.dtype, device=self.device))

    def _follow_norms(self) -> None:
        table = self._norm_table.new_zeros(len(self.norms_array))
        table[: self._n_norms] = self._norm_table[: self._n_norms]
        self._norm_table = table

    def _square(self, rows: torch.Tensor | npt.NDArray[Any], norms: np.ndarray) -> None:
        if isinstance(rows, torch.Tensor) and rows.device.type != "cpu":
            wide = rows.to(torch.float64)
            norms[:] = torch.linalg.vecdot(wide, wide).cpu().numpy()
        else:
            super()._square(np.asarray(rows), norms)


def blocks_on(n_features: int, *, dtype: torch.dtype, device: torch.device) -> Blocks:
    """Give room for rows, where they are to be."""
    kind = Blocks if device.type == "cpu" else DeviceBlocks
    return kind(n_features, dtype=dtype, device=device)
