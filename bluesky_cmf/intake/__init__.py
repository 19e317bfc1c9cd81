"""Documents in: which of them carry patterns, and what is taken out of them."""

from .files import Files, Handlers, as_handlers
from .intake import Intake
from .items import Arrival, Closed, Opened, Refused
from .skipping import is_dark
from .source import Source, as_source

__all__ = [
    "Arrival",
    "Closed",
    "Files",
    "Handlers",
    "Intake",
    "Opened",
    "Refused",
    "Source",
    "as_handlers",
    "as_source",
    "is_dark",
]
