"""Alternating multiplicative updates under constraints, for any linear reconstruction."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bluesky_cmf.errors import InputError
from bluesky_cmf.nmf.constraints import (
    Array,
    Entries,
    Flags,
    as_tensor,
    checked_count,
    checked_number,
    checked_shape,
    constrained,
    draw,
    listed,
    placement,
    seeded,
)
from bluesky_cmf.nmf.divergences import beta_divergence, checked_beta, zero_floor

__all__ = ["CHECK_EVERY", "Factor", "Goal", "NMFBase", "settled"]

Factor = Literal["W", "H"]

#: Iterations between two looks at the objective, as in scikit-learn.
CHECK_EVERY = 10


@dataclass(frozen=True)
class Goal:
    """What a fit lowers: the data, the divergence and the penalty."""

    X: Tensor
    beta: float
    floor: float
    l1: float
    l2: float

    @property
    def exponent(self) -> float:
        """The power that keeps a multiplicative step from overshooting (Févotte and Idier)."""
        if self.beta < 1:
            return 1 / (2 - self.beta)
        return 1 / (self.beta - 1) if self.beta > 2 else 1.0

    def floored(self, WH: Tensor) -> Tensor:
        """Raise the reconstruction from zero where it is divided by."""
        return WH.clamp_min(self.floor) if self.beta < 2 else WH

    def weighted(self, WH: Tensor) -> Tensor:
        """``X * WH^(beta - 2)``: what the negative part of the gradient is pulled back from."""
        if self.beta == 2:
            return self.X
        if self.beta == 1:
            return self.X / WH
        X = self.X.clamp_min(self.floor) if self.beta <= 0 else self.X
        return X * WH.pow(self.beta - 2)

    def value(self, WH: Tensor, W: Tensor, H: Tensor) -> float:
        """Return the divergence and the penalty."""
        total = beta_divergence(self.X, WH, self.beta)
        for factor in (W.double(), H.double()):
            total = total + self.l1 * factor.sum() + self.l2 / 2 * factor.square().sum()
        return float(total)


def settled(curve: list[float], tol: float) -> bool:
    """Whether the last look at the objective ends a fit."""
    # The first objective of a random start says more about the draw than about the data.
    return tol > 0 and math.sqrt(curve[-2]) - math.sqrt(curve[-1]) < tol * math.sqrt(curve[1])


class NMFBase(nn.Module):
    r"""Factorize under constraints by alternating multiplicative updates, for every beta.

    A subclass gives `reconstruct`, `get_W_positive` and `get_H_positive`; the negative part of the
    gradient is found by automatic differentiation through `reconstruct`, which must be linear in
    each factor. Elements that are zero stay zero under multiplicative updates.

    Parameters
    ----------
    W_shape
        (m_examples, n_components, ...).
    H_shape
        (n_components, ...).
    n_components
        Number of components; left out, it is ``H_shape[0]``.
    initial_components
        For each component a tensor or array of shape (1, \*H_shape[1:]), the leading 1 optional, or
        None. Missing ones are drawn at random from (0, 1].
    fix_components
        For each component whether it is held at its initial values. Missing flags mean free; a
        component without initial values is held at its random draw.
    initial_weights
        One entry per component, of shape (1, m_examples, \*W_shape[2:]), or one per example, of
        shape (1, n_components, \*W_shape[2:]); where the two coincide, per example. The leading 1
        is optional, None is drawn at random.
    fix_weights
        Flags for the same things: a component's weights over all examples, or all the weights of
        one example. Without any initial weights there are flags per component where at most
        `n_components` are given (and ``m_examples != n_components``), else per example.
    device
        Where the factors live; None is where the first initial tensor is, else torch's default.
    dtype
        torch.float32 or torch.float64; None is float64 where an initial tensor is float64, float32
        where they are of another kind, and torch's default where there is none.
    seed
        A number or a ``torch.Generator`` for the random draws; None takes torch's global generator.
        Draws do not depend on `device`.

    Attributes
    ----------
    W, H
        The factors. The caller's tensors are copied, never changed, and what is fixed has the same
        bits after any number of fits.

    Raises
    ------
    InputError
        For wrong shapes, too many initials or flags, negative or non-finite values, an unknown
        option or an unavailable device.

    References
    ----------
    Févotte and Idier, Algorithms for nonnegative matrix factorization with the beta-divergence,
    Neural Computation 23 (2011), 2421-2456.
    """

    W: nn.Parameter
    H: nn.Parameter
    _W_fixed: Tensor
    _H_fixed: Tensor

    def __init__(
        self,
        W_shape: Sequence[int],
        H_shape: Sequence[int],
        n_components: int | None = None,
        *,
        initial_components: Entries = None,
        fix_components: Flags = (),
        initial_weights: Entries = None,
        fix_weights: Flags = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | torch.Generator | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise InputError(f"{min(unknown)}: no such option; the further ones are dtype and seed")
        W_shape = checked_shape("W_shape", W_shape, "m_examples, n_components, ...")
        H_shape = checked_shape("H_shape", H_shape, "n_components, ...")
        self.n_components = H_shape[0]
        if W_shape[1] != self.n_components or n_components not in (None, self.n_components):
            raise InputError(
                f"n_components: expected the number in W_shape[1] and H_shape[0], got "
                f"{n_components!r} with W_shape {W_shape} and H_shape {H_shape}"
            )
        components = listed("initial_components", initial_components)
        weights = listed("initial_weights", initial_weights)
        device, dtype = placement([*components, *weights], device, dtype)
        generator = seeded(seed)
        W, W_fixed = constrained(
            draw(W_shape, dtype, generator).to(device), "weights", weights, fix_weights
        )
        H, H_fixed = constrained(
            draw(H_shape, dtype, generator).to(device), "components", components, fix_components
        )
        self.register_buffer("_W_fixed", W_fixed)
        self.register_buffer("_H_fixed", H_fixed)
        # Gradients are taken of copies, and only where a subclass gives no closed form.
        self.W = nn.Parameter(W, requires_grad=False)
        self.H = nn.Parameter(H, requires_grad=False)

    def reconstruct(self, H: Tensor, W: Tensor) -> Tensor:
        """Return the data that these factors stand for, of the shape of `X`."""
        raise NotImplementedError

    def get_W_positive(
        self, WH: Tensor, beta: float, H_sum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the positive part of the gradient for `W` at ``self.H``, and `H_sum` to keep.

        Parameters
        ----------
        WH
            The reconstruction, raised from zero where `beta` < 2.
        beta
            The positive part is ``WH^(beta - 1)`` pulled back through `reconstruct`.
        H_sum
            What this method returned last, None where `H` has changed since.
        """
        raise NotImplementedError

    def get_H_positive(
        self, WH: Tensor, beta: float, W_sum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the positive part of the gradient for `H` at ``self.W``, and `W_sum` to keep."""
        raise NotImplementedError

    def forward(self, H: Tensor | None = None, W: Tensor | None = None) -> Tensor:
        """Reconstruct the data from the given factors, or from the model's own."""
        return self.reconstruct(self.H if H is None else H, self.W if W is None else W)

    @torch.no_grad()
    def loss(self, X: Array, beta: float = 2) -> Tensor:
        """Return the beta-divergence between `X` and the reconstruction, a float64 scalar.

        See `beta_divergence` in `bluesky_cmf.nmf.divergences`; no penalty is included.
        """
        return beta_divergence(self._checked_data(X), self.forward(), beta)

    def fit_transform(self, X: Array, *args: Any, **kwargs: Any) -> Tensor:
        """Fit as `fit` does, with its options, and return the weights `W`."""
        self.fit(X, *args, **kwargs)
        return self.W

    @torch.no_grad()
    def fit(
        self,
        X: Array,
        update_W: bool = True,
        update_H: bool = True,
        beta: float = 1,
        tol: float = 1e-5,
        max_iter: int = 200,
        alpha: float = 0,
        l1_ratio: float = 0,
    ) -> list[float]:
        """Lower the divergence from where the factors stand, holding what is fixed.

        The objective is ``beta_divergence(X, WH, beta)`` plus, for each factor F,
        ``alpha * l1_ratio * sum(F) + alpha * (1 - l1_ratio) / 2 * sum(F^2)``. It is looked at every
        10 iterations, and the best factors seen are kept: they are the model's at the end.

        Parameters
        ----------
        X
            Non-negative tensor or array of the shape of the reconstruction; never changed.
        update_W, update_H
            False holds the whole factor.
        beta
            Any number; 2 is Frobenius, 1 Kullback-Leibler, 0 Itakura-Saito. Outside 1 to 2 the fit
            runs in float64, for its powers leave the range of float32.
        tol
            Stop where ``sqrt(2 * objective)`` fell between two looks by less than `tol` times its
            value at the first look. That is scikit-learn's rule, but for the reference: the initial
            objective of an unscaled random start may be 1e5 times the last. 0 runs all iterations.
        max_iter
            Most iterations, of one half-step for each factor.
        alpha
            Weight of the penalty.
        l1_ratio
            Share of the penalty that is linear, 0 to 1.

        Returns
        -------
        list of float
            The learning curve: the initial objective and the best one at each look, so it never
            rises. A single number where nothing is free to move.

        Raises
        ------
        InputError
            If `X` has the wrong shape, negative or non-finite values; if an option is out of range;
            if the divergence of `X` at this `beta` exceeds float64.
        """
        l1 = checked_number("alpha", alpha) * checked_number("l1_ratio", l1_ratio, most=1)
        with self._working_precision(checked_beta(beta)):
            data = self._checked_data(X)
            goal = Goal(data, checked_beta(beta), zero_floor(data), l1, float(alpha) - l1)
            free: list[Factor] = []
            if update_W and not bool(self._W_fixed.all()):
                free.append("W")
            if update_H and not bool(self._H_fixed.all()):
                free.append("H")
            n_iterations = checked_count("max_iter", max_iter, least=0) if free else 0
            return self._descend(goal, free, checked_number("tol", tol), n_iterations)

    def _descend(self, goal: Goal, free: list[Factor], tol: float, max_iter: int) -> list[float]:
        curve = [self._objective(goal)]
        if not math.isfinite(curve[0]):
            raise InputError(
                f"beta: the divergence of this X at beta={goal.beta} exceeds float64; "
                "scale X or take a beta nearer to 1"
            )
        best = self.W.data, self.H.data
        sums: dict[Factor, Tensor | None] = {"W": None, "H": None}
        for iteration in range(1, max_iter + 1):
            for factor in free:
                partner: Factor = "H" if factor == "W" else "W"
                sums[partner] = self._half_step(factor, goal, sums[partner])
                sums[factor] = None
            if iteration % CHECK_EVERY and iteration != max_iter:
                continue
            value = self._objective(goal)
            if value <= curve[-1]:
                best = self.W.data, self.H.data
            curve.append(min(curve[-1], value))
            if settled(curve, tol):
                break
        self.W.data, self.H.data = best
        return curve

    def _half_step(self, factor: Factor, goal: Goal, partner_sum: Tensor | None) -> Tensor | None:
        """Multiply one factor by the ratio of the two parts of its gradient."""
        old = self.W.data if factor == "W" else self.H.data
        WH, pull_back = self._linearise(factor)
        WH = goal.floored(WH)
        negative = pull_back(goal.weighted(WH))
        get_positive = self.get_W_positive if factor == "W" else self.get_H_positive
        positive, partner_sum = get_positive(WH, goal.beta, partner_sum)
        positive = positive + goal.l1 + goal.l2 * old
        # A positive part of zero means that the element meets zeros only, in all the data.
        ratio = torch.where(positive > 0, negative / positive, torch.zeros_like(old))
        self._replace(factor, old * ratio.pow(goal.exponent))
        return partner_sum

    def _linearise(self, factor: Factor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the reconstruction, and the function that pulls its gradient back to a factor."""
        own = (self.W if factor == "W" else self.H).detach().clone().requires_grad_()
        with torch.enable_grad():
            WH = self.forward(W=own) if factor == "W" else self.forward(H=own)
        return WH.detach(), lambda gradient: torch.autograd.grad(WH, own, gradient)[0]

    def _replace(self, factor: Factor, new: Tensor) -> None:
        """Take over the new elements that are free and finite.

        The data are exchanged, not overwritten: arrays that a caller took from W or H stay.
        """
        own, fixed = (self.W, self._W_fixed) if factor == "W" else (self.H, self._H_fixed)
        own.data = torch.where(fixed | ~new.isfinite(), own.data, new)

    def _objective(self, goal: Goal) -> float:
        return goal.value(self.forward(), self.W, self.H)

    def _checked_data(self, X: Array) -> Tensor:
        data = as_tensor("X", X, self.W.dtype, self.W.device)
        expected = self.forward().shape
        if data.shape != expected:
            raise InputError(f"X: expected shape {tuple(expected)}, got {tuple(data.shape)}")
        return data

    @contextmanager
    def _working_precision(self, beta: float) -> Iterator[None]:
        # Widening and narrowing again is exact, so fixed elements keep their bits.
        dtype = self.W.dtype
        if not 1 <= beta <= 2:
            self.double()
        try:
            yield
        finally:
            self.to(dtype)
