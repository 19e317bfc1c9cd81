"""What a writer says of what it could not store, and what it keeps of that."""

import logging

__all__ = ["Failures"]

logger = logging.getLogger(__name__)


class Failures:
    """Logs failures, the same one not twice, and keeps the first.

    Parameters
    ----------
    target
        What the log calls the catalog.

    Attributes
    ----------
    first
        The first failure; None while there is none.
    """

    def __init__(self, target: str) -> None:
        self.first: BaseException | None = None
        self._target = target
        self._puzzled = False
        self._stumbles: set[str] = set()

    def run(self, uid: str | None, error: Exception, given_up: bool) -> None:
        """Tell of a run that is given up, or loses a part; None where it is not known which."""
        logger.error(
            "%s %s could not be stored in %s; %s on. Cause: %s",
            "The rest of" if given_up else "A part of",
            "a run that is not known" if uid is None else f"the run {uid}",
            self._target,
            "other runs go" if given_up else "the run goes",
            error,
            exc_info=error,
        )
        self.first = self.first or error

    def document(self, name: str, error: BaseException) -> None:
        """Tell of a document that makes no sense; of the first one only."""
        if not self._puzzled:
            self._puzzled = True
            logger.error(
                "A document of the kind %r makes no sense and is not stored in %s; others are. "
                "Cause: %r",
                name,
                self._target,
                error,
                exc_info=error,
            )
        self.first = self.first or error

    def stumble(self, error: Exception) -> None:
        """Tell of what nobody has thought of, and what comes again and again once."""
        if repr(error) not in self._stumbles:
            self._stumbles.add(repr(error))
            logger.error(
                "Storing in %s goes on after an error: %r", self._target, error, exc_info=error
            )
        self.first = self.first or error
