"""Some rows that stand for all: those that are explained worst, and others at even distances."""

from dataclasses import dataclass

import torch

from .rows import Rows
from .sweeps import Data

__all__ = ["Sample", "choose_rows"]


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


def choose_rows(left: torch.Tensor, count: int, n_worst: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose rows, and tell how many each of them stands for.

    Parameters
    ----------
    left : Tensor (N,)
        How much of each row is left unexplained.
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
    n = len(left)
    worst = left.topk(min(n, n_worst)).indices.cpu()
    alone = torch.zeros(n, dtype=torch.bool)
    alone[worst] = True
    others = (~alone).nonzero()[:, 0]
    places = torch.linspace(0, len(others) - 1, min(len(others), count - len(worst)))
    rows = torch.cat([worst, others[places.long()]]).sort().values
    weights = torch.ones(len(rows), dtype=torch.float64)
    weights[~alone[rows]] = len(others) / max(1, len(places))
    return rows, weights
