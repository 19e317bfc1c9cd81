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
from .stretching import stretched

__all__ = ["family_of", "tabulated"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

#: Shapes of the first table, and how well, relatively, a table gives those between its own.
_FIRST, _ACCURACY = 9, 2e-4
#: Points in the narrowest line, where a crystal's pattern is computed once for all strains.
_POINTS = 12
#: Most numbers of a table.
_MOST = 1 << 23


def family_of(
    phase: Phase, x: Array, preprocess: Preprocess, *, onto: Array | None = None
) -> Family:
    """Tabulate a phase over its strain, by the steps that data go through.

    Parameters
    ----------
    phase : Phase
        A phase that has a strain.
    x : ndarray (F,)
        The axis that the phase is computed on before the steps.
    preprocess : Preprocess
        The steps. What a shape is divided by is found without strain, and is the same for all
        strains: so a weight is always that of the phase as it was given.
    onto : ndarray (G,), optional
        The axis that the steps take it to, as `Preprocess.prepare` has it.

    Raises
    ------
    AxisError
        Where the phase does not cover the axis at all its strains.
    InputError
        Where it has no strain.
    """
    bounds = phase.known_strain
    plain = replace(preprocess, normalize=None, monitor=None)
    given = preprocess(x, phase.on(x), onto=onto)
    bare = plain(x, phase.on(x), onto=onto)
    scale = float(given.sum() / bare.sum()) if preprocess.normalize and bare.any() else 1.0
    for bound in bounds:
        phase.on(x, strain=bound)
    sampled = _sampled(phase, x)

    def shape(strain: float) -> Array:
        return scale * np.asarray(plain(x, sampled.on(x, strain=strain), onto=onto), dtype=float)

    return Family(tabulated(shape, bounds, what=f"phase {phase.name!r}"), bounds, given)


def _sampled(phase: Phase, x: Array) -> Phase:
    """Compute a crystal's pattern once, finely enough for a spline to give it in between."""
    if phase.powder is None or phase.axis is None:
        return phase
    low, high = phase.known_strain
    (first,), (last,) = (
        stretched(x[place], strain, phase.axis)
        for place, strain in ((slice(1), min(low, 0.0)), (slice(-1, None), max(high, 0.0)))
    )
    step = phase.powder.narrowest(np.array([first, last])) / _POINTS
    fine = np.linspace(first, last, max(len(x), int((last - first) / step) + 2))
    return replace(phase, x=fine, y=phase.on(fine), powder=None)


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
        Shapes at even distances: so many that the spline is within 2e-4 of the norm of those
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
        if left <= _ACCURACY or 2 * shapes.size > _MOST:
            break
        finer = np.empty((2 * len(shapes) - 1, shapes.shape[1]))
        finer[::2], finer[1::2] = shapes, middles
        shapes = finer
    if left > _ACCURACY:
        logger.warning(
            "%s: strains from %g to %g are told by %d shapes only, to some %.1g of the pattern: "
            "its lines are very narrow beside them; narrow strain=(lowest, highest)",
            what,
            *bounds,
            len(shapes),
            left,
        )
    return shapes
