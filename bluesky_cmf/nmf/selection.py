"""How many components, and which patterns of the data serve as constraints."""

from .counting import ComponentSweep, sweep_components
from .members import Choice, DataConstraints, constraints_from_data

__all__ = [
    "Choice",
    "ComponentSweep",
    "DataConstraints",
    "constraints_from_data",
    "sweep_components",
]
