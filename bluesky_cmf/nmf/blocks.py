"""The data matrix in blocks that are never reallocated, and its products in float64."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .kernels import device_products, kernels_for
from .pinned import PinnedRing

__all__ = ["TILE", "Blocks"]

#: Rows that lie together: blocks are of whole tiles, where they have room for one.
TILE = 64

#: Rows of the first block, and bytes that any block may take. Memory that is not yet written to
#: costs nothing, and as long as there is one block only, it is swept in one piece.
_FIRST_ROWS = 512
_BLOCK_BYTES = 1 << 26
_CPU = torch.device("cpu")
#: Bytes converted to float64 at a time, where torch does the work.
_CHUNK_BYTES = 1 << 22


class Blocks:
    """The N rows of X, (N, F), stored in ``dtype``; products are accumulated in float64.

    Parameters
    ----------
    n_features : int
        F.
    dtype : torch.dtype
        What rows are stored in.
    device : torch.device
        Where they are stored.
    """

    def __init__(self, n_features: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.n_features, self.dtype, self.device = n_features, dtype, device
        self._on_cpu = device.type == "cpu"
        self._blocks: list[torch.Tensor] = []
        self._arrays: list[np.ndarray] = []
        self._offsets: list[int] = []
        self._room = 0
        self._length = 0
        #: Squared norms of the rows, on the host, and room for more: what is written to it stays.
        self.norms_array = np.zeros(0)
        #: The same where the rows are, as far as it is up to date there.
        self._norms_there = torch.zeros(0, dtype=torch.float64, device=device)
        self._n_norms_there = 0
        self._ring: PinnedRing | None = None
        #: Whether all blocks are of whole tiles.
        self.tiled = True
        #: Half the squared norm of X, in float64.
        self.half_norm = 0.0

    def __len__(self) -> int:
        return self._length

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    @property
    def norms(self) -> torch.Tensor:
        """Squared norms of the rows, (N,), in float64."""
        return self.norm_table[: self._length]

    @property
    def norm_table(self) -> torch.Tensor:
        """The same, and room for more: what is written to it stays."""
        if self._n_norms_there < self._length and not self._on_cpu:
            news = torch.from_numpy(self.norms_array[self._n_norms_there : self._length])
            self._norms_there[self._n_norms_there : self._length] = news.to(self.device)
            self._n_norms_there = self._length
        return self._norms_there

    def norm_places(self, n: int) -> int:
        """Tell where the table is, for somebody who writes the norm of row ``n`` to it."""
        if self._n_norms_there != n:
            _ = self.norm_table
        self._n_norms_there = max(self._n_norms_there, n + 1)
        return self._norms_there.data_ptr()

    def place(self, row: int) -> int:
        """Tell where a row is in memory."""
        number = bisect_right(self._offsets, row) - 1
        step = self.n_features * self.dtype.itemsize
        return self._blocks[number].data_ptr() + (row - self._offsets[number]) * step

    def squared_norm(self, start: int, stop: int) -> float:
        """Squared norm of some rows together, to the host."""
        norms = self.norms_array
        # A reduction has machinery that takes longer than a row.
        return float(norms[start] if stop - start == 1 else norms[start:stop].sum())

    def append(self, rows: torch.Tensor | npt.NDArray[Any]) -> None:
        """Append rows, (M, F): a tensor anywhere, or an array of the dtype they are stored in."""
        source = self._as_stored(rows)
        self._append_norms(source)
        if not self._on_cpu and source.device.type == "cpu":
            if len(source) == 1:
                self._send(source)
                return
            # Nobody waits for the copy of pinned memory.
            source = source.pin_memory().to(self.device, non_blocking=True)
        done, count = 0, len(source)
        while done < count:
            taken = min(count - done, self._make_room())
            block: Any = self._arrays[-1] if self._on_cpu else self._blocks[-1]
            first = len(block) - self._room
            block[first : first + taken] = source[done : done + taken]
            self._room -= taken
            self._length += taken
            done += taken

    def _send(self, row: torch.Tensor) -> None:
        """Append one row, (1, F), of the host, and nothing else."""
        if self._ring is None:
            self._ring = PinnedRing(self.n_features, dtype=self.dtype, device=self.device)
        room = self._make_room()
        self._ring.array[:] = row[0].numpy()
        self._ring.send(self._blocks[-1][-room])
        self._room -= 1
        self._length += 1

    def _make_room(self) -> int:
        """Tell how many rows the last block has room for: one at least."""
        if not self._room:
            self._grow()
        return self._room

    def _as_stored(self, rows: torch.Tensor | npt.NDArray[Any]) -> Any:
        """Rows in the dtype they are stored in: for the CPU numpy's, else torch's."""
        if isinstance(rows, torch.Tensor):
            rows = rows.to(self.dtype).contiguous().resolve_neg()
            return rows.numpy() if self._on_cpu else rows
        return rows if self._on_cpu else torch.from_numpy(np.ascontiguousarray(rows))

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the rows from ``start`` to ``stop`` as they are stored, block by block: views."""
        stop = self._length if stop is None else min(stop, self._length)
        number = max(0, bisect_right(self._offsets, start) - 1)
        while start < stop:
            offset, block = self._offsets[number], self._blocks[number]
            end = min(stop, offset + len(block))
            yield start, block[start - offset : end - offset]
            start, number = end, number + 1

    def arrays(self, start: int, stop: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield what `pieces` does as kernels for the CPU take it, with where each begins, ends."""
        number = max(0, bisect_right(self._offsets, start) - 1)
        while start < stop:
            offset, block = self._offsets[number], self._arrays[number]
            end = min(stop, offset + block.shape[0])
            yield start, end, block[start - offset : end - offset]
            start, number = end, number + 1

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the rows from ``start`` to ``stop`` in float64, as (number of the first, rows)."""
        step = max(1, _CHUNK_BYTES // (8 * self.n_features))
        for first, piece in self.pieces(start, stop):
            for begin in range(0, len(piece), step):
                yield first + begin, piece[begin : begin + step].to(torch.float64)

    def times(self, H: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """X[start:stop] Hᵀ, (M, K), for H (K, F)."""
        stop = self._length if stop is None else min(stop, self._length)
        product = H.new_empty(max(0, stop - start), len(H))
        # Kernels convert numbers one by one.
        parts = self.pieces if _has_kernels(self.device) else self.chunks
        for first, piece in parts(start, stop):
            _multiply(piece, H, product[first - start : first - start + len(piece)])
        return product

    def times_some(self, rows: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
        """XHᵀ of some rows, (M, K), for H (K, F) and numbers (M,) that rise."""
        product = H.new_empty(len(rows), len(H))
        _multiply(self.take(rows), H, product)
        return product

    def transposed_times(self, W: torch.Tensor) -> torch.Tensor:
        """WᵀX, (K, F), for W (N, K)."""
        kernels, products = kernels_for(self.device), device_products(self.device)
        product = W.new_zeros(W.shape[1], self.n_features)
        if kernels is None and products is None:
            for first, rows in self.chunks():
                product += W[first : first + len(rows)].T @ rows
            return product
        for first, piece in self.pieces():
            weights = W[first : first + len(piece)].contiguous()
            if products is not None:
                products.add_transposed_times(piece, weights, product)
            elif kernels is not None:
                kernels.add_transposed_times(piece.numpy(), weights.numpy(), product.numpy())
        return product

    def row(self, index: int) -> torch.Tensor:
        """One row in float64, (F,)."""
        for _, rows in self.chunks(index, index + 1):
            return rows[0]
        raise IndexError(index)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Copy some rows as they are stored, (M, F), for numbers (M,) that rise."""
        edges = torch.searchsorted(rows, torch.tensor([*self._offsets, self._length])).tolist()
        rows = rows.to(self.device)
        parts = [
            block[rows[first:last] - offset]
            for block, offset, (first, last) in zip(
                self._blocks, self._offsets, pairwise(edges), strict=True
            )
            if last > first
        ]
        return torch.cat(parts) if parts else self._no_rows()

    def fused(self) -> tuple[torch.Tensor, None] | None:
        """All rows as they are stored, (N, F), where one block holds them: a view."""
        return (self._blocks[0][: self._length], None) if len(self._blocks) == 1 else None

    def tiles(self, count: int) -> torch.Tensor:
        """Tell where tiles of the rows are in memory, (count,); those beyond the last are there."""
        step = TILE * self.n_features * self.dtype.itemsize
        places = [
            block.data_ptr() + step * number
            for block in self._blocks
            for number in range(len(block) // TILE)
        ][:count]
        places += places[-1:] * (count - len(places))
        return torch.tensor(places, dtype=torch.int64).to(self.device)

    def stored(self) -> torch.Tensor:
        """All rows as they are stored, (N, F): a copy."""
        return torch.cat([self._no_rows(), *(piece for _, piece in self.pieces())])

    def _no_rows(self) -> torch.Tensor:
        return torch.empty(0, self.n_features, dtype=self.dtype, device=self.device)

    def _grow(self) -> None:
        row_bytes = self.n_features * self.dtype.itemsize
        rows = max(1, min(max(_FIRST_ROWS, self._length), _BLOCK_BYTES // row_bytes))
        rows -= rows % TILE if rows > TILE else 0
        self.tiled = self.tiled and rows % TILE == 0
        self._offsets.append(self._length)
        shape = rows, self.n_features
        if self._on_cpu:
            # By numpy, which asks for large pages: an event with a page of its own waits for each.
            array = np.empty(shape, np.float64 if self.dtype == torch.float64 else np.float32)
            self._arrays.append(array)
            self._blocks.append(torch.from_numpy(array))
        else:
            self._blocks.append(torch.empty(shape, dtype=self.dtype, device=self.device))
        self._room = rows

    def _append_norms(self, rows: Any) -> None:
        start, stop = self._length, self._length + len(rows)
        if stop > self.norms_array.shape[0]:
            self._grow_norms(max(1024, 2 * stop))
        kernels = kernels_for(_CPU)
        on_host = self._on_cpu or rows.device.type == "cpu"
        if kernels is None or not on_host:
            wide = torch.as_tensor(rows).to(torch.float64)
            found = torch.linalg.vecdot(wide, wide).tolist()
            self.norms_array[start:stop] = found
        else:
            array = rows if self._on_cpu else rows.numpy()
            kernels.squared_norms(array, self.norms_array[start:stop])
            found = self.norms_array[start:stop].tolist()
        # One after the other: the same bits, however the rows came.
        for norm in found:
            self.half_norm += 0.5 * norm

    def _grow_norms(self, room: int) -> None:
        # Earlier views of the shorter tables stay what they are.
        array = np.zeros(room)
        array[: self._length] = self.norms_array[: self._length]
        self.norms_array = array
        if self._on_cpu:
            self._norms_there = torch.from_numpy(array)
        else:
            there = self._norms_there.new_zeros(room)
            there[: self._n_norms_there] = self._norms_there[: self._n_norms_there]
            self._norms_there = there


def _has_kernels(device: torch.device) -> bool:
    return kernels_for(device) is not None or device_products(device) is not None


def _multiply(rows: torch.Tensor, H: torch.Tensor, product: torch.Tensor) -> None:
    """Put rows Hᵀ into ``product`` (M, K)."""
    kernels, products = kernels_for(rows.device), device_products(rows.device)
    if products is not None:
        products.times(rows, H, product)
    elif kernels is not None:
        kernels.times(rows.numpy(), H.numpy(), product.numpy())
    else:
        product[:] = rows.to(torch.float64) @ H.T
