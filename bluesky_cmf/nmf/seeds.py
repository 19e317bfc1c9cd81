"""Where free components start: patterns of the data that the others explain worst."""

import itertools
from collections.abc import Generator, Iterator, Sequence

import torch

from .steps import finished
from .sweeps import Data, solve, squared_residuals

__all__ = [
    "as_shape",
    "data_seeds",
    "match_components",
    "seed_worst",
    "seeds_beside",
    "worst_of",
]

#: Squared relative residual below which nothing is left to explain.
_EXPLAINED = 1e-6


def seed_worst(X: Data, H: torch.Tensor, empty: Sequence[int], *, residual: bool) -> torch.Tensor:
    """Fill empty components, one by one, from the pattern that is explained worst.

    Parameters
    ----------
    X : Data
        N patterns of F points.
    H : Tensor (K, F)
        Components; it is not changed.
    empty : sequence of int
        Components to fill, in this order.
    residual : bool
        Take what the others leave of the pattern, rather than the whole pattern.

    Returns
    -------
    Tensor (K, F)
        The components. One stays empty where all is explained.
    """
    return finished(_seeded_by_steps(X, H, empty, residual=residual))


def _seeded_by_steps(
    X: Data, H: torch.Tensor, empty: Sequence[int], *, residual: bool
) -> Generator[None, None, torch.Tensor]:
    """Do what `seed_worst` does, in three steps for each component."""
    H = H.clone()
    H[list(empty)] = 0
    for k in empty:
        C = X.times(H)
        yield None
        W = solve(X.device, C, H @ H.T)
        yield None
        worst = worst_of(squared_residuals(X, W, H, C), X.norms)
        if worst is None:
            break
        row = X.row(worst)
        seed = as_shape(row - W[worst] @ H if residual else row)
        if seed is None:
            break
        H[k] = seed
        yield None
    return H


def worst_of(squared: torch.Tensor, norms: torch.Tensor) -> int | None:
    """Tell which row has the largest squared residual; None where all are explained."""
    if not bool((squared > _EXPLAINED * norms).any()):
        return None
    return int(squared.argmax())


def as_shape(pattern: torch.Tensor) -> torch.Tensor | None:
    """Give what is positive of a pattern (F,) with maximum 1; None where nothing is."""
    positive = pattern.clamp_min(0)
    largest = positive.amax()
    return positive / largest if float(largest) > 0 else None


def data_seeds(
    X: Data, H: torch.Tensor, free: Sequence[int], *, draws: int, seed: int
) -> Iterator[torch.Tensor | None]:
    """Yield components that depend on the data, the held components and ``seed`` alone.

    The worst-explained patterns one after the other, what the others leave of them, patterns at
    even distances, and some draws of patterns; and None after each part of the work on some.
    """
    for residual in (False, True):
        yield (yield from _seeded_by_steps(X, H, free, residual=residual))
    N = len(X)
    generator = torch.Generator().manual_seed(seed)
    even = [(2 * j + 1) * N // (2 * len(free)) for j in range(len(free))]
    drawn = (torch.randperm(N, generator=generator).tolist() for _ in range(draws))
    for rows in itertools.chain([even], drawn):
        start = H.clone()
        start[list(free)] = 0
        for k, row in zip(free, rows, strict=False):
            pattern = X.row(row)
            start[k] = pattern / pattern.amax().clamp_min(torch.finfo(pattern.dtype).tiny)
        yield start


def seeds_beside(X: Data, H: torch.Tensor, free: Sequence[int]) -> Iterator[torch.Tensor | None]:
    """Yield components beside those that stand: one gives way to what the others explain worst.

    Each of the free components does so in turn, to that pattern and to what the others leave of it;
    None after each part of the work on one.
    """
    for k in free:
        for residual in (False, True):
            yield (yield from _seeded_by_steps(X, H, [k], residual=residual))


def match_components(H: torch.Tensor, like: torch.Tensor, free: Sequence[int]) -> list[int]:
    """Order the free components of H as those of ``like`` that they overlap with most.

    Returns
    -------
    list of int
        For each place the component of H that takes it; held components keep their places.
    """
    order = list(range(len(H)))
    if not free:
        return order
    rows = list(free)
    unit = [M[rows] / M[rows].norm(dim=1, keepdim=True).clamp_min(1e-300) for M in (like, H)]
    overlap = unit[0] @ unit[1].T
    for _ in rows:
        # The best pair first: K is small, and the pairs that matter overlap almost fully.
        place, taken = divmod(int(overlap.argmax()), len(rows))
        order[rows[place]] = rows[taken]
        overlap[place, :] = -1.0
        overlap[:, taken] = -1.0
    return order
