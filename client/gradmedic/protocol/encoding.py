"""JSON: from Python values to bytes and back.

Non-finite numbers travel as the strings `"NaN"`, `"Infinity"` and `"-Infinity"`. `encode_json` takes values that JSON
can hold otherwise. `to_json` takes every value: an object that JSON cannot hold becomes its text.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from gradmedic.protocol.numbers import JSON_INTEGERS, name_nonfinite

T = TypeVar("T")

_MAX_DEPTH = 32


def encode_json(value: Any) -> bytes:
    """Encode mappings, lists, strings, numbers, times, ids, booleans and None as compact JSON.

    Raises:
        TypeError: the value contains another type.
        UnicodeEncodeError: a string contains a lone surrogate.

    >>> encode_json({"loss": float("nan"), "elements": 2**64})
    b'{"loss":"NaN","elements":18446744073709551616}'
    """
    return msgspec.json.encode(without_nonfinite(value))


def without_nonfinite(value: Any) -> Any:
    """Return mappings and lists with every non-finite float replaced by its name.

    >>> without_nonfinite({"loss": [1.0, float("nan"), float("-inf")]})
    {'loss': [1.0, 'NaN', '-Infinity']}
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else name_nonfinite(value)
    if isinstance(value, dict):
        return {key: without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nonfinite(item) for item in value]
    return value


def to_json(value: Any) -> bytes:
    """Encode any value as compact JSON, see `to_plain`.

    >>> to_json({"loss": float("nan"), "lr": 0.5})
    b'{"loss":"NaN","lr":0.5}'
    """
    return msgspec.json.encode(to_plain(value))


def to_plain(value: Any, depth: int = 0) -> Any:
    """Return a value as mappings, lists, strings, finite numbers, booleans and None.

    Numpy scalars become numbers, sequences and sets become lists, dataclasses become mappings, times become RFC 3339
    text. Every other object, an integer beyond 64 bits and what is nested deeper than 32 levels become their text. Each
    character of a text that the service refuses becomes a question mark.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _storable(value)
    if _is_numpy_scalar(value):
        return to_plain(value.item(), depth)
    if isinstance(value, int):
        return int(value) if value in JSON_INTEGERS else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else name_nonfinite(value)
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {_storable(str(k)): to_plain(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray, memoryview)):
            return [to_plain(v, depth + 1) for v in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            plain = {field.name: to_plain(getattr(value, field.name), depth + 1) for field in dataclasses.fields(value)}
            return plain | (value.deprecated_keys() if hasattr(value, "deprecated_keys") else {})
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return _storable(str(value))


def _is_numpy_scalar(value: Any) -> bool:
    """Whether a value is a numpy scalar. Without numpy there is none, and nothing here imports it."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def _storable(text: str) -> str:
    """Return a text with a question mark for each NUL and each lone surrogate: the service refuses them."""
    return text.replace("\x00", "?").encode("utf-8", "replace").decode()


def from_json(body: bytes, type_: type[T]) -> T:
    """Decode an answer into a dataclass of `gradmedic.protocol`. Unknown fields are ignored.

    Raises:
        msgspec.MsgspecError: the body is not JSON, or not of that type.
    """
    plain = msgspec.json.decode(body)
    if "findings" in getattr(type_, "__dataclass_fields__", ()):  # a diagnosis, perhaps of an older service
        plain = plain | {"findings": [_with_verdict(finding) for finding in plain.get("findings", [])]}
    return msgspec.convert(plain, type_, strict=False)  # lax: "NaN" is a float


def _with_verdict(finding: dict[str, Any]) -> dict[str, Any]:
    """Return a finding with its `verdict`, which services of version 0.1 answer as `class`."""
    return finding if "verdict" in finding or "class" not in finding else finding | {"verdict": finding["class"]}
