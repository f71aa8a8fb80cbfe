"""Answers about alerts that were made, and their deliveries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from gradmedic.protocol.paging import Page
from gradmedic.protocol.schema import SCHEMA, OneOf

TROUBLES = ("critical", "attention", "stalled", "failed", "verified", "resolved")
"""What an alert may be about."""

DELIVERY_STATES = ("waiting", "sending", "delivered", "dead", "muted")
"""States of a delivery. `dead`: it was given up. `muted`: its destination was muted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertDelivery:
    """One alert to one destination."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    """Id of the delivery. It is the id of its message too (`webhook-id`)."""
    destination_id: UUID
    """Id of the destination."""
    destination: str
    """Name of the destination."""
    state: Annotated[str, OneOf(*DELIVERY_STATES)]
    """State of the delivery."""
    attempts: int
    """Number of attempts."""
    next_attempt_at: datetime | None
    """Time of the next attempt. Null if there is none."""
    last_error: str | None
    """Reason why the last attempt failed. Null if none failed, and after the delivery."""
    delivered_at: datetime | None
    """Time of the delivery. Null before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One message about a trouble of one or many runs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: UUID
    """Id of the alert, a UUIDv7."""
    project: str
    """Name of the project."""
    trouble: Annotated[str, OneOf(*TROUBLES)]
    """Trouble that the alert is about."""
    title: str
    """One line, for example "lstm-3 is exploding" or "12 of 40 runs of sweep are exploding"."""
    sentence: str
    """The sentence that describes what happened."""
    advice: str | None
    """The first thing to do. Null if there is no advice."""
    path: str
    """Path of the page to open."""
    run_ids: list[UUID]
    """Ids of the runs, at most 20 of them."""
    run_count: int
    """Number of runs that the alert is about."""
    created_at: datetime
    """Time at which the alert was made."""
    deliveries: list[AlertDelivery]
    """Its deliveries, one for each destination that existed when the alert was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertHistory(Page):
    """A page of alerts."""

    items: list[Alert]
