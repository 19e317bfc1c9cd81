"""The documented factorization: torch modules that fit a batch of patterns under constraints."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bluesky_cmf.nmf.base import CHECK_EVERY, Factor, Goal, NMFBase, settled
from bluesky_cmf.nmf.batch import BatchSweeps
from bluesky_cmf.nmf.constraints import (
    Entries,
    Flags,
    checked_count,
    checked_shape,
    component_count,
    listed,
)
from bluesky_cmf.nmf.kernels import warm_up

__all__ = ["NMF", "NMFD", "NMFBase"]


class NMF(NMFBase):
    r"""Factorize patterns into weights and components: ``X ≈ W @ H``.

    For a beta from 1 to 2, on the CPU, the fit goes by extrapolated sweeps: exact weights, and
    components by coordinate descent (``beta=2``) or by least squares that are reweighted; zero may
    be left again, and a free component that no pattern uses any more starts anew from what the
    worst pattern lacks, where that lowers the objective. Elsewhere the steps are multiplicative,
    in closed form, and for ``beta=2`` minimisations over one component after another (HALS).

    Parameters
    ----------
    X_shape
        (m_examples, n_features): patterns are rows.
    n_components
        Number of components; left out, the longer of `initial_components` and `fix_components`.
    initial_components
        Tensors or arrays of shape (1, n_features), or None for a random one.
    fix_components
        For each component whether it is held.
    initial_weights
        Tensors or arrays of shape (1, m_examples), one per component, or (1, n_components), one per
        example; where the two coincide, per example.
    fix_weights
        For each component, or each example, whether its weights are held.
    device
        Where the factors live.
    \*\*kwargs
        `dtype` and `seed`; all options are described at `NMFBase`.

    Attributes
    ----------
    W
        Weights, (m_examples, n_components). A component that is held at zero everywhere has none.
    H
        Components, (n_components, n_features).

    References
    ----------
    Févotte and Idier, Neural Computation 23 (2011), 2421-2456; Cichocki and Phan, Fast local
    algorithms for large scale nonnegative matrix and tensor factorizations, IEICE Trans.
    Fundamentals E92-A (2009), 708-721.

    Examples
    --------
    >>> known = torch.tensor([[0.0, 1.0, 2.0]])
    >>> X = torch.tensor([[1.0], [3.0]]) @ known
    >>> model = NMF(X.shape, initial_components=[known], fix_components=[True], seed=0)
    >>> curve = model.fit(X, beta=2)
    >>> model.W.round(decimals=4).flatten().tolist()
    [1.0, 3.0]
    """

    def __init__(
        self,
        X_shape: Sequence[int],
        n_components: int | None = None,
        *,
        initial_components: Entries = None,
        fix_components: Flags = (),
        initial_weights: Entries = None,
        fix_weights: Flags = (),
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        m_examples, n_features = checked_shape("X_shape", X_shape, "m_examples, n_features")
        initial_components = listed("initial_components", initial_components)
        fix_components = listed("fix_components", fix_components)
        count = component_count(n_components, initial_components, fix_components)
        super().__init__(
            (m_examples, count),
            (count, n_features),
            count,
            initial_components=initial_components,
            fix_components=fix_components,
            initial_weights=initial_weights,
            fix_weights=fix_weights,
            device=device,
            **kwargs,
        )
        if self.W.device.type == "cpu":
            # Now, and not while somebody waits for a fit.
            warm_up(beta=1.0)

    def reconstruct(self, H: Tensor, W: Tensor) -> Tensor:
        """Return ``W @ H``."""
        return W @ H

    def get_W_positive(
        self, WH: Tensor, beta: float, H_sum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``WH^(beta - 1) @ H.T``, which for ``beta=1`` is the sum of each component."""
        if beta != 1:
            return _power(WH, beta - 1) @ self.H.T, H_sum
        H_sum = self.H.sum(1) if H_sum is None else H_sum
        return H_sum[None, :], H_sum

    def get_H_positive(
        self, WH: Tensor, beta: float, W_sum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``W.T @ WH^(beta - 1)``, which for ``beta=1`` is the sum of each weight."""
        if beta != 1:
            return self.W.T @ _power(WH, beta - 1), W_sum
        W_sum = self.W.sum(0) if W_sum is None else W_sum
        return W_sum[:, None], W_sum

    def _linearise(self, factor: Factor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        W, H = self.W.data, self.H.data
        if factor == "W":
            return W @ H, lambda gradient: gradient @ H.T
        return W @ H, lambda gradient: W.T @ gradient

    def _descend(self, goal: Goal, free: list[Factor], tol: float, max_iter: int) -> list[float]:
        start = self._objective(goal)
        fast = max_iter and math.isfinite(start) and 1 <= goal.beta <= 2
        if not fast or not BatchSweeps.serve(self.W.device, beta=goal.beta):
            return super()._descend(goal, free, tol, max_iter)
        fixed = (self._W_fixed, self._H_fixed)
        sweeps = BatchSweeps(goal, self.W.data, self.H.data, fixed=fixed, free=free)
        curve, done = [start], 0
        while done < max_iter:
            count = min(CHECK_EVERY, max_iter - done)
            if len(curve) == 1 or not sweeps.revive(count):
                if len(curve) > 1 and settled(curve, tol):
                    break
                sweeps.now.sweep(count)
            done += count
            # Of data without noise, rounding may leave less than nothing.
            curve.append(max(0.0, min(curve[-1], sweeps.now.curve[-1])))
        if sweeps.now.curve[-1] <= start:
            self._replace("W", sweeps.now.weights.to(self.W.dtype))
            self._replace("H", sweeps.now.H.to(self.H.dtype))
        return curve

    def _half_step(self, factor: Factor, goal: Goal, partner_sum: Tensor | None) -> Tensor | None:
        if goal.beta != 2:
            return super()._half_step(factor, goal, partner_sum)
        W, H = self.W.data, self.H.data
        if factor == "W":
            gram = H @ H.T
            # Nothing would ever move the weights of a component that is held at zero.
            unseen = self._H_fixed.T & (gram.diagonal() == 0) & ~self._W_fixed
            W = W.masked_fill(unseen, 0)
            self._replace("W", _minimise_columns(W, goal.X @ H.T, gram, self._W_fixed, goal))
        else:
            cross, fixed = goal.X.T @ W, self._H_fixed.T
            self._replace("H", _minimise_columns(H.T, cross, W.T @ W, fixed, goal).T.contiguous())
        return partner_sum


class NMFD(NMFBase):
    r"""Factorize patterns into components that may each appear at several shifts.

    ``X[m, n] ≈ sum over k and t of W[m, k, t] * H[k, n - t]``: each example takes component k,
    moved by t = 0 ... T - 1 channels along the features, with weight ``W[m, k, t]``. With ``T=1``
    its model is that of `NMF`.

    Parameters
    ----------
    X_shape
        (m_examples, n_features).
    n_components
        Number of components; left out, the longer of `initial_components` and `fix_components`.
    T
        Number of shifts, 1 to n_features.
    initial_components
        Tensors or arrays of shape (1, n_features - T + 1), or None for a random one.
    initial_weights
        Tensors or arrays of shape (1, m_examples, T), one per component, or (1, n_components, T),
        one per example.
    \*\*kwargs
        `dtype` and `seed`; all options are described at `NMFBase`.

    Attributes
    ----------
    W
        Weights, (m_examples, n_components, T).
    H
        Components, (n_components, n_features - T + 1).

    References
    ----------
    Smaragdis, Non-negative matrix factor deconvolution, ICA 2004, LNCS 3195, 494-499.
    """

    def __init__(
        self,
        X_shape: Sequence[int],
        n_components: int | None = None,
        *,
        T: int = 1,
        initial_components: Entries = None,
        fix_components: Flags = (),
        initial_weights: Entries = None,
        fix_weights: Flags = (),
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        m_examples, n_features = checked_shape("X_shape", X_shape, "m_examples, n_features")
        initial_components = listed("initial_components", initial_components)
        fix_components = listed("fix_components", fix_components)
        count = component_count(n_components, initial_components, fix_components)
        T = checked_count("T", T, most=n_features)
        super().__init__(
            (m_examples, count, T),
            (count, n_features - T + 1),
            count,
            initial_components=initial_components,
            fix_components=fix_components,
            initial_weights=initial_weights,
            fix_weights=fix_weights,
            device=device,
            **kwargs,
        )

    def reconstruct(self, H: Tensor, W: Tensor) -> Tensor:
        """Return the full convolution along the features, summed over the components."""
        return functional.conv1d(H[None], W.flip(2), padding=W.shape[2] - 1)[0]

    def get_W_positive(
        self, WH: Tensor, beta: float, H_sum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Correlate ``WH^(beta - 1)`` with each component."""
        if beta != 1:
            return functional.conv1d(_power(WH, beta - 1)[:, None], self.H[:, None]), H_sum
        H_sum = self.H.sum(1) if H_sum is None else H_sum
        return H_sum[None, :, None], H_sum

    def get_H_positive(
        self, WH: Tensor, beta: float, W_sum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Correlate ``WH^(beta - 1)`` with the weights."""
        if beta != 1:
            kernel = self.W.transpose(0, 1)
            return functional.conv1d(_power(WH, beta - 1)[None], kernel)[0], W_sum
        W_sum = self.W.sum((0, 2)) if W_sum is None else W_sum
        return W_sum[:, None], W_sum


def _power(WH: Tensor, exponent: float) -> Tensor:
    return WH if exponent == 1 else WH.pow(exponent)


def _minimise_columns(
    factor: Tensor, cross: Tensor, gram: Tensor, fixed: Tensor, goal: Goal
) -> Tensor:
    """Move each column of a factor to its non-negative least-squares minimum, one after another.

    `factor` and `cross` are (rows, K), `gram` is (K, K), `fixed` broadcasts to the factor.
    """
    # As rows, the columns lie contiguous in memory.
    rows = factor.T.contiguous().clone()
    cross, fixed = cross.T.contiguous(), fixed.expand_as(factor).T
    for k, row in enumerate(rows):
        curvature = gram[k, k] + goal.l2
        slope = cross[k] - gram[k] @ rows - goal.l1 - goal.l2 * row
        moved = (row + slope / curvature).clamp_min(0)
        row.copy_(torch.where(fixed[k] | ~moved.isfinite(), row, moved))
    return rows.T
