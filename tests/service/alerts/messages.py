"""Messages and addresses for the tests of senders."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from gradmedic_service.alerts.addresses import Address
from gradmedic_service.alerts.messages import Message
from gradmedic_service.alerts.webhooks import new_signing_secret

RUN_ID = UUID("0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50")


def message(**fields: Any) -> Message:
    """Return the message that a run is exploding."""
    values: dict[str, Any] = {
        "id": UUID("0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f60"),
        "trouble": "critical",
        "title": "lstm-3 is exploding",
        "sentence": "Gradients grow 1.9x per step since step 371, first in rnn.weight_hh_l0.",
        "advice": "clip_grad_norm(max_norm=1.0)",
        "url": f"https://gradmedic.example.com/runs/{RUN_ID}",
        "project": "char-lm",
        "run_ids": [RUN_ID],
        "created_at": datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC),
        "is_test": False,
    }
    return Message(**{**values, **fields})


def webhook(url: str) -> Address:
    """Return the address of a webhook with a signing secret."""
    parts = {"url": url, "signing_secret": new_signing_secret()}
    return Address(kind="webhook", service="webhook", shown="https://...", parts=parts)
