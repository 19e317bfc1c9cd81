"""What can be wrong with an option is told before the work, and not after it."""

import os
from pathlib import Path

import torch

from ..errors import InputError
from ..figure.canvas import offscreen_figure
from ..figure.saving import SavePath

__all__ = ["check_device", "check_figure", "check_place"]


def check_device(device: str) -> None:
    """Refuse a device that torch cannot put numbers on and get them back from.

    Raises
    ------
    InputError
        With torch's reason.
    """
    if device == "auto":
        return
    try:
        torch.ones(1, dtype=torch.float64, device=device).tolist()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--device: expected auto, cpu or a device that torch reaches here, got {device!r} "
            f"({reason})"
        ) from error


def check_figure(path: Path) -> None:
    """Refuse a path for the figure that cannot be filled in, made or written.

    Raises
    ------
    InputError
        With what is wrong with it.
    """
    try:
        SavePath(path, offscreen_figure().canvas.get_supported_filetypes())
    except InputError as error:
        raise InputError(f"--figure: {str(error).removeprefix('save=')}") from error
    check_place(path, "figure")


def check_place(path: Path, option: str) -> None:
    """Refuse a path of an option that cannot be made or written.

    Raises
    ------
    InputError
        With what is wrong with it.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        place = _what_is_there(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--{option}: {str(path)[:100]!r} cannot be written: {reason}") from error
    else:
        place = path
    if not os.access(place, os.W_OK):
        raise InputError(f"--{option}: {str(place)!r} may not be written; name another place")


def _what_is_there(path: Path) -> Path:
    """Give the folder in which others have to be made, or the file."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
