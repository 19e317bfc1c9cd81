"""Extrapolated sweeps on a device, without a word to the host."""

from collections.abc import Callable
from typing import Any

import torch

from .blocks import TILE
from .deviceblocks import DeviceBlocks
from .kernels import descends_on
from .recording import recorded
from .rules import Rules

__all__ = ["DeviceSweeps", "sweeps_on_device"]

#: Points of the components that one program descends on.
_PIECE = 128
#: Sweeps after which it pays to record one.
_RECORDED_AFTER = 16
#: Sweeps that the table of objectives has room for.
_ROOM = 1024


def sweeps_on_device(X: object, n_components: int) -> bool:
    """Whether there are kernels for sweeps over data."""
    if not isinstance(X, DeviceBlocks):
        return False
    return descends_on(X.device, n_components) is not None and X.tiled


class DeviceSweeps:
    """What `sweeps.Extrapolation` does, decided on the device.

    Parameters
    ----------
    X : DeviceBlocks
        The data.
    H, Wt : Tensor (K, F), (K, N)
        Where to start: components and weights.
    rules : Rules
        What is asked of the factors.
    objective : float
        The objective there.
    pace : tuple of float
        How far to lead: as `sweeps.Pace` has it.
    passes : tuple of int
        Coordinate-descent passes over the weights, at most, and over the components.

    Attributes
    ----------
    H, Wt : Tensor
        The best so far: copies, made by `sweep`.
    """

    def __init__(
        self,
        X: DeviceBlocks,
        H: torch.Tensor,
        Wt: torch.Tensor,
        rules: Rules,
        *,
        objective: float,
        pace: tuple[float, ...],
        passes: tuple[int, int],
    ) -> None:
        from .kernels import cuda, cudasweep

        self._kernels, self._triton = cudasweep, cuda
        self._X, self._passes = X, passes
        self.H, self.Wt = H, Wt
        (K, F), N = H.shape, len(X)
        self._sizes = N, F
        options: dict[str, Any] = {"dtype": torch.float64, "device": H.device}
        flags: dict[str, Any] = {"dtype": torch.int32, "device": H.device}
        numbers = [*pace, objective, X.half_norm, rules.l1, rules.l2]
        self._state = torch.tensor(numbers, **options)
        self._whole = torch.zeros(4, **flags)
        self._n_tiles = -(-N // TILE)
        # Whole tiles, so that where rows begin fits what is loaded at once.
        padded = torch.nn.functional.pad(Wt, (0, self._n_tiles * TILE - N))
        # Two slots: one has the best factors, the other takes what comes next.
        self._H, self._Wt = torch.stack([H, H]), torch.stack([padded, padded])
        B, G = X.transposed_times(Wt.T), H @ H.T
        self._B, self._G = torch.stack([B, B]), torch.stack([G, G])
        self._lead_H, self._lead_Wt, self._ahead_G = H.clone(), padded.clone(), G.clone()
        self._every, self._free = torch.ones(K, **flags), torch.zeros(K, **flags)
        self._free[list(rules.free)] = 1
        self._tiles = X.tiles()
        self._slabs = -(-F // cuda.SLAB)
        self._columns, self._pieces = -(-F // cuda.COLUMNS), -(-F // _PIECE)
        self._shares = min(self._n_tiles, cuda.shares(H.device, self._columns))
        sums = 2 * K * K + 1
        self._C_parts = torch.empty(self._slabs, K, self._n_tiles * TILE, **options)
        self._B_parts = torch.empty(self._shares, K, F, **options)
        self._grams = torch.empty(self._n_tiles, sums, **options)
        self._A = torch.empty(sums, **options)
        self._H_parts = torch.empty(self._pieces, sums + 1, **options)
        self._came = torch.zeros(1, **flags)
        self._curve = torch.empty(_ROOM, **options)
        self._done, self._records = 0, True
        self._graph: torch.cuda.CUDAGraph | None = None
        self._few = {"K": K, "KP": cuda.padded(K)}
        # Kernels see powers of two.
        self._squares = 1 << (K * K - 1).bit_length(), 1 << (sums - 1).bit_length()

    def sweep(self, count: int) -> list[float]:
        """Do sweeps; give the objective after each. The host waits once, for the last."""
        values: list[float] = []
        while len(values) < count:
            some = min(count - len(values), _ROOM)
            self._whole[self._kernels.COUNT.value].zero_()
            for _ in range(some):
                self._step()
            values += self._curve[:some].tolist()
        slot = int(self._whole[self._kernels.SLOT.value])
        self.H, self.Wt = self._H[slot].clone(), self._Wt[slot][:, : self._sizes[0]].clone()
        return values

    def _step(self) -> None:
        self._done += 1
        if self._records and self._done > _RECORDED_AFTER:
            # All is compiled by now.
            self._graph, self._records = recorded(self._launch, self._whole.device), False
        if self._graph is None:
            self._launch()
        else:
            self._graph.replay()

    def _launch(self) -> None:
        for launch in self.launches().values():
            launch()

    def launches(self) -> dict[str, Callable[[], None]]:
        """Give what a sweep launches, by name and in order."""
        cuda, kernels, (N, F) = self._triton, self._kernels, self._sizes
        room = self._n_tiles * TILE
        dtype = cuda.triton_dtype(self._X.dtype)

        def row_products() -> None:
            kernels.row_products[(self._n_tiles * self._slabs,)](
                self._tiles, self._H, self._lead_H, self._C_parts, self._whole, N, room, F,
                self._slabs, cuda.SLAB, DTYPE=dtype, **self._few, BM=TILE, BF=cuda.POINTS,
                STAGES=cuda.STAGES,
            )  # fmt: skip

        def weights() -> None:
            kernels.weights[(self._n_tiles,)](
                self._Wt, self._lead_Wt, self._ahead_G, self._every, self._C_parts, self._grams,
                self._A, self._came, self._state, self._whole, N, room, self._slabs,
                self._passes[0], **self._few, BM=TILE, KQ=self._squares[1], BP=16,
                num_warps=TILE // 32,
            )  # fmt: skip

        def column_products() -> None:
            kernels.column_products[(self._shares * self._columns,)](
                self._tiles, self._lead_Wt, self._B_parts, N, room, F, self._columns, self._shares,
                self._n_tiles, DTYPE=dtype, K=len(self._every), KM=max(16, self._few["KP"]),
                BM=TILE, BR=cuda.SOME_ROWS, BC=cuda.COLUMNS, STAGES=cuda.COLUMN_STAGES,
            )  # fmt: skip

        def components() -> None:
            kernels.components[(self._pieces,)](
                self._H, self._lead_H, self._B, self._G, self._ahead_G, self._free, self._A,
                self._B_parts, self._H_parts, self._came, self._state, self._whole, self._curve, F,
                self._shares, self._passes[1], **self._few, BT=_PIECE, KQ=self._squares[0], BP=16,
            )  # fmt: skip

        steps = row_products, weights, column_products, components
        return {step.__name__.replace("_", " "): step for step in steps}
