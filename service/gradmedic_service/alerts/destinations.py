"""Alert destinations: adding, listing, changing, testing and removing them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from uuid import UUID

from gradmedic.protocol.alert_destinations import (
    AlertDestination,
    AlertDestinationCreated,
    AlertDestinationList,
    AlertDestinationUpdate,
    AlertTestResult,
)
from gradmedic.protocol.ids import new_id
from gradmedic_service.access.principal import Principal
from gradmedic_service.access.service import record
from gradmedic_service.alerts import repository
from gradmedic_service.alerts.addresses import Address
from gradmedic_service.alerts.errors import AlertDestinationNotFound, AlertDestinationsFull
from gradmedic_service.alerts.messages import DeliveryFailed, Message
from gradmedic_service.alerts.sending import Sender
from gradmedic_service.alerts.webhooks import new_signing_secret
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.http.paging import cut_page, position_id, position_of
from gradmedic_service.projects import service as projects


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationTest:
    """A test message and where it goes."""

    destination_id: UUID
    sealed: bytes
    """The address as it is stored."""
    message: Message


def create(
    session: Session,
    principal: Principal,
    address: Address,
    *,
    project: str,
    name: str | None,
    troubles: list[str] | None,
    sender: Sender,
    max_destinations: int,
    max_name_length: int,
) -> AlertDestinationCreated:
    """Store a destination of a project, and return it with the signing secret of a webhook.

    Args:
        session: a writing session.
        principal: the sender of the request, which reaches the project.
        address: the address, which was checked.
        project: name of the project; the project is created unless it exists.
        name: name of the destination; by default, the address without its secrets.
        troubles: the troubles that go there; None for all.
        sender: encrypts the address.
        max_destinations: largest number of destinations of a project.
        max_name_length: largest number of characters of a name.

    Raises AlertDestinationsFull.
    """
    now = datetime.now(UTC)
    projects.create_missing(session, project, now)
    projects.lock(session, project)  # so that two requests do not both take the last place
    if len(repository.list_destinations(session, project, size=max_destinations)) == max_destinations:
        raise AlertDestinationsFull(f"The project {project!r} has {max_destinations} alert destinations; remove one.")
    signing_secret = new_signing_secret() if address.kind == "webhook" else None
    if signing_secret is not None:
        address = replace(address, parts={**address.parts, "signing_secret": signing_secret})
    destination = models.AlertDestination(
        id=new_id(),
        project=project,
        name=address.shown[:max_name_length] if name is None else name,
        kind=address.kind,
        shown=address.shown,
        secret=sender.box.seal(address),
        troubles=troubles,
        muted_until=None,
        created_at=now,
        created_by=principal.name,
        last_error=None,
        last_delivered_at=None,
        failures=0,
        paused_until=None,
    )
    repository.add_destination(session, destination)
    record(session, principal, "create_alert_destination", destination.id, project)
    public = _to_destination(destination)
    values = {field.name: getattr(public, field.name) for field in fields(public)}
    return AlertDestinationCreated(signing_secret=signing_secret, **values)


def list_page(
    session: Session, principal: Principal, *, project: str | None, page_token: str | None, max_results: int
) -> AlertDestinationList:
    """Return a page of destinations, of one project or all that the principal reaches; none for a key of one run.

    Raises InvalidRequest for a token of another list.
    """
    query = f"alert destinations of {project!r}"
    after = None if page_token is None else position_id(position_of(page_token, query, 1)[0])
    reached = project if principal.project is None else principal.project
    if principal.run_id is not None or project not in (None, reached):
        return AlertDestinationList(items=[], next_page_token=None)
    rows = repository.list_destinations(session, reached, after=after, size=max_results + 1)
    page, token = cut_page(rows, max_results, query, lambda destination: [str(destination.id)])
    return AlertDestinationList(items=[_to_destination(row) for row in page], next_page_token=token)


def get(session: Session, principal: Principal, destination_id: UUID) -> AlertDestination:
    """Return a destination. Raises AlertDestinationNotFound, also if the principal does not reach its project."""
    return _to_destination(_existing(session, principal, destination_id))


def update(
    session: Session, principal: Principal, destination_id: UUID, body: AlertDestinationUpdate
) -> AlertDestination:
    """Change the fields that the body contains, and return the destination. Raises AlertDestinationNotFound."""
    destination = _existing(session, principal, destination_id, is_locked=True)
    if body.name is not None:
        destination.name = body.name
    if body.troubles is not None:
        destination.troubles = body.troubles
    if body.muted_until is not None:
        destination.muted_until = body.muted_until
    record(session, principal, "update_alert_destination", destination_id, destination.project)
    return _to_destination(destination)


def remove(session: Session, principal: Principal, destination_id: UUID) -> None:
    """Delete a destination with its deliveries. Raises AlertDestinationNotFound."""
    destination = _existing(session, principal, destination_id, is_locked=True)
    record(session, principal, "delete_alert_destination", destination_id, destination.project)
    repository.remove_destination(session, destination_id)


def prepare_test(session: Session, principal: Principal, destination_id: UUID, link_base: str) -> DestinationTest:
    """Return a test message for a destination. Raises AlertDestinationNotFound."""
    destination = _existing(session, principal, destination_id)
    message = Message(
        id=new_id(),
        trouble="attention",
        title=f"Test of the alerts of {destination.project}",
        sentence=f"This message shows that alerts reach {destination.name}. Nothing is wrong.",
        advice=None,
        url=f"{link_base}/",
        project=destination.project,
        run_ids=[],
        created_at=datetime.now(UTC),
        is_test=True,
    )
    return DestinationTest(destination_id=destination.id, sealed=destination.secret, message=message)


def send_test(sender: Sender, test: DestinationTest) -> AlertTestResult:
    """Send a test message. It takes 20 seconds at most, and runs outside of transactions."""
    try:
        sender.send(sender.open(test.sealed), test.message)
    except DeliveryFailed as failure:
        return AlertTestResult(is_delivered=False, error=failure.reason)
    return AlertTestResult(is_delivered=True, error=None)


def store_test(session: Session, destination_id: UUID, result: AlertTestResult) -> None:
    """Store the result of a test, if the destination still exists. A delivery ends the pause of the destination."""
    destination = repository.find_destination(session, destination_id, is_locked=True)
    if destination is None:
        return
    destination.last_error = result.error
    if result.is_delivered:
        destination.last_delivered_at = datetime.now(UTC)
        destination.failures, destination.paused_until = 0, None


def _existing(
    session: Session, principal: Principal, destination_id: UUID, *, is_locked: bool = False
) -> models.AlertDestination:
    destination = repository.find_destination(session, destination_id, is_locked=is_locked)
    if destination is None or not principal.reaches_project(destination.project):
        raise AlertDestinationNotFound(f"There is no alert destination {destination_id}.")
    return destination


def _to_destination(destination: models.AlertDestination) -> AlertDestination:
    return AlertDestination(
        id=destination.id,
        project=destination.project,
        name=destination.name,
        kind=destination.kind,
        address=destination.shown,
        troubles=None if destination.troubles is None else [str(trouble) for trouble in destination.troubles],
        muted_until=destination.muted_until,
        created_at=destination.created_at,
        last_delivered_at=destination.last_delivered_at,
        last_error=destination.last_error,
    )
