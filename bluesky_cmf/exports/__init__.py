"""An analysis run as files for other programs: a table (CSV) and NeXus (HDF5)."""

from .nexus import write_nexus
from .table import result_table, write_csv

__all__ = ["result_table", "write_csv", "write_nexus"]
