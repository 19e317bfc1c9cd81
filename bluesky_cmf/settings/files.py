"""YAML with the line of every key, and without what YAML lets pass in silence."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import SettingsError

__all__ = ["Place", "Source", "read_value", "read_yaml"]

#: Where a value stands: keys and numbers from the top.
Place = tuple[str | int, ...]

_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Source:
    """A file, the lines that its keys stand in, and what holds in spite of it."""

    path: Path
    lines: dict[Place, int] = field(default_factory=dict)
    overridden: frozenset[Place] = frozenset()

    def knows(self, place: Place) -> bool:
        """Tell whether a key stands there, or was given in its place."""
        return place in self.lines or place in self.overridden

    def tell(self, place: Place) -> str:
        """Name the file, and the line of a key or of what it belongs to; "" where it has none."""
        if any(place[:end] in self.overridden for end in range(1, len(place) + 1)):
            return ""
        for end in range(len(place), 0, -1):
            if place[:end] in self.lines:
                return f"{self.path}: line {self.lines[place[:end]]}: "
        return f"{self.path}: "


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Takes ``1e-3`` for a number, as everybody does but YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> tuple[dict[str, Any], Source]:
    """Read a file of keys and values.

    Raises
    ------
    SettingsError
        Where it is missing, is no YAML, holds something else, or a key comes twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error})") from error
    source = Source(path)
    values = _loaded(text, source)
    if values is None:
        values = {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(f"{path}: expected lines 'key: value', got {str(values)[:40]!r}")
    return values, source


def read_value(text: str) -> Any:
    """Read one value, as it would stand behind a key.

    Raises
    ------
    SettingsError
        Where it is no YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{text!r} cannot be read as a value: {_told(error)}") from error


def _loaded(text: str, source: Source) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _note_lines(loader, node, (), source)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f"line {mark.line + 1}: "
        raise SettingsError(
            f"{source.path}: {line}cannot be read as YAML: {_told(error)}"
        ) from error
    finally:
        loader.dispose()


def _told(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error)


def _note_lines(loader: _Loader, node: yaml.Node, place: Place, source: Source) -> None:
    """Note the line of each key and item; refuse a key that comes twice."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            source.lines.setdefault((*place, number), item.start_mark.line + 1)
            _note_lines(loader, item, (*place, number), source)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key_node, value in node.value:
        if key_node.tag == _MERGE:
            # What is merged gives way to the keys beside it: they are noted first or again.
            _note_lines(loader, value, place, source)
            continue
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen:
            raise SettingsError(f"{source.path}: line {line}: {key} comes twice; keep one of them")
        seen.add(key)
        source.lines[(*place, key)] = line
        _note_lines(loader, value, (*place, key), source)
