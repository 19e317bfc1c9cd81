"""Pattern files of numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PatternFileError
from .record import Found

__all__ = ["read_arrays"]


def read_arrays(path: Path) -> Found:
    """Read ``.npy`` or ``.npz``; pickles are never unpacked."""
    loaded: Any = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return _two_columns(path, loaded)
    with loaded:
        arrays = {name: np.asarray(loaded[name]) for name in loaded.files}
    if {"x", "y"} <= arrays.keys():
        return Found(arrays["x"], arrays["y"], arrays.get("errors"))
    if len(arrays) != 2:
        raise PatternFileError(f"{path}: expected arrays 'x' and 'y', found {list(arrays)}")
    x, y = arrays.values()
    return Found(x, y)


def _two_columns(path: Path, values: npt.NDArray[Any]) -> Found:
    if values.ndim == 2 and values.shape[1] == 2:
        return Found(values[:, 0], values[:, 1])
    if values.ndim == 2 and values.shape[0] == 2:
        return Found(values[0], values[1])
    raise PatternFileError(f"{path}: expected an array (F, 2) or (2, F), got {values.shape}")
