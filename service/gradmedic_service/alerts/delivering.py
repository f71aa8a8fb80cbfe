"""Delivering alerts: sends due deliveries, one at a time, outside of any transaction.

A short transaction claims a delivery for a lease, then the message is sent, then a second transaction stores the result
if the delivery is still at the same attempt. If the process ends in between, the lease ends too, and any process sends
the message again, with the same id. So nothing is lost, and a receiver can recognize a message that it has already.

After a failure the whole destination pauses, so that one that is down costs an attempt per pause, not one per message.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from threading import Event
from typing import Protocol
from uuid import UUID

import structlog

from gradmedic_service.alerts import repository
from gradmedic_service.alerts.addresses import Address
from gradmedic_service.alerts.messages import DeliveryFailed, Message
from gradmedic_service.alerts.repository import ClaimedDelivery
from gradmedic_service.database.clock import database_time
from gradmedic_service.database.engine import Database, Session
from gradmedic_service.http.metrics import Metrics

LEASE_SECONDS = 60.0
"""Seconds after which another process may try a delivery again. An attempt takes 20 seconds at most."""
FIRST_PAUSE_SECONDS = 10.0
"""Pause of a destination after a failure; each further failure doubles it."""
MAX_PAUSE_SECONDS = 3600.0
"""Longest pause that the service chooses. A destination may ask for a longer one."""
JITTER = 0.25
"""Share by which a pause is longer or shorter, so that replicas do not knock at the same moment."""
GIVE_UP_SECONDS = 86_400.0
"""Seconds after which a delivery is given up: an outage over night is survived, and older news helps nobody."""

_logger = structlog.get_logger("gradmedic.alerts")


class MessageSender(Protocol):
    """Sends messages; see `alerts.sending.Sender`."""

    link_base: str
    """The URL in front of the path of a page."""

    def open(self, sealed: bytes) -> Address:
        """Return the address of a stored destination. Raises DeliveryFailed."""

    def send(self, address: Address, message: Message) -> None:
        """Send a message once. Raises DeliveryFailed."""


def deliver_due(database: Database, sender: MessageSender, metrics: Metrics, is_ending: Event | None = None) -> int:
    """Send the deliveries that are due until none is left, and return the number of attempts.

    Args:
        database: the database of the service.
        sender: sends the messages.
        metrics: count the attempts by their results.
        is_ending: once set, no further attempt is begun.
    """
    attempts = 0
    while is_ending is None or not is_ending.is_set():
        claimed = _claim(database)
        if claimed is None:
            break
        failure = _send(sender, claimed)
        with database.writing() as session:
            state = _store(session, claimed, failure)
        if state is not None:
            metrics.count_alert_delivery("failed" if state == "waiting" else state)
        attempts += 1
    return attempts


def pause_after(failures: int, retry_after: float | None, chance: float) -> float:
    """Return the seconds for which a destination pauses after a failure.

    Args:
        failures: number of failures in a row, this one included.
        retry_after: seconds that the destination asked for.
        chance: a random number from 0 to 1.

    >>> [pause_after(failures, None, 0.5) for failures in (1, 2, 3, 20)]
    [10.0, 20.0, 40.0, 3600.0]
    >>> pause_after(1, 120.0, 0.5), pause_after(1, 1e9, 0.5)
    (120.0, 86400.0)
    """
    doubled = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 20))
    pause = doubled * (1 + JITTER * (2 * chance - 1))
    return max(pause, min(retry_after or 0.0, GIVE_UP_SECONDS))


def _claim(database: Database) -> ClaimedDelivery | None:
    """Begin an attempt at a due delivery. While none is due, this only reads."""
    with database.reading() as session:
        if not repository.has_due_delivery(session, database_time(session)):
            return None
    with database.writing() as session:
        now = database_time(session)
        return repository.claim_delivery(session, now, now + timedelta(seconds=LEASE_SECONDS))


def _send(sender: MessageSender, claimed: ClaimedDelivery) -> DeliveryFailed | None:
    """Send a message, and return why it was not delivered; None if it was."""
    alert = claimed.alert
    message = Message(
        id=claimed.delivery.id,
        trouble=alert.trouble,
        title=alert.title,
        sentence=alert.sentence,
        advice=alert.advice,
        url=sender.link_base + alert.path,
        project=alert.project,
        run_ids=[UUID(run_id) for run_id in alert.run_ids],
        created_at=alert.created_at,
        is_test=False,
    )
    try:
        sender.send(sender.open(claimed.destination.secret), message)
    except DeliveryFailed as failure:
        return failure
    except Exception as error:  # a bug in one sender must not stop the others; the text may contain a secret
        _logger.exception("an alert was not sent", delivery_id=str(message.id), kind=claimed.destination.kind)
        return DeliveryFailed(f"The service failed to send it ({type(error).__name__}).")
    return None


def _store(session: Session, claimed: ClaimedDelivery, failure: DeliveryFailed | None) -> str | None:
    """Store the result of an attempt, and return the new state; None if another process has the delivery now."""
    destination = repository.find_destination(session, claimed.destination.id, is_locked=True)
    delivery = repository.lock_attempt(session, claimed.delivery.id, claimed.delivery.attempts)
    if destination is None or delivery is None:
        return None
    now = database_time(session)
    delivery.lease_expires_at = None
    if failure is None:
        delivery.state, delivery.delivered_at, delivery.last_error = "delivered", now, None
        destination.last_delivered_at, destination.last_error = now, None
        destination.failures, destination.paused_until = 0, None
        return delivery.state
    delivery.last_error = destination.last_error = failure.reason
    delivery.state = "dead"
    if not failure.is_permanent:
        destination.failures += 1
        pause = pause_after(destination.failures, failure.retry_after, random.random())
        destination.paused_until = delivery.next_attempt_at = now + timedelta(seconds=pause)
        if not _is_given_up(delivery.created_at, delivery.next_attempt_at):
            delivery.state = "waiting"
    _logger.warning(
        "an alert was not delivered", delivery_id=str(delivery.id), state=delivery.state, reason=failure.reason
    )
    return delivery.state


def _is_given_up(created_at: datetime, next_attempt_at: datetime) -> bool:
    return next_attempt_at > created_at + timedelta(seconds=GIVE_UP_SECONDS)
