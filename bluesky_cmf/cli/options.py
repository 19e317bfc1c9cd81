"""What several commands ask of the user: the options of a fit, and the settings they make."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError

if TYPE_CHECKING:
    from ..settings import Settings

__all__ = [
    "LARGEST_SEED",
    "MOST_COMPONENTS",
    "Axis",
    "Background",
    "Components",
    "Csv",
    "Device",
    "Errors",
    "Hdf5",
    "Independent",
    "Loss",
    "Mask",
    "ModelOptions",
    "Monitor",
    "Negative",
    "Normalize",
    "OnUnknown",
    "Overwrite",
    "Pattern",
    "Phases",
    "Points",
    "Poni",
    "Rebin",
    "Regrid",
    "Roi",
    "Seed",
    "Session",
    "Set",
    "SettingsFile",
    "Stream",
    "Unit",
    "Wavelength",
    "Width",
    "X",
    "model_options",
]

#: More are a slip of the keyboard, which would take the memory of the machine.
MOST_COMPONENTS = 1000
LARGEST_SEED = 2**63 - 1

SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", help="Settings file (YAML); other options win over it."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of a settings file: preprocess.normalize=max; may be repeated.",
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(help="Data key of the pattern, or how the one key ends that is meant."),
]
X = Annotated[
    str | None, typer.Option(help="Data key of the patterns' axis; the index by default.")
]
Components = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_COMPONENTS,
        help="Number of components; one more than phases, if not given.",
    ),
]
Phases = Annotated[
    list[Path] | None,
    typer.Option(
        help="Pattern file or CIF of a known phase, which is held; may be repeated. They take "
        "the place of those in the settings file."
    ),
]
Wavelength = Annotated[
    float | None, typer.Option(help="Wavelength in angstrom, for all phases from CIFs.")
]
Axis = Annotated[
    str | None,
    typer.Option(help="Axis of all phases from CIFs: two_theta (degrees) or q (1/angstrom)."),
]
Width = Annotated[
    str | None,
    typer.Option(
        help="Full width at half maximum of the lines of all phases from CIFs, in the axis' "
        "unit; or U,V,W; or fit, the default."
    ),
]
Independent = Annotated[
    list[str] | None,
    typer.Option(help="Data key that weights are drawn against; the scan's own by default."),
]
Stream = Annotated[
    str | None, typer.Option(help="Stream that holds the patterns; primary by default.")
]
Normalize = Annotated[
    str | None, typer.Option(help="Divide each pattern by its max, area or monitor.")
]
Monitor = Annotated[
    str | None, typer.Option(help="Data key of the monitor, for --normalize monitor.")
]
Regrid = Annotated[float | None, typer.Option(help="Interpolate onto an even axis with this step.")]
Rebin = Annotated[int | None, typer.Option(min=1, help="Average each so many neighbouring points.")]
Background = Annotated[
    str | None,
    typer.Option(
        help="Subtract a background: an algorithm of pybaselines, such as snip or "
        "snip:max_half_window=40,decreasing=true."
    ),
]
Errors = Annotated[
    str | None,
    typer.Option(
        help="Where the noise of patterns is known from: counts, or the data key of standard "
        "errors; estimated from the residual, if not given."
    ),
]
Roi = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="FIRST LAST", help="First and last value of the axis to keep, such as --roi 2 20."
    ),
]
Negative = Annotated[
    str | None,
    typer.Option(
        help="What becomes of patterns with negative values: reject (the default), clip or offset."
    ),
]
Poni = Annotated[
    Path | None, typer.Option(help="Geometry of a 2-D detector, whose frames pyFAI integrates.")
]
Mask = Annotated[
    Path | None, typer.Option(help="Mask of the frames: not zero where a pixel is left out.")
]
Unit = Annotated[
    str | None, typer.Option(help="Axis of integrated frames, by pyFAI's name; 2th_deg by default.")
]
Points = Annotated[
    int | None, typer.Option(min=2, help="Number of bins that frames are integrated into; 1000.")
]
OnUnknown = Annotated[
    str | None,
    typer.Option(
        help="Where something stands out that no component explains: warn (the default), or add "
        "one."
    ),
]
Session = Annotated[
    bool, typer.Option("--session", help="Fit the patterns of all runs as one dataset.")
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=LARGEST_SEED, help="Seed of the fit's random starts; 0 by default."),
]
Loss = Annotated[
    str | None,
    typer.Option(
        help="What is lowered: frobenius (the default), kullback-leibler or itakura-saito."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Where the fit runs: auto (the default), cpu, cuda, cuda:1, …")
]
Csv = Annotated[
    Path | None,
    typer.Option("--csv", help="Write one row for each pattern here, with the final weights."),
]
Hdf5 = Annotated[
    Path | None,
    typer.Option("--hdf5", help="Write weights, components and patterns here, as NeXus (h5web)."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files of results that are there.")
]


@dataclass(frozen=True)
class ModelOptions:
    """The options of a fit; None where they are not given."""

    file: Path | None
    assignments: tuple[str, ...]
    pattern: str | None
    x: str | None
    components: int | None
    phases: tuple[Path, ...]
    wavelength: float | None
    axis: str | None
    width: str | None
    independent: tuple[str, ...]
    stream: str | None
    roi: tuple[float, float] | None
    regrid: float | None
    rebin: int | None
    background: str | None
    normalize: str | None
    monitor: str | None
    errors: str | None
    on_unknown: str | None
    negative: str | None
    poni: Path | None
    mask: Path | None
    unit: str | None
    points: int | None
    session: bool
    seed: int | None
    loss: str | None
    device: str | None

    def settings(self) -> "Settings":
        """Give the settings of the file with the options in their place.

        Raises
        ------
        SettingsError
            Where a key is not known or a value cannot be.
        InputError
            Where options do not go together.
        """
        from ..settings import Settings

        settings = Settings() if self.file is None else Settings.load(self.file)
        changes = {key: value for key, value in self._by_key().items() if value is not None}
        if self.phases:
            changes["phases"] = [_phase(path) for path in self.phases]
        if settings.integrator is None and self.poni is None:
            for option in ("mask", "unit", "points"):
                if getattr(self, option) is not None:
                    raise InputError(
                        f"--{option}: frames are integrated only with the geometry (--poni)"
                    )
        settings = settings.with_values(changes)
        settings = settings.with_values(self._of_crystals(settings))
        return settings.with_values(dict(map(_assignment, self.assignments)))

    def _by_key(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern,
            "x": self.x,
            "n_components": self.components,
            "independent": self.independent or None,
            "stream": self.stream,
            "preprocess.roi": self.roi,
            "preprocess.regrid": self.regrid,
            "preprocess.rebin": self.rebin,
            "preprocess.background": self.background and _background(self.background),
            "preprocess.normalize": self.normalize,
            "preprocess.monitor": self.monitor,
            "errors": self.errors,
            "on_unknown": self.on_unknown,
            "preprocess.negative": self.negative,
            "integrator.poni": self.poni,
            "integrator.mask": self.mask,
            "integrator.unit": self.unit,
            "integrator.points": self.points,
            "scope": "session" if self.session else None,
            "seed": self.seed,
            "loss": self.loss,
            "device": self.device,
        }

    def _of_crystals(self, settings: "Settings") -> dict[str, Any]:
        """Give what the options say of all phases from CIFs."""
        width = None if self.width is None else _width(self.width)
        options = {"wavelength": self.wavelength, "axis": self.axis, "width": width}
        given = {key: value for key, value in options.items() if value is not None}
        crystals = [k for k, phase in enumerate(settings.phases) if phase.cif is not None]
        if given and not crystals:
            raise InputError(f"--{next(iter(given))}: expected with a phase from a CIF, got none")
        return {f"phases.{k}.{key}": value for k in crystals for key, value in given.items()}


def model_options(given: Mapping[str, Any]) -> ModelOptions:
    """Give the options of a fit among the arguments of a command."""
    names = {field.name: field.name for field in fields(ModelOptions)}
    names |= {"file": "settings", "phases": "phase"}
    values = {name: given[argument] for name, argument in names.items()}
    for name in ("assignments", "phases", "independent"):
        values[name] = tuple(values[name] or ())
    return ModelOptions(**values)


def _phase(path: Path) -> dict[str, Any]:
    return {"cif" if path.suffix.lower() == ".cif" else "file": path.absolute()}


def _background(text: str) -> dict[str, Any]:
    """Read an algorithm and its options: ``snip``, or ``snip:max_half_window=40,…``."""
    name, _, options = text.partition(":")
    found: dict[str, Any] = {"name": name}
    for part in filter(None, options.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--background: expected NAME:OPTION=VALUE,…, got {text!r}")
        try:
            found[option.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[option.strip()] = value
    return found


def _width(text: str) -> Any:
    if text == "fit":
        return text
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--width: expected a number, three numbers U,V,W or fit, got {text!r}"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _assignment(text: str) -> tuple[str, Any]:
    from ..settings.files import read_value

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set: expected KEY=VALUE, got {text!r}")
    return key.strip(), read_value(value)
