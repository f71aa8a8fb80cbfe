"""The msgpack body of `POST /runs/{id}/steps`, field by field.

A byte of msgpack may stand for a list of 80 bytes in memory. So a body is first cut into its fields, and each field is
decoded only if its bytes, or its announced number of entries, are few enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec

from gradmedic.protocol.steps import StepsAppend
from gradmedic_service.http.errors import MAX_PATH_LENGTH, InvalidRequest, MalformedBody, field_path
from gradmedic_service.http.validation import MESSAGES

ITEM_BYTES = 10
"""Bytes of the longest item of a list, the name `-Infinity`; a number has nine at most."""
HEADER_BYTES = 5
"""Bytes in front of a list that announce its length."""
NIL = b"\xc0"
MOST_ACTION_BYTES = 2**20
"""Bytes of the guard actions of a block: a thousand of usual length take a quarter of it."""
BYTES_MARKERS = (0xC4, 0xC5, 0xC6)
"""First bytes of the three forms of bytes."""
SHORT_MAP, MAP_16, MAP_32 = 0x80, 0xDE, 0xDF
"""First bytes of the three forms of maps; the lower half of the first one is the number of entries."""
UNKNOWN_FIELD = "Object contains unknown field `"
"""Beginning of msgspec's message. The name and a backtick follow."""

Raw = msgspec.Raw
Scalar = int | float | bool | str | None

_NAMES = (*(field.name for field in fields(StepsAppend)), "present")
_FIELDS = msgspec.msgpack.Decoder(
    msgspec.defstruct(
        "Fields",
        [(name, Raw | msgspec.UnsetType, msgspec.UNSET) for name in _NAMES],
        forbid_unknown_fields=True,
    )
)
_LIST = msgspec.msgpack.Decoder(list[Scalar])
_ENTRIES = msgspec.msgpack.Decoder(dict[str | int, Raw])
_ACTIONS = msgspec.msgpack.Decoder(list[dict[str, Scalar | dict[str, Scalar]]] | None)
_BYTES = msgspec.msgpack.Decoder(bytes)


def split_fields(body: bytes) -> dict[str, Raw]:
    """Return the fields of a body by name. Raises MalformedBody, InvalidRequest for an unknown field."""
    try:
        found = _FIELDS.decode(body)
    except msgspec.ValidationError as error:
        _, is_unknown, name = str(error).partition(UNKNOWN_FIELD)
        if not is_unknown:
            raise MalformedBody("The body is not a msgpack map with names as keys.") from None
        raise InvalidRequest.at(name[:MAX_PATH_LENGTH].removesuffix("`"), MESSAGES["extra_forbidden"]) from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _malformed(error) from None
    return {name: raw for name in _NAMES if (raw := getattr(found, name)) is not msgspec.UNSET}


def split_map(raw: Raw | None, path: str, expected: str, max_entries: int) -> Mapping[str, Raw]:
    """Return the entries of a map by name. Raises MalformedBody, and InvalidRequest for another type or more entries.

    Args:
        raw: the map, None if the body has none.
        path: name of the field.
        expected: what the field must be.
        max_entries: largest number of entries.
    """
    if raw is None:
        return {}
    count = _count_entries(bytes(memoryview(raw)[:HEADER_BYTES]))
    if count is None:
        raise InvalidRequest.at(path, f"must be {expected}")
    if count > max_entries:
        raise InvalidRequest.at(path, f"has {count} {path}; at most {max_entries} are allowed")
    try:
        entries = _ENTRIES.decode(raw)
    except msgspec.ValidationError:
        raise InvalidRequest.at(path, f"must be {expected}") from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _malformed(error) from None
    named: dict[str, Raw] = {}
    for name, entry in entries.items():
        if not isinstance(name, str):
            raise InvalidRequest.at(field_path([path, name]), "must be a string")
        named[name] = entry
    return named


def decode_list(raw: Raw, path: str, max_items: int) -> Any:
    """Return a field that should be a list of numbers or flags, or one of them. Its validation follows.

    Raises MalformedBody, and InvalidRequest for more bytes than so many items may have.
    """
    if len(memoryview(raw)) > HEADER_BYTES + ITEM_BYTES * max_items:
        raise InvalidRequest.at(path, f"is too long: at most {max_items} steps are allowed")
    try:
        return _LIST.decode(raw)
    except msgspec.ValidationError:
        pass
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _malformed(error) from None
    try:
        return msgspec.msgpack.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _malformed(error) from None


def decode_actions(raw: Raw) -> Any:
    """Return the field `guard_actions`, which should be a list of maps. Its validation follows.

    Raises MalformedBody, and InvalidRequest for more bytes than actions may have, or for values that are nested deeper.
    """
    if len(memoryview(raw)) > MOST_ACTION_BYTES:
        raise InvalidRequest.at("guard_actions", f"has more than {MOST_ACTION_BYTES} bytes")
    try:
        return _ACTIONS.decode(raw)
    except msgspec.ValidationError:
        raise InvalidRequest.at("guard_actions", "must be a list of guard actions, whose `numbers` is a map") from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _malformed(error) from None


def decode_bytes(raw: Raw) -> bytes | None:
    """Return a field that is bytes; None if it is of another type."""
    return _BYTES.decode(raw) if memoryview(raw)[0] in BYTES_MARKERS else None


def is_null(raw: Raw | None) -> bool:
    """Whether a field is null or missing."""
    return raw is None or memoryview(raw) == NIL


def _count_entries(header: bytes) -> int | None:
    """Return the number of entries that a map announces in its first bytes; None if it is no map."""
    if header[0] & 0xF0 == SHORT_MAP:
        return header[0] & 0x0F
    length = {MAP_16: 2, MAP_32: 4}.get(header[0])
    return None if length is None else int.from_bytes(header[1 : 1 + length], "big")


def _malformed(error: Exception) -> MalformedBody:
    return MalformedBody(f"The body is not msgpack: {error}.")
