"""What a command shows of an analysis run, and writes of it."""

from collections.abc import Callable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any

from ..callback import LiveNMF
from ..documents import AnalysisArchive, independents
from ..errors import DataKeyError, PatternError
from .console import show_facts, summarize
from .outcome import raise_failures
from .outputs import Outputs

if TYPE_CHECKING:
    from ..catalogs import CatalogWriter

__all__ = ["Report"]


class Report:
    """Follows the analysis runs of a callback, and shows each when it has ended.

    Parameters
    ----------
    live : LiveNMF
        The callback.
    outputs : Outputs
        Where results go.
    writer : CatalogWriter or None
        Stores the analysis run.
    stream : str
        The stream that patterns were to come from.
    independent : tuple of str
        What the user wants weights drawn against.
    data_keys : callable
        Tells which data keys there were, to name them.
    """

    def __init__(
        self,
        live: LiveNMF,
        outputs: Outputs,
        writer: "CatalogWriter | None",
        *,
        stream: str,
        independent: tuple[str, ...] = (),
        data_keys: Callable[[], Set[str]] = frozenset,
    ) -> None:
        self._live, self._outputs, self._writer = live, outputs, writer
        self._stream, self._independent, self._data_keys = stream, independent, data_keys
        self._plot = outputs.plot()
        self.analysis = AnalysisArchive()
        self._shown: str | None = None
        sinks: tuple[Any, ...] = (self.analysis, self._plot, writer)
        for callback in sinks:
            if callback is not None:
                live.subscribe(callback)

    def show(self, more: Mapping[str, str] | None = None) -> None:
        """Wait until the analysis run has ended and is stored, write its results and show it.

        Parameters
        ----------
        more : mapping of str to str, optional
            Facts to show before the others.

        Raises
        ------
        CMFError
            Where something failed, or no pattern came.
        """
        live, analysis = self._live, self.analysis
        live.wait()
        if self._writer is not None:
            self._writer.flush()
        written = {}
        if analysis.n_patterns and analysis.components is not None and analysis.uid != self._shown:
            # Also where something else has failed: what is fitted is not lost.
            written = self._outputs.write(analysis, live)
        elif not analysis.n_patterns:
            self._outputs.withdraw(self._plot)
        raise_failures(live, analysis, self._plot, self._writer)
        result = live.result
        if result is None or analysis.uid in (None, self._shown):
            raise PatternError(
                f"no pattern came out of stream {self._stream!r}: nothing was fitted"
            )
        self._shown = analysis.uid
        show_facts({**(more or {}), **dict(self._facts()), **written})
        summarize(analysis, result)
        self._check_independent()

    def _check_independent(self) -> None:
        """Say that weights are drawn against something else than was asked for."""
        wanted = independents([name] for name in self._independent)
        missing = [v.field for v in wanted if v.key not in self.analysis.variables]
        if missing:
            raise DataKeyError(
                f"--independent: no data key {missing[0]!r} in the run; stream "
                f"{self._stream!r} has {', '.join(sorted(self._data_keys()))}"
            )

    def _facts(self) -> Iterator[tuple[str, str]]:
        stop = self.analysis.stop or {}
        yield "raw run", ", ".join(stop.get("cmf", {}).get("parent_uids", []))
        if self._writer is not None:
            yield "analysis run", str(self.analysis.uid)
        if self._plot is not None:
            yield "figure", str(self._plot.path)
