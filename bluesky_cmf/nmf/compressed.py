"""X ≈ U V with a few directions V: sweeps on it do not read X."""

import itertools
from collections.abc import Callable, Generator, Iterator

import torch

from .blocks import Blocks

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


#: The rows compressed, at the end of some steps.
Compressing = Generator[None, None, "Compressed"]


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

    def sample(self, rows: torch.Tensor) -> "Compressed":
        """Give some of the rows."""
        return Compressed(self.U[rows], self.V, self.norms[rows])


def pays(X: Blocks) -> bool:
    """Whether sweeps on a compressed form are cheaper than on the data, and its memory small."""
    return len(X) >= _FEW_ROWS and X.n_features >= _FEW_POINTS


def compress(X: Blocks, V: torch.Tensor) -> Compressed:
    """Project the rows of X on orthonormal directions V (r, F)."""
    return Compressed(X.times(V), V, X.norms)


def compress_by_steps(
    X: Blocks, H: torch.Tensor, B: torch.Tensor, *, work: Callable[[], int]
) -> Compressing:
    """Do what `directions` and `compress` do in steps of some ``work``, in multiply-adds."""
    averages = []
    for start, stop in _stretches(X):
        averages.append(_average(X, start, stop))
        yield None
    basis = _fit_basis(H, B)
    yield None
    V = _with_averages(basis, averages, len(H))
    parts, start = [], 0
    while start < len(X):
        stop = start + max(1, work() // max(1, V.numel()))
        parts.append(X.times(V, start, stop))
        start = stop
        yield None
    return Compressed(torch.cat(parts), V, X.norms)


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
    averages = [_average(X, *stretch) for stretch in _stretches(X)]
    return _with_averages(_fit_basis(H, B), averages, len(H))


def _stretches(X: Blocks) -> Iterator[tuple[int, int]]:
    return itertools.pairwise(torch.linspace(0, len(X), _STRETCHES + 1).long().tolist())


def _fit_basis(H: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return _span(_unit(torch.cat([H, B])), 2 * len(H))


def _with_averages(basis: torch.Tensor, averages: list[torch.Tensor], K: int) -> torch.Tensor:
    """Add most of what averages have, and the basis of a fit with K components has not."""
    most, unit = max(_DIRECTIONS, 2 * K + _MORE), _unit(torch.stack(averages))
    added = _span(unit - (unit @ basis.T) @ basis, most - len(basis))
    added = _unit(added - (added @ basis.T) @ basis)
    basis = torch.cat([basis, added])
    return torch.where(basis.abs() < _NOTHING, 0.0, basis)


def _average(X: Blocks, start: int, stop: int) -> torch.Tensor:
    step = max(1, (stop - start) // _ROWS)
    return X.take(torch.arange(start, stop, step)).mean(0, dtype=torch.float64)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Give rows length 1, whatever their units; those of zeros stay."""
    length = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)


def _span(rows: torch.Tensor, most: int) -> torch.Tensor:
    """Orthonormal directions of what rows of length 1, or less, span."""
    # Long rows are turned into short ones first.
    across, short = torch.linalg.qr(rows.T)
    _, lengths, found = torch.linalg.svd(short.T, full_matrices=False)
    basis: torch.Tensor = found[: int((lengths[:most] > _NEGLIGIBLE).sum())] @ across.T
    return basis
