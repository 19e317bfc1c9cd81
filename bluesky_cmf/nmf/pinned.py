"""Memory of the host that a device copies from while the host goes on."""

import numpy as np
import torch

__all__ = ["PinnedRing"]

#: Pieces of memory that are used in turn.
_PIECES = 64


class PinnedRing:
    """Pieces of memory, of ``size`` numbers each, that are sent to a device in turn.

    Parameters
    ----------
    size : int
        Numbers in a piece.
    dtype : torch.dtype
        What they are.
    device : torch.device
        Where they are sent.
    """

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        table = torch.empty(_PIECES, size, dtype=dtype, pin_memory=self._on_cuda)
        self._pieces = table.unbind()
        self._arrays: list[np.ndarray] = [piece.numpy() for piece in self._pieces]
        self._next = 0
        #: When all of a half has been sent.
        self._sent = [_event() for _ in range(2)] if self._on_cuda else []

    @property
    def array(self) -> np.ndarray:
        """The next piece, to be written to."""
        return self._arrays[self._next]

    def send(self, place: torch.Tensor) -> None:
        """Copy the piece to a place on the device; it is not written to until that has ended."""
        place.copy_(self._pieces[self._next], non_blocking=True)
        self._next = (self._next + 1) % _PIECES
        half, place_in_half = divmod(self._next, _PIECES // 2)
        if self._on_cuda and place_in_half == 0:
            # The half that was just sent; and that which comes next, long sent.
            self._sent[1 - half].record()
            self._sent[half].synchronize()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
