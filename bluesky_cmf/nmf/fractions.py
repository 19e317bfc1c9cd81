"""Fractions: weights by the area of each component, as parts of their sum."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

__all__ = ["areas", "fraction_errors", "fractions"]

Array = npt.NDArray[Any]


def areas(components: Array, x: npt.ArrayLike | None = None) -> Array:
    """Integrate components over the axis by the trapezoidal rule.

    Parameters
    ----------
    components : ndarray (K, F)
        Intensities.
    x : array_like (F,), optional
        Axis, in any unit; by default the number of the point. A single point has its intensity
        for area.

    Returns
    -------
    ndarray (K,)
        In units of intensity times axis.

    Raises
    ------
    InputError
        Where the axis has another length.
    """
    points = components.shape[1]
    axis = np.arange(points) if x is None else np.asarray(x, dtype=float)
    if axis.shape != (points,):
        raise InputError(f"x: expected an axis ({points},) as components have, got {axis.shape}")
    if points == 1:
        return components[:, 0].astype(float)
    steps = np.diff(axis)
    share = 0.5 * (np.append(steps, 0.0) + np.append(0.0, steps))
    area: Array = components.astype(float, copy=False) @ share
    return area


def fractions(weights: Array, areas: Array) -> Array:
    """Give the part that each component has in the intensity of each reconstruction.

    Parameters
    ----------
    weights : ndarray (N, K)
        Weights of the components.
    areas : ndarray (K,)
        Areas of the components.

    Returns
    -------
    ndarray (N, K)
        ``w_k a_k / sum_j(w_j a_j)``, which adds up to 1; NaN where the sum is zero, for parts of
        nothing are not defined.

    Examples
    --------
    >>> fractions(np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([2.0, 2.0]))
    array([[0.25, 0.75],
           [ nan,  nan]])
    """
    parts = weights.astype(float, copy=False) * areas
    whole = parts.sum(axis=1, keepdims=True)
    # Too large for any number they are not defined either.
    with np.errstate(invalid="ignore"):
        found: Array = np.divide(parts, whole, out=np.full_like(parts, np.nan), where=whole > 0)
    return found


def fraction_errors(weights: Array, covariance: Array, areas: Array) -> Array:
    """Carry the covariance of weights to fractions, to first order (the delta method).

    Parameters
    ----------
    weights : ndarray (N, K)
        Weights of the components.
    covariance : ndarray (N, K, K)
        Their covariances.
    areas : ndarray (K,)
        Areas of the components, taken as exact.

    Returns
    -------
    ndarray (N, K)
        Standard errors ``sqrt(J C Jᵀ)`` with ``J_kj = a_j (δ_kj - f_k) / sum_i(w_i a_i)``. NaN
        where the fraction is, or where the covariance of a weight that takes part is not known.
    """
    found = fractions(weights, areas)
    whole = (weights.astype(float, copy=False) * areas).sum(axis=1)
    whole = np.where(whole > 0, whole, np.nan)
    slopes = areas * (np.eye(len(areas)) - found[:, :, None]) / whole[:, None, None]
    variance: Array = ((slopes @ covariance) * slopes).sum(axis=2)
    error: Array = np.sqrt(variance.clip(0))
    return error
