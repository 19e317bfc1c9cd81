"""When a search is due in the middle of a stream: the residual has jumped, or the data grown."""

__all__ = ["Alarm"]

#: How much more than usual of the patterns is left unexplained in a jump; and at most, where
#: jumps have turned out to be nothing that a search finds.
_JUMP, _JUMP_AT_MOST = 1.1, 1.4
#: How much more than lately one pattern counts for, at most.
_MOST = 2.0
#: Events over which what is left lately, and usually, is averaged.
_LATELY, _USUALLY = 16, 256
#: Growth since the last search that makes another one due.
_GROWTH = 1.5


class Alarm:
    """What new patterns leave unexplained, lately and usually, and how many there were.

    A search that is through sets the standard, whether it has found anything or not: patterns that
    are merely noisier raise one alarm only.
    """

    def __init__(self) -> None:
        self._lately = self._usually = 0.0
        self._events = self._searched = 0
        self._on = False
        self._jump, self._jumped = _JUMP, False

    @property
    def on(self) -> bool:
        """Whether a search is due, or under way."""
        return self._on

    def raised(self, n_patterns: int, left: float) -> bool:
        """Take in the part of the newest patterns that is left; tell whether a search is due."""
        self._events += 1
        if self._lately > 0:
            # One pattern that has gone wrong is no jump.
            left = min(left, _MOST * self._lately)
        self._lately += (left - self._lately) / min(self._events, _LATELY)
        jumped = self._lately > self._jump * self._usually > 0
        if jumped or n_patterns > _GROWTH * self._searched:
            self._jumped = self._jumped or (jumped and not self._on)
            self._on = True
        if not self._on:
            self._usually += (self._lately - self._usually) / min(self._events, _USUALLY)
        return self._on

    def quiet(self, n_patterns: int, left: float, *, gained: bool) -> None:
        """Note that a search over so many patterns is through, and what it leaves of the latest.

        Where a jump was the reason, and it has gained next to nothing, the next jump must be
        larger.
        """
        self._on, self._searched = False, n_patterns
        if gained:
            self._jump = _JUMP
        elif self._jumped:
            self._jump = min(_JUMP_AT_MOST, 2 * self._jump - 1)
        self._jumped = False
        self._lately = self._usually = left
        self._events = _USUALLY
