"""Requests and answers about API keys, sessions and the audit log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.schema import SCHEMA, OneOf

SCOPES = ("ingest", "read", "rerun", "worker", "admin")
"""What an API key may do; `admin` includes the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyCreate:
    """Body of `POST /api-keys`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    scopes: list[Annotated[str, OneOf(*SCOPES)]]
    """What the key may do; `admin` includes the others."""
    project: str | None = None
    """The project whose objects it reaches; null reaches every project."""
    name: str | None = None
    """Who or what uses it: a job, a person, a worker."""
    run_id: UUID | None = None
    """The only run that it reaches, of `project`; with the scopes `ingest` and `read` alone."""
    expires_at: datetime | None = None
    """When it stops being accepted; null for never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key, without its secret."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    name: str
    prefix: str
    """How the secret begins, so that its owner recognizes it."""
    project: str | None
    run_id: UUID | None
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To within a minute or so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyCreated(ApiKey):
    """Answer to `POST /api-keys`: the only time that the secret is shown."""

    secret: str
    """Send it as `Authorization: Bearer <secret>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSession:
    """Who asks, and what they may do."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    """Of the key."""
    key_id: UUID | None
    """Null at the service's own machine, where no key is needed."""
    project: str | None
    """The only one that it reaches; null reaches every project."""
    run_id: UUID | None
    scopes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyList:
    """A page of API keys, newest first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[ApiKey]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """Who did what, when."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    at: datetime
    actor: str
    """Name of the key, `loopback` where no key was needed, or `command line`."""
    actor_key_id: UUID | None
    action: str
    """`create_run`, `delete_run`, `create_rerun`, `create_api_key`, `revoke_api_key`, ..."""
    project: str | None
    object_id: UUID
    """Of the run, the rerun, the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecordList:
    """A page of audit records, newest first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[AuditRecord]
    next_page_token: str | None
    """Opaque; pass it as `page_token` to read on. Null on the last page."""
