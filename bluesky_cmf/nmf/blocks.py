"""The data matrix in blocks that are never reallocated, and its products in float64."""

from collections.abc import Iterator

import torch

from .kernels import kernels_for

__all__ = ["Blocks"]

#: Rows of the first block, and bytes that any block may take. Memory that is not yet written to
#: costs nothing, and as long as there is one block only, it is swept in one piece.
_FIRST_ROWS = 512
_BLOCK_BYTES = 1 << 26
#: Bytes of data up to which a float64 copy is kept: short runs are swept many times over.
_COPY_BYTES = 1 << 27
#: Bytes converted to float64 at a time beyond that.
_CHUNK_BYTES = 1 << 24


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
        self._blocks: list[torch.Tensor] = []
        self._room = 0
        self._length = 0
        self._copy: torch.Tensor | None = None
        self._copied = 0
        #: Squared norms of the rows, (N,), and ½‖X‖², in float64.
        self.norms = torch.zeros(0, dtype=torch.float64, device=device)
        self.half_norm = 0.0

    def __len__(self) -> int:
        return self._length

    def append(self, rows: torch.Tensor) -> None:
        """Append rows, (M, F)."""
        rows = rows.to(self.dtype)
        norms = rows.to(torch.float64).square().sum(1)
        self.norms = torch.cat([self.norms, norms])
        self.half_norm += 0.5 * float(norms.sum())
        while len(rows):
            if not self._room:
                self._grow()
            taken = rows[: self._room]
            block = self._blocks[-1]
            first = len(block) - self._room
            block[first : first + len(taken)] = taken
            self._room -= len(taken)
            self._length += len(taken)
            rows = rows[len(taken) :]

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the rows from ``start`` to ``stop`` in float64, as (number of the first, rows)."""
        stop = self._length if stop is None else min(stop, self._length)
        copy = self._float64()
        if copy is not None:
            yield start, copy[start:stop]
            return
        step = max(1, _CHUNK_BYTES // (8 * self.n_features))
        offset = 0
        for block in self._blocks:
            first, last = max(start, offset), min(stop, offset + len(block))
            for begin in range(first, last, step):
                end = min(begin + step, last)
                yield begin, block[begin - offset : end - offset].to(torch.float64)
            offset += len(block)

    def times(self, H: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """X[start:stop] Hᵀ, (M, K), for H (K, F)."""
        kernels, block = kernels_for(self.device), self.single()
        if kernels is not None and block is not None:
            rows = block[start:stop]
            product = H.new_empty(len(rows), len(H))
            kernels.times(rows.numpy(), H.numpy(), product.numpy())
            return product
        empty = H.new_zeros(0, len(H))
        return torch.cat([empty, *(rows @ H.T for _, rows in self.chunks(start, stop))])

    def transposed_times(self, W: torch.Tensor) -> torch.Tensor:
        """WᵀX, (K, F), for W (N, K)."""
        product = W.new_zeros(W.shape[1], self.n_features)
        for first, rows in self.chunks():
            product += W[first : first + len(rows)].T @ rows
        return product

    def row(self, index: int) -> torch.Tensor:
        """One row in float64, (F,)."""
        for _, rows in self.chunks(index, index + 1):
            return rows[0]
        raise IndexError(index)

    def single(self) -> torch.Tensor | None:
        """All rows as they are stored, (N, F), where one block holds them: a view."""
        return self._blocks[0][: self._length] if len(self._blocks) == 1 else None

    def stored(self) -> torch.Tensor:
        """All rows as they are stored, (N, F): a copy."""
        parts, left = [], self._length
        for block in self._blocks:
            parts.append(block[:left])
            left -= len(parts[-1])
        empty = torch.empty(0, self.n_features, dtype=self.dtype, device=self.device)
        return torch.cat([empty, *parts])

    def _grow(self) -> None:
        row_bytes = self.n_features * self.dtype.itemsize
        rows = max(1, min(max(_FIRST_ROWS, self._length), _BLOCK_BYTES // row_bytes))
        block = torch.empty(rows, self.n_features, dtype=self.dtype, device=self.device)
        self._blocks.append(block)
        self._room = rows

    def _float64(self) -> torch.Tensor | None:
        if self.dtype == torch.float64 and len(self._blocks) == 1:
            return self._blocks[0]
        if 8 * self._length * self.n_features > _COPY_BYTES:
            self._copy, self._copied = None, 0
            return None
        if self._copied < self._length:
            self._extend_copy()
        return self._copy

    def _extend_copy(self) -> None:
        if self._copy is None or len(self._copy) < self._length:
            rows = max(64, 2 * self._length)
            copy = torch.empty(rows, self.n_features, dtype=torch.float64, device=self.device)
            if self._copy is not None:
                copy[: self._copied] = self._copy[: self._copied]
            self._copy = copy
        offset = 0
        for block in self._blocks:
            first, last = max(self._copied, offset), min(self._length, offset + len(block))
            if first < last:
                self._copy[first:last] = block[first - offset : last - offset]
            offset += len(block)
        self._copied = self._length
