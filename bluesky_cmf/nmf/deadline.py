"""Until when work between events may go on."""

import math
import time
from collections.abc import Callable

__all__ = ["Deadline"]


class Deadline:
    """A time on `time.perf_counter`, or earlier, as soon as somebody interrupts.

    Parameters
    ----------
    at : float, optional
        The time; without one there is no end.
    interrupted : callable, optional
        Tells whether something waits that has precedence.
    """

    def __init__(self, at: float = math.inf, interrupted: Callable[[], bool] | None = None) -> None:
        self._at, self._interrupted = at, interrupted

    @property
    def interruptible(self) -> bool:
        """Whether the end may come earlier than expected."""
        return self._interrupted is not None

    @property
    def passed(self) -> bool:
        """Whether it is time to end."""
        return self.left <= 0

    @property
    def left(self) -> float:
        """Seconds to go on."""
        if self._interrupted is not None and self._interrupted():
            return 0.0
        return self._at if math.isinf(self._at) else max(0.0, self._at - time.perf_counter())
