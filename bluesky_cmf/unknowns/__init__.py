"""What the model does not explain: a test for structure in the residual, against noise."""

from .alarm import Alarm, OnUnknown, tell
from .watch import Watch

__all__ = ["Alarm", "OnUnknown", "Watch", "tell"]
