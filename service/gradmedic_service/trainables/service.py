"""Trainables: offering, withdrawing and listing them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from gradmedic.protocol.names import name_error
from gradmedic.protocol.service import FieldError, Limits
from gradmedic.protocol.trainables import Trainable, TrainableParameter, Trainables, TrainablesOffer
from gradmedic_service.access import repository as keys
from gradmedic_service.access.principal import Principal
from gradmedic_service.database import models
from gradmedic_service.database.clock import database_time
from gradmedic_service.database.engine import Session
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.validation import BUILT_WHEN_USED
from gradmedic_service.trainables import repository
from gradmedic_service.trainables.errors import TrainableTaken
from gradmedic_service.trainables.validation import trainable_errors

OFFER_LIFETIME = timedelta(seconds=60)
"""A trainable counts as offered for so long after an offer. Workers repeat their offers every ten seconds."""

PARAMETERS = TypeAdapter(list[TrainableParameter], config=BUILT_WHEN_USED)


def register(session: Session, principal: Principal, body: TrainablesOffer, limits: Limits) -> Trainables:
    """Store what a worker offers, and withdraw what the same worker offered before and no worker offers now.

    Raises InvalidRequest, and TrainableTaken where a name belongs to another key of the project.
    """
    _check_offer(body, limits)
    at = database_time(session)
    if principal.key_id is not None:
        keys.find(session, principal.key_id, is_locked=True)  # two offers together must not exceed the limit
    names = dict.fromkeys(item.name for item in body.items)
    stored = repository.lock(session, owner_of(principal), principal.project, list(names))
    others = [trainable for name, trainable in stored.items() if name not in names]
    for trainable in _find_displaced(others, len(names) + len(others) - limits.max_trainables, at, limits):
        repository.remove(session, trainable)
        del stored[trainable.name]
    for item in body.items:
        _store(session, principal, item, stored.pop(item.name, None), body.worker, at)
    if body.worker is not None:
        for trainable in stored.values():
            # Another worker of the same name that still has the trainable would have offered it within the lifetime.
            if trainable.worker == body.worker and trainable.withdrawn_at is None and has_expired_offer(trainable, at):
                trainable.withdrawn_at = at
    return Trainables(items=body.items)


def list_trainables(session: Session, principal: Principal) -> Trainables:
    """Return the trainables that a principal's runs may name; none for a key of one run."""
    if principal.run_id is not None:
        return Trainables(items=[])
    offered = repository.list_offered(session, principal.project)
    if principal.project is not None:
        offered = list({row.name: row for row in offered}.values())  # the project's own hides that of all projects
    return Trainables(
        items=[
            Trainable(name=row.name, parameters=parameters_of(row), gpus=row.gpus, timeout=row.timeout)
            for row in offered
        ]
    )


def owner_of(principal: Principal) -> str:
    """Return the owner of what a principal registers: the id of its key, or an empty string without a key."""
    return "" if principal.key_id is None else principal.key_id.hex


def parameters_of(trainable: models.Trainable | None) -> list[TrainableParameter]:
    """Return the parameters that a rerun may set; none where there is no trainable."""
    return [] if trainable is None else PARAMETERS.validate_python(trainable.parameters)


def has_expired_offer(trainable: models.Trainable, at: datetime) -> bool:
    """Whether the last offer of a trainable is too old to count."""
    return at - trainable.updated_at >= OFFER_LIFETIME


def reason_not_offered(session: Session, name: str, owner: str) -> str | None:
    """Return why no worker will ever run an owner's trainable; None if a worker may."""
    trainable = repository.find(session, owner, name)
    if trainable is None:
        return f"the key that offered the trainable {name!r} does not have it any more"
    if trainable.withdrawn_at is not None:
        return f"the worker {trainable.worker!r} does not offer the trainable {name!r} any more"
    return None


def _check_offer(body: TrainablesOffer, limits: Limits) -> None:
    if body.worker is not None and (message := name_error(body.worker, limits.max_name_length)) is not None:
        raise InvalidRequest.at("worker", message)
    if len(body.items) > limits.max_trainables:
        raise InvalidRequest.at("items", f"has {len(body.items)}; at most {limits.max_trainables} are allowed")
    errors: list[FieldError] = []
    for index, item in enumerate(body.items):
        path = f"items[{index}]"
        if (message := name_error(item.name, limits.max_name_length)) is not None:
            errors.append(FieldError(path=f"{path}.name", message=message))
        errors += trainable_errors(item, path)
    if errors:
        raise InvalidRequest(errors)


def _find_displaced(
    others: Sequence[models.Trainable], excess: int, at: datetime, limits: Limits
) -> Sequence[models.Trainable]:
    """Return the trainables of a key that give way to an offer: withdrawn ones, then those offered least recently.

    Raises InvalidRequest if too few of them have an expired offer.

    Args:
        others: the trainables of the key that are not in the offer.
        excess: by how many trainables the key would exceed its limit.
        at: the database's time.
        limits: the limits of the service.
    """
    if excess <= 0:
        return []
    expired = [trainable for trainable in others if has_expired_offer(trainable, at)]
    if len(expired) < excess:
        raise InvalidRequest.at(
            "items",
            f"are {excess - len(expired)} too many: the workers of this API key offer others, and the key may have "
            f"{limits.max_trainables} trainables (`max_trainables`)",
        )
    return sorted(expired, key=lambda trainable: (trainable.withdrawn_at is None, trainable.updated_at))[:excess]


def _store(
    session: Session,
    principal: Principal,
    item: Trainable,
    existing: models.Trainable | None,
    worker: str | None,
    at: datetime,
) -> None:
    owner = owner_of(principal)
    columns: dict[str, Any] = {
        "owner": owner,
        "project": principal.project,
        "gpus": item.gpus,
        "timeout": item.timeout,
        "parameters": PARAMETERS.dump_python(item.parameters, exclude_defaults=True),
        "updated_at": at,
        "worker": worker,
        "withdrawn_at": None,
    }
    if existing is None:
        existing = repository.add(session, models.Trainable(**columns), item.name)
        if existing is None:
            return
    if existing.owner != owner and not _has_lost_its_owner(session, existing, at):
        raise TrainableTaken(f"The trainable {item.name!r} belongs to the key that registered it; choose another name.")
    for name, value in columns.items():
        setattr(existing, name, value)


def _has_lost_its_owner(session: Session, trainable: models.Trainable, at: datetime) -> bool:
    """Whether a trainable was registered without a key, or with a key that is revoked, expired or deleted."""
    if not trainable.owner:
        return True
    key = keys.find(session, UUID(hex=trainable.owner))
    return key is None or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= at)
