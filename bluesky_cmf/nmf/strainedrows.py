"""Weights and strains of rows by safeguarded Gauss-Newton steps: the reference, on any device."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .covariance import Noises
from .families import TAPS, Tables
from .rows import Rows
from .rules import Rules
from .updates import solve_rows

__all__ = [
    "Point",
    "RowProblem",
    "Seen",
    "joint_covariance",
    "neighbours",
    "square_of",
]

Array = npt.NDArray[Any]

#: Farthest step, in strains between two rows of the table, and halvings of one that gains nothing.
_FARTHEST, _HALVINGS = 4.0, 6
#: A step ends the search that should gain less than this of what is left, or of the norm.
_LITTLE, _ROUNDING = 1e-9, 1e-14
#: Of the table's strains every other one is tried: lines are wider than that.
_STRIDE = 2
#: How much more than usual is left of a row where a strain has jumped; what another one far away
#: must gain, in variances of the noise; and the square of a weight, in those, that tells a strain.
_JUMP, _EVIDENT, _SIGNIFICANT = 2.0, 15.0, 100.0
#: What a neighbour's strain must gain, relatively.
_BETTER = 1e-9
_RIDGE = 1e-12


class Seen:
    """Products of rows with the tables that were formed already: as good for other factors.

    Parameters
    ----------
    tables : Tables
        The held components.
    device : torch.device
        Where the rows are.
    """

    def __init__(self, tables: Tables, *, device: torch.device) -> None:
        self._width = len(tables.held)
        self._rows = Rows((TAPS + 1) * self._width, device=device)

    def array(self, start: int, stop: int) -> np.ndarray:
        """Give those of some rows, (M, P, 5): one more than the row of the table, and products."""
        if len(self._rows) < stop:
            self._rows.extend(stop - len(self._rows))
        return self._rows.array(start, stop).reshape(stop - start, self._width, TAPS + 1)


@dataclass
class Point:
    """Where M rows stand: strains (M, S), weights (M, K) for them, and what is left (M,).

    ``c`` (M, K) and ``G`` (M, K, K) are the products with the rows, and of the shapes; ``dc``
    (M, S), ``D`` (M, S, K) and ``E`` (M, S, S) those of the derivatives by the strains.
    """

    strains: torch.Tensor
    W: torch.Tensor
    merit: torch.Tensor
    c: torch.Tensor
    G: torch.Tensor
    dc: torch.Tensor
    D: torch.Tensor
    E: torch.Tensor

    def where(self, chosen: torch.Tensor, other: "Point") -> "Point":
        """Take another point in the rows where it is chosen (M,)."""
        parts = []
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            parts.append(torch.where(chosen.view(-1, *[1] * (mine.ndim - 1)), its, mine))
        return Point(*parts)


class RowProblem:
    """Least squares for M rows in weights and strains, in the order of `Tables.order`.

    Parameters
    ----------
    X, norms : Tensor (M, F), (M,)
        Rows in float64, and their squared norms.
    tables : Tables
        The held components.
    H : Tensor (Kf, F)
        The free components.
    rules : Rules
        Penalty and total of the weights.
    held : Tensor (M, K), optional
        Weights that are held, in that order, NaN where they are free.
    """

    def __init__(
        self,
        X: torch.Tensor,
        norms: torch.Tensor,
        tables: Tables,
        H: torch.Tensor,
        rules: Rules,
        held: torch.Tensor | None = None,
    ) -> None:
        self.n_points, self.norms, self.tables = X.shape[1], norms, tables
        self.rules, self.held = rules, held
        self._seen, self._free = X @ tables.rows.T, X @ H.T
        self._cross, self._gram = tables.rows @ H.T, H @ H.T

    def at(self, strains: torch.Tensor) -> Point:
        """Solve for the weights at some strains (M, S)."""
        M, S = strains.shape
        index, value, slope = self.tables.places(strains)
        P, flat = index.shape[1], index.reshape(M, -1)
        seen = self._seen.gather(1, flat).view(M, P, TAPS)
        cross = self._cross[index]
        products = self.tables.products[flat[:, :, None], flat[:, None, :]]
        products = products.view(M, P, TAPS, P, TAPS)

        def pairs(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return torch.einsum("mpj,mpjqk,mqk->mpq", left, products, right)

        c = torch.cat([(value * seen).sum(2), self._free], 1)
        beside = torch.einsum("mpj,mpjf->mpf", value, cross)
        G = torch.cat(
            [
                torch.cat([pairs(value, value), beside], 2),
                torch.cat([beside.mT, self._gram.expand(M, *self._gram.shape)], 2),
            ],
            1,
        )
        moved = torch.einsum("mpj,mpjf->mpf", slope, cross)
        D = torch.cat([pairs(slope, value), moved], 2)[:, :S]
        E = pairs(slope, slope)[:, :S, :S]
        W = self._weights(c, G)
        dc = (slope * seen).sum(2)[:, :S]
        return Point(strains, W, self._merit(c, G, W), c, G, dc, D, E)

    def fit(self, strains: torch.Tensor, steps: int) -> Point:
        """Fit weights and strains, from some strains (M, S)."""
        here = self.at(strains)
        low, high = (bound[: strains.shape[1]] for bound in (self.tables.low, self.tables.high))
        going = torch.ones_like(here.merit, dtype=torch.bool)
        for _ in range(steps):
            change, predicted = self._step(here)
            going = going & (predicted > _LITTLE * here.merit + _ROUNDING * self.norms)
            length = torch.ones_like(here.merit)
            pending = going.clone()
            for _ in range(_HALVINGS):
                if not bool(pending.any()):
                    break
                trial = (here.strains + length[:, None] * change).clamp(low, high)
                there = self.at(torch.where(pending[:, None], trial, here.strains))
                better = pending & (there.merit < here.merit)
                here, pending = here.where(better, there), pending & ~better
                length = length * 0.5
            going = going & ~pending
            if not bool(going.any()):
                break
        return here

    def search(self, here: Point, usual: float | None, steps: int) -> Point:
        """Look for other strains where nothing tells them, or much more than usual is left.

        One row at a time; ``usual`` is the relative squared residual of the row before.
        """
        norm = float(self.norms[0])
        jumped = usual is None or 2.0 * float(here.merit[0]) > _JUMP * usual * norm
        for _ in range(2 if usual is None else 1):
            for s in range(here.strains.shape[1]):
                if jumped or not bool(self.told(here)[0, s]):
                    trial = here.strains.clone()
                    trial[0, s] = self._scan(here, s)
                    here = self.better(here, trial, 2.0 * _EVIDENT / self.n_points, steps)
        return here

    def told(self, here: Point) -> torch.Tensor:
        """Tell which strains (M, S) have a weight beside them that tells them."""
        S = here.strains.shape[1]
        size = here.W[:, :S].square() * here.G.diagonal(dim1=1, dim2=2)[:, :S]
        return size * self.n_points > _SIGNIFICANT * 2.0 * here.merit[:, None]

    def borrow(self, here: Point, others: torch.Tensor, steps: int) -> Point:
        """Try other strains (M, S), one component after the other."""
        for s in range(here.strains.shape[1]):
            far = (others[:, s] - here.strains[:, s]).abs() > 0.25 * self.tables.step[s]
            if bool(far.any()):
                trial = here.strains.clone()
                trial[far, s] = others[far, s]
                here = self.better(here, trial, _BETTER, steps)
        return here

    def better(self, here: Point, strains: torch.Tensor, more: float, steps: int) -> Point:
        """Fit from other strains; take what is better by a relative margin."""
        there = self.fit(strains, steps)
        return here.where(there.merit * (1 + more) + _ROUNDING * self.norms < here.merit, there)

    def _scan(self, here: Point, s: int) -> torch.Tensor:
        """Give the strain of one component, among those of the table, that explains row 0 best."""
        tables = self.tables
        first, count = int(tables.first[s]), int(tables.count[s])
        rows = torch.arange(first + 1, first + count - 1, _STRIDE, device=here.c.device)
        index, value, _ = tables.places(here.strains[:1])
        G = here.G[:1].repeat(len(rows), 1, 1)
        beside = (tables.products[rows][:, index[0]] * value[0]).sum(2)
        line = torch.cat([beside, self._cross[rows]], 1)
        line[:, s] = tables.products[rows, rows]
        G[:, s], G[:, :, s] = line, line
        c = here.c[:1].repeat(len(rows), 1)
        c[:, s] = self._seen[0, rows]
        held = None if self.held is None else self.held[:1].expand(len(rows), -1)
        W = self._weights(c, G, held)
        best = int(self._merit(c, G, W, self.norms[:1]).argmin())
        return tables.low[s] + (_STRIDE * best) * tables.step[s]

    def _weights(
        self, c: torch.Tensor, G: torch.Tensor, held: torch.Tensor | None = None
    ) -> torch.Tensor:
        rules, held = self.rules, self.held if held is None else held
        return solve_rows(c, G, l1=rules.l1, l2=rules.l2, total=rules.total_or_nan, held=held)

    def _merit(
        self,
        c: torch.Tensor,
        G: torch.Tensor,
        W: torch.Tensor,
        norms: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Half the squared residual and the penalty of the weights, (M,)."""
        norms, rules = self.norms if norms is None else norms, self.rules
        penalty = rules.l1 * W.sum(1) + 0.5 * rules.l2 * W.square().sum(1)
        return 0.5 * norms - (W * c).sum(1) + 0.5 * square_of(W, G) + penalty

    def _step(self, here: Point) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a Gauss-Newton step: changes of strains (M, S), and what they should gain (M,)."""
        S, K = here.strains.shape[1], here.W.shape[1]
        w = here.W[:, :S]
        gain = here.dc - (here.D * here.W[:, None]).sum(2)
        low, high = self.tables.low[:S], self.tables.high[:S]
        outward = ((here.strains <= low) & (gain < 0)) | ((here.strains >= high) & (gain > 0))
        weights = here.W > 0
        if self.held is not None:
            weights = weights & self.held.isnan()
        active = torch.cat([weights, (w > 0) & ~outward], 1)
        joint = _joint(here.G, here.D, here.E, w, self.rules.l2)
        right = torch.cat([torch.zeros_like(here.W), w * gain], 1)
        inverse = _inverse(joint, active)
        change = (inverse @ torch.where(active, right, 0.0)[:, :, None])[:, K:, 0]
        most = _FARTHEST * self.tables.step[:S]
        change = torch.minimum(torch.maximum(change, -most), most)
        return change, 0.5 * (change * right[:, K:]).sum(1)


def _joint(
    G: torch.Tensor, D: torch.Tensor, E: torch.Tensor, w: torch.Tensor, l2: float
) -> torch.Tensor:
    """Build the normal matrix of weights and strains, (M, K + S, K + S)."""
    G = G + l2 * torch.eye(G.shape[1], dtype=G.dtype, device=G.device)
    beside = w[:, :, None] * D
    own = w[:, :, None] * E * w[:, None, :]
    return torch.cat([torch.cat([G, beside.mT], 2), torch.cat([beside, own], 2)], 1)


def _inverse(matrix: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Invert matrices (M, V, V) on what is active (M, V), with zeros elsewhere."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    active = active & (diagonal > 0)
    unit = torch.where(active, diagonal, 1.0).sqrt()
    both = active[:, :, None] & active[:, None, :]
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    scaled = matrix / (unit[:, :, None] * unit[:, None, :]) + _RIDGE * matrix.shape[1] * eye
    inverse = torch.linalg.inv(torch.where(both, scaled, eye))
    return torch.where(both, inverse / (unit[:, :, None] * unit[:, None, :]), 0.0)


def joint_covariance(
    vectors: torch.Tensor,
    active: torch.Tensor,
    variance: Array,
    noises: Noises | None = None,
    *,
    n_weights: int,
    add_up: bool = False,
) -> Array:
    """Estimate the covariance of weights and strains of M rows, (M, V, V).

    Parameters
    ----------
    vectors : Tensor (M, V, F)
        Derivatives of a reconstruction by the weights, then by the strains.
    active : Tensor (M, V) of bool
        What was fitted: neither held, nor at a bound.
    variance : ndarray (M,)
        Variance of one point of each row, where all have the same.
    noises : sequence of callable, optional
        For each row what gives the covariance (V, V) of ``vectors @ x`` for vectors (V, F), or
        None: the variance is taken.
    n_weights : int
        How many of the V are weights.
    add_up : bool
        Whether the weights add up to a total, so that they scatter against each other.

    Returns
    -------
    ndarray (M, V, V)
        With zeros where nothing was fitted.

    Notes
    -----
    The sandwich of the Gauss-Newton normal matrix: N⁻¹ cov(V x) N⁻¹ on what is active.
    """
    normal = (vectors @ vectors.mT).cpu().numpy()
    fitted = active.cpu().numpy() & (normal.diagonal(axis1=1, axis2=2) > 0)
    # In numpy: matrices this small cost torch more than the rest of an event.
    unit = np.sqrt(np.where(fitted, normal.diagonal(axis1=1, axis2=2), 1.0))
    scale, both = unit[:, :, None] * unit[:, None, :], fitted[:, :, None] & fitted[:, None, :]
    eye = np.eye(normal.shape[1])
    inverse = np.linalg.inv(np.where(both, normal / scale + _RIDGE * len(eye) * eye, eye))
    inverse = np.where(both, inverse / scale, 0.0)
    if add_up:
        along = inverse[:, :, :n_weights].sum(axis=2)
        whole = along[:, :n_weights].sum(axis=1)[:, None, None]
        inverse -= along[:, :, None] * along[:, None, :] / np.where(whole > 0, whole, 1.0)
    scatter = variance[:, None, None] * normal
    for row, noise in enumerate(noises or ()):
        if noise is not None:
            scatter[row] = np.asarray(noise(vectors[row].cpu().numpy()))
    return np.asarray(inverse @ scatter @ inverse)


def neighbours(strains: torch.Tensor, told: torch.Tensor) -> list[torch.Tensor]:
    """Give each row the strains of the last row before it that tells them, and of the next.

    Parameters
    ----------
    strains : Tensor (N, S)
        Strains of the rows.
    told : Tensor (N, S) of bool
        Which of them a weight tells.
    """
    n = len(strains)
    number = torch.arange(n, device=strains.device)[:, None]
    earlier = torch.where(told, number, -1).cummax(0).values
    later = torch.where(told, number, n).flip(0).cummin(0).values.flip(0)
    earlier = torch.cat([torch.full_like(earlier[:1], -1), earlier[:-1]])
    later = torch.cat([later[1:], torch.full_like(later[:1], n)])
    return [
        torch.where((rows >= 0) & (rows < n), strains.gather(0, rows.clamp(0, n - 1)), strains)
        for rows in (earlier, later)
    ]


def square_of(W: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    """Give wᵀGw of each row, (M,), for W (M, K) and G (M, K, K)."""
    return (W[:, None] @ G @ W[:, :, None])[:, 0, 0]
