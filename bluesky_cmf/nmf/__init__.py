"""The factorization: torch and numpy only; it knows no documents, no plots, no phases."""

from importlib import import_module
from typing import Any

__all__ = ["divergences", "models", "selection", "streaming", "updates"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
