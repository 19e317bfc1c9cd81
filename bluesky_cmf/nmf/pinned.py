"""Memory of the host that a device copies from while the host goes on."""

import numpy as np
import torch

__all__ = ["PinnedRing", "Supply"]

#: Pieces of memory that are used in turn, and tensors that are allocated at once: as long as one of
#: them is kept, so is the memory of all.
_PIECES, _SUPPLY = 64, 8


class PinnedRing:
    """Pieces of memory that are sent to a device in turn: some words of 8 bytes, and a row.

    Parameters
    ----------
    n_words, n_features : int
        Words, and numbers of a row.
    dtype : torch.dtype
        Of the numbers of a row.
    device : torch.device
        Where they are sent.

    Attributes
    ----------
    size : int
        Words of a piece, with those that a row takes.
    """

    def __init__(
        self, n_words: int, n_features: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._on_cuda = device.type == "cuda"
        self.size = n_words + -(-n_features * dtype.itemsize // 8)
        table = torch.empty(_PIECES, self.size, dtype=torch.int64, pin_memory=self._on_cuda)
        self._pieces = table.unbind()
        self._rows = [piece[n_words:].view(dtype)[:n_features] for piece in self._pieces]
        self._heads = [piece.numpy()[:n_words] for piece in self._pieces]
        self._numbers = [head.view(np.float64) for head in self._heads]
        self._row_arrays = [row.numpy() for row in self._rows]
        self._next = 0
        #: When all of a half has been sent.
        self._sent = [_event() for _ in range(2)] if self._on_cuda else []

    @property
    def head(self) -> np.ndarray:
        """The words of the next piece, to be written to, as integers."""
        return self._heads[self._next]

    @property
    def numbers(self) -> np.ndarray:
        """The same memory as float64."""
        return self._numbers[self._next]

    @property
    def row(self) -> np.ndarray:
        """The row of the next piece, to be written to."""
        return self._row_arrays[self._next]

    def send(self, place: torch.Tensor) -> None:
        """Copy the piece to a place on the device; it is not written to until that has ended."""
        place.copy_(self._pieces[self._next], non_blocking=True)
        self._turn()

    def send_row(self, place: torch.Tensor) -> None:
        """Copy the row alone."""
        place.copy_(self._rows[self._next], non_blocking=True)
        self._turn()

    def _turn(self) -> None:
        self._next = (self._next + 1) % _PIECES
        half, place_in_half = divmod(self._next, _PIECES // 2)
        if self._on_cuda and place_in_half == 0:
            # The half that was just sent; and that which comes next, long sent.
            self._sent[1 - half].record()
            self._sent[half].synchronize()


class Supply:
    """Tensors of one kind, many allocated at once: one by one takes longer.

    Parameters
    ----------
    shape : tuple of int
        Of each of them.
    dtype, device
        As those of a tensor.
    """

    def __init__(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._dtype, self._device = (_SUPPLY, *shape), dtype, device
        self._left: list[torch.Tensor] = []

    def __call__(self) -> torch.Tensor:
        """Give one that nobody has; what is in it says nothing."""
        if not self._left:
            table = torch.empty(self._shape, dtype=self._dtype, device=self._device)
            self._left = list(table.unbind())
        return self._left.pop()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
