"""The routes of alert destinations and of the history of alerts."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Query, Response, status

from gradmedic.protocol.alert_destinations import (
    AlertDestination,
    AlertDestinationCreate,
    AlertDestinationCreated,
    AlertDestinationList,
    AlertDestinationUpdate,
    AlertTestResult,
)
from gradmedic.protocol.alert_history import TROUBLES, AlertHistory
from gradmedic_service.access.authorization import MayAdminister, MayRead
from gradmedic_service.access.errors import BeyondKey
from gradmedic_service.alerts import destinations, history
from gradmedic_service.alerts.errors import AlertDestinationNotFound, AlertDestinationsFull
from gradmedic_service.alerts.validation import check_new_destination, check_update
from gradmedic_service.http.dependencies import (
    DatabaseDependency,
    LimitsDependency,
    MaxResults,
    PageToken,
    SenderDependency,
    check_max_results,
)
from gradmedic_service.http.errors import BODY_ERRORS, InvalidRequest, documented
from gradmedic_service.http.json_bodies import json_body
from gradmedic_service.http.routers import api_router

router = api_router(prefix="/alerts", tags=["alerts"])

DestinationId = Annotated[
    UUID, Path(description="The id of the destination.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])
]
ProjectFilter = Annotated[str | None, Query(description="The only project of the list.")]
RunFilter = Annotated[UUID | None, Query(description="The only run of the list.")]
TroubleFilter = Annotated[str | None, Query(description=f"The only trouble of the list: {', '.join(TROUBLES)}.")]

CREATE_EXAMPLES: dict[str, Any] = {
    "slack": {
        "summary": "A channel of Slack, by its incoming webhook",
        "value": {"project": "char-lm", "address": "https://hooks.slack.com/services/T000/B000/XXXX", "name": "#ml"},
    },
    "webhook": {
        "summary": "A webhook that gets the critical runs only",
        "value": {"project": "char-lm", "address": "https://hooks.example.com/gradmedic", "troubles": ["critical"]},
    },
    "mail": {"summary": "A mailbox", "value": {"project": "char-lm", "address": "mailto:ml-team@example.com"}},
}
UPDATE_EXAMPLES: dict[str, Any] = {
    "mute": {"summary": "Mute until a time", "value": {"muted_until": "2027-01-04T08:00:00Z"}},
    "unmute": {"summary": "End a mute", "value": {"muted_until": "2026-01-01T00:00:00Z"}},
    "troubles": {"summary": "Choose troubles", "value": {"troubles": ["critical", "failed"]}},
}


@router.post(
    "/destinations",
    operation_id="alert_destinations.create",
    status_code=status.HTTP_201_CREATED,
    response_model=AlertDestinationCreated,
    responses=documented(BeyondKey, AlertDestinationsFull, *BODY_ERRORS),
)
def create_alert_destination(
    principal: MayAdminister,
    body: Annotated[AlertDestinationCreate, json_body(AlertDestinationCreate, CREATE_EXAMPLES)],
    database: DatabaseDependency,
    limits: LimitsDependency,
    sender: SenderDependency,
    response: Response,
) -> AlertDestinationCreated:
    """Add a destination to a project. Only this answer contains the signing secret of a webhook."""
    address = check_new_destination(body, limits, sender)
    principal.check_reach(body.project)
    with database.writing() as session:
        created = destinations.create(
            session,
            principal,
            address,
            project=body.project,
            name=body.name,
            troubles=body.troubles,
            sender=sender,
            max_destinations=limits.max_alert_destinations,
            max_name_length=limits.max_name_length,
        )
    response.headers["Cache-Control"] = "no-store"
    return created


@router.get(
    "/destinations",
    operation_id="alert_destinations.list",
    response_model=AlertDestinationList,
    responses=documented(InvalidRequest),
)
def list_alert_destinations(
    principal: MayRead,
    database: DatabaseDependency,
    limits: LimitsDependency,
    project: ProjectFilter = None,
    max_results: MaxResults = 100,
    page_token: PageToken = None,
) -> AlertDestinationList:
    """List the destinations of one project or of all, oldest first."""
    check_max_results(max_results, limits)
    with database.reading() as session:
        return destinations.list_page(
            session, principal, project=project, page_token=page_token, max_results=max_results
        )


@router.get(
    "/destinations/{destination_id}",
    operation_id="alert_destinations.get",
    response_model=AlertDestination,
    responses=documented(AlertDestinationNotFound, InvalidRequest),
)
def get_alert_destination(
    destination_id: DestinationId, principal: MayRead, database: DatabaseDependency
) -> AlertDestination:
    """Return a destination."""
    with database.reading() as session:
        return destinations.get(session, principal, destination_id)


@router.patch(
    "/destinations/{destination_id}",
    operation_id="alert_destinations.update",
    response_model=AlertDestination,
    responses=documented(AlertDestinationNotFound, *BODY_ERRORS),
)
def update_alert_destination(
    destination_id: DestinationId,
    principal: MayAdminister,
    body: Annotated[AlertDestinationUpdate, json_body(AlertDestinationUpdate, UPDATE_EXAMPLES)],
    database: DatabaseDependency,
    limits: LimitsDependency,
) -> AlertDestination:
    """Change the name or the troubles of a destination, or mute it until a time."""
    check_update(body, limits)
    with database.writing() as session:
        return destinations.update(session, principal, destination_id, body)


@router.delete(
    "/destinations/{destination_id}",
    operation_id="alert_destinations.delete",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=documented(AlertDestinationNotFound, InvalidRequest),
)
def delete_alert_destination(
    destination_id: DestinationId, principal: MayAdminister, database: DatabaseDependency
) -> None:
    """Remove a destination. What waits for it is not sent, and its deliveries leave the history."""
    with database.writing() as session:
        destinations.remove(session, principal, destination_id)


@router.post(
    "/destinations/{destination_id}/test",
    operation_id="alert_destinations.test",
    response_model=AlertTestResult,
    responses=documented(AlertDestinationNotFound, InvalidRequest),
)
def test_alert_destination(
    destination_id: DestinationId,
    principal: MayAdminister,
    database: DatabaseDependency,
    sender: SenderDependency,
) -> AlertTestResult:
    """Send a test message now, also to a muted destination, and return whether it was delivered within 20 seconds."""
    with database.reading() as session:
        test = destinations.prepare_test(session, principal, destination_id, sender.link_base)
    result = destinations.send_test(sender, test)
    with database.writing() as session:
        destinations.store_test(session, destination_id, result)
    return result


@router.get(
    "/history",
    operation_id="alerts.list",
    response_model=AlertHistory,
    responses=documented(InvalidRequest),
)
def list_alerts(
    principal: MayRead,
    database: DatabaseDependency,
    limits: LimitsDependency,
    project: ProjectFilter = None,
    run_id: RunFilter = None,
    trouble: TroubleFilter = None,
    max_results: MaxResults = 100,
    page_token: PageToken = None,
) -> AlertHistory:
    """List the alerts that were made, newest first, with the state of each delivery."""
    if trouble is not None and trouble not in TROUBLES:
        raise InvalidRequest.at("trouble", f"{trouble!r} is not one of {', '.join(TROUBLES)}")
    check_max_results(max_results, limits)
    with database.reading() as session:
        return history.list_page(
            session,
            principal,
            project=project,
            run_id=run_id,
            trouble=trouble,
            page_token=page_token,
            max_results=max_results,
        )
