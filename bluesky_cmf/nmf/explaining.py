"""How rows are explained by the factors as they stand: reconstructions, errors, R-factors."""

from collections.abc import Sequence

import numpy as np
import torch

from .covariance import Noises, given, on_host
from .factorization import Factorization
from .results import RowFit, relative, spread_strains
from .strainedfactors import StrainedFactors

__all__ = ["explain_rows", "reconstruct_rows", "strains_at_bounds"]


def explain_rows(
    factors: Factorization, start: int, stop: int, noises: Noises | None, *, dtype: torch.dtype
) -> RowFit:
    """Tell how the rows from ``start`` to ``stop`` are explained: `StreamingNMF.rows`.

    The reconstruction of the last of them is given in ``dtype``.
    """
    W = factors.W.tensor(start, stop)
    noises = given(noises, len(W))
    sums, fit = _residual_sums(factors, W, start)
    squared, over, total = sums.unbind(1)
    scale, strains = factors.scale, {}
    size = on_host(scale)
    if isinstance(factors, StrainedFactors):
        joint = factors.joint(start, squared, noises)
        covariance = joint[:, : len(size), : len(size)]
        deviations = np.sqrt(np.maximum(joint.diagonal(axis1=1, axis2=2), 0.0))
        own_errors = torch.as_tensor(deviations[:, len(size) :], device=W.device)
        for key, own in (
            ("strains", factors.strains.tensor(start, stop)),
            ("strain_errors", own_errors),
        ):
            strains[key] = spread_strains(own, W, factors.tables.strained).cpu().numpy()
    else:
        covariance = factors.covariance(W, start, squared, noises)
    return RowFit(
        weights=(W * scale).cpu().numpy(),
        covariance=covariance * (size[:, None] * size),
        r_factor=relative(squared, factors.X.norms[start:stop]).sqrt().cpu().numpy(),
        unexplained=relative(over, total).cpu().numpy(),
        reconstruction=fit.to(dtype).cpu().numpy(),
        **strains,
    )


def reconstruct_rows(factors: Factorization, start: int, stop: int) -> torch.Tensor:
    """Reconstruct rows, (M, F), in float64."""
    W = factors.W.tensor(start, stop)
    rows = [W.new_zeros(0, factors.X.n_features)]
    for first, chunk in factors.X.chunks(start, stop):
        rows.append(factors.reconstruct(W[first - start : first - start + len(chunk)], first))
    return torch.cat(rows)


def strains_at_bounds(
    factors: Factorization, start: int, stop: int, *, names: Sequence[str]
) -> dict[str, list[int]]:
    """Tell in which rows the strain of a component is at a bound, by the component's name."""
    if not isinstance(factors, StrainedFactors):
        return {}
    columns = factors.at_bounds(start, stop).T.cpu()
    found = zip(factors.tables.strained, columns, strict=True)
    return {
        names[k]: (start + column.nonzero()[:, 0]).tolist()
        for k, column in found
        if bool(column.any())
    }


def _residual_sums(
    factors: Factorization, W: torch.Tensor, start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared residual, what lies above the fit, and intensity of rows with weights W, (M, 3).

    With the reconstruction of the last one, (F,).
    """
    sums, last = [W.new_zeros(0, 3)], W.new_zeros(factors.X.n_features)
    for first, rows in factors.X.chunks(start, start + len(W)):
        fit = factors.reconstruct(W[first - start : first - start + len(rows)], first)
        left, last = rows - fit, fit[-1]
        each = (left.square().sum(1), left.clamp_min(0).sum(1), rows.sum(1))
        sums.append(torch.stack(each, 1))
    return torch.cat(sums), last
