"""Bad fields as the `errors: [{path, message}]` of a problem: pydantic's, which stop early, and values within JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic_core import SchemaValidator, ValidationError

from gradmedic.protocol.names import text_error
from gradmedic.protocol.schema import scalar_error
from gradmedic.protocol.service import FieldError
from gradmedic_service.http.errors import MAX_PATH_LENGTH, field_path

MESSAGES = {
    "unexpected_keyword_argument": "there is no such field",
    "extra_forbidden": "there is no such field",
    "missing": "is required",
    "missing_argument": "is required",
    "dataclass_type": "must be an object",
    "list_type": "must be a list",
    "string_pattern_mismatch": "must not contain the NUL character",
    "string_unicode": "is not valid Unicode",
}
"""Our messages, by pydantic's type of error. For other types pydantic's own message is used."""
BUILT_WHEN_USED: ConfigDict = {"defer_build": True}
"""The configuration of an adapter that is built for its first value, so that the service starts sooner."""
KEY_OF_MAPPING = "[key]"
"""The last part of pydantic's location of a key."""


def stopping_validator(adapter: TypeAdapter[Any]) -> SchemaValidator:
    """Return a validator that stops in each list at the first wrong item: pydantic itself would report every one."""
    adapter.rebuild()  # does nothing where it is built already
    return SchemaValidator(_stopping(adapter.core_schema))


def errors_of(error: ValidationError, prefix: Sequence[str | int] = ()) -> list[FieldError]:
    """Return one `FieldError` for each of pydantic's errors. `prefix` is the place of the value within the body."""
    errors = error.errors(include_url=False, include_input=False)
    return [to_field_error(entry, (*prefix, *entry["loc"])) for entry in errors]


def to_field_error(error: Mapping[str, Any], location: Sequence[str | int]) -> FieldError:
    """Return one of pydantic's errors as the error of a field. A name may have any form, so long paths are cut."""
    parts = location[:-1] if location and location[-1] == KEY_OF_MAPPING else location
    path = _storable(field_path(parts)[:MAX_PATH_LENGTH]) or "body"
    return FieldError(path=path, message=_message(error))


def json_errors(path: str, value: Any) -> Iterator[FieldError]:
    r"""Yield an error for each text and each integer within a JSON value that no database can store.

    >>> [error.path for error in json_errors("config", {"lr": [1, 10**400], "\0": 2})]
    ['config.lr[1]', 'config.\x00']
    """
    message = scalar_error(value)
    if message is not None:
        yield FieldError(path=path[:MAX_PATH_LENGTH], message=message)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from json_errors(f"{path}[{index}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            item_path = f"{path}.{_storable(key[:MAX_PATH_LENGTH])}"
            if (message := text_error(key)) is not None:
                yield FieldError(path=item_path[:MAX_PATH_LENGTH], message=message)
            yield from json_errors(item_path, item)


def _storable(text: str) -> str:
    """Return a text with a question mark in place of each lone surrogate, so that an answer can contain it."""
    return text.encode(errors="replace").decode()


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message: str = error["msg"]
    return MESSAGES.get(error["type"], message[:1].lower() + message[1:])


def _stopping(schema: Any) -> Any:
    """Return a core schema of pydantic in which each list stops at its first error."""
    if isinstance(schema, dict):
        copied = {key: _stopping(value) for key, value in schema.items()}
        return copied | {"fail_fast": True} if copied.get("type") == "list" else copied
    return [_stopping(value) for value in schema] if isinstance(schema, list) else schema
