"""The factors as they stand, with their sufficient statistics: what a bounded event works on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .blocks import Blocks, add_transposed_product, multiply
from .covariance import Noises, known_meat, on_host, weight_covariance
from .factorization import Factorization, free_weights, spread
from .heldproducts import HeldProducts
from .kernels import descends_on, kernels_for
from .rows import Rows
from .rules import Rules
from .updates import DEVICE_PASSES, SETTLED, coordinate_descent, solve_rows

__all__ = ["Factors"]

_NONE_HELD = np.zeros((0, 0))
#: Part of ‖X‖² below which an objective is summed over rows, and not taken from products.
_EXACT_BELOW = 1e-8
#: Part of what a sum of squared residuals has been, below which it is taken anew.
_ANEW_BELOW = 1e-6


class Factors(Factorization):
    """Factors that lower ½‖X - WH‖², with their sufficient statistics.

    Parameters
    ----------
    X, H, rules, held
        As those of `Factorization`.
    products : HeldProducts, optional
        For kernels, those of the held components; by default factors have their own.

    Attributes
    ----------
    G, A, B : Tensor (K, K), (K, K), (K, F)
        HHᵀ, WᵀW and WᵀX. A and B follow every change of W, so that H can be descended on and the
        objective be told without a pass over X. Rows of B for held components may be left behind:
        nobody descends on them.
    held_cross : float
        What these rows' part of ⟨B, H⟩ lacks.
    W, squared : Rows
        Weights, and squared residuals as of the last solve of each row.
    """

    def __init__(
        self,
        X: Blocks,
        H: torch.Tensor,
        rules: Rules,
        *,
        held: Rows | None = None,
        products: HeldProducts | None = None,
    ) -> None:
        super().__init__(X, H, rules, held=held)
        K = len(H)
        self.G, self.A = self.H.new_zeros(K, K), self.H.new_zeros(K, K)
        self.B = torch.zeros_like(self.H)
        self._W_sum = self._squared_sum = self._largest_sum = self.held_cross = 0.0
        self._free = np.array(rules.free, dtype=np.int64)
        self._kernels = kernels_for(X.device)
        #: What descends on the weights of all rows at once, and on components, on a device.
        self._descends = descends_on(X.device, K) if rules.extrapolable else None
        if self._descends is not None:
            self._flags = torch.zeros(K, dtype=torch.int32, device=X.device)
            self._flags[list(rules.free)] = 1
        if self._kernels is not None:
            # As kernels take them: the same memory, for none of these is ever replaced.
            self._arrays = self.H.numpy(), self.G.numpy(), self.A.numpy(), self.B.numpy()
            constant = [k for k in range(K) if k not in rules.free]
            self._shared = HeldProducts(X, self.H, constant) if products is None else products
        self._follow_components()

    @property
    def products(self) -> HeldProducts | None:
        """What other factors for the same data and held components may share."""
        return None if self._kernels is None else self._shared

    @property
    def objective(self) -> float:
        """½‖X - WH‖² and the penalty, for W and H as they are."""
        if self._kernels is not None:
            H, G, A, B = self._arrays
            # Not by BLAS: for long patterns that would wake threads, and wait for them.
            cross, gram = float(self._kernels.inner(B, H)), float(self._kernels.inner(A, G))
        else:
            cross, gram = float((self.B * self.H).sum()), float((self.A * self.G).sum())
        objective = self.X.half_norm + 0.5 * gram - cross - self.held_cross
        if objective < _EXACT_BELOW * self.X.half_norm:
            # Of patterns that are explained to rounding, products would leave nothing: the sum of
            # the residuals does, each as of the last solve of its row.
            objective = 0.5 * max(0.0, self._left())
        return objective + self.penalty

    def _left(self) -> float:
        """Sum up the squared residuals of all rows, each as of its last solve."""
        # Kernels keep the sum, so that an event does not go over all rows. What it was leaves its
        # rounding behind.
        if self._kernels is None or self._squared_sum < _ANEW_BELOW * self._largest_sum:
            self._squared_sum = self._largest_sum = self.squared.sum(0, len(self))
        return self._squared_sum

    @property
    def penalty(self) -> float:
        """What the penalty adds to the objective."""
        if not self.rules.penalised:
            return 0.0
        return self.rules.penalty(self._W_sum, float(self.H.sum()), self.A, self.G)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Give what is needed to go on later, as plain arrays."""
        tensors = {
            "components": self.H,
            "weights": self.W.tensor(),
            "squared": self.squared.tensor(),
            "gram": self.A,
            "cross": self.B,
            "value": self.H.new_tensor([self._W_sum, self._left(), self.held_cross]),
        }
        return {key: np.array(tensor.cpu().numpy()) for key, tensor in tensors.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `state` gave, as it is."""
        masters = {
            key: torch.tensor(array, dtype=torch.float64, device=self.H.device)
            for key, array in state.items()
        }
        self.H[:], self.A[:], self.B[:] = (masters[key] for key in ("components", "gram", "cross"))
        self._follow_components()
        if self._kernels is not None:
            # Now, and not at the first event.
            self._shared.restart(self.H)
            self._shared.follow(len(masters["weights"]))
        self.W.replace(masters["weights"])
        self.squared.replace(masters["squared"])
        # Where the third is missing, B is whole.
        self._W_sum, self._squared_sum, self.held_cross = [*masters["value"].tolist(), 0.0][:3]
        self._largest_sum = self._squared_sum

    def resolve(self, start: int, stop: int) -> None:
        """Solve for the weights of rows anew, given H: exactly, or until nothing moves any more."""
        if self._kernels is not None:
            for first, last, rows in self.X.arrays(start, stop):
                for begin, end in self.W.spans(first, last):
                    self._resolve_fused(rows[begin - first : end - first], begin, end)
            return
        for first, piece in self.X.pieces(start, stop):
            last = first + len(piece)
            # What solves exactly takes room for each row; on a device launches are what takes time.
            whole = self._descends is not None
            for begin, end in [(first, last)] if whole else self.W.spans(first, last):
                self._resolve(piece[begin - first : end - first], begin, end)

    def follow_one(self, passes: int) -> bool:
        """Take in one new row, descend, and solve for the row anew, where one kernel does all that.

        Otherwise nothing is done, and False is returned.
        """
        n = len(self.W)
        if self._kernels is None or len(self.X) != n + 1 or not self.rules.free or self.shapeless():
            return False
        self.W.extend(1)
        self.squared.extend(1)
        products, shapes = self._shared.room(n), self._shared.shapes
        for _, _, rows in self.X.arrays(n, n + 1):
            problem = self._problem(rows, n, n + 1, products)
            for gains in self._kernels.follow(passes, shapes, *problem):
                self._gain(*gains)
        return True

    def shapeless(self) -> list[int]:
        """Tell which free components hold nothing but zeros."""
        G = self.G if self._kernels is None else self._arrays[1]
        sizes = G.diagonal().tolist()
        return [k for k in self.rules.free if sizes[k] <= 0]

    def covariance(
        self, W: torch.Tensor, start: int, squared: torch.Tensor, noises: Noises
    ) -> npt.NDArray[Any]:
        """Estimate covariances of weights (M, K), as (M, K, K), given the components' shapes.

        The second derivatives of ½‖x - wH‖² are HHᵀ, and the penalty's come to them; the noise of
        its first derivatives is that of Hx. Noise that is taken from the residual is the same
        in all points.
        """
        free, rules = free_weights(W, self.held, start), self.rules
        gram, variance = on_host(self.G), spread(squared, free, self.X.n_features)
        meat = variance[:, None, None] * gram
        shapes = on_host(self.H)
        for i, known in known_meat(noises, lambda _: shapes):
            meat[i] = known
        bread = gram + rules.l2 * np.eye(len(gram)) if rules.l2 else gram
        return weight_covariance(bread, meat, free, add_up=rules.total is not None)

    def rounded(self, dtype: torch.dtype) -> torch.Tensor | npt.NDArray[Any]:
        """Copy the components into what results are given in."""
        if self._kernels is not None and dtype == torch.float32:
            # By numpy: torch is longer about it, event after event.
            rounded: npt.NDArray[Any] = self._arrays[0].astype(np.float32)
            return rounded
        return super().rounded(dtype)

    def reseed(self, k: int, pattern: torch.Tensor) -> None:
        """Give a component another shape, (F,); weights stay until they are solved for."""
        super().reseed(k, pattern)
        self._follow_components()

    def descend(self, passes: int) -> None:
        """Lower the objective over the free components, given W."""
        rules = self.rules
        if not rules.free:
            return
        if self._kernels is not None:
            H, G, A, B = self._arrays
            self._kernels.descend_components(H, A, B, rules.l1, rules.l2, self._free, passes, G)
            return
        gram = self.A + rules.l2 * torch.eye(len(self.A), dtype=self.A.dtype, device=self.A.device)
        if self._descends is not None:
            few = min(passes, DEVICE_PASSES)
            self._descends.coordinate_descent(self.H, gram, self.B - rules.l1, self._flags, few)
        else:
            self.H[:] = coordinate_descent(
                self.H, gram, self.B - rules.l1, free=rules.free, passes=passes, settled=SETTLED
            )
        self.G[:] = self.H @ self.H.T

    def _take_in(self, first: int, stop: int) -> None:
        self.resolve(first, stop)

    def _follow_components(self) -> None:
        """Bring G up to H, in the same bits on every way that leads there."""
        if self._kernels is not None:
            self._kernels.gram(self.H.numpy(), self.G.numpy())
        else:
            self.G[:] = self.H @ self.H.T

    def _resolve_fused(self, rows: np.ndarray, start: int, stop: int) -> None:
        problem = self._problem(rows, start, stop, self._shared.array(start, stop))
        self._gain(*self._kernels.resolve(*problem))  # type: ignore[union-attr]

    def _problem(
        self, rows: np.ndarray, start: int, stop: int, products: np.ndarray
    ) -> tuple[Any, ...]:
        """Give what kernels take to solve for the weights of rows of one block of the tables."""
        H, G, A, B = self._arrays
        rules = self.rules
        return (
            rows,
            self.X.norms_array[start:stop],
            H,
            G,
            rules.l1,
            rules.l2,
            rules.total_or_nan,
            _NONE_HELD if self.held is None else self.held.array(start, stop),
            self._shared.constant,
            self._free,
            products,
            self.W.array(start, stop),
            self.squared.array(start, stop)[:, 0],
            A,
            B,
        )

    def _gain(self, weights: float, squared: float, held_cross: float) -> None:
        """Add to the sums that stand for all rows."""
        self._W_sum += weights
        self._squared_sum += squared
        self._largest_sum = max(self._largest_sum, self._squared_sum)
        self.held_cross += held_cross

    def _resolve(self, rows: torch.Tensor, start: int, stop: int) -> None:
        W = self.W.tensor(start, stop)
        C = torch.empty_like(W)
        multiply(rows, self.H, C)
        new = self._solved(W, C, start, stop)
        change = new - W
        self._W_sum += float(change.sum())
        self.A += new.T @ new - W.T @ W
        add_transposed_product(rows, change, self.B)
        left = _squared(rows, new, self.H, C, self.G, self.X.norms[start:stop])
        self.squared.write(start, left[:, None])
        self.W.write(start, new)

    def _solved(self, W: torch.Tensor, C: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Solve for the weights of some rows, from XHᵀ and from what they were, all (M, K)."""
        rules = self.rules
        if self._descends is not None:
            G = self.G + rules.l2 * torch.eye(len(self.G), dtype=W.dtype, device=W.device)
            solved: torch.Tensor = self._descends.weights_of(C - rules.l1, G, W)
            return solved
        held = None if self.held is None else self.held.tensor(start, stop)
        return solve_rows(C, self.G, l1=rules.l1, l2=rules.l2, total=rules.total_or_nan, held=held)


def _squared(
    X: torch.Tensor,
    W: torch.Tensor,
    H: torch.Tensor,
    C: torch.Tensor,
    G: torch.Tensor,
    norms: torch.Tensor,
) -> torch.Tensor:
    """Take squared residuals from products; form those that rounding leaves nothing of."""
    squared = norms - 2.0 * (W * C).sum(1) + ((W @ G) * W).sum(1)
    lost = squared < _EXACT_BELOW * norms
    if bool(lost.any()):
        squared[lost] = (X[lost].to(torch.float64) - W[lost] @ H).square_().sum(1)
    return squared
