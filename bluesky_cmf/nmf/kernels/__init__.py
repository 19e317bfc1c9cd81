"""The half-steps fused into kernels that hold no interpreter lock; equal to torch by test."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from threading import Timer
from types import ModuleType

import torch

__all__ = ["descends_on", "device_products", "kernels_for", "strained_kernels_for", "warm_up"]

#: Most components for which a thread of a device holds what it needs, and compilers take seconds.
_MOST = 16

#: Seconds that kernels take to load, at most, where they were compiled before.
_LOADED = 5.0

logger = logging.getLogger(__name__)


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


def descends_on(device: torch.device, n_components: int) -> ModuleType | None:
    """Give what `device_products` does where it descends on so many components, else None."""
    return device_products(device) if n_components <= _MOST else None


@cache
def device_products(device: torch.device) -> ModuleType | None:
    """Give the kernels of a device for products and for descents; None: torch does the work."""
    if device.type != "cuda":
        return None
    try:
        kernels = import_module(".cuda", __name__)
        kernels.warm_up(device)
    except Exception:
        # Without triton, or a compiler that it asks for, all goes on, at a slower pace.
        logger.exception("no kernels could be compiled for %s; products go by torch", device)
        return None
    return kernels


def strained_kernels_for(device: torch.device) -> ModuleType | None:
    """Give the kernels for strained components on a device; None: torch does the work."""
    return _cpu("strained") if device.type == "cpu" else None


@cache
def warm_up(*, beta: float = 2.0, strained: bool = False) -> None:
    """Compile or load the CPU kernels, once: it takes seconds and holds the interpreter."""
    names = ["cpu", *["divergence"] * (beta != 2), *["strained"] * strained]
    with _told_where_slow():
        for name in names:
            kernels = _cpu(name)
            if kernels is not None:
                kernels.warm_up()


@contextmanager
def _told_where_slow() -> Iterator[None]:
    """Say what is going on where it takes long: nobody who does not know waits for it."""
    told = Timer(
        _LOADED,
        logger.warning,
        ["the kernels are being compiled, once for this machine: it takes about half a minute"],
    )
    told.daemon = True
    told.start()
    try:
        yield
    finally:
        told.cancel()
