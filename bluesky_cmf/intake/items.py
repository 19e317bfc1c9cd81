"""What comes out of the documents, one item after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..documents import Independent
from ..errors import CMFError, PatternError
from .values import numbers, scalar

__all__ = ["Arrival", "Closed", "Opened", "Reference", "Refused"]

Array = npt.NDArray[Any]
Doc = Mapping[str, Any]


class Reference(Protocol):
    """A value that stands in a file, and is read when it is needed."""

    def read(self) -> Any:
        """Read it; raises `PatternError` where that cannot be done."""


@dataclass(frozen=True)
class Opened:
    """A raw run has started."""

    run: str
    start: Doc


@dataclass(frozen=True)
class Arrival:
    """One pattern as it was measured: copies, so that nobody else can change them.

    What stands in files is a reference, until `loaded` reads it. ``declared`` is the shape that
    the descriptor declares of all collections of one event, where it does; ``errors`` are standard
    errors, where a data key of them was asked for, and ``doubt`` says why there are none then.
    """

    run: str
    stream: str
    seq_num: int
    time: float
    pattern: Array | Reference
    x: Array | Reference | None
    x_name: str
    x_units: str
    variables: tuple[Independent, ...]
    values: Mapping[str, "float | Reference"]
    declared: tuple[int, ...] = ()
    errors: Array | Reference | None = None
    doubt: str = ""
    monitor: "float | Reference | None" = None

    def loaded(self) -> "Loaded":
        """Read what stands in files.

        Raises
        ------
        PatternError
            Where a file cannot be read, or holds no numbers.
        """
        pattern = _read(self.pattern, "the pattern")
        errors, doubt = self._errors()
        return Loaded(
            pattern=pattern,
            collections=pattern.ndim > 1 and pattern.ndim == len(self.declared),
            x=None if self.x is None else _read(self.x, self.x_name),
            values={name: _read_scalar(value) for name, value in self.values.items()},
            errors=errors,
            doubt=doubt,
            monitor=None if self.monitor is None else _read_scalar(self.monitor),
        )

    def _errors(self) -> tuple[Array | None, str]:
        """Read the errors; the pattern is used without them where they cannot be read."""
        if self.errors is None:
            return None, self.doubt
        try:
            return _read(self.errors, "the errors"), ""
        except PatternError as error:
            return None, str(error)


@dataclass(frozen=True)
class Loaded:
    """The values of an `Arrival`: a pattern (F,) or frames (…, rows, columns), and its axis.

    ``collections`` says that the first axis of the pattern counts the collections of one event;
    ``errors`` and ``doubt`` are those of the `Arrival`, ``monitor`` is the value of the monitor.
    """

    pattern: Array
    collections: bool
    x: Array | None
    values: Mapping[str, float]
    errors: Array | None = None
    doubt: str = ""
    monitor: float | None = None


@dataclass(frozen=True)
class Refused:
    """A pattern that cannot be used, and why.

    ``skipped`` says that its whole run is passed over, as the user or its metadata ask for.
    """

    run: str
    seq_num: int
    error: CMFError
    variables: tuple[Independent, ...] = ()
    skipped: bool = False


@dataclass(frozen=True)
class Closed:
    """A raw run has stopped."""

    run: str
    exit_status: str
    reason: str


def _read(value: Any, what: str) -> Array:
    return value if isinstance(value, np.ndarray) else numbers(value.read(), what)


def _read_scalar(value: Any) -> float:
    return value if isinstance(value, float) else scalar(np.mean(numbers(value.read(), "value")))
