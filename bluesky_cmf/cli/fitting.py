"""``bluesky-cmf fit``: pattern files, or stored runs, to figure, table, HDF5 and analysis run."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from ..errors import InputError
from ..settings import Settings
from .checking import check_device, check_place
from .options import ModelOptions
from .outputs import Outputs
from .selecting import Selection, beside

__all__ = ["Fit", "result_outputs", "run_fit", "write_settings"]

_UID = re.compile(r"[0-9a-fA-F][0-9a-fA-F-]{4,}")


@dataclass(frozen=True)
class Fit:
    """The options of the command."""

    places: tuple[str, ...]
    model: ModelOptions
    from_name: str | None
    table: Path | None
    variables: tuple[str, ...]
    output: Path | None
    figure: Path | None
    csv: Path | None
    hdf5: Path | None
    overwrite: bool
    save: str | None
    sweep: str | None = None
    from_data: bool = False


def run_fit(options: Fit) -> None:
    """Fit, and write what it came to.

    Raises
    ------
    CMFError
        Where an option is wrong, nothing could be read, or something failed.
    KeyboardInterrupt
        After an interrupt; what was read until then is fitted and written.
    """
    matplotlib.use("agg")
    settings = options.model.settings()
    selection = Selection.of(options.sweep, options.from_data, options.model, settings)
    check_device(settings.device)
    if _names_runs(options.places):
        from .fitting_runs import fit_runs

        fit_runs(options, settings, selection)
    else:
        # Without what catalogs need, which takes longer to import than many fits.
        from .fitting_files import fit_files

        fit_files(options, settings, selection)


def _names_runs(places: Sequence[str]) -> bool:
    """Tell whether a catalog and runs are named, and not files."""
    first, *others = places
    if re.match(r"https?://|databroker:|tiled:", first):
        return True
    runs = bool(others) and all(_UID.fullmatch(other) for other in others)
    return runs and not any(os.path.exists(other) for other in others)


def result_outputs(options: Fit, name: str) -> tuple[Outputs, Path]:
    """Give the files that results are written to, and the folder of those that are not named."""
    folder = Path(f"{name}-fit") if options.output is None else options.output
    figure = options.figure or folder / "figure.png"
    drawn = {"sweep": options.sweep is not None, "members": options.from_data}
    outputs = Outputs(
        figure,
        options.csv or folder / "weights.csv",
        options.hdf5 or folder / "analysis.h5",
        options.overwrite,
        keep_figure=True,
        others=tuple(beside(figure, folder, what) for what, wanted in drawn.items() if wanted),
    )
    outputs.check()
    check_place(folder, "output")
    settings = folder / "settings.yaml"
    if settings.exists() and not options.overwrite:
        raise InputError(
            f"--output: {str(settings)!r} is there already; name another folder, or replace it "
            "(--overwrite)"
        )
    return outputs, folder


def write_settings(settings: Settings, folder: Path, options: Fit) -> None:
    """Write the settings beside the results, so that they can be had again."""
    folder.mkdir(parents=True, exist_ok=True)
    settings.dump(folder / "settings.yaml", overwrite=options.overwrite)
