"""Where an event on fixed buffers has its rows from, and where its results go."""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from .deviceblocks import DeviceBlocks
from .factors import Factors
from .pinned import Supply
from .rows import BLOCK_ROWS

__all__ = ["EventBuffers", "HostTables", "Tables", "tables_for"]


@dataclass(frozen=True)
class EventBuffers:
    """What an event works on: M rows, the older ones first, the new one last.

    Attributes
    ----------
    X : Tensor (M, F)
        The rows, in float64.
    norms, squared : Tensor (M,)
        Their squared norms, and squared residuals.
    Wt, C, change : Tensor (K, M)
        Their weights, XHᵀ, and how weights change.
    half_norm, objective : Tensor ()
        Half the squared norm of all the data, and the objective.
    """

    X: torch.Tensor
    norms: torch.Tensor
    squared: torch.Tensor
    Wt: torch.Tensor
    C: torch.Tensor
    change: torch.Tensor
    half_norm: torch.Tensor
    objective: torch.Tensor

    @classmethod
    def of(cls, n_rows: int, H: torch.Tensor) -> "EventBuffers":
        """Allocate them for components H (K, F)."""
        K, F = H.shape
        return cls(
            X=H.new_zeros(n_rows, F),
            norms=H.new_zeros(n_rows),
            squared=H.new_zeros(n_rows),
            Wt=H.new_zeros(K, n_rows),
            C=H.new_zeros(K, n_rows),
            change=H.new_zeros(K, n_rows),
            half_norm=H.new_zeros(()),
            objective=H.new_zeros(()),
        )


class Tables(Protocol):
    """Rows ``start`` to ``start + M - 1`` and row ``n`` of the tables, and those of the buffers.

    Attributes
    ----------
    objective, shapes : Tensor
        The objective, and the components as results give them: as of the latest event.
    """

    objective: torch.Tensor
    shapes: torch.Tensor

    def begin(self, start: int, n: int) -> None:
        """Prepare an event; nobody waits for the device."""

    def take(self) -> None:
        """Fill the buffers: the first thing of a step."""

    def put(self) -> None:
        """Write back what has changed: the last thing of a step."""

    def end(self) -> None:
        """Finish an event."""


class HostTables:
    """Copies, one by one: the twin of what a device does.

    Parameters
    ----------
    factors : Factors
        What the tables belong to.
    buffers : EventBuffers
        What the event works on.
    """

    def __init__(self, factors: Factors, buffers: EventBuffers) -> None:
        self._factors, self._buffers = factors, buffers
        self._spans: list[tuple[int, int, int]] = []
        self.objective, self.shapes = buffers.objective, factors.H

    def begin(self, start: int, n: int) -> None:
        """Copy rows, norms and weights."""
        factors, buffers, window = self._factors, self._buffers, self._buffers.X.shape[0] - 1
        self._spans = [
            (begin, end, at + begin - first)
            for first, last, at in ((start, start + window, 0), (n, n + 1, window))
            for begin, end in factors.W.spans(first, last)
        ]
        for begin, end, at in self._spans:
            place = slice(at, at + end - begin)
            for first, piece in factors.X.pieces(begin, end):
                buffers.X[at + first - begin : at + first - begin + len(piece)] = piece
            buffers.norms[place] = factors.X.norms[begin:end]
            buffers.Wt[:, place] = factors.W.view(begin, end).T
        buffers.half_norm.fill_(factors.X.half_norm - factors.held_cross)

    def take(self) -> None:
        """Do nothing: `begin` has."""

    def put(self) -> None:
        """Do nothing: `end` will."""

    def end(self) -> None:
        """Copy weights and squared residuals."""
        factors, buffers = self._factors, self._buffers
        for begin, end, at in self._spans:
            place = slice(at, at + end - begin)
            factors.W.view(begin, end).copy_(buffers.Wt[:, place].T)
            factors.squared.view(begin, end)[:, 0].copy_(buffers.squared[place])
        self.objective = buffers.objective.clone()
        self.shapes = factors.H.to(factors.X.dtype, copy=True)


class DeviceTables:
    """Copies by kernels that are told where, by what is sent with the new row.

    Parameters
    ----------
    factors, buffers
        As those of `HostTables`. The rows of a window lie in one block of each table.
    """

    def __init__(self, factors: Factors, buffers: EventBuffers) -> None:
        from .kernels import cudaevent

        self._kernels, self._factors, self._buffers = cudaevent, factors, buffers
        self._X = cast(DeviceBlocks, factors.X)
        (K, F), device = factors.H.shape, factors.H.device
        self._shapes = Supply((K, F), dtype=self._X.dtype, device=device)
        self._objectives = Supply((), dtype=torch.float64, device=device)
        self._supplies = [
            (factors.W, Supply((BLOCK_ROWS, K), dtype=torch.float64, device=device)),
            (factors.squared, Supply((BLOCK_ROWS, 1), dtype=torch.float64, device=device)),
        ]
        self.objective, self.shapes = buffers.objective, factors.H
        #: Until they are read, nobody else may have their memory.
        self._blocks: list[torch.Tensor] = []

    def begin(self, start: int, n: int) -> None:
        """Tell the device where to read and to write."""
        X = self._X
        self.objective, self.shapes = self._objectives(), self._shapes()
        self._blocks = [
            block
            for row in (start, n)
            for table, supply in self._supplies
            for block in table.replaced(row, supply)
        ]
        norms = X.promised_norms()
        words = (
            *(block.data_ptr() for block in self._blocks),
            *(X.place(start), X.where_sent(n), X.place(n)),
            *(norms + 8 * start, norms + 8 * n),
            *(start % BLOCK_ROWS, n % BLOCK_ROWS),
            *(self.shapes.data_ptr(), self.objective.data_ptr()),
        )
        X.send(words, (X.squared_norm(n, n + 1), X.half_norm - self._factors.held_cross))

    def take(self) -> None:
        """Fill the buffers."""
        buffers = self._buffers
        self._kernels.take(
            self._X.sent,
            buffers.X,
            buffers.norms,
            buffers.Wt,
            buffers.half_norm,
            dtype=self._X.dtype,
            block_rows=BLOCK_ROWS,
        )

    def put(self) -> None:
        """Write weights, squared residuals, components and the objective."""
        buffers = self._buffers
        self._kernels.put(
            self._X.sent,
            buffers.Wt,
            buffers.squared,
            self._factors.H,
            buffers.objective,
            dtype=self._X.dtype,
        )

    def end(self) -> None:
        """Let go of the blocks that were replaced."""
        self._blocks.clear()


def tables_for(factors: Factors, buffers: EventBuffers) -> Tables:
    """Give the tables for where the factors are."""
    kind: Any = DeviceTables if factors.H.device.type == "cuda" else HostTables
    tables: Tables = kind(factors, buffers)
    return tables
