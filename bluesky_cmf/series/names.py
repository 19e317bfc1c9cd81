"""The variable that stands in the names of files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

__all__ = ["Variable", "variable_from_names"]

Array = npt.NDArray[Any]

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
#: What a number is, by the letters behind it or before it.
_UNITS = {"k": ("temperature", "K"), "c": ("temperature", "degC"), "degc": ("temperature", "degC")}
_WORDS = {"t": "temperature", "temp": "temperature", "p": "pressure"}
#: What a number that is called so is, whatever other numbers do.
_KNOWN = ("temperature", "pressure")


@dataclass(frozen=True, eq=False)
class Variable:
    """What patterns are drawn against: a name, a unit ("" where there is none), a value each."""

    name: str
    units: str
    values: Array


def variable_from_names(
    files: Sequence[Path], expression: str | None = None, *, name: str | None = None
) -> Variable | None:
    r"""Read the variable of each file in its name.

    Parameters
    ----------
    files : sequence of Path
        The files; their names without the suffix are read.
    expression : str, optional
        A regular expression whose one group is the number: ``T(\d+)K``; a name of the group is
        that of the variable: ``(?P<pressure>\d+)bar``. By default the one number is taken that
        is not the same in all names; beside one that only counts the files, the other one.
    name : str, optional
        Name of the variable. By default that of the group; or what the letters beside the number
        say (``T300``, ``300K``, ``25C``), or the word before it; else ``variable``.

    Returns
    -------
    Variable or None
        None where no expression is given, and the names do not tell.

    Raises
    ------
    InputError
        Where the expression cannot be used, or a name does not match it.

    Examples
    --------
    >>> found = variable_from_names([Path("BTO_1_T90K.xy"), Path("BTO_2_T100K.xy")])
    >>> found.name, found.units, found.values.tolist()
    ('temperature', 'K', [90.0, 100.0])
    """
    stems = [path.stem for path in files]
    if expression is not None:
        return _matched(files, stems, expression, name)
    found = _varying(stems)
    if found is None:
        return None
    values, before, after = found
    guess, units = _called(before, after)
    return Variable(name or guess, units, values)


def _matched(
    files: Sequence[Path], stems: Sequence[str], expression: str, name: str | None
) -> Variable:
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise InputError(
            f"--from-name: {expression!r} is no regular expression: {error}"
        ) from error
    if compiled.groups != 1:
        raise InputError(
            f"--from-name: expected one group in parentheses, the number, as in 'T(\\d+)K', got "
            f"{compiled.groups} in {expression!r}"
        )
    values, first = [], None
    for path, stem in zip(files, stems, strict=True):
        match = compiled.search(stem)
        first = first or match
        try:
            values.append(float(match[1]) if match else np.nan)
        except (TypeError, ValueError):
            values.append(np.nan)
        if not np.isfinite(values[-1]):
            raise InputError(f"--from-name: {expression!r} finds no number in {path.name!r}")
    named = next(iter(compiled.groupindex), None)
    if first is None:
        raise InputError("files: expected at least one, got none")
    guess, units = _called(first.string[: first.start(1)], first.string[first.end(1) :])
    return Variable(name or named or guess, units, np.array(values))


def _varying(stems: Sequence[str]) -> tuple[Array, str, str] | None:
    """Give the one number that varies, and what stands before and behind it in the names."""
    if len(stems) < 2 or len({_NUMBER.sub("0", stem) for stem in stems}) > 1:
        return None
    numbers = np.array([[float(n) for n in _NUMBER.findall(stem)] for stem in stems])
    places = [(stems[0][: m.start()], stems[0][m.end() :]) for m in _NUMBER.finditer(stems[0])]
    vary = [k for k in range(numbers.shape[1]) if (numbers[:, k] != numbers[0, k]).any()]
    if len(vary) > 1:
        # A number that goes up by one from file to file counts them.
        counts = [k for k in vary if (np.diff(np.sort(numbers[:, k])) == 1).all()]
        rest = [k for k in vary if k not in counts] or vary
        vary = [k for k in rest if _called(*places[k])[0] in _KNOWN] if len(rest) > 1 else rest
    if len(vary) != 1:
        return None
    return numbers[:, vary[0]], *places[vary[0]]


def _called(before: str, after: str) -> tuple[str, str]:
    """Tell what a number is, by the letters beside it: a name and a unit."""
    behind = re.match(r"[_\- ]?(degC|[A-Za-z]+)", after)
    if behind and behind[1].lower() in _UNITS:
        return _UNITS[behind[1].lower()]
    word = re.search(r"([A-Za-z]+)[_\-=. ]*$", before)
    if word is None:
        return "variable", ""
    return _WORDS.get(word[1].lower(), word[1]), ""
