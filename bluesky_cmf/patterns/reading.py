"""One way to read pattern files, whatever their form."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from ..errors import PatternFileError
from .arrays import read_arrays
from .nexus import read_nexus
from .record import Array, Found, PatternFile, checked
from .text import read_text
from .xrdml import read_xrdml

__all__ = ["SUFFIXES", "TEXT", "read_pattern", "read_pattern_file"]

#: Columns of text.
TEXT = (".xy", ".xye", ".dat", ".chi", ".csv", ".txt", ".gr")

_READERS: dict[str, Callable[[Path], Found]] = {
    **dict.fromkeys(TEXT, read_text),
    **dict.fromkeys((".npy", ".npz"), read_arrays),
    ".xrdml": read_xrdml,
    **dict.fromkeys((".nxs", ".h5", ".hdf5"), read_nexus),
}

#: Suffixes of the files that can be read.
SUFFIXES = tuple(_READERS)


def read_pattern(path: str | Path) -> tuple[Array, Array]:
    """Read a pattern from a file.

    Parameters
    ----------
    path : str or Path
        As `read_pattern_file` takes it.

    Returns
    -------
    x, y : ndarray (F,)
        Axis, increasing, and intensity. A decreasing axis is turned round.

    Raises
    ------
    PatternFileError
        Where the file is missing, has another form, or its values cannot be a pattern.
    """
    found = read_pattern_file(path)
    return found.x, found.y


def read_pattern_file(path: str | Path, *, allow_nan: bool = False) -> PatternFile:
    """Read a pattern and what else its file tells of it.

    Parameters
    ----------
    path : str or Path
        * ``.xy``, ``.xye``, ``.dat``, ``.chi``, ``.csv``, ``.txt`` or ``.gr``: columns of text,
          axis first and intensity second, parted by blanks, commas, semicolons or tabs (beside
          which a comma may be a decimal one). What comes before the first two numbers is a
          header; comments may stand anywhere. Each line has as many columns as the first one.
          The third column of ``.xye`` holds standard errors; further ones are passed over.
        * ``.npy``: an array (F, 2) or (2, F). ``.npz``: arrays ``x`` and ``y`` (and
          ``errors``), or exactly two arrays (F,), axis first.
        * ``.xrdml`` (PANalytical): its one scan over 2θ, see `bluesky_cmf.patterns.xrdml`.
        * ``.nxs``, ``.h5``, ``.hdf5``: its default NXdata, with one pattern (F,).
    allow_nan : bool, optional
        Whether intensities may be NaN or infinite: the callback has its own rule for them.

    Returns
    -------
    PatternFile
        The axis increases; a decreasing one is turned round.

    Raises
    ------
    PatternFileError
        Where the file is missing, has another form, or its values cannot be a pattern.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise PatternFileError(f"{path}: expected one of {', '.join(SUFFIXES)}, got {suffix!r}")
    try:
        found = _READERS[suffix](path)
    except FileNotFoundError as error:
        raise PatternFileError(f"{path}: no such file") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, PatternFileError):
            raise
        raise PatternFileError(f"{path}: cannot be read ({error})") from error
    return checked(path, found, allow_nan=allow_nan)
