"""Other losses than least squares: factors for the beta-divergence, and sweeps over them."""

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from .blocks import Blocks
from .covariance import Noises, known_meat, on_host, weight_covariance
from .factorization import Factorization, free_weights, spread
from .fit import Fit
from .reweighting import Floor, HalfSteps, grams
from .rows import Rows
from .rules import Rules
from .sweeps import Data, Pace, Sweeps, exact_weights
from .updates import nnls

__all__ = ["DivergenceFit", "Reweighted", "ReweightedSweeps"]

#: Steps on the weights of a row: where they are to be exact, and within a sweep.
_EXACT_STEPS, _SWEEP_STEPS = 20, 1


class Reweighted(Factorization):
    """Factors that lower the beta-divergence of X from WH.

    Parameters
    ----------
    X, H, rules, held
        As those of `Factorization`.
    floor : Floor
        What stands for zero in a reconstruction.
    """

    def __init__(
        self,
        X: Blocks,
        H: torch.Tensor,
        rules: Rules,
        *,
        floor: Floor,
        held: Rows | None = None,
    ) -> None:
        super().__init__(X, H, rules, held=held)
        self.steps = HalfSteps(X, rules, floor)
        # Divergences of the rows so far, and the penalty of their weights.
        self._value = 0.0
        # What stood for zero when rows were taken in.
        self._floor = 0.0

    @property
    def objective(self) -> float:
        """The divergence and the penalty, for W and H as they are."""
        return self._value + float(self.steps.penalty(self.H).sum())

    def resolve(self, start: int, stop: int) -> None:
        """Solve for the weights of rows anew, given H."""
        self._resolve(start, stop, new=False)

    def descend(self, passes: int) -> None:
        """Lower the objective over the free components, given W: one step, whatever ``passes``."""
        if not self.rules.free or not len(self):
            return
        self.H[:], _ = self.steps.safe_components(self.H, self.W.tensor())
        self._look()

    def reseed(self, k: int, pattern: torch.Tensor) -> None:
        """Give a component another shape, (F,); weights stay until they are solved for."""
        super().reseed(k, pattern)
        if self.held is not None:
            # Held weights bring it into patterns that nobody solves for now.
            self._look()

    def covariance(
        self, W: torch.Tensor, start: int, squared: torch.Tensor, noises: Noises
    ) -> npt.NDArray[Any]:
        """Estimate covariances of weights (M, K), as (M, K, K), given the components' shapes.

        At v = wH the divergence has the first derivatives H (v^(β-1) - x v^(β-2)) and the second
        ones H diag((β-1) v^(β-2) + (2-β) x v^(β-3)) Hᵀ. So the noise of the first ones is that
        of (H v^(β-2)) x.

        Without a noise that is known they are those of the quasi-likelihood: the variance of a
        point is taken as proportional to v^(2-β), as counting noise is for the Kullback-Leibler
        divergence, with Pearson's factor, from the residual; the second derivatives are the
        expected ones then, H diag(v^(β-2)) Hᵀ.
        """
        parts = [np.zeros((0, W.shape[1], W.shape[1]))]
        for first, rows in self.X.chunks(start, start + len(W)):
            part = slice(first - start, first - start + len(rows))
            parts.append(self._covariance(W[part], rows, first, noises[part]))
        return np.concatenate(parts)

    def _covariance(
        self, W: torch.Tensor, X: torch.Tensor, first: int, noises: Noises
    ) -> npt.NDArray[Any]:
        H, rules = self.H, self.rules
        V = (W @ H).clamp_min(self.steps.floor)
        U, free = V.pow(rules.beta - 2), free_weights(W, self.held, first)
        # A zero that is fitted by one leaves nothing.
        residual = X.clamp_min(self.steps.floor) - V
        factor = spread((U * residual.square()).sum(1), free, X.shape[1])
        curvature, known = U, [i for i, noise in enumerate(noises) if noise is not None]
        if known:
            ratio = self.steps.raised(X[known]) / V[known]
            curvature = U.clone()
            curvature[known] *= rules.beta - 1 + (2 - rules.beta) * ratio
        bread = on_host(grams(H, curvature))
        with np.errstate(over="ignore", invalid="ignore"):
            meat = factor[:, None, None] * bread
        # Of what is beyond float64 no error is known.
        meat[~np.isfinite(meat)] = math.nan
        shapes, factors = on_host(H), on_host(U)
        for i, found in known_meat(noises, lambda i: shapes * factors[i]):
            meat[i] = found
        bread = bread + rules.l2 * np.eye(len(H))
        return weight_covariance(bread, meat, free, add_up=rules.total is not None)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Give what is needed to go on later, as plain arrays."""
        empty = np.zeros((len(self.H), 0))
        return {
            "components": np.array(self.H.cpu().numpy()),
            "weights": np.array(self.W.tensor().cpu().numpy()),
            "squared": np.array(self.squared.tensor().cpu().numpy()),
            "gram": empty,
            "cross": empty,
            "value": np.array([self._value, self._floor]),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `state` gave, as it is."""
        self.H[:] = torch.tensor(state["components"])
        self.W.replace(torch.tensor(state["weights"], dtype=torch.float64))
        self.squared.replace(torch.tensor(state["squared"], dtype=torch.float64))
        self._value, self._floor = state["value"].tolist()

    def _look(self) -> None:
        """Tell the divergence of all rows anew."""
        W = self.W.tensor()
        left = self.steps.left(self.H, W, stop=len(W))
        self._value = float(left.sum() + self.steps.penalty(W.T).sum())

    def _take_in(self, first: int, stop: int) -> None:
        if self._floor not in (0.0, self.steps.floor):
            # So far there were empty patterns alone, beside which nothing could be measured.
            self._value = 0.0
            self._resolve(0, first, new=True)
        self._floor = self.steps.floor
        # Least squares is where to start from.
        self.W.write(first, nnls(self.X.times(self.H, first, stop), self.H @ self.H.T))
        self._resolve(first, stop, new=True)

    def _resolve(self, start: int, stop: int, *, new: bool) -> None:
        before = after = 0.0
        for begin, end in self.W.spans(start, stop):
            held = None if self.held is None else self.held.view(begin, end)
            fit, was, now = self.steps.rows(
                self.H, self.W.view(begin, end), first=begin, held=held, steps=_EXACT_STEPS
            )
            self.squared.view(begin, end)[:] = fit[:, :1]
            before, after = before + was, after + now
        if (start, stop) == (0, len(self)):
            # All rows: nothing is left of the rounding of what the sum had been.
            self._value = after
        else:
            self._value += after if new else after - before


class ReweightedSweeps(Sweeps):
    """Extrapolated sweeps of reweighted steps; one that does not lower the objective is undone.

    Parameters
    ----------
    X : Blocks
        The data.
    H : Tensor (K, F)
        Where to start; raised to `HalfSteps.off_zero` where no weights are given.
    rules : Rules
        What is asked of the factors.
    floor : Floor
        What stands for zero in a reconstruction.
    held : Rows, optional
        Weights that are held.
    W : Tensor (N, K), optional
        Weights to start from; None are those of least squares.
    """

    def __init__(
        self,
        X: Blocks,
        H: torch.Tensor,
        rules: Rules,
        *,
        floor: Floor,
        held: Rows | None = None,
        W: torch.Tensor | None = None,
    ) -> None:
        self.steps, self.rules = HalfSteps(X, rules, floor), rules
        self._held = None if held is None else held.tensor()
        if W is None:
            H = self.steps.off_zero(H)
            W = exact_weights(X, H)[0]
        self.H, self.W = H.clone(), W.clone()
        _, _, value = self._rows(self.H, self.W)
        self.curve = [value + float(self.steps.penalty(self.H).sum())]
        self._ahead_W, self._ahead_H = self.W, self.H
        self._pace, self._safely = Pace(), False

    @property
    def weights(self) -> torch.Tensor:
        """The best weights so far, (N, K)."""
        return self.W

    def _sweep_on(self, count: int) -> None:
        for _ in range(count):
            self._sweep()

    def _sweep(self) -> None:
        steps, W = self.steps, self._ahead_W.clone()
        if self._safely or not self.rules.extrapolable:
            lead = 0.0
            self._rows(self._ahead_H, W)
            H, left = steps.safe_components(self._ahead_H, W)
            ahead_W = W
        else:
            lead = self._pace.step
            steps.leap(self._ahead_H, W)
            ahead_W = (W + lead * (W - self.W)).clamp_min(0)
            H, _ = steps.components(self._ahead_H, ahead_W, told=False)
            left = steps.left(H, W)
        objective = float(left.sum() + steps.penalty(W.T).sum() + steps.penalty(H).sum())
        if objective <= self.curve[-1]:
            self._ahead_W = ahead_W
            self._ahead_H = steps.kept_off_zero((H + lead * (H - self.H)).clamp_min(0), self.H)
            self.W, self.H = W, H
            self._pace.good()
            self._safely = False
        else:
            # The next sweep starts from the best factors, and every step of it is watched.
            objective = self.curve[-1]
            self._ahead_W, self._ahead_H = self.W, self.H
            self._pace.bad()
            self._safely = True
        self.curve.append(objective)

    def _rows(self, H: torch.Tensor, W: torch.Tensor) -> tuple[torch.Tensor, float, float]:
        return self.steps.rows(H, W, held=self._held, steps=_SWEEP_STEPS)


class DivergenceFit(Fit):
    """Factors that lower the beta-divergence of X from WH as rows arrive.

    An event that cannot solve for all rows leaves the components as they are: `improve` and the
    end of the run bring them up to date.
    """

    all_rows, rounds = 2_000_000, 1

    def __init__(
        self, X: Blocks, H: torch.Tensor, rules: Rules, *, seed: int, held: Rows | None = None
    ) -> None:
        self._floor = Floor()
        super().__init__(X, H, rules, seed=seed, held=held)

    def _factors(self, X: Blocks, H: torch.Tensor, held: Rows | None) -> Reweighted:
        return Reweighted(X, H, self.rules, floor=self._floor, held=held)

    def sweeps(
        self, X: Data, H: torch.Tensor, *, held: Rows | None, W: torch.Tensor | None = None
    ) -> Sweeps:
        """Begin a descent from components, and from weights where they are given."""
        return ReweightedSweeps(cast(Blocks, X), H, self.rules, floor=self._floor, held=held, W=W)

    def _descend_bounded(self) -> None:
        # A step on the components reads all rows.
        pass

    def settle(self, challenger: Factorization) -> None:
        """Leave a challenger as it is: a descent reads all rows."""
