"""A known phase as a settings file has it: from a pattern file, a CIF or a stored run."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    Strict,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from ..errors import InputError
from ..phases import Phase
from ..powder import Powder
from ..profiles import Width
from .telling import Model

__all__ = ["FOLDER", "FilePath", "Number", "PhaseSettings"]

#: The folder that paths are relative to, while a settings file is read.
FOLDER: ContextVar[Path | None] = ContextVar("FOLDER", default=None)


def _placed(path: Path) -> Path:
    folder, path = FOLDER.get(), path.expanduser()
    return path if folder is None else folder / path


def _placed_catalog(spec: str) -> str:
    """Find a folder beside the settings file; anything else is as `open_catalog` takes it."""
    folder = FOLDER.get()
    place = None if folder is None or ":" in spec else folder / Path(spec).expanduser()
    return str(place) if place is not None and place.is_dir() else spec


def _width(value: Any) -> Any:
    """Check a width; it stays as it was written."""
    if value == "fit" or value is None:
        return value
    if isinstance(value, Mapping):
        fields = [field.name for field in dataclasses.fields(Width)]
        if unknown := [key for key in value if key not in fields]:
            raise InputError(f"width: expected keys {', '.join(fields)}, got {unknown[0]!r}")
        Width(**{"u": 0.0, "v": 0.0, "w": 0.0, **value})
        return dict(value)
    Width.of(value)
    return list(value) if isinstance(value, (list, tuple)) else value


Number = Annotated[float, Strict()]
FilePath = Annotated[Path, AfterValidator(_placed)]

#: Which keys go with where a phase comes from.
_KEYS = {
    "file": {"signed"},
    "cif": {"wavelength", "width", "displacement", "block"},
    "run": {"signed", "catalog", "pattern", "x", "seq_num", "stream"},
}
#: Those that go with each of them.
_COMMON = {"name", "strain", "axis"}


class PhaseSettings(Model):
    """One entry of ``phases:``; exactly one of ``file``, ``cif`` and ``run`` says where it is from.

    The other keys are those of `Phase.from_file`, `Phase.from_cif` and `Phase.from_run`. Without
    ``signed`` negative values are meant where ``preprocess`` says what becomes of them.
    """

    file: FilePath | None = None
    cif: FilePath | None = None
    run: StrictStr | None = None
    name: StrictStr | None = None
    strain: tuple[Number, Number] | None = None
    signed: StrictBool | None = None
    wavelength: Number | None = None
    axis: Literal["two_theta", "q"] | None = None
    width: Annotated[Any, BeforeValidator(_width)] = None
    displacement: StrictBool | None = None
    block: StrictStr | None = None
    catalog: Annotated[StrictStr, AfterValidator(_placed_catalog)] | None = None
    pattern: StrictStr | None = None
    x: StrictStr | None = None
    seq_num: Annotated[StrictInt, Field(ge=1)] | None = None
    stream: StrictStr | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "PhaseSettings":
        origins = [key for key in _KEYS if getattr(self, key) is not None]
        if len(origins) != 1:
            raise InputError(
                f"expected one of {', '.join(_KEYS)}, got {' and '.join(origins) or 'none'}"
            )
        own = _KEYS[origins[0]]
        for key in set().union(*_KEYS.values()) - own:
            if getattr(self, key) is not None:
                owners = [origin for origin, keys in _KEYS.items() if key in keys]
                raise InputError(
                    f"{key}: expected only with {' or '.join(owners)}, got it with {origins[0]}"
                )
        if self.wavelength is not None:
            Powder.check_axis(self.axis or "two_theta", self.wavelength)
        needed = ("catalog", "pattern", "x") if self.run is not None else ()
        if missing := [key for key in needed if getattr(self, key) is None]:
            raise InputError(f"{missing[0]}: expected a value beside run, but it is missing")
        return self

    @property
    def origin(self) -> str:
        """``"file"``, ``"cif"`` or ``"run"``."""
        return next(key for key in _KEYS if getattr(self, key) is not None)

    def phase(self, *, signed: bool = False) -> Phase:
        """Make the phase.

        Parameters
        ----------
        signed : bool
            What holds where ``signed`` is not set.

        Raises
        ------
        CMFError
            As the constructors of `Phase` do.
        """
        make: dict[str, Callable[[dict[str, Any]], Phase]] = {
            "file": lambda options: Phase.from_file(self.file or "", **options),
            "cif": lambda options: Phase.from_cif(self.cif or "", **options),
            "run": self._from_run,
        }
        keys = _COMMON | _KEYS[self.origin]
        options = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        if "signed" in keys:
            options.setdefault("signed", signed)
        if isinstance(options.get("width"), dict):
            options["width"] = Width(**{"u": 0.0, "v": 0.0, "w": 0.0, **options["width"]})
        return make[self.origin](options)

    def _from_run(self, options: dict[str, Any]) -> Phase:
        # Imported here: who has no such phases need not wait for it.
        from ..catalogs import open_catalog

        with open_catalog(os.fspath(options.pop("catalog")), create=False) as catalog:
            return Phase.from_run(catalog, self.run or "", **options)
