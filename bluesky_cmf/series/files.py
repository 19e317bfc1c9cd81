"""Which files are meant, and their order."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from ..patterns import SUFFIXES

__all__ = ["find_files", "natural_key"]

logger = logging.getLogger(__name__)


def natural_key(path: Path) -> tuple[tuple[int, float, str], ...]:
    """Give a key for sorting by which ``T9`` comes before ``T10``.

    Examples
    --------
    >>> sorted([Path("T10.xy"), Path("T9.xy"), Path("S1.xy")], key=natural_key)
    [PosixPath('S1.xy'), PosixPath('T9.xy'), PosixPath('T10.xy')]
    """
    parts = re.split(r"(\d+)", str(path))
    return tuple((1, int(p), "") if p.isdecimal() else (0, 0.0, p.casefold()) for p in parts)


def find_files(places: Iterable[str | Path], *, but: Iterable[Path] = ()) -> list[Path]:
    """Find the pattern files that are meant.

    Parameters
    ----------
    places : iterable of str or Path
        Files; folders, of which those files are taken that have the suffix that most of its
        pattern files have (and no subfolder); or patterns with ``*``, ``?`` and ``[]``.
    but : iterable of Path
        Files in folders that are not meant, as a table of temperatures.

    Returns
    -------
    list of Path
        Each file once, in the natural order of their names: ``T9`` before ``T10``.

    Raises
    ------
    InputError
        Where a place is not there, or holds no pattern files.
    """
    left_out = {path.resolve() for path in but}
    found: dict[Path, Path] = {}
    for place in places:
        for path in _at(str(place), left_out):
            found.setdefault(path.resolve(), path)
    return sorted(found.values(), key=natural_key)


def _at(place: str, left_out: set[Path]) -> Iterator[Path]:
    path = Path(place).expanduser()
    if path.is_dir():
        yield from _in_folder(path, left_out)
    elif path.exists():
        if path.suffix.lower() == ".cif":
            raise InputError(
                f"{path}: expected files of patterns, got a crystal structure; a known phase is "
                f"named by --phase {path} (or under phases: in the settings)"
            )
        yield path
    else:
        matches = glob.glob(str(path))
        if not matches:
            raise InputError(f"{place[:200]}: no such file or folder, nor files that match it")
        yield from (Path(match) for match in matches if not os.path.isdir(match))


def _in_folder(folder: Path, left_out: set[Path]) -> list[Path]:
    known = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and path.resolve() not in left_out
        and path.is_file()
    ]
    if not known:
        raise InputError(f"{folder}: expected pattern files ({', '.join(SUFFIXES)}), found none")
    # Suffixes are counted in their order, so that a draw is the same everywhere.
    counts = Counter(sorted(path.suffix.lower() for path in known))
    suffix, _ = counts.most_common(1)[0]
    others = sorted(path.name for path in known if path.suffix.lower() != suffix)
    if others:
        logger.warning(
            "%s: the %s files are taken; passed over: %s",
            *(folder, suffix, ", ".join(others[:5]) + (", …" if len(others) > 5 else "")),
        )
    return [path for path in known if path.suffix.lower() == suffix]
