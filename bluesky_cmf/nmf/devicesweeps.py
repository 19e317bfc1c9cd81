"""Extrapolated sweeps on a device, without a word to the host."""

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import torch

from .blocks import TILE, Blocks
from .kernels import device_products
from .rules import Rules

if TYPE_CHECKING:
    from .sweeps import Pace

__all__ = ["DeviceSweeps", "sweeps_on_device"]

#: Most components for which a thread holds what it needs.
_MOST = 32
#: Rows of a group that is solved for at once, and points of one of components.
_GROUP, _PART = 128, 128
#: Sweeps that the table of objectives has room for.
_ROOM = 1024


def sweeps_on_device(X: object, n_components: int) -> bool:
    """Whether there are kernels for sweeps over data."""
    if not isinstance(X, Blocks) or n_components > _MOST:
        return False
    return device_products(X.device) is not None and X.tiled


class DeviceSweeps:
    """What `sweeps.Extrapolation` does, decided on the device.

    Parameters
    ----------
    X : Blocks
        The data.
    H, Wt : Tensor (K, F), (K, N)
        Where to start: components and weights.
    rules : Rules
        What is asked of the factors.
    objective : float
        The objective there.
    pace : Pace
        How far to lead.
    passes : tuple of int
        Coordinate-descent passes over the weights, at most, and over the components.

    Attributes
    ----------
    H, Wt : Tensor
        The best so far: copies, made by `sweep`.
    """

    def __init__(
        self,
        X: Blocks,
        H: torch.Tensor,
        Wt: torch.Tensor,
        rules: Rules,
        *,
        objective: float,
        pace: "Pace",
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
        numbers = [*astuple(pace), objective, X.half_norm, rules.l1, rules.l2]
        self._state = torch.tensor(numbers, **options)
        self._whole = torch.zeros(4, **flags)
        # Two slots: one has the best factors, the other takes what comes next.
        self._H, self._Wt = torch.stack([H, H]), torch.stack([Wt, Wt])
        B, G = X.transposed_times(Wt.T), H @ H.T
        self._B, self._G = torch.stack([B, B]), torch.stack([G, G])
        self._lead_H, self._lead_Wt, self._ahead_G = H.clone(), Wt.clone(), G.clone()
        self._every, self._free = torch.ones(K, **flags), torch.zeros(K, **flags)
        self._free[list(rules.free)] = 1
        self._n_groups = -(-N // _GROUP)
        self._tiles = X.tiles(self._n_groups * _GROUP // TILE)
        self._slabs = -(-F // cuda.SLAB)
        self._columns, self._parts = -(-F // cuda.COLUMNS), -(-F // _PART)
        # Shares end where a tile does.
        tiles = -(-N // TILE)
        self._share = TILE * -(-tiles // cuda.shares(H.device, self._columns))
        self._shares = -(-N // self._share)
        sums = 2 * K * K + 1
        self._C_parts = torch.empty(self._slabs, K, N, **options)
        self._B_parts = torch.empty(self._shares, K, F, **options)
        self._grams = torch.empty(self._n_groups, sums, **options)
        self._A = torch.empty(sums, **options)
        self._component_parts = torch.empty(self._parts, sums + 1, **options)
        self._came = torch.zeros(self._n_groups + 2, **flags)
        self._curve = torch.empty(_ROOM, **options)
        self._K = {"K": K, "KP": cuda.padded(K)}
        # Kernels see powers of two.
        self._squares = 1 << (K * K - 1).bit_length(), 1 << (sums - 1).bit_length()

    def sweep(self, count: int) -> list[float]:
        """Do sweeps; give the objective after each. The host waits once, for the last."""
        values: list[float] = []
        while len(values) < count:
            some = min(count - len(values), _ROOM)
            self._whole[self._kernels.COUNT.value].zero_()
            for _ in range(some):
                self._launch()
            values += self._curve[:some].tolist()
        slot = int(self._whole[self._kernels.SLOT.value])
        self.H, self.Wt = self._H[slot].clone(), self._Wt[slot].clone()
        return values

    def _launch(self) -> None:
        cuda, kernels, (N, F) = self._triton, self._kernels, self._sizes
        dtype = cuda.triton_dtype(self._X.dtype)
        kernels.weights[(self._n_groups * (_GROUP // TILE) * self._slabs,)](
            self._tiles, self._H, self._lead_H, self._Wt, self._lead_Wt, self._ahead_G, self._every,
            self._C_parts, self._came, self._grams, self._A, self._state, self._whole, N, F,
            self._slabs, cuda.SLAB, self._n_groups, self._passes[0],
            DTYPE=dtype, **self._K, BM=TILE, BF=cuda.POINTS, BG=_GROUP, KQ=self._squares[1],
            STAGES=cuda.STAGES, num_warps=4, maxnreg=128,
        )  # fmt: skip
        kernels.products[(self._shares * self._columns,)](
            self._tiles, self._lead_Wt, self._B_parts, N, F, self._columns, self._share,
            self._shares, DTYPE=dtype, **self._K, BM=TILE, BR=cuda.SOME_ROWS, BC=cuda.COLUMNS,
            STAGES=cuda.STAGES, num_warps=4,
        )  # fmt: skip
        kernels.components[(self._parts,)](
            self._H, self._lead_H, self._B, self._G, self._ahead_G, self._free, self._A,
            self._B_parts, self._component_parts, self._came, self._state, self._whole,
            self._curve, F, self._shares, self._n_groups, self._passes[1],
            **self._K, BT=_PART, KQ=self._squares[0], BP=16, BZ=256, num_warps=4,
        )  # fmt: skip
