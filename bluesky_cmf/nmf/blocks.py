"""The data matrix in blocks that are never reallocated, and its products in float64."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .kernels import device_products, kernels_for

__all__ = ["TILE", "Blocks", "add_transposed_product", "multiply"]

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

    They are on the host; `deviceblocks.DeviceBlocks` are those of a device.

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
        self._blocks: list[torch.Tensor] = []
        self._arrays: list[np.ndarray] = []
        self._offsets: list[int] = []
        self._room = 0
        self._length = 0
        self._norm_table = torch.zeros(0, dtype=torch.float64, device=device)
        #: Squared norms of the rows, on the host, and room for more: what is written to it stays.
        self.norms_array = np.zeros(0)
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
        """The same where the rows are, and room for more: what is written to it stays."""
        return self._norm_table

    def squared_norm(self, start: int, stop: int) -> float:
        """Squared norm of some rows together, to the host."""
        norms = self.norms_array
        # A reduction has machinery that takes longer than a row.
        return float(norms[start] if stop - start == 1 else norms[start:stop].sum())

    def append(self, rows: torch.Tensor | npt.NDArray[Any]) -> None:
        """Append rows, (M, F): a tensor anywhere, or an array of the dtype they are stored in."""
        source = self._as_stored(rows)
        self._append_norms(source)
        done, count = 0, len(source)
        while done < count:
            if not self._room:
                self._grow()
            taken = min(count - done, self._room)
            self._write(source[done : done + taken])
            done += taken

    def _as_stored(self, rows: torch.Tensor | npt.NDArray[Any]) -> Any:
        """Give rows as they are written: on the host as arrays."""
        if isinstance(rows, torch.Tensor):
            return rows.to(self.dtype).contiguous().resolve_neg().numpy()
        return rows

    def _write(self, rows: Any) -> None:
        """Put rows, as they are stored, into the last block, which has room for them."""
        block = self._arrays[-1]
        first = block.shape[0] - self._room
        block[first : first + len(rows)] = rows
        self._took(len(rows))

    def _took(self, count: int) -> None:
        self._room -= count
        self._length += count

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
            multiply(piece, H, product[first - start : first - start + len(piece)])
        return product

    def times_some(self, rows: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
        """XHᵀ of some rows, (M, K), for H (K, F) and numbers (M,) that rise."""
        product = H.new_empty(len(rows), len(H))
        multiply(self.take(rows), H, product)
        return product

    def transposed_times(self, W: torch.Tensor) -> torch.Tensor:
        """WᵀX, (K, F), for W (N, K)."""
        product = W.new_zeros(W.shape[1], self.n_features)
        parts = self.pieces if _has_kernels(self.device) else self.chunks
        for first, piece in parts():
            add_transposed_product(piece, W[first : first + len(piece)], product)
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

    def stored(self) -> torch.Tensor:
        """All rows as they are stored, (N, F): a copy."""
        return torch.cat([self._no_rows(), *(piece for _, piece in self.pieces())])

    def _no_rows(self) -> torch.Tensor:
        return torch.empty(0, self.n_features, dtype=self.dtype, device=self.device)

    def _grow(self) -> None:
        row_bytes = self.n_features * self.dtype.itemsize
        rows = max(1, min(max(_FIRST_ROWS, self._length), _BLOCK_BYTES // row_bytes))
        rows -= rows % TILE if rows > TILE else 0
        self._offsets.append(self._length)
        self._add_block(rows)
        self._room = rows

    def _add_block(self, rows: int) -> None:
        # By numpy, which asks for large pages: an event with a page of its own waits for each.
        kind = np.float64 if self.dtype == torch.float64 else np.float32
        array = np.empty((rows, self.n_features), kind)
        self._arrays.append(array)
        self._blocks.append(torch.from_numpy(array))

    def _append_norms(self, rows: Any) -> None:
        start, stop = self._length, self._length + len(rows)
        if stop > self.norms_array.shape[0]:
            # Earlier views of the shorter table stay what they are.
            array = np.zeros(max(1024, 2 * stop))
            array[:start] = self.norms_array[:start]
            self.norms_array = array
            self._follow_norms()
        self._square(rows, self.norms_array[start:stop])
        # One after the other: the same bits, however the rows came.
        for norm in self.norms_array[start:stop].tolist():
            self.half_norm += 0.5 * norm

    def _follow_norms(self) -> None:
        """Give the table of norms the room that the array has."""
        self._norm_table = torch.from_numpy(self.norms_array)

    def _square(self, rows: Any, norms: np.ndarray) -> None:
        """Put the squared norms of rows, as they are written, into (M,)."""
        kernels = kernels_for(_CPU)
        if kernels is None:
            wide = torch.as_tensor(rows).to(torch.float64)
            norms[:] = torch.linalg.vecdot(wide, wide).cpu().numpy()
        else:
            kernels.squared_norms(rows, norms)


def _has_kernels(device: torch.device) -> bool:
    return kernels_for(device) is not None or device_products(device) is not None


def multiply(rows: torch.Tensor, H: torch.Tensor, product: torch.Tensor) -> None:
    """Put rows Hᵀ into ``product`` (M, K)."""
    kernels, products = kernels_for(rows.device), device_products(rows.device)
    if products is not None:
        products.times(rows, H, product)
    elif kernels is not None:
        kernels.times(rows.numpy(), H.numpy(), product.numpy())
    else:
        product[:] = rows.to(torch.float64) @ H.T


def add_transposed_product(rows: torch.Tensor, W: torch.Tensor, product: torch.Tensor) -> None:
    """Add Wᵀ rows to ``product`` (K, F), for W (M, K)."""
    kernels, products = kernels_for(rows.device), device_products(rows.device)
    if products is not None:
        products.add_transposed_times(rows, W.contiguous(), product)
    elif kernels is not None:
        kernels.add_transposed_times(rows.numpy(), W.contiguous().numpy(), product.numpy())
    else:
        product += W.T @ rows.to(torch.float64)
