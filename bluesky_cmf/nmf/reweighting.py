"""Half-steps for the beta-divergence: least squares problems, one reweighted after another.

At v = wH a half-step is least squares with the weights v^(β-2), for both have the same gradient
(Fisher scoring). A step that does not lower the divergence is shortened, or not taken. Zero may be
left again, which multiplicative steps cannot do, and a few steps do the work of many of those.
Below β = 1, where zeros trap these steps too, components are kept off them.
"""

import numpy as np
import torch

from .blocks import Blocks
from .divergences import elementwise, zero_floor
from .kernels import kernels_for
from .rules import Rules
from .updates import solve_rows

__all__ = ["Floor", "HalfSteps", "grams"]

#: Passes of coordinate descent on the components for each reweighting.
_PASSES = 4
#: Trials of a step, each a quarter as long as the one before, and a decrease worth no further one.
_TRIALS, _SHORTER, _STILL = 5, 0.25, 1e-7
#: Below β = 1: the part of its mean that a component starts from at least, at each point, and the
#: part of it that a step leaves.
_OFF_ZERO, _LEAST_LEFT = 0.1, 0.3
#: Curvature beside that of other components, at the same point, that is as good as none.
_NO_WEIGHT = 1e-24
_NONE_HELD = np.zeros((0, 0))


def grams(H: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    """Give H diag(u) Hᵀ for each row of U (M, F), as (M, K, K)."""
    return torch.stack([(U * h) @ H.T for h in H], 1)


class Floor:
    """What stands for zero in a reconstruction, beside the first pattern that is not zero.

    It is the same for all factors that are compared with each other.
    """

    def __init__(self) -> None:
        self.value = 0.0

    def beside(self, X: Blocks) -> float:
        """Give the floor; it stays what it was when there were data first."""
        if not self.value:
            for _, rows in X.chunks():
                alive = rows.any(1).nonzero()
                if len(alive):
                    # One row, so that it does not matter in which portions rows have come.
                    self.value = zero_floor(rows[alive[0, 0]])
                    return self.value
        return self.value or zero_floor(torch.zeros(1))


class HalfSteps:
    """Half-steps on the weights and on the components of the rows of X.

    Parameters
    ----------
    X : Blocks
        The data.
    rules : Rules
        What is asked of the factors.
    floor : Floor
        What stands for zero in a reconstruction.
    """

    def __init__(self, X: Blocks, rules: Rules, floor: Floor) -> None:
        self.X, self.rules, self._floor = X, rules, floor
        self._kernels = kernels_for(X.device, beta=1.0)
        self._free = np.array(rules.free, dtype=np.int64)

    @property
    def floor(self) -> float:
        """What stands for zero in a reconstruction."""
        return self._floor.beside(self.X)

    def rows(
        self,
        H: torch.Tensor,
        W: torch.Tensor,
        *,
        first: int = 0,
        held: torch.Tensor | None = None,
        steps: int,
    ) -> tuple[torch.Tensor, float, float]:
        """Take steps on the weights W (M, K) of the rows from ``first`` on, in place.

        Returns
        -------
        fit : Tensor (M, 2)
            Squared residuals and divergences.
        before, after : float
            Sums of divergences and penalties; the second is not higher where the weights were
            what was asked of them.
        """
        fit = W.new_zeros(len(W), 2)
        before = after = 0.0
        for begin, piece in self.X.pieces(first, first + len(W)):
            part = slice(begin - first, begin - first + len(piece))
            kept = None if held is None else held[part]
            if self._kernels is None:
                sums = self._rows(piece.double(), H, W[part], kept, steps, fit[part])
            else:
                squared, left = np.empty(len(piece)), np.empty(len(piece))
                sums = self._kernels.rows(
                    piece.numpy(),
                    H.numpy(),
                    self.rules.beta,
                    self.floor,
                    self.rules.l1,
                    self.rules.l2,
                    self.rules.total_or_nan,
                    _NONE_HELD if kept is None else kept.numpy(),
                    steps,
                    W[part].numpy(),
                    squared,
                    left,
                )
                fit[part, 0], fit[part, 1] = torch.from_numpy(squared), torch.from_numpy(left)
            before, after = before + sums[0], after + sums[1]
        return fit, before, after

    def leap(self, H: torch.Tensor, W: torch.Tensor) -> None:
        """Take one step on the weights W (N, K) of all rows, in place, wherever it leads."""
        for first, piece in self.X.pieces():
            part = slice(first, first + len(piece))
            if self._kernels is None:
                X = piece.double()
                U, G = self.curvature(H, (W[part] @ H).clamp_min(self.floor))
                C = (U * self.raised(X)) @ H.T
                W[part] = solve_rows(C, G, l1=self.rules.l1, l2=self.rules.l2)
                continue
            rules = self.rules
            scalars = rules.beta, self.floor, rules.l1, rules.l2
            self._kernels.leap(piece.numpy(), H.numpy(), *scalars, W[part].numpy())

    def components(
        self, H: torch.Tensor, W: torch.Tensor, *, told: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one step on the free components, given W (N, K).

        Returns
        -------
        H : Tensor (K, F)
        left : Tensor (F,)
            Divergence of each column before the step, where it is to be ``told``.
        """
        n, F, rules = len(self.rules.free), self.X.n_features, self.rules
        G, C, left = H.new_zeros(n, n, F), H.new_zeros(n, F), H.new_zeros(F if told else 0)
        before, H = H, H.clone()
        for first, piece in self.X.pieces():
            weights = W[first : first + len(piece)].contiguous()
            if self._kernels is None:
                self._accumulate(piece.double(), weights, H, G, C, left)
                continue
            self._kernels.accumulate(
                piece.numpy(),
                weights.numpy(),
                H.numpy(),
                self._free,
                rules.beta,
                self.floor,
                G.numpy(),
                C.numpy(),
                left.numpy(),
            )
        if self._kernels is None:
            self._solve(G, C, H)
        else:
            arrays = G.numpy(), C.numpy(), self._free, rules.l1, rules.l2, _PASSES, H.numpy()
            self._kernels.solve(*arrays)
        return self.kept_off_zero(H, before), left

    def safe_components(
        self, H: torch.Tensor, W: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a step on the free components that raises the objective of no column.

        Returns
        -------
        H : Tensor (K, F)
        left : Tensor (F,)
            Divergence of each column after the step.
        """
        new, left = self.components(H, W)
        before = left + self.penalty(H)
        for _ in range(_TRIALS):
            found = self.left(new, W)
            worse = found + self.penalty(new) > before
            if not bool(worse.any()):
                return new, found
            new[:, worse] = H[:, worse] + _SHORTER * (new - H)[:, worse]
        new[:, worse] = H[:, worse]
        return new, self.left(new, W)

    def off_zero(self, H: torch.Tensor) -> torch.Tensor:
        """Raise free components (K, F) to start from to where steps can move them.

        Below β = 1 points near zero outweigh all others, and a step hardly moves what it finds at
        zero: each set of zeros has a minimum of its own.
        """
        if self.rules.beta >= 1:
            return H
        free, H = list(self.rules.free), H.clone()
        H[free] = H[free].maximum(_OFF_ZERO * H[free].mean(1, keepdim=True))
        return H

    def kept_off_zero(self, H: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Let no component (K, F) fall to zero in one step from what it was before."""
        return H if self.rules.beta >= 1 else H.maximum(_LEAST_LEFT * before)

    def left(self, H: torch.Tensor, W: torch.Tensor, *, stop: int | None = None) -> torch.Tensor:
        """Sum the divergence of each column, (F,), over the rows before ``stop``."""
        left = H.new_zeros(self.X.n_features)
        for first, piece in self.X.pieces(0, stop):
            weights = W[first : first + len(piece)].contiguous()
            if self._kernels is None:
                V = (weights @ H).clamp_min(self.floor)
                left += self._diverge(piece.double(), V).sum(0)
                continue
            arrays = piece.numpy(), weights.numpy(), H.numpy()
            self._kernels.evaluate(*arrays, self.rules.beta, self.floor, left.numpy())
        return left

    def penalty(self, H: torch.Tensor) -> torch.Tensor:
        """Sum the penalty of each column of a factor, (F,)."""
        return self.rules.l1 * H.sum(0) + 0.5 * self.rules.l2 * H.square().sum(0)

    def curvature(self, H: torch.Tensor, V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reweight at a reconstruction V (M, F).

        Returns
        -------
        U : Tensor (M, F)
            The weights, V^(β-2).
        G : Tensor (M, K, K)
            H diag(u) Hᵀ for each row.
        """
        U = V.pow(self.rules.beta - 2)
        return U, grams(H, U)

    # --- the same in torch -----------------------------------------------------------------

    def _diverge(self, X: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        return elementwise(self.raised(X), V, self.rules.beta).clamp_min(0)

    def raised(self, X: torch.Tensor) -> torch.Tensor:
        """Raise intensities to the floor where zero has no finite divergence."""
        return X.clamp_min(self.floor) if self.rules.beta <= 0 else X

    def _rows(
        self,
        X: torch.Tensor,
        H: torch.Tensor,
        W: torch.Tensor,
        held: torch.Tensor | None,
        steps: int,
        fit: torch.Tensor,
    ) -> tuple[float, float]:
        rules = self.rules
        raised = self.raised(X)
        if held is not None:
            W[:] = torch.where(held.isnan(), W, held)
        found = self._row_values(X, W, H)
        before = float(found.sum())
        # Weights that do not add up to their total are no place to compare with.
        off_total = (W.sum(1) - rules.total_or_nan).abs() > 1e-9 * rules.total_or_nan
        going = torch.ones_like(off_total)
        for _ in range(steps):
            U, G = self.curvature(H, (W @ H).clamp_min(self.floor))
            C = (U * raised) @ H.T
            Z = solve_rows(C, G, l1=rules.l1, l2=rules.l2, total=rules.total_or_nan, held=held)
            length = torch.where(going, 1.0, 0.0).to(W.dtype)
            for _trial in range(_TRIALS):
                trial = W + length[:, None] * (Z - W)
                value = self._row_values(X, trial, H)
                worse = (value > found) & ~off_total & going
                if not bool(worse.any()):
                    break
                length = torch.where(worse, _SHORTER * length, length)
            taken = going & ~worse
            going = taken & (off_total | (found - value > _STILL * found.abs()))
            W[taken], found = trial[taken], torch.where(taken, value, found)
            off_total = off_total & ~taken
            if not bool(going.any()):
                break
        fit[:, 0] = (X - W @ H).square().sum(1)
        fit[:, 1] = found - self.penalty(W.T)
        return before, float(found.sum())

    def _row_values(self, X: torch.Tensor, W: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
        return self._diverge(X, (W @ H).clamp_min(self.floor)).sum(1) + self.penalty(W.T)

    def _accumulate(
        self,
        X: torch.Tensor,
        W: torch.Tensor,
        H: torch.Tensor,
        G: torch.Tensor,
        C: torch.Tensor,
        left: torch.Tensor,
    ) -> None:
        free = list(self.rules.free)
        kept = W.clone()
        kept[:, free] = 0.0
        V = (W @ H).clamp_min(self.floor)
        if len(left):
            left += self._diverge(X, V).sum(0)
        U = V.pow(self.rules.beta - 2)
        rest = self.raised(X) - kept @ H
        C += W[:, free].T @ (U * rest)
        pairs = W[:, free, None] * W[:, None, free]
        G += torch.einsum("nab,nf->abf", pairs, U)

    def _solve(self, G: torch.Tensor, C: torch.Tensor, H: torch.Tensor) -> None:
        rules = self.rules
        least = _NO_WEIGHT * (G.diagonal().amax(1) + rules.l2)
        for _ in range(_PASSES):
            for a, k in enumerate(rules.free):
                step = C[a] - rules.l1
                for b, m in enumerate(rules.free):
                    if b != a:
                        step = step - G[a, b] * H[m]
                curvature = G[a, a] + rules.l2
                # A component that meets no weight has nothing to follow.
                moves = curvature > least
                safe = torch.where(moves, curvature, 1.0)
                H[k] = torch.where(moves, (step / safe).clamp_min(0), H[k])
