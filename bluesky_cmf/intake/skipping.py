"""Runs that hold no patterns of the sample: dark and flat frames, by the metadata in use."""

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["is_dark"]

#: Keys that say so by being true (xpdAcq and bluesky-darkframes among others).
_FLAGS = ("dark_frame", "is_dark", "isdark", "dark", "is_dark_frame", "is_flat", "flat_frame")
#: Keys that name what is measured, and the names of what is not the sample.
_KINDS = ("purpose", "measurement_type", "scan_type", "image_type", "frame_type", "acquisition")
_NOT_THE_SAMPLE = frozenset(
    f"{kind}{rest}" for kind in ("dark", "flat") for rest in ("", "frame", "field", "image")
)


def is_dark(start: Mapping[str, Any]) -> bool:
    """Tell whether a run takes dark or flat frames, by its start document.

    It does where ``dark_frame``, ``is_dark``, ``dark``, ``is_flat`` or the like is true, or where
    ``purpose``, ``scan_type``, ``image_type``, ``frame_type`` or the like names a dark or flat
    frame.

    Parameters
    ----------
    start : mapping
        A start document.

    Examples
    --------
    >>> is_dark({"dark_frame": True}), is_dark({"image_type": "Dark"}), is_dark({"sample": "dark"})
    (True, True, False)
    """
    if any(start.get(key) is True or start.get(key) == 1 for key in _FLAGS):
        return True
    named = (re.sub(r"[\s_-]", "", str(start.get(key, ""))).lower() for key in _KINDS)
    return not _NOT_THE_SAMPLE.isdisjoint(named)
