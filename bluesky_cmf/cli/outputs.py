"""Files that results are written to: where, and that nothing is lost by it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..callback import LiveNMF
from ..documents import AnalysisArchive
from ..errors import InputError
from ..exports import write_csv, write_nexus
from ..figure import LiveNMFPlot
from ..figure.saving import SavePath
from .checking import check_figure, check_place

__all__ = ["Outputs"]

_CSV = {"csv": "", "txt": ""}
_HDF5 = {"h5": "", "hdf5": "", "nxs": ""}


@dataclass(frozen=True)
class Outputs:
    """Where results of an analysis run go; fields such as ``{raw_uid:.8}`` name the run.

    A table or an HDF5 file that is there is not replaced unless ``overwrite`` says so; nor is a
    figure with ``keep_figure``.
    """

    figure: Path | None = None
    csv: Path | None = None
    hdf5: Path | None = None
    overwrite: bool = False
    keep_figure: bool = False
    #: Figures beside the first, which are not replaced either.
    others: tuple[Path, ...] = ()

    def check(self) -> None:
        """Refuse, before the work, what cannot be written after it.

        Raises
        ------
        InputError
            With the option's name.
        """
        if self.figure is not None:
            check_figure(self.figure)
        for option, path, filetypes in self._tables():
            if path.suffix.lstrip(".").lower() not in filetypes or path.is_dir():
                raise InputError(
                    f"--{option}: expected a file that ends in .{', .'.join(filetypes)}, got "
                    f"{str(path)!r}"
                )
            try:
                SavePath(path, filetypes)
            except InputError as error:
                raise InputError(f"--{option}: {str(error).removeprefix('save=')}") from error
            check_place(path, option)
        for option, path in self._kept():
            if path.exists() and not self.overwrite:
                raise InputError(
                    f"--{option}: {str(path)!r} is there already; name another place, or replace "
                    "it (--overwrite)"
                )

    def by_run(self) -> "Outputs":
        """Give names that tell runs apart, where there are several."""
        return Outputs(
            _by_run(self.figure),
            _by_run(self.csv),
            _by_run(self.hdf5),
            self.overwrite,
            self.keep_figure,
            self.others,
        )

    def plot(self) -> LiveNMFPlot | None:
        """Give the figure that saves itself."""
        return None if self.figure is None else LiveNMFPlot(save=self.figure)

    def write(self, analysis: AnalysisArchive, live: LiveNMF) -> dict[str, str]:
        """Write the tables of an analysis run that has patterns; give what was written.

        Raises
        ------
        InputError
            Where a file is there, or cannot be written.
        """
        told = {}
        wanted = self.csv is not None or self.hdf5 is not None
        arrays = (live.patterns, live.reconstruction) if wanted else (None, None)
        for option, path, filetypes in self._tables():
            place = SavePath(path, filetypes).for_run(analysis.start or {})
            write = write_csv if option == "csv" else write_nexus
            patterns, fit = arrays
            write(place, analysis, patterns=patterns, reconstruction=fit, overwrite=self.overwrite)
            told["table" if option == "csv" else "HDF5"] = str(place)
        return told

    def withdraw(self, plot: LiveNMFPlot | None) -> None:
        """Take back the figure of a run without patterns, which would be in the way later."""
        if self.keep_figure and plot is not None and plot.path is not None:
            plot.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                # The folder that was made for it; not where others have put something there.
                plot.path.parent.rmdir()

    def _tables(self) -> Iterator[tuple[str, Path, dict[str, str]]]:
        if self.csv is not None:
            yield "csv", self.csv, _CSV
        if self.hdf5 is not None:
            yield "hdf5", self.hdf5, _HDF5

    def _kept(self) -> Iterator[tuple[str, Path]]:
        yield from ((option, path) for option, path, _ in self._tables())
        if self.figure is not None and self.keep_figure:
            yield "figure", self.figure
        yield from (("figure", path) for path in self.others)


def _by_run(path: Path | None) -> Path | None:
    if path is None or "{" in str(path):
        return path
    return path.with_name(f"{path.stem}_{{raw_uid:.8}}{path.suffix}")
