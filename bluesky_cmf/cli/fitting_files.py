"""``bluesky-cmf fit FILES``: pattern files through `LiveNMF`, as the run they could have been."""

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, PatternFileError
from ..patterns import PatternFile, read_pattern_file
from ..series import Series, Variable, find_files, variable_from_names, variables_from_table
from ..settings import Settings
from .console import FileProgress
from .fitting import Fit, result_outputs, write_settings
from .interrupts import Interrupts, patiently
from .reporting import Report
from .selecting import Selection

if TYPE_CHECKING:
    from ..collecting import Collected

__all__ = ["fit_files"]

logger = logging.getLogger(__name__)

#: Files that are tried for what is known of the measurement.
_TRIED = 5


def fit_files(options: Fit, settings: Settings, selection: Selection) -> None:
    """Read the files, fit them and write what they came to.

    Raises
    ------
    CMFError
        Where an option is wrong, nothing could be read, or something failed.
    KeyboardInterrupt
        After an interrupt; what was read until then is fitted and written.
    """
    files = find_files(options.places, but=[] if options.table is None else [options.table])
    variables, told = _variables(options, settings, files)
    first = _first_readable(files)
    settings = _with_wavelength(settings, first)
    series = Series(
        files,
        variables,
        pattern=settings.pattern or "intensity",
        x=_axis_name(settings, first),
        stream=settings.stream,
    )
    outputs, folder = result_outputs(options, _name_of(options.places, files))
    arguments: dict[str, Any] = {
        "pattern": series.pattern,
        "x": series.x,
        "independent": None,
        "scope": "run",
        "integrator": None,
        "handlers": series.handlers,
        "background": False,
    }
    if settings.errors not in (None, "counts"):
        arguments["errors"] = _errors_key(series, first)
    with contextlib.ExitStack() as stack:
        writer = None
        if options.save is not None:
            from ..catalogs import open_catalog

            writer = stack.enter_context(open_catalog(options.save)).writer()
        chosen = selection.choose(
            settings, lambda: _collected(series, settings), outputs.figure, folder
        )
        settings = chosen.settings(settings)
        live = chosen.live_nmf(settings, **arguments)
        stack.callback(patiently, live.close)
        report = Report(live, outputs, writer, stream=settings.stream)
        interrupts = stack.enter_context(Interrupts())
        with FileProgress(len(files)) as progress:
            for name, doc in series.documents(
                advance=progress.advance, interrupted=lambda: interrupts.asked
            ):
                live(name, doc)
        report.show({"files": _counted(files), "variable": told, **chosen.facts})
        write_settings(settings, folder, options)
        if interrupts.asked:
            raise KeyboardInterrupt


def _collected(series: Series, settings: Settings) -> "Collected":
    """Read the files once before they are fitted, as they will be."""
    from ..collecting import collect_documents

    with FileProgress(len(series.files), "read") as progress:
        return collect_documents(
            series.documents(advance=progress.advance),
            series.pattern,
            x=series.x,
            stream=series.stream,
            phases=settings.known_phases(),
            preprocess=settings.preprocess,
            handlers=series.handlers,
        )


def _variables(
    options: Fit, settings: Settings, files: Sequence[Path]
) -> tuple[list[Variable], str]:
    """Find what the patterns are drawn against; and say where it is from."""
    names = options.variables or options.model.independent or settings.independent or ()
    if options.table is not None:
        if options.from_name is not None:
            raise InputError("--from-name: expected it, or --table, got both")
        found = variables_from_table(options.table, files, names)
        return found, f"{', '.join(v.name for v in found)} (from {options.table.name})"
    if len(names) > 1:
        raise InputError(f"--variable: expected one name, with --table several, got {len(names)}")
    variable = variable_from_names(files, options.from_name, name=names[0] if names else None)
    if variable is None:
        return [], "the number of the file: its name does not tell (--from-name, --table)"
    low, high = variable.values.min(), variable.values.max()
    units = f" {variable.units}" if variable.units else ""
    return [variable], f"{variable.name}, {low:g} to {high:g}{units} (from the names)"


def _first_readable(files: Sequence[Path]) -> PatternFile | None:
    """Give the first file that can be read, for what it says of the measurement."""
    for path in files[:_TRIED]:
        with contextlib.suppress(PatternFileError):
            return read_pattern_file(path, allow_nan=True)
    return None


def _with_wavelength(settings: Settings, first: PatternFile | None) -> Settings:
    """Take the wavelength that files tell, for crystals that have none and need one."""
    told = None if first is None else first.metadata.get("wavelength")
    lacking = [
        k
        for k, phase in enumerate(settings.phases)
        if phase.cif is not None and phase.wavelength is None and phase.axis != "q"
    ]
    if told is None or first is None or not lacking:
        return settings
    logger.info("wavelength %.6g angstrom, from %s", told, first.path)
    return settings.with_values({f"phases.{k}.wavelength": float(told) for k in lacking})


def _errors_key(series: Series, first: PatternFile | None) -> str:
    """Give the key of standard errors: in files they are where the format has them."""
    if first is not None and first.errors is None:
        raise InputError(
            f"errors: expected files with standard errors (.xye, .xrdml, .npz, NeXus), got "
            f"{first.path.name} without; take 'counts', or leave it out"
        )
    return series.errors_key


def _axis_name(settings: Settings, first: PatternFile | None) -> str:
    told = {} if first is None else first.metadata
    crystals = [phase.axis or "two_theta" for phase in settings.phases if phase.cif is not None]
    return told.get("axis") or settings.x or next(iter(crystals), "x")


def _name_of(places: Sequence[str], files: Sequence[Path]) -> str:
    """Name what is fitted: the folder, or the file."""
    if len(files) == 1 and not os.path.isdir(places[0]):
        return files[0].stem
    return files[0].absolute().parent.name or "patterns"


def _counted(files: Sequence[Path]) -> str:
    if len(files) == 1:
        return str(files[0])
    return f"{len(files)}, {files[0].name} to {files[-1].name}"
