"""When a search is due in the middle of a stream: the residual has jumped, or the data grown."""

__all__ = ["Alarm"]

#: How much more than usual of the patterns is left unexplained in a jump; and at most, where
#: jumps have turned out to be nothing that a search finds.
_JUMP, _JUMP_AT_MOST = 1.1, 1.4
#: How much more than lately one pattern counts for, at most.
_MOST = 2.0
#: Events over which what is left lately, and usually, is averaged.
_LATELY, _USUALLY = 16, 256
#: Part of the objective that a search must gain for the next jump to count as it did at first.
_GAIN = 0.01


class Alarm:
    """What new patterns leave unexplained, lately and usually, and how many there were.

    A search that is through sets the standard, whether it has found anything or not: patterns that
    are merely noisier raise one alarm only.

    Parameters
    ----------
    growth : float
        Growth of the data since the last search that makes another one due.

    Attributes
    ----------
    on, jumped : bool
        Whether a search is due, or under way, and whether a jump was the reason.
    """

    def __init__(self, growth: float) -> None:
        self.on = self.jumped = False
        self._growth = growth
        self._lately = self._usually = 0.0
        self._events = self._searched = 0
        self._jump = _JUMP

    def raised(self, n_patterns: int, left: float) -> bool:
        """Take in the part of the newest patterns that is left; tell whether that is an alarm."""
        self._events += 1
        if self._lately > 0:
            # One pattern that has gone wrong is no jump.
            left = min(left, _MOST * self._lately)
        self._lately += (left - self._lately) / min(self._events, _LATELY)
        if self.on:
            return False
        self.jumped = self.exceeded(self._lately)
        self.on = self.jumped or n_patterns > self._growth * self._searched
        if not self.on:
            self._usually += (self._lately - self._usually) / min(self._events, _USUALLY)
        return self.on

    def exceeded(self, left: float) -> bool:
        """Tell whether so much is left that it is a jump."""
        return left > self._jump * self._usually > 0

    def quiet(self, n_patterns: int, left: float, *, gain: float) -> None:
        """Note that a search over so many patterns is through, or what of it goes with events.

        Parameters
        ----------
        n_patterns : int
            How many there were when it began.
        left : float
            What is left of the latest of them.
        gain : float
            Part of the objective that it has gained. Where that is next to nothing, and a jump is
            left as it was, the next one must be larger.
        """
        if gain > _GAIN:
            self._jump = _JUMP
        elif self.exceeded(left):
            self._jump = min(_JUMP_AT_MOST, 2 * self._jump - 1)
        self.on = self.jumped = False
        self._searched = n_patterns
        self._lately = self._usually = left
        self._events = _USUALLY
