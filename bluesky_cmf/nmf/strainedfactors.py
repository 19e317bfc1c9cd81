"""Factors some of whose held components are strained, row by row."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .blocks import Blocks
from .covariance import Noises, on_host
from .factorization import Factorization, spread
from .families import Tables
from .kernels import kernels_for, strained_kernels_for
from .rows import Rows
from .rules import Rules
from .strainedrows import (
    RowProblem,
    Seen,
    joint_covariance,
    neighbours,
    square_of,
)
from .updates import SETTLED, coordinate_descent

__all__ = ["StrainedFactors"]

_NOTHING = np.zeros((0, 0))
_NO_ANCHORS = np.zeros(0)
#: Gauss-Newton steps for a row, at most.
_STEPS = 5
#: Part of ‖X‖² below which an objective is summed over rows, and not taken from products.
_EXACT_BELOW = 1e-8
#: Rows whose shapes are formed at a time.
_CHUNK = 16
#: As in `strainedrows.py`.
_SIGNIFICANT = 100.0


class StrainedFactors(Factorization):
    """Factors that lower ½‖X - Σ wₖ hₖ(ε)‖², over weights, strains and free components.

    Held components are taken from the data: what free components descend on is what held ones
    leave of each row, at its own strains. So the objective falls with every step, and where
    nothing moves any more it is stationary.

    Parameters
    ----------
    X, H, rules, held
        As those of `Factorization`; the H of a strained component is its shape without strain.
    tables : Tables
        The held components.
    seen : Seen
        Products of X with the tables.
    like : Tensor (M, S), optional
        Strains that the first rows start from.
    anchors : Tensor (S,), optional
        Strains that later rows start from.

    Attributes
    ----------
    strains : Rows
        Strains, (N, S).
    A, B : Tensor (K, K), (Kf, F)
        WᵀW, and WᵀX less what held components explain of it, for the free components.
    """

    def __init__(
        self,
        X: Blocks,
        H: torch.Tensor,
        rules: Rules,
        *,
        tables: Tables,
        seen: Seen,
        held: Rows | None = None,
        like: torch.Tensor | None = None,
        anchors: torch.Tensor | None = None,
    ) -> None:
        super().__init__(X, H, rules, held=held)
        self.tables, self._seen, self._like = tables, seen, like
        self.anchors = (tables.start if anchors is None else anchors).clone()
        self.strains = Rows(len(tables.strained), device=X.device)
        # Half the squared norms of what held components leave of the rows.
        self._parts = Rows(1, device=X.device)
        K, free = len(H), len(tables.free)
        self.A = self.H.new_zeros(K, K)
        self.B = self.H.new_zeros(free, H.shape[1])
        self._free_H = self.H[tables.free].contiguous()
        self._free_G = self.H.new_zeros(free, free)
        self._cross = self.H.new_zeros(len(tables.rows), free)
        self._known = torch.zeros(len(tables.rows), dtype=torch.bool)
        self._W_sum = self._parts_sum = 0.0
        self._order = np.array(tables.order, dtype=np.int64)
        self._every = np.arange(free)
        self._kernels, self._products = strained_kernels_for(X.device), kernels_for(X.device)
        if self._kernels is not None:
            t = tables
            parts = (t.rows, t.products, t.first, t.count, t.low, t.high, t.step)
            self._tables = tuple(part.numpy() for part in parts)
            sides = (self._free_H, self._free_G, self._cross, self._known)
            self._side = tuple(part.numpy() for part in sides)
        self._follow_components()

    # --- what it is -------------------------------------------------------------------------

    @property
    def objective(self) -> float:
        """½‖X - Σ wₖ hₖ(ε)‖² and the penalty, for weights, strains and H as they are."""
        free = self.tables.free
        cross = float((self.B * self._free_H).sum())
        gram = float((self.A[free][:, free] * self._free_G).sum())
        objective = self._parts_sum - cross + 0.5 * gram
        if objective < _EXACT_BELOW * self.X.half_norm:
            objective = 0.5 * self.squared.sum(0, len(self))
        return objective + self.penalty

    @property
    def penalty(self) -> float:
        """What the penalty adds to the objective."""
        if not self.rules.penalised:
            return 0.0
        G = self.H @ self.H.T
        return self.rules.penalty(self._W_sum, float(self.H.sum()), self.A, G)

    def reconstruct(self, W: torch.Tensor, start: int) -> torch.Tensor:
        """Reconstruct rows from ``start`` on, (M, F), of weights (M, K)."""
        strained = self.tables.strained
        rows = W @ self.H
        for first in range(0, len(W), _CHUNK):
            part = W[first : first + _CHUNK]
            shapes, _ = self._shapes(start + first, start + first + len(part))
            moved = shapes - self.H[strained]
            rows[first : first + _CHUNK] += (part[:, None, strained] @ moved)[:, 0]
        return rows

    def joint(
        self, start: int, squared: torch.Tensor, noises: Noises | None = None
    ) -> npt.NDArray[np.float64]:
        """Estimate the joint covariance of weights and strains, (M, K + S, K + S).

        Parameters
        ----------
        start : int
            The first row.
        squared : Tensor (M,)
            Squared residuals, which noise is taken from where nothing tells it.
        noises : sequence of callable, optional
            For each row what gives the covariance (V, V) of ``vectors @ x`` for vectors (V, F).

        Returns
        -------
        ndarray (M, K + S, K + S)
            Weights as the components are numbered, then strains; zeros where a weight is held or
            at zero, and where a strain is at a bound or its weight is zero.
        """
        parts = []
        for first in range(0, len(squared), _CHUNK):
            last = min(len(squared), first + _CHUNK)
            vectors, active = self._vectors(start + first, start + last)
            variance = spread(squared[first:last], on_host(active), self.X.n_features)
            parts.append(
                joint_covariance(
                    vectors,
                    active,
                    variance,
                    None if noises is None else list(noises[first:last]),
                    n_weights=len(self.H),
                    add_up=self.rules.total is not None,
                )
            )
        size = len(self.H) + len(self.tables.strained)
        return np.concatenate([np.zeros((0, size, size)), *parts])

    def deviations(
        self, start: int, squared: torch.Tensor, noises: Noises | None = None
    ) -> torch.Tensor:
        """Estimate standard errors of weights, then strains, (M, K + S), as `joint` does."""
        covariance = self.joint(start, squared, noises)
        deviations = np.sqrt(np.maximum(covariance.diagonal(axis1=1, axis2=2), 0.0))
        return torch.as_tensor(deviations, device=self.H.device)

    def covariance(
        self, W: torch.Tensor, start: int, squared: torch.Tensor, noises: Noises
    ) -> npt.NDArray[Any]:
        """Give the part of `joint` that is the weights', (M, K, K)."""
        K = len(self.H)
        return self.joint(start, squared, noises)[:, :K, :K]

    def at_bounds(self, start: int, stop: int) -> torch.Tensor:
        """Tell which strains (M, S) are at a bound, with a weight beside them that tells them."""
        S = len(self.tables.strained)
        strains = self.strains.tensor(start, stop)
        low, high = self.tables.low[:S], self.tables.high[:S]
        return self._told(start, stop) & ((strains <= low) | (strains >= high))

    # --- what changes it --------------------------------------------------------------------

    def resolve(self, start: int, stop: int) -> None:
        """Solve for weights and strains of rows anew, from the strains that they have."""
        self._resolve(start, stop)

    def settle(self) -> None:
        """Solve for all rows anew until they rest, also from the strains of their neighbours."""
        n = len(self)
        for _ in range(10):
            before = self.objective
            for others in neighbours(self.strains.tensor(), self._told(0, n)):
                self._resolve(0, n, others=others)
            if self.objective >= (1 - 1e-7) * before:
                break

    def descend(self, passes: int) -> None:
        """Lower the objective over the free components, given weights and strains."""
        free, rules = self.tables.free, self.rules
        if not free:
            return
        A = self.A[free][:, free].contiguous()
        if self._products is not None:
            H = self._free_H.clone()
            arrays = H.numpy(), A.numpy(), self.B.numpy()
            self._products.descend_components(
                *arrays, rules.l1, rules.l2, self._every, passes, self._free_G.numpy()
            )
            self.put(H)
            return
        H = coordinate_descent(
            self._free_H,
            A + rules.l2 * torch.eye(len(A), dtype=A.dtype, device=A.device),
            self.B - rules.l1,
            free=range(len(free)),
            passes=passes,
            settled=SETTLED,
        )
        self.put(H)

    def put(self, H: torch.Tensor) -> None:
        """Put other shapes (Kf, F) in the place of the free components."""
        self.H[self.tables.free] = H
        self._follow_components()

    def reseed(self, k: int, pattern: torch.Tensor) -> None:
        """Give a component another shape, (F,); weights stay until they are solved for."""
        super().reseed(k, pattern)
        self._follow_components()

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Give what is needed to go on later, as plain arrays."""
        cross = torch.zeros_like(self.H)
        cross[self.tables.free] = self.B
        tensors = {
            "components": self.H,
            "weights": self.W.tensor(),
            "squared": self.squared.tensor(),
            "gram": self.A,
            "cross": cross,
            "value": self.H.new_tensor([self._W_sum, self.squared.sum(0, len(self))]),
            "strains": self.strains.tensor(),
            "strain_parts": self._parts.tensor(),
            "strain_anchors": torch.cat([self.anchors, self.H.new_tensor([self._parts_sum])]),
        }
        return {key: np.array(tensor.cpu().numpy()) for key, tensor in tensors.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `state` gave, as it is."""
        masters = {
            key: torch.tensor(array, dtype=torch.float64, device=self.H.device)
            for key, array in state.items()
        }
        self.H[:], self.A[:] = masters["components"], masters["gram"]
        self.B[:] = masters["cross"][self.tables.free]
        self._follow_components()
        for rows, key in (
            (self.W, "weights"),
            (self.squared, "squared"),
            (self.strains, "strains"),
            (self._parts, "strain_parts"),
        ):
            rows.replace(masters[key])
        self._W_sum, _ = masters["value"].tolist()
        self.anchors[:], self._parts_sum = (
            masters["strain_anchors"][:-1],
            float(masters["strain_anchors"][-1]),
        )

    # --- details ----------------------------------------------------------------------------

    def _take_in(self, first: int, stop: int) -> None:
        self.strains.extend(stop - first)
        self._parts.extend(stop - first)
        given = 0 if self._like is None else len(self._like)
        if self._like is not None and first < given:
            until = min(given, stop)
            self.strains.write(first, self._like[first:until])
            self._resolve(first, until)
            first = until
        if first < stop:
            self._resolve(first, stop, fresh=True)

    def _resolve(
        self, start: int, stop: int, *, fresh: bool = False, others: torch.Tensor | None = None
    ) -> None:
        for first, piece in self.X.pieces(start, stop):
            for begin, end in self.W.spans(first, first + len(piece)):
                rows = piece[begin - first : end - first]
                some = None if others is None else others[begin - start : end - start]
                if self._kernels is not None:
                    self._resolve_fused(rows, begin, end, fresh=fresh, others=some)
                elif fresh:
                    # Each row starts from where the one before has ended.
                    for i in range(begin, end):
                        row = rows[i - begin : i - begin + 1]
                        self._resolve_piece(row, i, i + 1, fresh=True, others=None)
                else:
                    self._resolve_piece(rows, begin, end, fresh=False, others=some)

    def _resolve_fused(
        self, rows: torch.Tensor, start: int, stop: int, *, fresh: bool, others: torch.Tensor | None
    ) -> None:
        rules = self.rules
        gained, _, parts = self._kernels.resolve(  # type: ignore[union-attr]
            rows.numpy(),
            self.X.norms_array[start:stop],
            self._tables,
            self._side,
            self._order,
            (rules.l1, rules.l2, rules.total_or_nan),
            _NOTHING if self.held is None else self.held.array(start, stop),
            _STEPS,
            self.W.array(start, stop),
            self.squared.array(start, stop)[:, 0],
            self.strains.array(start, stop),
            self._parts.array(start, stop)[:, 0],
            self._seen.array(start, stop),
            self.A.numpy(),
            self.B.numpy(),
            self.anchors.numpy() if fresh else _NO_ANCHORS,
            np.array([self._usual(start)]),
            _NOTHING if others is None else others.contiguous().numpy(),
        )
        self._W_sum += gained
        self._parts_sum += parts

    def _resolve_piece(
        self, rows: torch.Tensor, start: int, stop: int, *, fresh: bool, others: torch.Tensor | None
    ) -> None:
        """Do what the kernel does, by the reference."""
        order, norms = self.tables.order, self.X.norms[start:stop]
        held = None if self.held is None else self.held.tensor(start, stop)[:, order]
        X = rows.to(torch.float64)
        problem = RowProblem(X, norms, self.tables, self._free_H, self.rules, held)
        before = self.strains.tensor(start, stop)
        point = problem.fit(self.anchors.expand_as(before) if fresh else before, _STEPS)
        if fresh:
            usual = self._usual(start)
            point = problem.search(point, None if usual < 0 else usual, _STEPS)
            told = problem.told(point)[0]
            self.anchors[:] = torch.where(told, point.strains[0], self.anchors)
        if others is not None:
            point = problem.borrow(point, others, _STEPS)
        W, P = torch.empty_like(point.W), len(self.tables.held)
        W[:, order] = point.W
        self._move(X, start, W, before, point.strains)
        held_w, c, G = point.W[:, :P], point.c[:, :P], point.G[:, :P, :P]
        parts = 0.5 * norms - (held_w * c).sum(1) + 0.5 * square_of(held_w, G)
        squared = norms - 2 * (point.W * point.c).sum(1) + square_of(point.W, point.G)
        self.strains.view(start, stop)[:] = point.strains
        lost = squared < _EXACT_BELOW * norms
        if bool(lost.any()):
            squared = torch.where(lost, (X - self.reconstruct(W, start)).square().sum(1), squared)
        self.squared.view(start, stop)[:, 0] = squared
        view = self._parts.view(start, stop)[:, 0]
        self._parts_sum += float((parts - view).sum())
        view[:] = parts

    def _move(
        self,
        X: torch.Tensor,
        start: int,
        W: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
    ) -> None:
        """Write weights down, and bring A, B and their sum up to them and to the strains."""
        kept, free = self.W.view(start, start + len(W)), self.tables.free
        self._W_sum += float((W - kept).sum())
        self.A += W.T @ W - kept.T @ kept
        shares = W[:, free].T @ self._shares(W, after) - kept[:, free].T @ self._shares(
            kept, before
        )
        self.B += (W - kept)[:, free].T @ X - shares @ self.tables.rows
        kept[:] = W

    def _shares(self, W: torch.Tensor, strains: torch.Tensor) -> torch.Tensor:
        """Tell what rows take of the table's rows, (M, R)."""
        index, value, _ = self.tables.places(strains)
        amounts = (W[:, self.tables.held, None] * value).flatten(1)
        shares = W.new_zeros(len(W), len(self.tables.rows))
        return shares.scatter_add_(1, index.flatten(1), amounts)

    def _usual(self, start: int) -> float:
        """Relative squared residual of the row before; negative where there is none."""
        if not start:
            return -1.0
        norm = float(self.X.norms[start - 1])
        squared = float(self.squared.tensor(start - 1, start)[0, 0])
        return squared / norm if norm > 0 else 0.0

    def _vectors(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give derivatives by weights and strains (M, K + S, F), and which were fitted."""
        tables, M, S = self.tables, stop - start, len(self.tables.strained)
        strains, W = self.strains.tensor(start, stop), self.W.tensor(start, stop)
        own, slopes = self._shapes(start, stop)
        shapes = self.H.expand(M, *self.H.shape).clone()
        shapes[:, tables.strained] = own
        w = W[:, tables.strained]
        slopes = w[:, :, None] * slopes
        fitted = W > 0
        if self.held is not None:
            fitted &= self.held.tensor(start, stop).isnan()
        inside = (strains > tables.low[:S]) & (strains < tables.high[:S])
        return torch.cat([shapes, slopes], 1), torch.cat([fitted, inside & (w > 0)], 1)

    def _shapes(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the shapes of strained components in some rows, and their derivatives, (M, S, F)."""
        tables, S = self.tables, len(self.tables.strained)
        strains = self.strains.tensor(start, stop)
        if self._kernels is not None:
            both = self.H.new_empty(2, stop - start, S, self.X.n_features)
            self._kernels.shapes(strains.numpy(), self._tables, both[0].numpy(), both[1].numpy())
            return both[0], both[1]
        index, value, slope = (part[:, :S] for part in tables.places(strains))
        rows = tables.rows[index]
        shapes = torch.einsum("msj,msjf->msf", value, rows)
        return shapes, torch.einsum("msj,msjf->msf", slope, rows)

    def _told(self, start: int, stop: int) -> torch.Tensor:
        """Tell which strains (M, S) have a weight beside them that tells them."""
        strained = self.tables.strained
        sizes = self.W.tensor(start, stop)[:, strained].square() * self.H[strained].square().sum(1)
        noise = self.squared.tensor(start, stop) / self.X.n_features
        return sizes > _SIGNIFICANT * noise

    def _follow_components(self) -> None:
        """Bring what depends on the free components up to them."""
        self._free_H[:] = self.H[self.tables.free]
        self._free_G[:] = self._free_H @ self._free_H.T
        self._known.fill_(False)
