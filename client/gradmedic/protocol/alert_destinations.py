"""Requests and answers about alert destinations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.alert_history import TROUBLES
from gradmedic.protocol.paging import Page
from gradmedic.protocol.schema import SCHEMA, OneOf, Text, Time

DESTINATION_KINDS = ("webhook", "chat", "mail")
"""Kinds of destinations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertDestinationCreate:
    """Body of `POST /alerts/destinations`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    project: Text
    """Name of the project whose alerts go there."""
    address: Text
    """`https://...` for a webhook, `mailto:...`, or the address of a chat service, such as `slack://...`. No answer
    shows it again as a whole."""
    name: Text | None = None
    """Name for people. By default, the address without its secrets."""
    troubles: list[Annotated[Text, OneOf(*TROUBLES)]] | None = None
    """The troubles that go there. Null: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertDestinationUpdate:
    """Body of `PATCH /alerts/destinations/{id}`. A field that is null or missing stays as it is."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: Text | None = None
    """Name for people."""
    troubles: list[Annotated[Text, OneOf(*TROUBLES)]] | None = None
    """The troubles that go there."""
    muted_until: Time | None = None
    """Time until which nothing goes there, at most a year from now. A time that has passed ends the mute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertDestination:
    """A place to which the alerts of a project go."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    """Id of the destination."""
    project: str
    """Name of the project whose alerts go there."""
    name: str
    """Name for people."""
    kind: Annotated[str, OneOf(*DESTINATION_KINDS)]
    """Kind of the destination."""
    address: str
    """The address without its secrets."""
    troubles: list[str] | None
    """The troubles that go there. Null: all."""
    muted_until: datetime | None
    """Time until which nothing goes there. Null: it was never muted."""
    created_at: datetime
    """Time at which the destination was added."""
    last_delivered_at: datetime | None
    """Time of the last delivery. Null before the first one."""
    last_error: str | None
    """Reason why the last attempt failed. Null if it succeeded, and before the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertDestinationCreated(AlertDestination):
    """Answer to `POST /alerts/destinations`. It is the only answer that shows the signing secret."""

    signing_secret: str | None
    """Secret with which a webhook verifies that a message is from this service. Null for other kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertDestinationList(Page):
    """A page of destinations, oldest first."""

    items: list[AlertDestination]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertTestResult:
    """Answer to `POST /alerts/destinations/{id}/test`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    is_delivered: bool
    """True if the destination accepted the test message."""
    error: str | None
    """Reason why it did not. Null if it did."""
