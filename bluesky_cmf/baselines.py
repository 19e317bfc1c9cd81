"""Backgrounds by the name of their algorithm (pybaselines)."""

import copy
import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, PatternError

__all__ = ["Background"]

Array = npt.NDArray[Any]

#: It takes several patterns at once, and would make each depend on the others.
_OF_MANY = "collab_pls"


@dataclass(frozen=True)
class Background:
    """An algorithm of pybaselines and its options, as plain values.

    Parameters
    ----------
    name : str
        A method of `pybaselines.Baseline` that estimates the background of one pattern.
    options : mapping
        Its keyword arguments, as JSON has them; arrays are lists.

    Raises
    ------
    InputError
        Where there is no such algorithm, or it has no such option.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        # Imported here, which takes a second: before the scan, and by whoever asks for it alone.
        known = _algorithms()
        if self.name not in known:
            close = difflib.get_close_matches(str(self.name), known) or sorted(known)
            raise InputError(
                f"background: no algorithm {self.name!r} for one pattern in pybaselines; "
                f"did you mean one of {', '.join(close)}?"
            )
        for option in self.options:
            if option not in known[self.name]:
                raise InputError(
                    f"background: {self.name!r} has no option {option!r}; "
                    f"it has {', '.join(known[self.name])}"
                )

    @classmethod
    def of(cls, given: Any) -> "Background | None":
        """Read what the user says.

        Parameters
        ----------
        given : str, (str, mapping), mapping, Background or None
            Name of the algorithm; name and options; options with the ``name`` among them.

        Raises
        ------
        InputError
            Where it is something else, or the algorithm or an option is not known.
        """
        if given is None or isinstance(given, Background):
            return given
        name: Any = given
        options: Any = {}
        if isinstance(given, Mapping):
            name, options = given.get("name"), {k: v for k, v in given.items() if k != "name"}
        elif isinstance(given, (tuple, list)) and len(given) == 2:
            name, options = given
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise InputError(
                "background: expected the name of an algorithm, (name, options) or "
                f"{{'name': …, options}}, got {given!r}"
            )
        return cls(name, {str(option): _plain(value) for option, value in options.items()})

    def describe(self) -> dict[str, Any]:
        """Give name and options as plain values."""
        return {"name": self.name, **copy.deepcopy(dict(self.options))}

    def estimate(self, x: Array, y: Array) -> Array:
        """Estimate the background (G,) of a pattern (G,) on the axis ``x`` (G,), in float64.

        Raises
        ------
        PatternError
            Where that cannot be done.
        """
        from pybaselines import Baseline

        try:
            # What it divides by zero shows in the result.
            with np.errstate(all="ignore"):
                algorithm = getattr(Baseline(x, assume_sorted=True), self.name)
                # Integers would stay integers, and wrap round.
                found: Array = algorithm(y.astype(float), **self.options)[0]
        except Exception as error:
            raise PatternError(
                f"background: {self.name!r} fails ({type(error).__name__}: {error})"
            ) from error
        if not np.isfinite(found).all():
            raise PatternError(f"background: {self.name!r} gives NaN or infinity for this pattern")
        return found


def _algorithms() -> dict[str, list[str]]:
    """Give the algorithms for one pattern, and the options of each."""
    from pybaselines import Baseline

    found = {}
    for name, method in inspect.getmembers(Baseline, inspect.isfunction):
        parameters = [*inspect.signature(method).parameters.values()]
        if (
            name.startswith("_")
            or name == _OF_MANY
            or [p.name for p in parameters[1:2]] != ["data"]
        ):
            continue
        found[name] = [p.name for p in parameters[2:] if p.kind is p.POSITIONAL_OR_KEYWORD]
    return found


def _plain(value: Any) -> Any:
    """Make what JSON has of the value of an option: it is compared, and stored with the run."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value
