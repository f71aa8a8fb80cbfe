"""The tables of alerts: what happened to runs, one message per trouble, where messages go, and their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from gradmedic_service.database.base import NAME_LENGTH, Base


class AlertDestination(Base):
    """A place to which a project's alerts go: a webhook, a chat or a mail address."""

    __tablename__ = "alert_destinations"
    __table_args__ = (Index(None, "project", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(String(NAME_LENGTH))
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    kind: Mapped[str] = mapped_column(String(16))
    """`webhook`, `chat` or `mail`."""
    shown: Mapped[str] = mapped_column(Text)
    """The address without its secrets."""
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    """The encrypted address, and the secret that signs its messages."""
    troubles: Mapped[list[Any] | None]
    """The troubles that go there; null for all."""
    muted_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(NAME_LENGTH))
    last_error: Mapped[str | None] = mapped_column(Text)
    """Why the last attempt failed; null after a delivery."""
    last_delivered_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(Integer, server_default="0")
    """Number of attempts that failed since the last delivery."""
    paused_until: Mapped[datetime | None]
    """Time of the next attempt after a failure. Until then, none of its deliveries is tried."""


class AlertEvent(Base):
    """Something that happened to a run and may become an alert. The transaction that changes the run writes it."""

    __tablename__ = "alert_events"
    __table_args__ = (
        Index(None, "run_id"),
        Index(
            "ix_alert_events_waiting",
            "due_at",
            postgresql_where=text("handled_at IS NULL"),
            sqlite_where=text("handled_at IS NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(String(NAME_LENGTH))
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    revision: Mapped[int] = mapped_column(BigInteger)
    """Revision of the run after the change. It orders the events of a run, whatever the clocks of replicas show."""
    subject: Mapped[str] = mapped_column(String(16))
    """What has changed: the `level` or the `status` of the run, or its `rerun`."""
    trouble: Mapped[str] = mapped_column(String(16))
    rerun_id: Mapped[UUID | None]
    details: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]
    """Time from which on the event may become an alert."""
    handled_at: Mapped[datetime | None]
    """Time at which an alert was made of it, or at which it turned out that none is needed; null while it waits."""
    alert_id: Mapped[UUID | None]
    """Its alert. It is no foreign key, because the event shows longer than the alert that its run was alerted."""


class Alert(Base):
    """One message about a trouble of one or many runs."""

    __tablename__ = "alerts"
    __table_args__ = (Index(None, "project", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(String(NAME_LENGTH))
    trouble: Mapped[str] = mapped_column(String(16))
    run_ids: Mapped[list[Any]]
    """Ids of the first runs, at most 20."""
    run_count: Mapped[int]
    title: Mapped[str] = mapped_column(Text)
    sentence: Mapped[str] = mapped_column(Text)
    advice: Mapped[str | None] = mapped_column(Text)
    path: Mapped[str] = mapped_column(Text)
    """Path of the page to which the message links."""
    created_at: Mapped[datetime]


class AlertDelivery(Base):
    """One alert to one destination."""

    __tablename__ = "alert_deliveries"
    __table_args__ = (Index(None, "alert_id"), Index(None, "destination_id"), Index(None, "state", "next_attempt_at"))

    id: Mapped[UUID] = mapped_column(primary_key=True)
    """It is the id of the message too, so that a receiver recognizes a repeated one."""
    alert_id: Mapped[UUID] = mapped_column(ForeignKey("alerts.id", ondelete="CASCADE"))
    destination_id: Mapped[UUID] = mapped_column(ForeignKey("alert_destinations.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(String(16))
    """`waiting`, `sending`, `delivered`, `dead` or `muted`."""
    attempts: Mapped[int]
    next_attempt_at: Mapped[datetime]
    lease_expires_at: Mapped[datetime | None]
    """Time after which another process may try again, while the state is `sending`."""
    last_error: Mapped[str | None] = mapped_column(Text)
    delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
