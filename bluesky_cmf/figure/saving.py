"""Where the figure of a run is saved: a path that may name the run."""

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError

__all__ = ["SavePath"]

_FIELDS = ("scan_id", "uid", "raw_uid", "plan_name", "sample")
_IN_FOLDER = "scan_{scan_id}_{uid:.8}.png"


class SavePath:
    """A path with fields such as ``{scan_id}`` or ``{uid:.8}``.

    Parameters
    ----------
    pattern : str or Path
        The path; an existing folder, or one that ends in ``/``, gets a name per run. Without a
        suffix it is a PNG file.

    Raises
    ------
    InputError
        For an unknown field, or a type of file that matplotlib does not write.
    """

    def __init__(self, pattern: str | Path, filetypes: Mapping[str, str]) -> None:
        text = str(pattern)
        if text.endswith("/") or Path(text).is_dir():
            text = f"{text.rstrip('/')}/{_IN_FOLDER}"
        elif Path(text).suffix.strip(".").lower() not in filetypes:
            text = _with_suffix(text, filetypes)
        self._pattern = text
        _check_fields(text)

    def for_run(self, start: Mapping[str, Any]) -> Path:
        """Give the path for one analysis run."""
        sample = start.get("sample_name") or start.get("sample")
        if isinstance(sample, Mapping):
            sample = sample.get("name")
        values = {
            "scan_id": start.get("scan_id"),
            "uid": start.get("uid"),
            "raw_uid": start.get("original_run_uid"),
            "plan_name": start.get("plan_name"),
            "sample": sample,
        }
        return Path(self._pattern.format_map({key: _safe(v) for key, v in values.items()}))


class _Text(str):
    """A value for a path: what is no number takes no format of numbers."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        try:
            return super().__format__(spec)
        except ValueError:
            return str(self)


def _safe(value: Any) -> Any:
    """Make a value fit for a file's name; a scan's number stays one, so that it can be padded."""
    if isinstance(value, int):
        return value
    return _Text(re.sub(r"[^\w.+-]+", "_", str(value)) if value is not None else "none")


def _with_suffix(text: str, filetypes: Mapping[str, str]) -> str:
    suffix = Path(text).suffix.strip(".")
    if re.fullmatch(r"[A-Za-z]\w{1,4}", suffix):
        raise InputError(
            f"save={text!r}: matplotlib writes no {suffix!r} files here; "
            f"use one of {', '.join(sorted(filetypes))}"
        )
    return f"{text}.png"


def _check_fields(text: str) -> None:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise InputError(f"save={text!r} is no path with fields in braces: {error}") from error
    unknown = [field for field in fields if field not in _FIELDS]
    if unknown:
        raise InputError(
            f"save={text!r}: no field {unknown[0]!r}; fields are "
            + ", ".join(f"{{{field}}}" for field in _FIELDS)
        )
