"""What the model does not explain: a test for structure in the residual, against noise."""

from .alarm import Alarm, OnUnknown, tell
from .scan import Covariance
from .watch import REMEMBERED, Watch

__all__ = ["REMEMBERED", "Alarm", "Covariance", "OnUnknown", "Watch", "tell"]
