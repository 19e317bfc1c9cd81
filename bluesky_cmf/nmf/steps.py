"""Work in small steps: generators that yield None between them, and return what they have made."""

from collections.abc import Generator
from typing import TypeVar

__all__ = ["finished"]

T = TypeVar("T")


def finished(steps: Generator[None, None, T]) -> T:
    """Take all steps at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: T = end.value
            return made
