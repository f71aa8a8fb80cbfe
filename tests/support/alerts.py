"""Alerts whose time the test lets pass, and a sender that keeps what it is to send."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, update

from gradmedic.protocol.ids import new_id
from gradmedic_service.alerts.addresses import Address
from gradmedic_service.alerts.messages import DeliveryFailed, Message
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Alert, AlertDelivery, AlertDestination, AlertEvent, Project

_TIMES: dict[Any, tuple[str, ...]] = {
    Project: ("alerts_muted_until",),
    AlertDestination: ("muted_until", "paused_until", "last_delivered_at", "created_at"),
    AlertEvent: ("created_at", "due_at", "handled_at"),
    Alert: ("created_at",),
    AlertDelivery: ("created_at", "next_attempt_at", "lease_expires_at", "delivered_at"),
}


class KeptMessages:
    """A sender that keeps the messages, and fails where the test wants it.

    Args:
        fail: returns why a message is not delivered; None if it is.
    """

    link_base = "https://gradmedic.example.com"

    def __init__(self, fail: Callable[[Message], DeliveryFailed | None] = lambda _: None) -> None:
        self.fail = fail
        self.sent: list[tuple[Address, Message]] = []
        self._lock = threading.Lock()

    @property
    def titles(self) -> list[str]:
        """The titles of the messages."""
        return [message.title for _, message in self.sent]

    def open(self, sealed: bytes) -> Address:
        """Return the address of a destination that `add_destination` has stored."""
        return Address(kind="webhook", service="webhook", shown=sealed.decode(), parts={"url": sealed.decode()})

    def send(self, address: Address, message: Message) -> None:
        """Keep a message, or fail."""
        with self._lock:
            self.sent.append((address, message))
        failure = self.fail(message)
        if failure is not None:
            raise failure


def add_destination(database: Database, project: str = "tests", name: str = "hook", **fields: Any) -> UUID:
    """Store a destination, and return its id."""
    destination = AlertDestination(
        id=new_id(),
        project=project,
        name=name,
        kind="webhook",
        shown=f"https://{name}.example.com",
        secret=fields.pop("secret", f"https://{name}.example.com".encode()),
        troubles=fields.pop("troubles", None),
        muted_until=fields.pop("muted_until", None),
        created_at=datetime.now(UTC),
        created_by="test",
        last_error=None,
        last_delivered_at=None,
        failures=0,
        paused_until=None,
        **fields,
    )
    with database.writing() as session:
        session.add(destination)
    return destination.id


def add_alerts(database: Database, project: str, count: int) -> None:
    """Store alerts that went nowhere."""
    for number in range(count):
        alert = Alert(
            id=new_id(),
            project=project,
            trouble="critical",
            run_ids=[],
            run_count=1,
            title=f"run {number} is exploding",
            sentence="Gradients grow.",
            advice=None,
            path="/",
            created_at=datetime.now(UTC),
        )
        with database.writing() as session:
            session.add(alert)


def let_time_pass(database: Database, seconds: float) -> None:
    """Let everything that has to do with alerts have happened some seconds earlier."""
    with database.writing() as session:
        for model, names in _TIMES.items():
            for row in session.scalars(select(model)):
                for name in names:
                    moment = getattr(row, name)
                    if moment is not None:
                        setattr(row, name, moment - timedelta(seconds=seconds))


def mute_project(database: Database, project: str, seconds: float) -> None:
    """Let a project make no alerts for some seconds."""
    with database.writing() as session:
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        session.execute(update(Project).where(Project.name == project).values(alerts_muted_until=until))


def read_rows(database: Database, model: Any) -> list[Any]:
    """Return all rows of a table, the oldest first."""
    with database.reading() as session:
        return list(session.scalars(select(model).order_by(model.created_at, model.id)))
