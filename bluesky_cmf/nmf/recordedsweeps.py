"""Extrapolated sweeps without a word to the host: what is kept is decided on the device."""

from collections.abc import Callable
from typing import Any

import torch

from .recording import Recording, descent_for
from .rules import Rules

__all__ = ["RecordedSweeps"]

#: XHᵀ for H (K, F), and WᵀX for W (N, K).
Product = Callable[[torch.Tensor], torch.Tensor]


class RecordedSweeps:
    """What `sweeps.Extrapolation` does, as one step on fixed buffers.

    Parameters
    ----------
    times, transposed_times : callable
        Products with the data, which do not change.
    half_norm : float
        Half the squared norm of the data.
    rules : Rules
        What is asked of the factors.
    H, Wt, C : Tensor (K, F), (K, N), (N, K)
        Where to start: components, weights, and XHᵀ.
    objective : float
        The objective there.
    pace : sequence of float
        How far to lead, at most, and how both grow and shrink: as `sweeps.Pace` has it.
    passes : tuple of int
        Coordinate-descent passes over the weights, and over the components.

    Attributes
    ----------
    H, Wt, C : Tensor
        The best so far.
    """

    def __init__(
        self,
        times: Product,
        transposed_times: Product,
        *,
        half_norm: float,
        rules: Rules,
        H: torch.Tensor,
        Wt: torch.Tensor,
        C: torch.Tensor,
        objective: float,
        pace: tuple[float, ...],
        passes: tuple[int, int],
    ) -> None:
        self._times, self._transposed_times = times, transposed_times
        self._half_norm, self._rules, self._passes = half_norm, rules, passes
        K = len(H)
        options: dict[str, Any] = {"dtype": H.dtype, "device": H.device}
        flags = options | {"dtype": torch.int32}
        self.H, self.Wt, self.C = H.clone(), Wt.clone(), C.clone()
        self._ahead_H, self._ahead_Wt, self._ahead_C = H.clone(), Wt.clone(), C.clone()
        self._best = torch.tensor(objective, **options)
        self._pace = torch.tensor(pace, **options)
        self._every = torch.ones(K, **flags)
        self._free = torch.zeros(K, **flags)
        self._free[list(rules.free)] = 1
        self._moving = self._free[:, None].to(H.dtype)
        self._penalty = rules.l2 * torch.eye(K, **options)
        self._descent = descent_for(H.device)
        masters = (
            *(self.H, self.Wt, self.C, self._ahead_H, self._ahead_Wt, self._ahead_C),
            *(self._best, self._pace),
        )
        self._run = Recording(self._step, masters)

    def sweep(self, count: int) -> list[float]:
        """Do sweeps; give the objective after each. The host waits once, for the last."""
        curve = self._best.new_empty(count)
        for done in range(count):
            self._run()
            curve[done] = self._best
        values: list[float] = curve.tolist()
        return values

    def _step(self) -> None:
        """Do one sweep, and keep it where it lowers the objective."""
        rules, (step, bound, growth, bound_growth, shrink) = self._rules, self._pace.unbind()
        Wt, H = self._ahead_Wt.clone(), self._ahead_H.clone()
        G = H @ H.T + self._penalty
        self._descent(Wt, G, self._ahead_C.T - rules.l1, self._every, self._passes[0])
        lead_Wt = Wt + step * (Wt - self.Wt)
        A = lead_Wt @ lead_Wt.T + self._penalty
        B = self._transposed_times(lead_Wt.T) - rules.l1
        self._descent(H, A, B, self._free, self._passes[1])
        C = self._times(H)
        found = self._objective(Wt, H, C)
        good = found <= self._best
        lead_H = H + step * self._moving * (H - self.H)
        lead_C = C + step * (C - self.C)
        for ahead, lead, kept in (
            (self._ahead_Wt, lead_Wt, self.Wt),
            (self._ahead_H, lead_H, self.H),
            (self._ahead_C, lead_C, self.C),
        ):
            ahead.copy_(torch.where(good, lead, kept))
        for kept, new in ((self.Wt, Wt), (self.H, H), (self.C, C), (self._best, found)):
            kept.copy_(torch.where(good, new, kept))
        paces = (
            torch.where(good, torch.minimum(bound, growth * step), step / shrink),
            torch.where(good, (bound_growth * bound).clamp_max(1.0), step),
        )
        self._pace[:2] = torch.stack(paces)

    def _objective(self, Wt: torch.Tensor, H: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        A, G, rules = Wt @ Wt.T, H @ H.T, self._rules
        objective = self._half_norm - (Wt.T * C).sum() + 0.5 * (A * G).sum()
        if rules.penalised:
            squares = A.diagonal().sum() + G.diagonal().sum()
            objective = objective + rules.l1 * (Wt.sum() + H.sum()) + 0.5 * rules.l2 * squares
        return objective
