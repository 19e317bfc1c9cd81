"""`Settings`: what `LiveNMF` is made of, as a YAML file has it."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    StrictInt,
    StrictStr,
    ValidationError,
)

from ..callback import LiveNMF
from ..errors import CMFError, SettingsError
from ..frames import Integrator
from ..nmf.numerics import beta_of
from ..phases import Phase
from ..preprocess import Preprocess
from .files import Place, Source, read_yaml
from .phases import FOLDER, FilePath, PhaseSettings
from .telling import Model, check_keys, named, told

__all__ = ["IntegratorSettings", "Settings"]

Made = TypeVar("Made")


def _preprocess(values: Any) -> Preprocess:
    """Make the steps of keys and values; `Preprocess` itself says which there are."""
    if isinstance(values, Preprocess):
        return values
    check_keys(values, [field.name for field in dataclasses.fields(Preprocess)])
    return Preprocess(**{key: _frozen(value) for key, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _steps(preprocess: Preprocess) -> dict[str, Any]:
    """Give what differs from the defaults, as plain values."""
    steps, plain = preprocess.describe(), Preprocess().describe()
    return {key: value for key, value in steps.items() if value != plain[key]}


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _loss(value: Any) -> Any:
    beta_of(value)
    return value


class IntegratorSettings(Model):
    """How 2-D frames become patterns: `bluesky_cmf.Integrator`, whose ``n_points`` is ``points``.

    ``options`` are passed on to pyFAI's ``integrate1d``.
    """

    poni: FilePath
    mask: FilePath | None = None
    dark: FilePath | None = None
    flat: FilePath | None = None
    unit: StrictStr | None = None
    points: StrictInt | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    def integrator(self) -> Integrator:
        """Make the integrator.

        Raises
        ------
        InputError
            As `bluesky_cmf.Integrator` does.
        """
        arguments: dict[str, Any] = {
            "mask": self.mask,
            "dark": self.dark,
            "flat": self.flat,
            "unit": self.unit,
            "n_points": self.points,
        }
        given = {name: value for name, value in arguments.items() if value is not None}
        return Integrator(self.poni, **given, **self.options)


class Settings(Model):
    """What a fit is made of; every key is optional but ``pattern``, and that in files alone.

    Parameters
    ----------
    pattern, x, independent, stream, n_components, scope, device, seed, loss, errors, on_unknown
        As `LiveNMF` takes them.
    phases : list of PhaseSettings
        Known phases, held fixed.
    preprocess : dict or Preprocess
        Steps before the fit; the keys are those of `Preprocess`.
    integrator : IntegratorSettings, optional
        For 2-D frames.

    Raises
    ------
    SettingsError
        Where a key is not known or a value cannot be.

    Examples
    --------
    >>> settings = Settings(pattern="chi_I", x="chi_Q", preprocess={"roi": [1.0, 20.0]})
    >>> settings.preprocess.roi
    (1.0, 20.0)
    >>> settings.with_values({"preprocess.normalize": "max", "seed": 3}).seed
    3
    """

    pattern: StrictStr | None = None
    x: StrictStr | None = None
    independent: Annotated[tuple[StrictStr, ...], BeforeValidator(_names)] | None = None
    stream: StrictStr = "primary"
    n_components: Annotated[StrictInt, Field(ge=1)] | None = None
    phases: tuple[PhaseSettings, ...] = ()
    preprocess: Annotated[Preprocess, PlainValidator(_preprocess), PlainSerializer(_steps)] = (
        Preprocess()
    )
    loss: Annotated[Any, BeforeValidator(_loss)] = "frobenius"
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    scope: Literal["run", "session"] = "run"
    device: StrictStr = "auto"
    errors: StrictStr | None = None
    on_unknown: Literal["warn", "add"] | None = None
    integrator: IntegratorSettings | None = None

    _source: Source | None = PrivateAttr(default=None)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(told(error, None)) from error

    def __eq__(self, other: object) -> bool:
        # Where they were read is nothing that settings say.
        return isinstance(other, Settings) and self._plain() == other._plain()

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def load(cls, path: str | Path) -> "Settings":
        """Read a settings file; paths in it are relative to its folder.

        Parameters
        ----------
        path : str or Path
            A YAML file.

        Raises
        ------
        SettingsError
            With file, line and key: the file is missing or no YAML, a key is not known or comes
            twice, a value cannot be.
        """
        path = Path(path)
        values, source = read_yaml(path)
        return cls._built(values, source, path.absolute().parent)

    def with_values(self, changes: Mapping[str, Any]) -> "Settings":
        """Give the same settings with other values.

        Parameters
        ----------
        changes : mapping of str to object
            Values by key; a dot leads into a section: ``"preprocess.roi"``, ``"phases.0.width"``.

        Raises
        ------
        SettingsError
            Where a key is not known or a value cannot be.
        """
        values, source = self._plain(), self._source
        places = {_set(values, key, _plain_value(value)) for key, value in changes.items()}
        if source is not None:
            source = dataclasses.replace(source, overridden=source.overridden | places)
        return self._built(values, source, None)

    def dump(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write what differs from the defaults, so that `load` gives the same settings.

        Parameters
        ----------
        path : str or Path
            A YAML file. Paths in its folder, or below it, are written relative to it.
        overwrite : bool, optional
            Whether a file that is there may be replaced.

        Raises
        ------
        SettingsError
            Where the file is there, or cannot be written.
        """
        path = Path(path)
        folder = path.absolute().parent
        values = _relative(self._plain(), folder)
        try:
            with path.open("w" if overwrite else "x", encoding="utf-8") as file:
                yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)
        except FileExistsError as error:
            raise SettingsError(f"{path}: is there already; overwrite=True replaces it") from error
        except OSError as error:
            raise SettingsError(f"{path}: cannot be written ({error})") from error

    def known_phases(self) -> list[Phase]:
        """Read the phases.

        Raises
        ------
        CMFError
            As `Phase` does, with the place in the settings.
        """
        signed = self.preprocess.negative != "reject"
        return [
            self._telling(("phases", k), lambda p=phase: p.phase(signed=signed))  # type: ignore[misc]
            for k, phase in enumerate(self.phases)
        ]

    def frame_integrator(self) -> Integrator | None:
        """Make the integrator of 2-D frames, where there is one.

        Raises
        ------
        CMFError
            As `bluesky_cmf.Integrator` does, with the place in the settings.
        """
        if self.integrator is None:
            return None
        return self._telling(("integrator",), self.integrator.integrator)

    def live_nmf(self, **overrides: Any) -> LiveNMF:
        """Make the callback.

        Parameters
        ----------
        **overrides
            Arguments of `LiveNMF`, which win over the settings.

        Raises
        ------
        SettingsError
            Where no ``pattern`` is named.
        CMFError
            Where something cannot be read or does not fit.
        """
        pattern = overrides.pop("pattern", self.pattern)
        if pattern is None:
            where = "" if self._source is None else self._source.tell(())
            raise SettingsError(
                f"{where}pattern: expected the data key of the patterns, but it is missing"
            )
        values: dict[str, Callable[[], Any]] = {
            "x": lambda: self.x,
            "independent": lambda: self.independent,
            "stream": lambda: self.stream,
            "n_components": lambda: self.n_components,
            "phases": self.known_phases,
            "preprocess": lambda: self.preprocess,
            "scope": lambda: self.scope,
            "device": lambda: self.device,
            "seed": lambda: self.seed,
            "loss": lambda: self.loss,
            "integrator": self.frame_integrator,
        }
        # What is not set is left to the callback's own defaults.
        for key in ("errors", "on_unknown"):
            if getattr(self, key) is not None:
                values[key] = lambda key=key: getattr(self, key)  # type: ignore[misc]
        arguments = {key: value() for key, value in values.items() if key not in overrides}
        return LiveNMF(pattern, **arguments, **overrides)

    # --- details ---------------------------------------------------------------------------

    @classmethod
    def _built(
        cls, values: dict[str, Any], source: Source | None, folder: Path | None
    ) -> "Settings":
        token = FOLDER.set(folder)
        try:
            settings = cls(**values)
        except SettingsError as error:
            if source is None or not isinstance(error.__cause__, ValidationError):
                raise
            raise SettingsError(told(error.__cause__, source)) from error.__cause__
        finally:
            FOLDER.reset(token)
        settings._source = source
        return settings

    def _plain(self) -> dict[str, Any]:
        values = self.model_dump(exclude_defaults=True)
        if "phases" in values:
            values["phases"] = [
                {key: value for key, value in phase.items() if value is not None}
                for phase in values["phases"]
            ]
        plain: dict[str, Any] = _plain_value(values)
        return plain

    def _telling(self, place: Place, make: Callable[[], Made]) -> Made:
        """Make an object; what goes wrong is told with the place in the settings."""
        try:
            return make()
        except CMFError as error:
            where = "" if self._source is None else self._source.tell(place)
            raise type(error)(f"{where}{named(place)}: {error}") from error


def _plain_value(value: Any) -> Any:
    """Give a value as YAML has it."""
    if isinstance(value, Mapping):
        return {key: _plain_value(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(v) for v in value]
    return value


def _relative(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _relative(v, folder) for key, v in value.items()}
    if isinstance(value, list):
        return [_relative(v, folder) for v in value]
    if isinstance(value, Path):
        path = value.absolute()
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    return value


def _place(key: str) -> Place:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _set(values: dict[str, Any], key: str, value: Any) -> Place:
    """Set a value by its key with dots; give its place."""
    place = _place(key)
    section: Any = values
    for k, part in enumerate(place[:-1]):
        if isinstance(section, dict):
            section = section.setdefault(part, {})
        else:
            section = _item(section, place[: k + 1])
    if isinstance(section, dict):
        section[place[-1]] = value
    else:
        _item(section, place)
        section[place[-1]] = value
    return place


def _item(section: Any, place: Place) -> Any:
    number = place[-1]
    if not isinstance(section, list) or not isinstance(number, int) or number >= len(section):
        count = len(section) if isinstance(section, list) else 0
        raise SettingsError(
            f"{named(place)}: expected one of {count} entries, counted from 0, got {number!r}"
        )
    return section[number]
