"""Read and write pattern files."""

from .reading import SUFFIXES, read_pattern, read_pattern_file
from .record import PatternFile
from .writing import write_pattern

__all__ = ["SUFFIXES", "PatternFile", "read_pattern", "read_pattern_file", "write_pattern"]
