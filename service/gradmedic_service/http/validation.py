"""The translation of pydantic's errors into the `errors: [{path, message}]` of a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def field_errors(errors: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """Return one `FieldError` for each of pydantic's errors."""
    return [FieldError(path=_path(error["loc"]), message=_message(error)) for error in errors]


def _path(location: Sequence[str | int]) -> str:
    """Return the path without `body` or `query` in front. A name in it may have any form, so long paths are cut."""
    parts = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    return field_path(parts)[:MAX_PATH_LENGTH].encode(errors="replace").decode() or "body"


def _message(error: Mapping[str, Any]) -> str:
    message: str = error["msg"]
    return MESSAGES.get(error["type"], message[:1].lower() + message[1:])
