"""The arrays of a checkpoint, and whether they fit together."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .numerics import beta_of

__all__ = ["FIT_STATE", "checked_state"]

#: Arrays of a state, first those of a fit.
FIT_STATE = ("components", "weights", "squared", "gram", "cross", "value")
_STATE = (
    "patterns",
    *FIT_STATE,
    "names",
    "fixed",
    "held_weights",
    "held_columns",
    "loss",
    "seed",
    "alpha",
    "l1_ratio",
    "sum_to_one",
)
#: Their dimensions, where these are not two.
_DIMENSIONS = {
    **dict.fromkeys(("value", "names", "fixed", "held_columns"), 1),
    **dict.fromkeys(("loss", "seed", "alpha", "l1_ratio", "sum_to_one"), 0),
}


def checked_state(state: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[Any]]:
    """Give the arrays of a state by name.

    Raises
    ------
    InputError
        Where one is missing or has another shape than the others ask for.
    """
    missing = [key for key in _STATE if key not in state]
    if missing:
        raise InputError(f"state: expected the arrays {_STATE}, {missing} are missing")
    arrays = {key: np.asarray(state[key]) for key in _STATE}
    for key, array in arrays.items():
        numbers = array.dtype.kind in "fiub" or key in ("names", "loss")
        if not numbers or array.ndim != _DIMENSIONS.get(key, 2):
            raise InputError(
                f"state: expected {key} of {_DIMENSIONS.get(key, 2)} dimensions, "
                f"got {array.dtype} of shape {array.shape}"
            )
    N, (K, F) = len(arrays["patterns"]), arrays["components"].shape
    M = len(arrays["weights"])
    expected = {
        "patterns": (N, F),
        "components": (K, F),
        "weights": (min(M, N), K),
        **_statistics_shapes(beta_of(arrays["loss"].item()), K, F),
        "squared": (min(M, N), 1),
        "names": (K,),
        "fixed": (K,),
        "held_weights": (N, K),
        "held_columns": (K,),
    }
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise InputError(f"state: expected {key} {shape}, got {arrays[key].shape}")
    for key in ("components", "weights", "squared", "held_weights", "held_columns"):
        values = arrays[key]
        usable = (values >= 0) & np.isfinite(values)
        if not (usable | (np.isnan(values) & key.startswith("held"))).all():
            raise InputError(f"state: expected {key} finite and not negative")
    return arrays


def _statistics_shapes(beta: float, K: int, F: int) -> dict[str, tuple[int, ...]]:
    """Tell what a state holds beside factors: WᵀW, WᵀX and sums for least squares, else a sum."""
    if beta == 2:
        return {"gram": (K, K), "cross": (K, F), "value": (2,)}
    return {"gram": (K, 0), "cross": (K, 0), "value": (2,)}
