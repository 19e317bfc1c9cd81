"""Interrupts by the keyboard: the first one asks for an end, the second one is heeded at once."""

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupts", "patiently"]

logger = logging.getLogger(__name__)


class Interrupts:
    """While it is open, an interrupt is noted, and not raised, unless it is the second one.

    In other threads than the main one, which has the signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                # Who has an interrupt ignored, as a shell does for what runs behind, has it so.
                if callable(signal.getsignal(kind)):
                    self._before[kind] = signal.signal(kind, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        logger.warning("interrupted: what was read is fitted and written; again to give it up")


def patiently(action: Callable[[], object]) -> bool:
    """Do it to the end: an interrupt is told, and heeded afterwards; a second one is heeded now."""
    try:
        action()
    except KeyboardInterrupt:
        logger.warning("interrupted: what was measured is finished first; again to give it up")
        action()
        return True
    return False
