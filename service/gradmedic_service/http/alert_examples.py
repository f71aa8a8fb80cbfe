"""Examples of the answers about alerts, for OpenAPI: the run of `answer_examples` that explodes is alerted."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from gradmedic.protocol.alert_destinations import (
    AlertDestination,
    AlertDestinationCreated,
    AlertDestinationList,
    AlertTestResult,
)
from gradmedic.protocol.alert_history import Alert, AlertDelivery, AlertHistory

DESTINATION_ID = UUID("0199b7e4-3c4d-7158-8377-c8192a3b4c5d")
ALERT_ID = UUID("0199b7f1-4d5e-7269-9488-d92a3b4c5d6e")
DELIVERY_ID = UUID("0199b7f1-4d5f-737a-8599-ea3b4c5d6e7f")


def alert_examples(project: str, run_id: UUID, run_name: str, summary: str, at: datetime) -> dict[str, Any]:
    """Return an example of each answer about alerts, by the id of the operation.

    Args:
        project: name of the project.
        run_id: the run that is alerted.
        run_name: its name.
        summary: the sentence of its diagnosis.
        at: time of the alert.
    """
    destination = AlertDestination(
        id=DESTINATION_ID,
        project=project,
        name="on call",
        kind="webhook",
        address="https://hooks.example.com/...",
        troubles=["critical", "failed"],
        muted_until=None,
        created_at=at - timedelta(days=3),
        last_delivered_at=at + timedelta(seconds=1),
        last_error=None,
    )
    delivery = AlertDelivery(
        id=DELIVERY_ID,
        destination_id=DESTINATION_ID,
        destination=destination.name,
        state="delivered",
        attempts=1,
        next_attempt_at=None,
        last_error=None,
        delivered_at=destination.last_delivered_at,
    )
    alert = Alert(
        id=ALERT_ID,
        project=project,
        trouble="critical",
        title=f"{run_name} is exploding",
        sentence=summary,
        advice="clip_grad_norm(max_norm=1.0)",
        path=f"/runs/{run_id}",
        run_ids=[run_id],
        run_count=1,
        created_at=at,
        deliveries=[delivery],
    )
    values = {field.name: getattr(destination, field.name) for field in fields(destination)}
    return {
        "alert_destinations.create": AlertDestinationCreated(signing_secret="whsec_" + 32 * "A", **values),
        "alert_destinations.list": AlertDestinationList(items=[destination], next_page_token=None),
        "alert_destinations.get": destination,
        "alert_destinations.update": destination,
        "alert_destinations.test": AlertTestResult(is_delivered=False, error="The destination answered 503."),
        "alerts.list": AlertHistory(items=[alert], next_page_token=None),
    }
