"""What the command line shows: progress, a summary of an analysis run, and no noise."""

import logging
import math
import shlex
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..documents import AnalysisReader
    from ..nmf.results import FitResult
    from ..nmf.selection import ComponentSweep

__all__ = [
    "FileProgress",
    "FollowProgress",
    "ScanProgress",
    "command_line",
    "console",
    "set_up_logging",
    "show_facts",
    "show_sweep",
    "summarize",
]

#: Written to the standard output of the moment.
console = Console(highlight=False)

_PROGRAM = "bluesky-cmf"


def set_up_logging(*, verbose: bool) -> None:
    """Show this package's log in full and the warnings of others, or its warnings alone."""
    if verbose:
        # No more of others: an HTTP client's log would show keys that stand in addresses.
        handler: logging.Handler = RichHandler(console=Console(stderr=True))
        logging.basicConfig(handlers=[handler], format="%(name)s: %(message)s")
        logging.getLogger("bluesky_cmf").setLevel(logging.INFO)
        return
    # Servers and databases would bury what matters.
    logging.getLogger().addHandler(_nobody)
    logging.getLogger("bluesky_cmf").addHandler(_warnings)
    _warnings.failed = False
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


class _OneLine(logging.Handler):
    """Shows a warning as one line.

    Errors are raised in the end and need no second line; nor does what follows from them.
    """

    failed = False

    def emit(self, record: logging.LogRecord) -> None:
        self.failed |= record.levelno >= logging.ERROR
        if record.levelno == logging.WARNING and not self.failed:
            message = " ".join(record.getMessage().split())
            sys.stderr.write(f"{_PROGRAM}: warning: {message}\n")


_nobody, _warnings = logging.NullHandler(), _OneLine()


class _Bar:
    """Counts on a bar, which is seen on a terminal alone, for as long as it is open."""

    def __init__(self, what: str, total: int | None) -> None:
        self._bar = Progress(
            TextColumn(f"[bold]{what}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """Count one."""
        self._bar.advance(self._task)


class ScanProgress(_Bar):
    """Counts the events of a scan: a bar on a terminal, else a line at each quarter.

    Parameters
    ----------
    total : int
        Number of events to come.
    stream : str, default "primary"
        The stream that they belong to.
    """

    def __init__(self, total: int, *, stream: str = "primary") -> None:
        super().__init__("scan", total)
        self._total, self._stream, self._count = total, stream, 0
        self._descriptors: set[str] = set()

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of the scan."""
        if name == "descriptor" and doc["name"] == self._stream:
            self._descriptors.add(doc["uid"])
        elif name == "event" and doc["descriptor"] in self._descriptors:
            self.advance()

    def advance(self) -> None:
        """Count an event."""
        super().advance()
        self._count += 1
        quarter = self._count * 4 // self._total != (self._count - 1) * 4 // self._total
        if not console.is_terminal and quarter:
            console.print(f"scan: {self._count} of {self._total} patterns")


class FileProgress(_Bar):
    """Counts files as they are read and fitted: a bar on a terminal, else nothing.

    Parameters
    ----------
    total : int or None
        Number of files, or of whatever else is counted; None: it is told later.
    what : str
        What is done.
    """

    def __init__(self, total: int | None, what: str = "fit") -> None:
        super().__init__(what, total)

    def update(self, done: int, total: int) -> None:
        """Tell how much is done, of how much."""
        self._bar.update(self._task, completed=done, total=total)


class FollowProgress:
    """Counts the patterns of a run that is followed: one line on a terminal, else some.

    Parameters
    ----------
    uid : str
        The run.

    Attributes
    ----------
    count : int
        Patterns so far.
    """

    def __init__(self, uid: str) -> None:
        self.count = 0
        self._uid = uid[:8]
        self._told = -1
        self._status = console.status(self._line())

    def __enter__(self) -> "FollowProgress":
        if console.is_terminal:
            self._status.start()
        else:
            self._print()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._status.stop()
        if self.count != self._told:
            self._print()

    def advance(self) -> None:
        """Count a pattern."""
        self.count += 1
        if console.is_terminal:
            self._status.update(self._line())
        elif f"{self.count}".rstrip("0") in ("1", "2", "5"):
            self._print()

    def end(self, why: str) -> None:
        """Say why it ends before, or otherwise than, it should."""
        console.print(f"{self._line()}, {why}", markup=False, soft_wrap=True)
        self._told = self.count

    def _print(self) -> None:
        console.print(self._line(), markup=False, soft_wrap=True)
        self._told = self.count

    def _line(self) -> str:
        return f"following {self._uid}: {self.count} patterns so far"


def summarize(analysis: "AnalysisReader", result: "FitResult") -> None:
    """Show what an analysis run came to.

    Parameters
    ----------
    analysis : AnalysisReader
        The run's documents.
    result : FitResult
        Its last fit, whose R-factors are those of all patterns.
    """
    r_factor = result.r_factor
    state = "converged" if result.converged else "not converged"
    facts = {
        "patterns": f"{result.n_patterns}",
        "objective": f"{result.objective:.6g} (half of |X - WH|², {state})",
    }
    if len(r_factor):
        facts["R-factor"] = f"{r_factor.mean():.4f} on average, {r_factor.max():.4f} at most"
    if analysis.alarms:
        facts["unexplained"] = "\n".join(alarm.text for alarm in analysis.alarms)
    if analysis.rejected:
        facts["rejected"] = _rejected(analysis.rejected)
    if analysis.faults:
        facts["faults"] = "; ".join(dict.fromkeys(analysis.faults))
    show_facts(facts)
    console.print(_weights_table(analysis, result))


def show_facts(facts: Mapping[str, str]) -> None:
    """Show names and values, one a line; values are never broken, so that they can be copied.

    A value of several lines has one below the other.
    """
    width = max(map(len, facts))
    for name, value in facts.items():
        label = f"[bold]{name:<{width}}[/bold]  "
        console.print(label, end="")
        told = value.replace("\n", "\n" + " " * (width + 2))
        console.print(told, markup=False, soft_wrap=True)


def show_sweep(sweep: "ComponentSweep") -> None:
    """Show what a sweep found for each number of components."""
    table = Table("components", "objective", "held-out error ± σ", "", box=None, pad_edge=False)
    for column in table.columns[:3]:
        column.justify = "right"
    rows = zip(
        sweep.n_components, sweep.objective, sweep.held_out, sweep.held_out_error, strict=True
    )
    for count, objective, held_out, error in rows:
        mark = "suggested" if count == sweep.suggested else ""
        table.add_row(f"{count}", f"{objective:.6g}", f"{held_out:.4g} ± {error:.2g}", mark)
    console.print(table)


def command_line(arguments: Iterable[str]) -> str:
    """Give the words that run this program with other arguments, as a shell takes them."""
    return shlex.join([*_program(), *arguments])


def _program() -> Sequence[str]:
    started = Path(sys.argv[0])
    if started.name != _PROGRAM:
        return (sys.executable, "-m", "bluesky_cmf")
    found = shutil.which(_PROGRAM)
    if found is not None and started.exists() and Path(found).samefile(started):
        return (_PROGRAM,)
    return (str(started),)


def _weights_table(analysis: "AnalysisReader", result: "FitResult") -> Table:
    parts = dict(zip(analysis.names, _last_fractions(analysis), strict=True))
    # A weight at zero has no error, and all those of the last pattern may be there.
    known = (analysis.fraction_errors[-1:] > 0).any()
    fraction = "fraction at the end" + ("\n± σ, first fit" if known else "")
    headings = ("component", "", "weight from", "to", "at the end", fraction)
    table = Table(*headings, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, fixed, weights in zip(result.names, result.fixed, result.weights.T, strict=True):
        numbers = (weights.min(), weights.max(), weights[-1]) if len(weights) else ()
        values = [f"{value:.4g}" for value in numbers] or ["-"] * 3
        table.add_row(name, "held" if fixed else "free", *values, parts.get(name, "-"))
    return table


def _last_fractions(analysis: "AnalysisReader") -> list[str]:
    """Give the fractions of the last pattern, with the errors that were published with it."""
    fractions, errors = analysis.fractions, analysis.fraction_errors
    if not len(fractions):
        return ["-"] * len(analysis.names)
    known = errors[-1] if len(errors) else [math.nan] * len(analysis.names)
    return [_measured(*each) for each in zip(fractions[-1], known, strict=True)]


def _measured(value: float, error: float) -> str:
    """Write a fraction with its standard error, to two digits of that.

    Examples
    --------
    >>> _measured(0.41234, 0.0031), _measured(1.0, 0.0), _measured(0.5, math.nan)
    ('0.4123 ± 0.0031', '1', '0.5')
    """
    if not math.isfinite(value):
        return "-"
    if not 0 < error < math.inf:
        return f"{value:.4g}"
    digits = min(max(1 - math.floor(math.log10(error)), 2), 6)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _rejected(rejected: Sequence[tuple[int, str]]) -> str:
    reasons = Counter(reason for _seq_num, reason in rejected)
    first = {reason: seq_num for seq_num, reason in reversed(rejected)}
    told = (f"{n} x {reason} (first: event {first[reason]})" for reason, n in reasons.items())
    return f"{len(rejected)}: " + "; ".join(told)
