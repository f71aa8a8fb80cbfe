"""Validation with pydantic: it stops early, and its errors become the `errors: [{path, message}]` of a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import SchemaValidator, ValidationError

from gradmedic.protocol.service import FieldError
from gradmedic_service.http.errors import MAX_PATH_LENGTH, field_path

MESSAGES = {
    "unexpected_keyword_argument": "there is no such field",
    "extra_forbidden": "there is no such field",
    "missing": "is required",
    "missing_argument": "is required",
    "dataclass_type": "must be an object",
    "list_type": "must be a list",
}
"""Our messages, by pydantic's type of error. For other types pydantic's own message is used."""


def stopping_validator(adapter: TypeAdapter[Any]) -> SchemaValidator:
    """Return a validator that stops in each list at the first wrong item: pydantic itself would report every one."""
    return SchemaValidator(_stopping(adapter.core_schema))


def errors_of(error: ValidationError, prefix: Sequence[str | int] = ()) -> list[FieldError]:
    """Return one `FieldError` for each of pydantic's errors. `prefix` is the place of the value within the body."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    return [to_field_error(entry, (*prefix, *entry["loc"])) for entry in errors]


def to_field_error(error: Mapping[str, Any], location: Sequence[str | int]) -> FieldError:
    """Return one of pydantic's errors as the error of a field. A name may have any form, so long paths are cut."""
    path = field_path(location)[:MAX_PATH_LENGTH].encode(errors="replace").decode() or "body"
    message: str = error["msg"]
    return FieldError(path=path, message=MESSAGES.get(error["type"], message[:1].lower() + message[1:]))


def _stopping(schema: Any) -> Any:
    """Return a core schema of pydantic in which each list stops at its first error."""
    if isinstance(schema, dict):
        copied = {key: _stopping(value) for key, value in schema.items()}
        return copied | {"fail_fast": True} if copied.get("type") == "list" else copied
    return [_stopping(value) for value in schema] if isinstance(schema, list) else schema
