"""The arrays of a checkpoint, and whether they fit together."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .families import Family
from .numerics import beta_of

__all__ = ["FIT_STATE", "STRAIN_STATE", "checked_state", "families_of", "family_state"]

#: Arrays of a state, first those of a fit.
FIT_STATE = ("components", "weights", "squared", "gram", "cross", "value")
#: Arrays of a fit with strained components, and of these: there only where there are some.
STRAIN_STATE = ("strains", "strain_parts", "strain_anchors")
_FAMILIES = ("family_names", "family_shapes", "family_lengths", "family_bounds", "family_zeros")
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
    **dict.fromkeys(("strain_anchors", "family_names", "family_lengths"), 1),
    **dict.fromkeys(("loss", "seed", "alpha", "l1_ratio", "sum_to_one"), 0),
}


def checked_state(state: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[Any]]:
    """Give the arrays of a state by name.

    Raises
    ------
    InputError
        Where one is missing or has another shape than the others ask for.
    """
    if not isinstance(state, Mapping):
        raise InputError(f"state: expected arrays by name, as `state` gives them, got {state!r}")
    strained = (*STRAIN_STATE, *_FAMILIES) if "family_names" in state else ()
    expected_keys = (*_STATE, *strained)
    missing = [key for key in expected_keys if key not in state]
    if missing:
        raise InputError(f"state: expected the arrays {expected_keys}, {missing} are missing")
    arrays = {key: np.asarray(state[key]) for key in expected_keys}
    for key, array in arrays.items():
        numbers = array.dtype.kind in "fiub" or key in ("names", "loss", "family_names")
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
        **_statistics_shapes(arrays, K, F),
        "squared": (min(M, N), 1),
        "names": (K,),
        "fixed": (K,),
        "held_weights": (N, K),
        "held_columns": (K,),
    }
    if strained:
        expected |= _strain_shapes(arrays, M, F)
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise InputError(f"state: expected {key} {shape}, got {arrays[key].shape}")
    for key in ("components", "weights", "squared", "held_weights", "held_columns"):
        values = arrays[key]
        usable = (values >= 0) & np.isfinite(values)
        if not (usable | (np.isnan(values) & key.startswith("held"))).all():
            raise InputError(f"state: expected {key} finite and not negative")
    return arrays


def family_state(families: Mapping[str, Family]) -> dict[str, npt.NDArray[Any]]:
    """Give families of shapes, by name, as plain arrays; none where there is none."""
    if not families:
        return {}
    given = list(families.values())
    return {
        "family_names": np.array(list(families), dtype=np.str_),
        "family_shapes": np.concatenate([family.shapes for family in given]),
        "family_lengths": np.array([len(family) for family in given]),
        "family_bounds": np.array([family.bounds for family in given]),
        "family_zeros": np.stack([family.shape for family in given]),
    }


def families_of(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Family]:
    """Build the families that `family_state` was given."""
    if "family_names" not in arrays:
        return {}
    ends = np.cumsum(arrays["family_lengths"])[:-1]
    return {
        str(name): Family(shapes, bounds, shape)
        for name, shapes, bounds, shape in zip(
            arrays["family_names"],
            np.split(arrays["family_shapes"], ends),
            arrays["family_bounds"],
            arrays["family_zeros"],
            strict=True,
        )
    }


def _strain_shapes(
    arrays: Mapping[str, npt.NDArray[Any]], M: int, F: int
) -> dict[str, tuple[int, ...]]:
    """Tell what a state holds where components are strained."""
    S = len(arrays["family_names"])
    return {
        "strains": (M, S),
        "strain_parts": (M, 1),
        "strain_anchors": (S + 1,),
        "family_lengths": (S,),
        "family_shapes": (int(arrays["family_lengths"].sum()), F),
        "family_bounds": (S, 2),
        "family_zeros": (S, F),
    }


def _statistics_shapes(
    arrays: Mapping[str, npt.NDArray[Any]], K: int, F: int
) -> dict[str, tuple[int, ...]]:
    """Tell what a state holds beside factors: WᵀW, WᵀX and sums for least squares, else a sum."""
    if beta_of(arrays["loss"].item()) != 2:
        return {"gram": (K, 0), "cross": (K, 0), "value": (2,)}
    # States of before held components had a sum of their own, and those with strains, have two.
    two = "family_names" in arrays or len(arrays["value"]) == 2
    return {"gram": (K, K), "cross": (K, F), "value": (2,) if two else (3,)}
