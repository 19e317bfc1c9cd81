"""A `FitResult` as Bluesky documents, and back: the only code that knows the analysis run."""

from .archive import AnalysisArchive, read_analysis
from .reader import AnalysisReader, Latest
from .run import AnalysisRun
from .schema import (
    PATTERN_NUMBER,
    STAGE,
    Array,
    Axis,
    Document,
    Emit,
    Independent,
    Point,
    component_record,
    fraction_keys,
    independents,
    is_analysis,
    weight_keys,
)

__all__ = [
    "PATTERN_NUMBER",
    "STAGE",
    "AnalysisArchive",
    "AnalysisReader",
    "AnalysisRun",
    "Array",
    "Axis",
    "Document",
    "Emit",
    "Independent",
    "Latest",
    "Point",
    "component_record",
    "fraction_keys",
    "independents",
    "is_analysis",
    "read_analysis",
    "weight_keys",
]
