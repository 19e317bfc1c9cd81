"""Pattern files as a run: which files, the variables they were measured at, their documents."""

from .documents import Series
from .files import find_files, natural_key
from .names import Variable, variable_from_names
from .tables import variables_from_table

__all__ = [
    "Series",
    "Variable",
    "find_files",
    "natural_key",
    "variable_from_names",
    "variables_from_table",
]
