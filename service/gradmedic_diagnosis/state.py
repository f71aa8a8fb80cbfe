"""The diagnosis state as bytes: a JSON header with numbers and text, followed by the raw arrays.

A state consists of nested dicts and lists of numbers, strings, None and arrays. Floats are kept exactly: Python writes
a float to JSON so that reading gives the same float, NaN and infinities included. Arrays are kept byte by byte.

Stored states outlive the names in the code. A renamed attribute keeps its old key: see `Persistent.STORED_KEYS`.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<4sI")
_MAGIC = b"gmd1"
_ARRAY = "$array"
_FLOATS = "$floats"
"""A list of floats: as raw bytes it takes a twentieth of its space as text."""


class StateError(ValueError):
    """The bytes are not a diagnosis state of a version that this code reads."""


def pack_state(state: Mapping[str, Any]) -> bytes:
    """Serialize nested dicts and lists of numbers, strings, None, booleans and arrays."""
    arrays: list[bytes] = []

    def encode(value: object) -> object:
        if isinstance(value, array):
            arrays.append(value.tobytes())
            return {_FLOATS: len(value)}
        if isinstance(value, np.ndarray):
            arrays.append(value.tobytes())
            return {_ARRAY: [value.dtype.str, list(value.shape)]}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"cannot serialize {type(value).__name__}")

    header = json.dumps(state, default=encode, separators=(",", ":")).encode()
    return b"".join((_HEADER.pack(_MAGIC, len(header)), header, *arrays))


def unpack_state(data: bytes) -> dict[str, Any]:
    """Restore what `pack_state` wrote. Raises StateError for any other bytes."""
    if len(data) < _HEADER.size:
        raise StateError("diagnosis state is truncated")
    magic, size = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise StateError(f"diagnosis state has version {magic!r}; this code reads {_MAGIC!r}")
    offset = _HEADER.size + size

    def decode(value: dict[str, Any]) -> object:
        nonlocal offset
        if _FLOATS in value:
            floats = np.frombuffer(data, dtype=np.float64, count=value[_FLOATS], offset=offset)
            offset += floats.nbytes
            return floats.tolist()
        if _ARRAY not in value:
            return value
        dtype, shape = np.dtype(value[_ARRAY][0]), tuple(value[_ARRAY][1])
        count = int(np.prod(shape))
        array: NDArray[Any] = np.frombuffer(data, dtype=dtype, count=count, offset=offset).reshape(shape).copy()
        offset += array.nbytes
        return array

    restored: dict[str, Any] = json.loads(data[_HEADER.size : _HEADER.size + size], object_hook=decode)
    return restored


class Persistent:
    """A dataclass whose fields are its state; fields that are `Persistent` themselves nest."""

    __slots__ = ()

    STORED_KEYS: ClassVar[Mapping[str, str]] = {}
    """Keys of the fields in stored states, by field, where a field was renamed since."""

    def to_state(self) -> dict[str, Any]:
        """Return the fields by their stored key."""
        return {key: to_stored(getattr(self, name)) for name, key in self._keys()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the fields; those that an older state does not have keep their value."""
        restore_attributes(self, self._keys(), state)

    def _keys(self) -> list[tuple[str, str]]:
        return [(f.name, self.STORED_KEYS.get(f.name, f.name)) for f in fields(self)]  # type: ignore[arg-type]  # subclasses are dataclasses


def restore_attributes(target: object, keys: Iterable[tuple[str, str]], state: Mapping[str, Any]) -> None:
    """Set attributes of an object from a stored state, for each pair of attribute and key that the state has."""
    for name, key in keys:
        if key not in state:
            continue
        current = getattr(target, name)
        if isinstance(current, Persistent):
            current.restore(state[key])
        else:
            setattr(target, name, state[key])


def to_stored(value: Any) -> Any:
    """Return what `pack_state` serializes for the value of an attribute."""
    if isinstance(value, Persistent):
        return value.to_state()
    if isinstance(value, list) and value and isinstance(value[0], float):
        return array("d", value)
    return value
