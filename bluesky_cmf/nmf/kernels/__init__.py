"""The half-steps fused into kernels that hold no interpreter lock; equal to torch by test."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

__all__ = ["kernels_for", "strained_kernels_for", "warm_up"]


@cache
def _cpu(name: str) -> ModuleType | None:
    try:
        return import_module(f".{name}", __name__)
    except ImportError:
        return None


def kernels_for(device: torch.device, *, beta: float = 2.0) -> ModuleType | None:
    """Give the kernels for a device and a beta-divergence; None: torch does the work."""
    if device.type != "cpu":
        return None
    return _cpu("cpu" if beta == 2 else "divergence")


def strained_kernels_for(device: torch.device) -> ModuleType | None:
    """Give the kernels for strained components on a device; None: torch does the work."""
    return _cpu("strained") if device.type == "cpu" else None


@cache
def warm_up(*, beta: float = 2.0, strained: bool = False) -> None:
    """Compile or load the CPU kernels, once: it takes seconds and holds the interpreter."""
    names = ["cpu", *["divergence"] * (beta != 2), *["strained"] * strained]
    for name in names:
        kernels = _cpu(name)
        if kernels is not None:
            kernels.warm_up()
