"""The diagnosis state as bytes: a JSON header for numbers and text, raw arrays behind it.

One idea: a state is nested dicts and lists of numbers, strings, None and arrays. Floats survive exactly (JSON's repr of
a float is exact, and NaN and infinities are allowed in it), arrays byte by byte. No pickle.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<4sI")
_MAGIC = b"gmd1"
_ARRAY = "$array"
_FLOATS = "$floats"


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
    """Restore what `pack_state` wrote; raises StateError on anything else."""
    if len(data) < _HEADER.size:
        raise StateError("diagnosis state is truncated")
    magic, size = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise StateError(f"diagnosis state has version {magic!r}, this code reads {_MAGIC!r}")
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

    def to_state(self) -> dict[str, Any]:
        """Return the fields by name; lists of floats as arrays, which cost a twentieth of their texts."""
        return {f.name: _as_state(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]  # subclasses are dataclasses

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the fields; those that an older state does not have keep their value."""
        for f in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            if f.name not in state:
                continue
            current = getattr(self, f.name)
            if isinstance(current, Persistent):
                current.restore(state[f.name])
            else:
                setattr(self, f.name, state[f.name])


def _as_state(value: Any) -> Any:
    if isinstance(value, Persistent):
        return value.to_state()
    if isinstance(value, list) and value and isinstance(value[0], float):
        return array("d", value)
    return value
