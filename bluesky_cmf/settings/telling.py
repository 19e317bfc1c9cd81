"""What is wrong with settings, in words: the key, what was expected, what came, what to do."""

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from .files import Place, Source

__all__ = ["Model", "check_keys", "named", "told"]

_UNKNOWN, _NO_MAPPING = "unknown_key", "no_mapping"
#: What pydantic calls the kinds of values.
_EXPECTED = {
    "string_type": "text (in quotes, where it looks like something else)",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "path_type": "a path",
    "tuple_type": "a list",
    "dict_type": "keys and values",
}


class Model(BaseModel):
    """Keys and values that cannot be changed; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, cls):
            return values
        check_keys(values, list(cls.model_fields))
        return values


def check_keys(values: Any, known: Collection[str]) -> None:
    """Refuse what is no mapping, and keys that are not known, with those that are meant.

    Raises
    ------
    PydanticCustomError
        It becomes part of pydantic's own error.
    """
    if not isinstance(values, Mapping):
        got = repr(values)[:60]
        raise PydanticCustomError(_NO_MAPPING, "expected keys and values, got {got}", {"got": got})
    for key in values:
        if key in known:
            continue
        close = get_close_matches(str(key), known, n=1, cutoff=0.65)
        meant = f"did you mean {close[0]!r}? " if close else ""
        text = f"no such key; {meant}keys are {', '.join(known)}"
        raise PydanticCustomError(_UNKNOWN, "{text}", {"text": text, "key": str(key)})


def told(error: ValidationError, source: Source | None) -> str:
    """Give everything that pydantic has found, with file and line where there is one."""
    return "; ".join(_each(error, source))


def _each(error: ValidationError, source: Source | None) -> Iterator[str]:
    for found in error.errors(include_url=False):
        place: Place = found["loc"]
        context = found.get("ctx") or {}
        if found["type"] == _UNKNOWN:
            place = (*place, context["key"])
        message = _message(found["type"], found["msg"], found["input"], context)
        key, _, rest = message.partition(": ")
        if place and key == place[-1]:
            message = rest
        elif source is not None and source.knows((*place, key)):
            # An object names the argument itself.
            place, message = (*place, key), rest
        where = "" if source is None else source.tell(place)
        yield f"{where}{named(place)}: {message}" if place else f"{where}{message}"


def _message(kind: str, message: str, got: Any, context: Mapping[str, Any]) -> str:
    if kind == "missing":
        return "expected a value, but it is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind in (_UNKNOWN, _NO_MAPPING):
        return message
    expected = _EXPECTED.get(kind, message.removeprefix("Input should be "))
    return f"expected {expected}, got {repr(got)[:60]}"


def named(place: Place) -> str:
    """Name a place as a reader would: ``phases[1].width``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")
