"""A strained phase as the factorization takes it: its shapes over the strain, as data go."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .nmf.families import Family
from .phases import Phase
from .preprocess import Preprocess

__all__ = ["family_of", "tabulated"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

#: Shapes of the first table, and how well, relatively, a table gives those between its own.
_FIRST, _ACCURACY = 9, 3e-4
#: Most numbers of a table.
_MOST = 1 << 23


def family_of(phase: Phase, x: Array, preprocess: Preprocess) -> Family:
    """Tabulate a phase over its strain, by the steps that data go through.

    Parameters
    ----------
    phase : Phase
        A phase that has a strain.
    x : ndarray (F,)
        The axis that is fitted.
    preprocess : Preprocess
        The steps. What a shape is divided by is found without strain, and is the same for all
        strains: so a weight is always that of the phase as it was given.

    Raises
    ------
    AxisError
        Where the phase does not cover the axis at all its strains.
    InputError
        Where it has no strain.
    """
    bounds = phase.known_strain
    plain = replace(preprocess, normalize=None)
    given = preprocess(x, phase.on(x))
    bare = plain(x, phase.on(x))
    scale = float(given.sum() / bare.sum()) if preprocess.normalize and bare.any() else 1.0
    for bound in bounds:
        phase.on(x, strain=bound)

    def shape(strain: float) -> Array:
        return scale * np.asarray(plain(x, phase.on(x, strain=strain)), dtype=float)

    return Family(tabulated(shape, bounds, what=f"phase {phase.name!r}"), bounds, given)


def tabulated(shape: Callable[[float], Array], bounds: tuple[float, float], *, what: str) -> Array:
    """Tabulate a shape between two strains, finely enough for a cubic spline between.

    Parameters
    ----------
    shape : callable
        Gives the shape (F,) at a strain.
    bounds : (float, float)
        The least and the largest strain.
    what : str
        What a message calls it.

    Returns
    -------
    ndarray (G, F)
        Shapes at even distances: so many that the spline is within 3e-4 of the norm of those
        half-way between them, as the narrowest lines ask for.
    """
    shapes = np.stack([shape(strain) for strain in np.linspace(*bounds, _FIRST)])
    while True:
        family = Family(shapes, bounds, shapes[0])
        between = np.linspace(*bounds, 2 * len(shapes) - 1)[1::2]
        middles = np.stack([shape(strain) for strain in between])
        found = np.stack([family.at(strain) for strain in between])
        sizes = np.linalg.norm(middles, axis=1)
        left = float((np.linalg.norm(found - middles, axis=1) / np.maximum(sizes, 1e-300)).max())
        # They were computed, and make the table finer still.
        finer = np.empty((2 * len(shapes) - 1, shapes.shape[1]))
        finer[::2], finer[1::2] = shapes, middles
        shapes = finer
        if left <= _ACCURACY or 2 * shapes.size > _MOST:
            break
    if left > _ACCURACY:
        logger.warning(
            "%s: strains from %g to %g are told by %d shapes only, to some %.1g of the pattern: "
            "its lines are very narrow beside them; narrow strain=(lowest, highest)",
            what,
            *bounds,
            len(shapes),
            left / 16,
        )
    return shapes
