"""The alerts that were made, with the states of their deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from gradmedic.protocol.alert_history import Alert, AlertDelivery, AlertHistory
from gradmedic_service.access.principal import Principal
from gradmedic_service.alerts import repository
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.http.paging import cut_page, position_id, position_of


def list_page(
    session: Session,
    principal: Principal,
    *,
    project: str | None,
    run_id: UUID | None,
    trouble: str | None,
    page_token: str | None,
    max_results: int,
) -> AlertHistory:
    """Return a page of alerts, the newest first; none for a key of one run, because an alert may name other runs.

    Args:
        session: a session.
        principal: the sender of the request.
        project: the only project; None for all that the principal reaches.
        run_id: the only run; None for all.
        trouble: the only trouble; None for all.
        page_token: token of the page.
        max_results: the largest number of alerts on the page.

    Raises InvalidRequest for a token of another list.
    """
    query = f"alerts of {project!r}, {run_id} and {trouble}"
    after = None if page_token is None else position_id(position_of(page_token, query, 1)[0])
    reached = project if principal.project is None else principal.project
    if principal.run_id is not None or project not in (None, reached):
        return AlertHistory(items=[], next_page_token=None)
    rows = repository.list_alerts(session, reached, run_id=run_id, trouble=trouble, after=after, size=max_results + 1)
    page, token = cut_page(rows, max_results, query, lambda alert: [str(alert.id)])
    deliveries = repository.read_deliveries(session, [alert.id for alert in page])
    return AlertHistory(items=[_to_alert(alert, deliveries.get(alert.id, ())) for alert in page], next_page_token=token)


def _to_alert(alert: models.Alert, deliveries: Sequence[tuple[models.AlertDelivery, models.AlertDestination]]) -> Alert:
    return Alert(
        id=alert.id,
        project=alert.project,
        trouble=alert.trouble,
        title=alert.title,
        sentence=alert.sentence,
        advice=alert.advice,
        path=alert.path,
        run_ids=[UUID(run_id) for run_id in alert.run_ids],
        run_count=alert.run_count,
        created_at=alert.created_at,
        deliveries=[_to_delivery(delivery, destination) for delivery, destination in deliveries],
    )


def _to_delivery(delivery: models.AlertDelivery, destination: models.AlertDestination) -> AlertDelivery:
    is_open = delivery.state in ("waiting", "sending")
    return AlertDelivery(
        id=delivery.id,
        destination_id=destination.id,
        destination=destination.name,
        state=delivery.state,
        attempts=delivery.attempts,
        next_attempt_at=delivery.next_attempt_at if is_open else None,
        last_error=delivery.last_error,
        delivered_at=delivery.delivered_at,
    )
