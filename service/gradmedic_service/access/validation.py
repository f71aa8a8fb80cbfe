"""The rules for a new API key that its schema does not express."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from gradmedic.protocol.access import SCOPES, ApiKeyCreate
from gradmedic.protocol.names import name_error
from gradmedic.protocol.service import FieldError, Limits
from gradmedic_service.http.errors import InvalidRequest

RUN_SCOPES = ("ingest", "read")
"""Scopes that a key of one run may have; the others concern whole projects."""


def check_new_key(key: ApiKeyCreate, limits: Limits) -> None:
    """Raise InvalidRequest with every invalid field of a new key."""
    errors = [*_name_errors(key, limits), *_scope_errors(key)]
    if key.run_id is not None and key.project is None:
        errors.append(FieldError(path="run_id", message="needs the project of the run"))
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        errors.append(FieldError(path="expires_at", message="must be in the future"))
    if errors:
        raise InvalidRequest(errors)


def _name_errors(key: ApiKeyCreate, limits: Limits) -> Iterator[FieldError]:
    for path in ("name", "project"):
        name = getattr(key, path)
        if name is not None and (message := name_error(name, limits.max_name_length)) is not None:
            yield FieldError(path=path, message=message)


def _scope_errors(key: ApiKeyCreate) -> Iterator[FieldError]:
    if not key.scopes:
        yield FieldError(path="scopes", message=f"names none of {', '.join(SCOPES)}")
    for index, scope in enumerate(key.scopes):
        path = f"scopes[{index}]"
        if scope not in SCOPES:
            yield FieldError(path=path, message=f"{scope!r} is not one of {', '.join(SCOPES)}")
            return
        if scope in key.scopes[:index]:
            yield FieldError(path=path, message=f"repeats {scope!r}")
            return
        if key.run_id is not None and scope not in RUN_SCOPES:
            yield FieldError(path=path, message=f"a key of one run has {' or '.join(RUN_SCOPES)} alone")
            return
