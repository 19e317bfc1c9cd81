"""A settings file (YAML, pydantic) as the objects, and back."""

from .model import IntegratorSettings, Settings
from .phases import PhaseSettings

__all__ = ["IntegratorSettings", "PhaseSettings", "Settings"]
