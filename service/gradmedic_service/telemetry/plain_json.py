"""Blocks of JSON whose statistics are plain numbers and nulls, as nearly every block is: they are read faster.

msgspec reads the statistics, which are nearly all of a block. Pydantic reads the few other fields, as in every block. A
block that is not read here, because it has a non-finite number by name or a mistake, is read by pydantic as a whole. So
every error comes from there.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec
from pydantic_core import SchemaValidator, ValidationError

from gradmedic.protocol.statistics import STATISTICS
from gradmedic.protocol.steps import StepsAppend

Rows = list[list[float | None]]
"""A statistic as `[sampled step][layer]`; the rows may differ in length."""

_OTHER_NAMES = tuple(field.name for field in fields(StepsAppend) if field.name != "statistics")
_BODY = msgspec.json.Decoder(
    msgspec.defstruct(
        "Body",
        [
            *((name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in _OTHER_NAMES),
            ("statistics", dict[str, Rows], msgspec.field(default_factory=dict)),
        ],
        forbid_unknown_fields=True,
    )
)


def read_plain(body: bytes, validator: SchemaValidator) -> tuple[StepsAppend, dict[str, Rows]] | None:
    """Return the fields of a block without the statistics, and the statistics; None if the block is not plain.

    Args:
        body: the JSON.
        validator: pydantic's validator of `StepsAppend`.
    """
    try:
        found: Any = _BODY.decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    statistics: dict[str, Rows] = found.statistics
    if any(name not in STATISTICS for name in statistics):
        return None
    others = (b'"%b":%b' % (name.encode(), bytes(raw)) for name, raw in _raw_fields(found))
    try:
        append: StepsAppend = validator.validate_json(b"{%b}" % b",".join(others))
    except ValidationError:
        return None
    return append, statistics


def _raw_fields(found: Any) -> list[tuple[str, msgspec.Raw]]:
    """Return the names and the JSON of the other fields that a block has."""
    values = ((name, getattr(found, name)) for name in _OTHER_NAMES)
    return [(name, raw) for name, raw in values if raw is not msgspec.UNSET]
