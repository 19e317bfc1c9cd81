"""How far a reconstruction is from the data: the beta-divergence and R-factors."""

import math

import torch
from torch import Tensor

from bluesky_cmf.errors import InputError

__all__ = ["beta_divergence", "checked_beta", "elementwise", "r_factor", "zero_floor"]

#: Nearer to 0 or 1 than this, the general formula cancels to noise and its limit is taken.
_LIMIT_WIDTH = 1e-6


def beta_divergence(target: Tensor, reconstruction: Tensor, beta: float) -> Tensor:
    r"""Sum the beta-divergence over all elements.

    .. math::
        d_\beta(x|y) =
        \frac{x^\beta + (\beta-1) y^\beta - \beta x y^{\beta-1}}{\beta(\beta-1)}

    with its limits: ``beta=2`` is half the squared Frobenius norm, ``beta=1`` the generalised
    Kullback-Leibler divergence ``x log(x/y) - x + y``, ``beta=0`` the Itakura-Saito divergence
    ``x/y - log(x/y) - 1``.

    Where a zero would make the sum infinite (in `reconstruction` under a positive target for
    ``beta <= 1``, anywhere for ``beta <= 0``), values are raised to a floor of 1.2e-7 times the
    mean of `target`.

    Parameters
    ----------
    target, reconstruction
        Non-negative tensors of one shape; `target` is the data.
    beta
        Any finite number.

    Returns
    -------
    Tensor
        The sum, a float64 scalar, never negative.

    Raises
    ------
    InputError
        If the shapes differ or `beta` is not a finite number.

    References
    ----------
    Févotte and Idier, Algorithms for nonnegative matrix factorization with the beta-divergence,
    Neural Computation 23 (2011), 2421-2456.
    """
    _check_same_shape("target", target, "reconstruction", reconstruction)
    beta = checked_beta(beta)
    x, y = target.double(), reconstruction.double()
    if beta == 2:
        return 0.5 * (x - y).square().sum()
    if beta > 1:
        return elementwise(x, y, beta).clamp_min(0).sum()
    floor = zero_floor(target)
    if beta <= 0:
        return elementwise(x.clamp_min(floor), y.clamp_min(floor), beta).clamp_min(0).sum()
    against_zero = y.pow(beta) / beta
    each = torch.where(x == 0, against_zero, elementwise(x, y.clamp_min(floor), beta))
    return each.clamp_min(0).sum()


def r_factor(X: Tensor, reconstruction: Tensor) -> Tensor:
    """Relate the residual of each pattern to its size: ``sqrt(sum((x - y)^2) / sum(x^2))``.

    Parameters
    ----------
    X, reconstruction
        Tensors of one shape (..., n_features); `X` is the data.

    Returns
    -------
    Tensor
        Shape (...), dimensionless: 0 is a perfect fit. A pattern of zeros has 0 where the
        reconstruction is zero as well, infinity where it is not.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    _check_same_shape("X", X, "reconstruction", reconstruction)
    # The norms are summed in float64: a squared float32 count may leave its range.
    residual = torch.linalg.vector_norm(X - reconstruction, dim=-1, dtype=torch.float64)
    size = torch.linalg.vector_norm(X, dim=-1, dtype=torch.float64)
    return torch.where(residual == 0, residual, residual / size).to(X.dtype)


def checked_beta(beta: float) -> float:
    """Return `beta` as a finite float, moved to 0 or 1 where it is too near to tell apart."""
    try:
        value = float(beta)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"beta: expected a finite number, such as 0, 1 or 2, got {beta!r}")
    nearest = round(value)
    return float(nearest) if nearest in (0, 1) and abs(value - nearest) < _LIMIT_WIDTH else value


def zero_floor(target: Tensor) -> float:
    """Return what stands for zero beside this data where zero itself has no finite divergence.

    It grows with the data, so that a change of units does not change a fit.
    """
    scale = float(target.mean(dtype=torch.float64)) or 1.0
    return torch.finfo(torch.float32).eps * scale


def elementwise(x: Tensor, y: Tensor, beta: float) -> Tensor:
    """Give the beta-divergence of each element; zeros must have been raised where they matter."""
    if beta == 1:
        return torch.xlogy(x, x / y) - x + y
    if beta == 0:
        return x / y - torch.log(x / y) - 1
    mixed = x.pow(beta) + (beta - 1) * y.pow(beta) - beta * x * y.pow(beta - 1)
    return mixed / (beta * (beta - 1))


def _check_same_shape(name: str, first: Tensor, other_name: str, other: Tensor) -> None:
    if first.shape != other.shape:
        raise InputError(
            f"{other_name}: expected the shape of {name}, {tuple(first.shape)}, "
            f"got {tuple(other.shape)}"
        )
