"""Documents as bytes and back, exactly: arrays with their dtype, tuples as tuples, no pickle."""

import datetime
import io
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import msgpack  # type: ignore[import-untyped]
import numpy as np

__all__ = ["pack", "unpack", "unpack_all"]

#: Of which documents hold subclasses.
_PLAIN: tuple[Any, ...] = (int, float, str, list, bytes)
_ARRAY, _SCALAR, _TUPLE, _INTEGER, _COMPLEX, _UUID, _DATETIME, _DATE = range(1, 9)


def pack(value: Any) -> bytes:
    """Give a document, or whatever nests what documents hold, as bytes.

    Raises
    ------
    TypeError, ValueError
        Where it holds what no document may: an object that is not plain data.
    """
    try:
        packed = msgpack.packb(value, default=_extension, strict_types=True)
    except OverflowError:
        # MessagePack ends at 64 bits.
        packed = msgpack.packb(_with_long_integers(value), default=_extension, strict_types=True)
    return bytes(packed)


def unpack(packed: bytes) -> Any:
    """Give what `pack` was given."""
    return msgpack.unpackb(packed, ext_hook=_restored, strict_map_key=False)


def unpack_all(file: BinaryIO) -> Iterator[Any]:
    """Give, one after the other, what was packed into a file."""
    unpacker = msgpack.Unpacker(
        file, ext_hook=_restored, strict_map_key=False, max_buffer_size=2**31 - 1
    )
    yield from unpacker


def _extension(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        buffer = io.BytesIO()
        # Keeps every dtype, structured ones too; an array of objects raises.
        np.lib.format.write_array(buffer, np.asanyarray(value), allow_pickle=False)
        kind = _ARRAY if isinstance(value, np.ndarray) else _SCALAR
        return msgpack.ExtType(kind, buffer.getvalue())
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, pack(list(value)))
    if isinstance(value, complex):
        return msgpack.ExtType(_COMPLEX, pack([value.real, value.imag]))
    if isinstance(value, uuid.UUID):
        return msgpack.ExtType(_UUID, value.bytes)
    if isinstance(value, datetime.datetime):
        return msgpack.ExtType(_DATETIME, pack([value.isoformat(), value.fold]))
    if isinstance(value, datetime.date):
        return msgpack.ExtType(_DATE, value.isoformat().encode())
    if isinstance(value, Mapping):
        return dict(value)
    for plain in _PLAIN:
        # A string that is also an Enum says its name where it is only printed.
        if isinstance(value, plain):
            return str.__str__(value) if plain is str else plain(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    raise TypeError(f"a {type(value).__name__} is not plain data")


def _with_long_integers(value: Any) -> Any:
    if type(value) is int and not -(2**63) <= value < 2**64:
        return msgpack.ExtType(_INTEGER, str(value).encode())
    if isinstance(value, Mapping):
        return {key: _with_long_integers(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts: Iterable[Any] = (_with_long_integers(part) for part in value)
        return tuple(parts) if isinstance(value, tuple) else list(parts)
    return value


def _restored(kind: int, packed: bytes) -> Any:
    if kind in (_ARRAY, _SCALAR):
        array = np.lib.format.read_array(io.BytesIO(packed), allow_pickle=False)
        return array if kind == _ARRAY else array[()]
    if kind == _TUPLE:
        return tuple(unpack(packed))
    if kind == _INTEGER:
        return int(packed)
    if kind == _COMPLEX:
        return complex(*unpack(packed))
    if kind == _UUID:
        return uuid.UUID(bytes=packed)
    if kind == _DATETIME:
        text, fold = unpack(packed)
        return datetime.datetime.fromisoformat(text).replace(fold=fold)
    if kind == _DATE:
        return datetime.date.fromisoformat(packed.decode())
    raise ValueError(f"unknown extension {kind}")
