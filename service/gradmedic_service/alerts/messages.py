"""The message that goes to a destination, and the failure to deliver it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from uuid import UUID

GOOD_NEWS = frozenset(("verified", "resolved"))
"""Troubles that need no action."""

WORTH_RETRYING = frozenset((HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS))
"""Statuses from 400 to 499 after which another attempt may succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One alert for one destination. A repeated attempt sends the same message with the same id."""

    id: UUID
    """Id of the delivery."""
    trouble: str
    """One of `gradmedic.protocol.alert_history.TROUBLES`."""
    title: str
    """One line, for example "lstm-3 is exploding"."""
    sentence: str
    """What happened, in one sentence."""
    advice: str | None
    """What to do first; None if there is no advice."""
    url: str
    """The page to open."""
    project: str
    run_ids: Sequence[UUID]
    """The runs, at most 20 of them."""
    created_at: datetime
    is_test: bool
    """Whether a person asked for the message to test a destination."""


class DeliveryFailed(Exception):
    """A message was not delivered.

    Args:
        reason: one sentence for people, without secrets.
        is_permanent: whether another attempt would fail too.
        retry_after: seconds that the destination asked to wait before the next attempt; None if it asked for nothing.
    """

    def __init__(self, reason: str, *, is_permanent: bool = False, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_permanent = is_permanent
        self.retry_after = retry_after


def is_permanent(status: int) -> bool:
    """Whether a status of HTTP shows that another attempt would fail too.

    >>> [is_permanent(status) for status in (302, 404, 410, 429, 500)]
    [False, True, True, False, False]
    """
    return HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in WORTH_RETRYING


def text_of(message: Message) -> str:
    """Return a message as plain text, without its title."""
    lines = [message.sentence]
    if message.advice is not None:
        lines.append(f"First advice: {message.advice}")
    lines.append(message.url)
    return "\n\n".join(lines)
