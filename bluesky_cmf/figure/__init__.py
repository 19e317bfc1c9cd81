"""`LiveNMFPlot`: draws the analysis run's documents, and nothing else."""

from .plot import LiveNMFPlot

__all__ = ["LiveNMFPlot"]
