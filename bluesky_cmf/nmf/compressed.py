"""X ≈ U V with a few directions V: sweeps on it do not read X."""

import itertools
from collections.abc import Callable, Generator, Iterator

import torch

from .blocks import Blocks
from .steps import finished

__all__ = ["Compressed", "compress", "compress_by_steps", "directions", "pays"]

#: Directions, or twice the number of components and this many more where that is more.
_DIRECTIONS, _MORE = 20, 4
#: Stretches of rows that are averaged, and rows of a stretch that will do.
_STRETCHES, _ROWS = 16, 16
#: Directions for which a basis pays, in rows and in points.
_FEW_ROWS, _FEW_POINTS = 256, 640
#: A direction shorter than this, relative to the longest one, adds nothing.
_NEGLIGIBLE = 1e-7
#: Where nothing was, rounding leaves numbers so small that arithmetic slows down.
_NOTHING = 1e-30

#: Some rows compressed, and directions, at the end of some steps.
Compressing = Generator[None, None, "Compressed"]
Spanning = Generator[None, None, torch.Tensor]


class Compressed:
    """Rows U V that stand for those of X, as sweeps see them.

    Parameters
    ----------
    U : Tensor (N, r)
        Coordinates of the rows.
    V : Tensor (r, F)
        Orthonormal directions.
    norms : Tensor (N,)
        Squared norms of the rows of X, with what lies outside the directions.
    """

    def __init__(self, U: torch.Tensor, V: torch.Tensor, norms: torch.Tensor) -> None:
        self.U, self.V, self.norms = U, V, norms
        self.half_norm = 0.5 * float(norms.sum())
        self.device = V.device

    def __len__(self) -> int:
        return len(self.U)

    def times(self, H: torch.Tensor) -> torch.Tensor:
        """UVHᵀ, (N, K)."""
        return self.U @ (self.V @ H.T)

    def transposed_times(self, W: torch.Tensor) -> torch.Tensor:
        """WᵀUV, (K, F)."""
        return (W.T @ self.U) @ self.V

    def row(self, index: int) -> torch.Tensor:
        """One row without what lies outside the directions, (F,), not negative."""
        return (self.U[index] @ self.V).clamp_min_(0)

    def fused(self) -> tuple[torch.Tensor, torch.Tensor]:
        """U and V."""
        return self.U, self.V

    def scaled(self, factors: torch.Tensor) -> "Compressed":
        """Multiply each row by a factor (N,)."""
        return Compressed(self.U * factors[:, None], self.V, self.norms * factors.square())

    def sample(self, rows: torch.Tensor) -> "Compressed":
        """Give some of the rows."""
        return Compressed(self.U[rows], self.V, self.norms[rows])


def pays(n_rows: int, n_features: int) -> bool:
    """Whether sweeps on a compressed form are cheaper than on the data, and its memory small."""
    return n_rows >= _FEW_ROWS and n_features >= _FEW_POINTS


def compress(X: Blocks, V: torch.Tensor) -> Compressed:
    """Project the rows of X on orthonormal directions V (r, F)."""
    return Compressed(X.times(V), V, X.norms)


def compress_by_steps(
    X: Blocks, rows: torch.Tensor, H: torch.Tensor, B: torch.Tensor, *, work: Callable[[], int]
) -> Compressing:
    """Do what `directions` and `compress` do for some rows, in steps of ``work`` multiply-adds."""
    averages = []
    for stretch in _stretches(rows):
        averages.append(_average(X, stretch))
        yield None
    V = yield from _basis_by_steps(averages, H, B)
    parts, start = [], 0
    while start < len(rows):
        stop = start + max(1, work() // max(1, V.numel()))
        parts.append(X.times_some(rows[start:stop], V))
        start = stop
        yield None
    return Compressed(torch.cat(parts), V, X.norms[rows.to(X.device)])


def directions(X: Blocks, H: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Choose what the rows of X are projected on, around a fit.

    Parameters
    ----------
    X : Blocks
        The data.
    H, B : Tensor (K, F)
        Components, and WᵀX; of B the rows of components that may change.

    Returns
    -------
    Tensor (r, F)
        Orthonormal. They span the components and WᵀX of the free ones, which averages noise over
        all rows and makes the compressed problem exact to first order where the fit stands; and
        most of what averages over stretches of rows add to that, so that a phase that appears late
        is among them.

    Notes
    -----
    A range finder as in Halko, Martinsson and Tropp, SIAM Rev. 53, 217 (2011), with the fit and
    the order of the rows in the place of chance.
    """
    averages = [_average(X, stretch) for stretch in _stretches(torch.arange(len(X)))]
    return finished(_basis_by_steps(averages, H, B))


def _stretches(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    edges = torch.linspace(0, len(rows), _STRETCHES + 1).long().tolist()
    return (rows[start:stop] for start, stop in itertools.pairwise(edges))


def _basis_by_steps(averages: list[torch.Tensor], H: torch.Tensor, B: torch.Tensor) -> Spanning:
    """Join what a fit spans and most of what averages add to it."""
    basis = yield from _span_by_steps(_unit(torch.cat([H, B])), 2 * len(H))
    most, unit = max(_DIRECTIONS, 2 * len(H) + _MORE), _unit(torch.stack(averages))
    unit -= (unit @ basis.T) @ basis
    yield None
    added = yield from _span_by_steps(unit, most - len(basis))
    # Rounding has left something of the fit in them.
    added = _unit(added - (added @ basis.T) @ basis)
    basis = torch.cat([basis, added])
    yield None
    return torch.where(basis.abs() < _NOTHING, 0.0, basis)


def _average(X: Blocks, rows: torch.Tensor) -> torch.Tensor:
    step = max(1, len(rows) // _ROWS)
    return X.take(rows[::step].contiguous()).mean(0, dtype=torch.float64)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Give rows length 1, whatever their units; those of zeros stay."""
    length = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)


def _span_by_steps(rows: torch.Tensor, most: int) -> Spanning:
    """Orthonormal directions of what rows of length 1, or less, span."""
    # Long rows are turned into short ones first.
    across, short = torch.linalg.qr(rows.T)
    yield None
    _, lengths, found = torch.linalg.svd(short.T, full_matrices=False)
    basis: torch.Tensor = found[: int((lengths[:most] > _NEGLIGIBLE).sum())] @ across.T
    yield None
    return basis
