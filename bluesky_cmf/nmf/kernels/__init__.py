"""The half-steps fused into kernels that hold no interpreter lock; equal to torch by test."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

__all__ = ["kernels_for", "warm_up"]


@cache
def _cpu() -> ModuleType | None:
    try:
        return import_module(".cpu", __name__)
    except ImportError:
        return None


def kernels_for(device: torch.device) -> ModuleType | None:
    """Give the kernels for a device; None: torch does the work."""
    return _cpu() if device.type == "cpu" else None


def warm_up() -> None:
    """Compile or load the CPU kernels: the first time takes seconds and holds the interpreter."""
    kernels = _cpu()
    if kernels is not None:
        kernels.warm_up()
