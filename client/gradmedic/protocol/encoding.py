"""Between Python values and the bytes of the wire.

One idea: nothing is lost on the way. Non-finite numbers travel as the strings the wire has for them, a finite number
never becomes infinite, a nonzero one never becomes zero, and a hyperparameter that JSON cannot say becomes its text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

_DEEPEST = 32
_FLOAT32 = np.finfo(np.float32)
_INTEGERS = range(-(2**63), 2**64)  # what msgspec writes and every JSON reader here reads


def to_json(value: Any) -> bytes:
    """Encode as compact JSON.

    >>> to_json({"loss": float("nan"), "lr": 0.5})
    b'{"loss":"NaN","lr":0.5}'
    """
    return msgspec.json.encode(to_plain(value))


def to_plain(value: Any, depth: int = 0) -> Any:
    """Return `value` as what JSON has: mappings, lists, strings, finite numbers, booleans and None."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a lone surrogate cannot travel
    if isinstance(value, np.generic):
        return to_plain(value.item(), depth)
    if isinstance(value, int):
        return int(value) if value in _INTEGERS else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _name_nonfinite(value)
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {str(k): to_plain(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray, memoryview)):
            return [to_plain(v, depth + 1) for v in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            plain = {field.name: to_plain(getattr(value, field.name), depth + 1) for field in dataclasses.fields(value)}
            return plain | (value.deprecated_keys() if hasattr(value, "deprecated_keys") else {})
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value)


def from_json(body: bytes, type_: type[T]) -> T:
    """Decode an answer into a dataclass of `gradmedic.protocol`; fields it does not have are ignored.

    Raises:
        msgspec.MsgspecError: the body is not JSON, or not of that type.
    """
    plain = msgspec.json.decode(body)
    if "findings" in getattr(type_, "__dataclass_fields__", ()):  # a diagnosis, perhaps of an older service
        plain = plain | {"findings": [_with_verdict(finding) for finding in plain.get("findings", [])]}
    return msgspec.convert(plain, type_, strict=False)  # lax: "NaN" is a float


def to_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to float32, in which a finite value stays finite and a nonzero one nonzero.

    >>> to_float32(np.array([1e300, 1e-300, float("inf")]))
    array([3.4028235e+38, 1.4012985e-45,           inf], dtype=float32)
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        overflown = np.isinf(narrow) & np.isfinite(values)
        narrow[overflown] = np.copysign(_FLOAT32.max, values[overflown]).astype(np.float32)
    if np.count_nonzero(narrow) != np.count_nonzero(values):
        vanished = (narrow == 0) & (values != 0)
        narrow[vanished] = np.copysign(_FLOAT32.smallest_subnormal, values[vanished]).astype(np.float32)
    return narrow


def _name_nonfinite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _with_verdict(finding: dict[str, Any]) -> dict[str, Any]:
    """Return a finding with its `verdict`, which services of version 0.1 answer as `class`."""
    return finding if "verdict" in finding or "class" not in finding else finding | {"verdict": finding["class"]}
