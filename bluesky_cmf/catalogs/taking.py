"""What a writer does with a document while its caller waits: as little as possible."""

import copy
from typing import Any

import numpy as np

from ..documents import is_analysis
from .routing import Document

__all__ = ["LatestLeftOut", "detached"]


class LatestLeftOut:
    """Tells which documents belong to the stream ``latest`` of an analysis run."""

    def __init__(self) -> None:
        self._analysis_runs: set[str] = set()
        self._skipped: dict[str, str] = {}

    def __call__(self, name: str, doc: Document) -> bool:
        """Tell whether a document is left out; each one is asked for, in order."""
        if name == "start" and is_analysis(doc):
            self._analysis_runs.add(doc["uid"])
        elif name == "descriptor":
            run = doc.get("run_start")
            if run in self._analysis_runs and doc.get("name") == "latest":
                self._skipped[doc["uid"]] = str(run)
                return True
        elif name in ("event", "event_page"):
            return doc["descriptor"] in self._skipped
        elif name == "stop" and doc["run_start"] in self._analysis_runs:
            run = doc["run_start"]
            self._analysis_runs.discard(run)
            self._skipped = {uid: owner for uid, owner in self._skipped.items() if owner != run}
        return False


def detached(name: str, doc: Document) -> Document:
    """Copy what others may still change, above all the arrays that a detector uses again."""
    if name not in ("event", "event_page"):
        try:
            return copy.deepcopy(doc)
        except Exception:
            # It holds a lock or a socket: its store will refuse it, and name the run.
            return dict(doc)
    return {key: _copied(value) for key, value in doc.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (np.ndarray, list, tuple, dict)):
            return [_copied(part) for part in value]
        return list(value)
    return value
