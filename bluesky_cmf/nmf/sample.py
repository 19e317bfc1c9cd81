"""Some rows that stand for all: those that are explained worst, and others at even distances."""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch

from .rows import Rows
from .sweeps import Data

__all__ = ["Sample", "choose_rows"]

#: Rows that are looked at in one step.
_AT_ONCE = 4096


@dataclass(frozen=True)
class Sample:
    """Some of the first ``n`` rows.

    Attributes
    ----------
    n : int
        How many rows there were to choose from.
    data : Data
        The rows as they are, those that are explained worst among them: what starts are taken from.
    fair : Data
        What fits these fits all: the same rows, each counting as often as there are rows that it
        stands for; or, where rows cannot be weighed, others that were not chosen for what is left
        of them. The same as ``data`` where it was not needed yet.
    held : Rows or None
        Weights of the rows of ``fair`` that are held.
    """

    n: int
    data: Data
    fair: Data
    held: Rows | None


def choose_rows(
    left: Callable[[int, int], torch.Tensor], n: int, count: int, n_worst: int
) -> Generator[None, None, tuple[torch.Tensor, torch.Tensor]]:
    """Choose some of ``n`` rows, and tell how many each of them stands for, in steps.

    Parameters
    ----------
    left : callable
        Gives how much of the rows from one number to another is left unexplained.
    n : int
        How many rows there are.
    count : int
        How many to choose, where there are more.
    n_worst : int
        How many of these for being explained worst.

    Returns
    -------
    rows, weights : Tensor (M,), (M,)
        Numbers that rise, on the host, and how many rows each stands for, in float64. The rows
        that are explained worst stand for themselves, those at even distances among the others
        for all of these.
    """
    numbers, values = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    for start in range(0, n if n_worst else 0, _AT_ONCE):
        some = left(start, min(n, start + _AT_ONCE))
        found = some.topk(min(len(some), n_worst))
        most = torch.cat([values.to(some), found.values])
        which = torch.cat([numbers.to(some.device), start + found.indices])
        values, kept = most.topk(min(len(most), n_worst))
        numbers = which[kept]
        yield None
    worst = numbers.sort().values.cpu()
    n_others = n - len(worst)
    ranks = torch.linspace(0, n_others - 1, min(n_others, count - len(worst))).long()
    # The row with so many others before it: those that are explained worst come in between.
    before = torch.searchsorted(worst - torch.arange(len(worst)), ranks, right=True)
    rows, order = torch.cat([worst, ranks + before]).sort()
    alone = torch.ones(len(worst), dtype=torch.float64)
    shared = torch.full((len(ranks),), n_others / max(1, len(ranks)), dtype=torch.float64)
    return rows, torch.cat([alone, shared])[order]
