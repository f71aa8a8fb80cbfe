"""Requests and answers about API keys, sessions and the audit log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.paging import Page
from gradmedic.protocol.schema import SCHEMA, OneOf, Text, Time

SCOPES = ("ingest", "read", "rerun", "worker", "admin")
"""What an API key may do. `admin` includes the others."""
SECRET_PREFIX = "gradmedic_"  # noqa: S105 (the beginning of every secret is public)
"""The beginning of all keys and tickets. Logs recognize and hide secrets by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyCreate:
    """Body of `POST /api-keys`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    scopes: list[Annotated[Text, OneOf(*SCOPES)]]
    """The actions that the key allows. `admin` includes the others."""
    project: Text | None = None
    """The only project that the key reaches. Null: the key reaches every project."""
    name: Text | None = None
    """Name of the job, person or worker that uses the key."""
    run_id: UUID | None = None
    """The only run that the key reaches. It belongs to `project`, and the scopes are `ingest` and `read` at most."""
    expires_at: Time | None = None
    """Time after which the service refuses the key. Null: the key never expires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key, without its secret."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    """Id of the key."""
    name: str
    """Name of the job, person or worker that uses the key."""
    prefix: str
    """The first characters of the secret. They help the owner to recognize the key."""
    project: str | None
    """The only project that the key reaches. Null: the key reaches every project."""
    run_id: UUID | None
    """The only run that the key reaches. Null: the key reaches every run of its project."""
    scopes: list[str]
    """The actions that the key allows. `admin` includes the others."""
    created_at: datetime
    """Time at which the key was created."""
    expires_at: datetime | None
    """Time after which the service refuses the key. Null: the key never expires."""
    revoked_at: datetime | None
    """Time at which the key was revoked. Null: the key is not revoked."""
    last_used_at: datetime | None
    """Time of the last use, exact to about a minute. Null: the key was never used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyCreated(ApiKey):
    """Answer to `POST /api-keys`. It is the only answer that shows the secret."""

    secret: str
    """The secret of the key. Send it as `Authorization: Bearer <secret>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSession:
    """The key of a browser's session, and what that key may do."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    """Name of the key."""
    key_id: UUID | None
    """Id of the key. Null: the browser runs on the service's own machine, where no key is needed."""
    project: str | None
    """The only project that the session reaches. Null: the session reaches every project."""
    run_id: UUID | None
    """The only run that the session reaches. Null: the session reaches every run of its project."""
    scopes: list[str]
    """The actions that the session allows. `admin` includes the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyList(Page):
    """A page of API keys, newest first."""

    items: list[ApiKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One action that a person or a program has taken."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    """Id of the record."""
    at: datetime
    """Time of the action."""
    actor: str
    """Name of the key, `loopback` if no key was needed, or `command line`."""
    actor_key_id: UUID | None
    """Id of the key. Null: the action needed no key."""
    action: str
    """The action: `create_run`, `delete_run`, `create_api_key`, `create_alert_destination`, ..."""
    project: str | None
    """The project of the object. Null: the object belongs to no single project."""
    object_id: UUID
    """Id of the run, rerun, key or alert destination that the action concerned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecordList(Page):
    """A page of audit records, newest first."""

    items: list[AuditRecord]
