"""Alternating sweeps over all rows, extrapolated, to a tolerance or a deadline."""

import math
import time
from dataclasses import astuple, dataclass
from typing import Protocol, cast

import numpy as np
import torch

from .deadline import Deadline
from .deviceblocks import DeviceBlocks
from .devicesweeps import DeviceSweeps, sweeps_on_device
from .factors import Factors
from .kernels import descends_on, kernels_for
from .rules import Rules
from .updates import DEVICE_PASSES, SETTLED, coordinate_descent, nnls

__all__ = [
    "LOST",
    "NEVER",
    "PASSES",
    "WINDOW",
    "Alternation",
    "Data",
    "Descent",
    "Extrapolation",
    "Pace",
    "Sweeps",
    "exact_weights",
    "first_weights",
    "solve",
    "squared_residuals",
]

#: Coordinate-descent passes over weights and over components, at most. Those over components end
#: sooner; where phases are alike, many are worth hundreds of sweeps.
PASSES = (64, 64)
#: Sweeps over which the decrease is judged.
WINDOW = 20
#: Decrease that is lost beside ½‖X‖²: data without noise are never explained to the last bit.
LOST = 1e-11
#: Seconds between two looks at the deadline, as long as it is this far away.
_LOOK = 0.005

#: No deadline.
NEVER = Deadline()

_NO_BASIS = np.zeros((0, 0))


class Data(Protocol):
    """What sweeps need of the data: `Blocks` themselves, or a compressed form of them."""

    device: torch.device
    half_norm: float

    def __len__(self) -> int: ...

    @property
    def norms(self) -> torch.Tensor:
        """Squared norms of the rows, (N,)."""

    def times(self, H: torch.Tensor) -> torch.Tensor:
        """XHᵀ, (N, K)."""

    def transposed_times(self, W: torch.Tensor) -> torch.Tensor:
        """WᵀX, (K, F)."""

    def row(self, index: int) -> torch.Tensor:
        """One row, (F,)."""

    def fused(self) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Give the data as one matrix, or two to be multiplied, for kernels to sweep over."""


@dataclass
class Pace:
    """How far an extrapolation leads: Ang and Gillis, Neural Computation 31, 417 (2019).

    Parameters
    ----------
    step, bound : float
        How far now, and at most.
    growth, bound_growth, shrink : float
        How both grow after a good sweep, and how the step shrinks after a bad one.
    """

    step: float = 0.5
    bound: float = 1.0
    growth: float = 1.05
    bound_growth: float = 1.01
    shrink: float = 1.5

    def good(self) -> None:
        """Lead further."""
        self.step = min(self.bound, self.growth * self.step)
        self.bound = min(1.0, self.bound_growth * self.bound)

    def bad(self) -> None:
        """Lead less far, and never so far again for a while."""
        self.bound, self.step = self.step, self.step / self.shrink


@dataclass(frozen=True)
class Descent:
    """Where a descent arrived: components H (K, F), the objective, and why it ended."""

    H: torch.Tensor
    objective: float
    converged: bool
    sweeps: int


def exact_weights(X: Data, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve for the weights of all rows of X, given H (K, F); give them and XHᵀ, both (N, K)."""
    C = X.times(H)
    return solve(X.device, C, H @ H.T), C


def first_weights(
    device: torch.device, C: torch.Tensor, H: torch.Tensor, rules: Rules
) -> torch.Tensor:
    """Solve for the weights that a descent starts from, (N, K), given C = XHᵀ."""
    G = H @ H.T + rules.l2 * torch.eye(len(H), dtype=H.dtype, device=H.device)
    return solve(device, C - rules.l1, G)


def solve(device: torch.device, C: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    """Solve for weights (N, K), given C = XHᵀ and G = HHᵀ."""
    kernels, descends = kernels_for(device), descends_on(device, len(G))
    if descends is not None:
        solved: torch.Tensor = descends.weights_of(C, G)
        return solved
    return nnls(C, G) if kernels is None else torch.from_numpy(kernels.nnls(C.numpy(), G.numpy()))


def squared_residuals(X: Data, W: torch.Tensor, H: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """Squared residuals of the rows, (N,), from C = XHᵀ: to some 1e-15 of the squared norms."""
    squared = X.norms - 2.0 * (W * C).sum(1) + ((W @ (H @ H.T)) * W).sum(1)
    return squared.clamp_min(0)


class Sweeps:
    """A descent that can be gone on with: the objective at its start and after each sweep.

    Attributes
    ----------
    H : Tensor (K, F)
        The best components so far.
    curve : list of float
        The objective at the start and after each sweep; it never rises.
    """

    H: torch.Tensor
    curve: list[float]

    @property
    def weights(self) -> torch.Tensor:
        """The best weights so far, (N, K)."""
        raise NotImplementedError

    #: Decrease of the objective that is lost in rounding.
    lost = 0.0
    _seconds = 0.0

    def sweep(self, count: int) -> None:
        """Do some sweeps."""
        started = time.perf_counter()
        self._sweep_on(count)
        self._seconds = (time.perf_counter() - started) / count

    def descend(self, *, max_sweeps: int, tol: float, deadline: Deadline = NEVER) -> Descent:
        """Sweep on, to a tolerance or a deadline.

        Parameters
        ----------
        max_sweeps : int
            Most sweeps.
        tol : float
            Decrease over 20 sweeps, relative to the objective, below which the descent has
            converged; so it has where the decrease is lost in rounding.
        deadline : Deadline
            When no further sweep is to be begun.

        Returns
        -------
        Descent
            Not above the objective of the start, but for rounding.
        """
        converged = False
        while len(self.curve) <= max_sweeps and not converged and not deadline.passed:
            self.sweep(self._until(deadline, max_sweeps + 1 - len(self.curve)))
            converged = self._converged(tol)
        return Descent(self.H, self.curve[-1], converged, len(self.curve) - 1)

    def _sweep_on(self, count: int) -> None:
        raise NotImplementedError

    def _until(self, deadline: Deadline, most: int) -> int:
        """Sweeps to do before the next look at the clock and at the curve."""
        left = deadline.left
        if math.isinf(left):
            return min(WINDOW, most)
        if not self._seconds:
            return 1
        spell = _LOOK if deadline.interruptible else max(_LOOK, left / 2)
        return max(1, min(WINDOW, most, int(min(left, spell) / self._seconds)))

    def _converged(self, tol: float) -> bool:
        if len(self.curve) <= WINDOW:
            return False
        before, now = self.curve[-1 - WINDOW], self.curve[-1]
        return before - now <= max(tol * before, self.lost)


class Alternation(Sweeps):
    """Exact weights and passes over the components in turn: for weights that are held, or add up.

    Parameters
    ----------
    factors : Factors
        Where to start; they are changed in place.
    """

    def __init__(self, factors: Factors) -> None:
        self.factors, self.H = factors, factors.H
        self.lost = LOST * factors.X.half_norm
        factors.follow()
        self.curve = [factors.objective]

    @property
    def weights(self) -> torch.Tensor:
        """The best weights so far, (N, K)."""
        return self.factors.W.tensor()

    def _sweep_on(self, count: int) -> None:
        for _ in range(count):
            self.factors.descend(PASSES[1])
            self.factors.resolve(0, len(self.factors))
            self.curve.append(min(self.curve[-1], self.factors.objective))


class Extrapolation(Sweeps):
    """Extrapolated sweeps: each starts ahead of the best factors so far.

    Parameters
    ----------
    X : Data
        The data.
    H : Tensor (K, F)
        Where to start.
    rules : Rules
        What is asked of the factors.
    W, C : Tensor (N, K), optional
        Weights to start from, by default the exact ones; and XHᵀ.
    most : int, optional
        Passes over the components, at most; a device makes `updates.DEVICE_PASSES`.

    Attributes
    ----------
    H : Tensor (K, F)
        The best components.
    Wt : Tensor (K, N)
        The best weights, transposed.
    """

    def __init__(
        self,
        X: Data,
        H: torch.Tensor,
        rules: Rules,
        *,
        W: torch.Tensor | None = None,
        C: torch.Tensor | None = None,
        most: int = PASSES[1],
    ) -> None:
        self.X, self.rules, self.H = X, rules, H.clone()
        self._passes = PASSES[0], most
        self._C = X.times(self.H) if C is None else C
        if W is None:
            W = first_weights(X.device, self._C, self.H, rules)
        # Rows of Wᵀ are worked on one after the other, as those of H.
        self.Wt = W.T.clone(memory_format=torch.contiguous_format)
        self._ahead_Wt, self._ahead_H = self.Wt.clone(), self.H.clone()
        self._ahead_C = self._C.clone()
        self._pace = Pace()
        self.curve = [self._objective(self.Wt, self.H, self._C)]
        self.lost = LOST * X.half_norm
        self._on_device: DeviceSweeps | None = None

    @property
    def weights(self) -> torch.Tensor:
        """The best weights so far, (N, K)."""
        return self.Wt.T

    def _sweep_on(self, count: int) -> None:
        """Do sweeps; keep each where it lowers the objective, else go on without its lead."""
        kernels, fused = kernels_for(self.X.device), self.X.fused()
        if sweeps_on_device(self.X, len(self.H)):
            self._sweep_on_device(count)
        elif kernels is None or fused is None:
            for _ in range(count):
                self._sweep()
        else:
            self._sweep_fused(kernels, fused, count)

    def _sweep_on_device(self, count: int) -> None:
        if self._on_device is None:
            self._on_device = DeviceSweeps(
                cast(DeviceBlocks, self.X),
                self.H,
                self.Wt,
                self.rules,
                objective=self.curve[-1],
                pace=astuple(self._pace),
                passes=(self._passes[0], DEVICE_PASSES),
            )
        self.curve += self._on_device.sweep(count)
        self.H, self.Wt = self._on_device.H, self._on_device.Wt

    def _sweep_fused(
        self, kernels: object, fused: tuple[torch.Tensor, torch.Tensor | None], count: int
    ) -> None:
        curve, pace = np.empty(count), np.array(astuple(self._pace))
        rows, basis = fused
        kernels.sweep(  # type: ignore[attr-defined]
            rows.numpy(),
            _NO_BASIS if basis is None else basis.numpy(),
            self.X.half_norm,
            self.rules.l1,
            self.rules.l2,
            self.Wt.numpy(),
            self.H.numpy(),
            self._C.numpy(),
            self._ahead_Wt.numpy(),
            self._ahead_H.numpy(),
            self._ahead_C.numpy(),
            pace,
            np.array(self.rules.free, dtype=np.int64),
            self._passes,
            count,
            curve,
        )
        self._pace = Pace(*pace.tolist())
        self.curve += curve.tolist()

    def _sweep(self) -> None:
        step = self._pace.step
        every, X, rules = range(len(self.H)), self.X, self.rules
        free = list(rules.free)
        penalty = rules.l2 * torch.eye(len(self.H), dtype=self.H.dtype, device=self.H.device)
        G = self._ahead_H @ self._ahead_H.T + penalty
        right = self._ahead_C.T - rules.l1
        Wt = coordinate_descent(self._ahead_Wt, G, right, free=every, passes=self._passes[0])
        ahead_Wt = Wt + step * (Wt - self.Wt)
        B = X.transposed_times(ahead_Wt.T) - rules.l1
        A = ahead_Wt @ ahead_Wt.T + penalty
        H = coordinate_descent(
            self._ahead_H, A, B, free=free, passes=self._passes[1], settled=SETTLED
        )
        C = X.times(H)
        objective = self._objective(Wt, H, C)
        if objective <= self.curve[-1]:
            # Extrapolated components may be negative here and there: the next step mends that,
            # and XHᵀ of an extrapolation is the extrapolation of XHᵀ.
            self._ahead_Wt, self._ahead_H = ahead_Wt, H.clone()
            self._ahead_H[free] += step * (H - self.H)[free]
            self._ahead_C = C + step * (C - self._C)
            self.Wt, self.H, self._C = Wt, H, C
            self._pace.good()
        else:
            objective = self.curve[-1]
            self._ahead_Wt, self._ahead_H, self._ahead_C = self.Wt, self.H, self._C
            self._pace.bad()
        self.curve.append(objective)

    def _objective(self, Wt: torch.Tensor, H: torch.Tensor, C: torch.Tensor) -> float:
        A, G = Wt @ Wt.T, H @ H.T
        objective = self.X.half_norm - float((Wt.T * C).sum()) + 0.5 * float((A * G).sum())
        if self.rules.penalised:
            objective += self.rules.penalty(float(Wt.sum()), float(H.sum()), A, G)
        return objective
