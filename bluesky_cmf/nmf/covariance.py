"""Covariances of weights: the sandwich on the active set, on the host, in float64."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError

__all__ = ["Noise", "Noises", "given", "known_meat", "on_host", "weight_covariance"]

Array = npt.NDArray[Any]

#: Gives the covariance (K, K) of ``vectors @ pattern`` for vectors (K, F).
Noise = Callable[[Array], npt.ArrayLike]
#: One for each of some rows, None where the noise is taken from the residual.
Noises = Sequence[Noise | None]

#: Curvature, as part of a component's own, below which a direction is not determined by the data,
#: and the part of such a direction, squared, that a weight may have and still be determined.
_SINGULAR, _TOUCHED = 1e-12, 1e-6


def weight_covariance(bread: Array, meat: Array, free: Array, *, add_up: bool = False) -> Array:
    """Give the covariance of weights from that of the score, given the components' shapes.

    Parameters
    ----------
    bread : ndarray (K, K) or (M, K, K)
        Second derivatives of the loss, and of its penalty, with respect to the weights.
    meat : ndarray (M, K, K)
        Covariance of its first derivatives: of the patterns' products with the components.
    free : ndarray (M, K) of bool
        Weights that are free to move: positive, and not held.
    add_up : bool, optional
        The weights of a row add up to a total, so that they move on the plane of that total.

    Returns
    -------
    ndarray (M, K, K)
        ``bread⁻¹ · meat · bread⁻¹`` on the free weights, 0 for the others. NaN for weights that
        the data do not determine, as those of identical components, and where ``meat`` is NaN.

    References
    ----------
    Huber, Proc. 5th Berkeley Symp. 1, 221 (1967); White, Econometrica 50, 1 (1982); on the plane
    of a constraint: Geyer, Annals of Statistics 22, 1993 (1994).
    """
    M, K = free.shape
    if not M or not K:
        return np.zeros((M, K, K))
    if bread.ndim == 3 or M == 1:
        inverse, lost = _restricted_inverse(bread.reshape(M, K, K), free, add_up)
    else:
        # Rows share the matrix, and most of them also the set of weights that are free.
        sets, rows = np.unique(free, axis=0, return_inverse=True)
        inverse, lost = _restricted_inverse(np.broadcast_to(bread, (len(sets), K, K)), sets, add_up)
        inverse, lost = inverse[rows.ravel()], lost[rows.ravel()]
    both = free[:, :, None] & free[:, None, :]
    # In the meat, what is beyond float64 for weights that are not free does not matter.
    covariance = np.where(both, inverse @ np.where(both, meat, 0.0) @ inverse, 0.0)
    covariance[both & (lost[:, :, None] | lost[:, None, :])] = math.nan
    return covariance


def given(noises: Noises | None, count: int) -> Noises:
    """Check that there is a noise, or None, for each of some rows.

    Raises
    ------
    InputError
        Where there are more or fewer, or one of them cannot be called.
    """
    if noises is None:
        return [None] * count
    if len(noises) != count:
        raise InputError(f"noises: expected one for each of {count} rows, got {len(noises)}")
    for i, noise in enumerate(noises):
        if noise is not None and not callable(noise):
            raise InputError(f"noises[{i}]: expected f(vectors (K, F)) or None, got {noise!r}")
    return noises


def known_meat(noises: Noises, vectors: Callable[[int], Array]) -> Iterator[tuple[int, Array]]:
    """Yield the rows whose noise is known, with the covariance (K, K) of their score.

    ``vectors(i)`` gives what the pattern of a row is multiplied with in its score, (K, F).
    """
    for i, noise in enumerate(noises):
        if noise is not None:
            each = vectors(i)
            found = np.asarray(noise(each), dtype=float)
            if found.shape != 2 * (len(each),):
                raise InputError(
                    f"noises: expected the covariance of {len(each)} products, "
                    f"({len(each)}, {len(each)}), got shape {found.shape}"
                )
            yield i, found


def on_host(tensor: torch.Tensor) -> Array:
    """Give a tensor's values to read: its own memory where that is the host's."""
    values: Array = tensor.detach().cpu().numpy().view()
    values.flags.writeable = False
    return values


def _restricted_inverse(bread: Array, free: Array, add_up: bool) -> tuple[Array, Array]:
    """Invert matrices (M, K, K) on the free weights, and on the plane of their total.

    Returns
    -------
    inverse : ndarray (M, K, K)
        Zero outside, and in directions that are not determined.
    lost : ndarray (M, K) of bool
        Weights that such a direction touches.
    """
    K = free.shape[1]
    usable = np.isfinite(bread.sum((1, 2)))[:, None]
    bread = np.where(usable[:, :, None], bread, np.eye(K))
    size = np.sqrt(np.diagonal(bread, axis1=1, axis2=2).clip(0))
    unit = np.where(size > 0, size, 1.0)
    # With a unit diagonal one tolerance serves components of any intensity.
    units = unit[:, :, None] * unit[:, None, :]
    inside = np.eye(K) * free[:, None, :]
    if add_up:
        normal = np.where(free, 1.0 / unit, 0.0)
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        normal /= np.where(length > 0, length, 1.0)
        inside = inside - normal[:, :, None] * normal[:, None, :]
    outside = np.eye(K) - inside
    values, vectors = np.linalg.eigh(inside @ (bread / units) @ inside + outside)
    determined = values > K * _SINGULAR
    shares = np.divide(1.0, values, out=np.zeros_like(values), where=determined)
    inverse = (vectors * shares[:, None, :]) @ vectors.swapaxes(1, 2) - outside
    lost = (vectors**2 * ~determined[:, None, :]).sum(2)
    return inverse / units, (lost > _TOUCHED) | ~usable
