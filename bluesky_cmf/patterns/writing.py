"""Write pattern files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import PatternFileError
from .reading import TEXT
from .record import Found, checked

__all__ = ["write_pattern"]


def write_pattern(path: str | Path, x: npt.ArrayLike, y: npt.ArrayLike) -> None:
    """Write a pattern so that `read_pattern` gives back the same values, to the bit.

    Parameters
    ----------
    path : str or Path
        ``.xy``, ``.dat``, ``.chi``, ``.txt`` (columns parted by a blank), ``.csv`` or ``.npz``.
    x, y : array_like (F,)
        Axis and intensity.

    Raises
    ------
    PatternFileError
        Where the suffix is another one, the values cannot be a pattern, or the file cannot be
        written.
    """
    path = Path(path)
    found = checked(path, Found(np.asarray(x, dtype=float), np.asarray(y, dtype=float)))
    suffix = path.suffix.lower()
    if suffix not in (*TEXT, ".npz") or suffix == ".xye":
        raise PatternFileError(f"{path}: cannot write {suffix!r}; use .xy, .csv or .npz")
    try:
        with path.open("wb") as file:
            if suffix == ".npz":
                np.savez(file, x=found.x, y=found.y)
            else:
                # 17 digits bring every float64 back.
                delimiter = "," if suffix == ".csv" else " "
                columns = np.column_stack([found.x, found.y])
                np.savetxt(file, columns, fmt="%.17g", delimiter=delimiter)
    except OSError as error:
        raise PatternFileError(f"{path}: cannot be written ({error})") from error
