"""Tickets: how the process of an attempt that starts on a cluster gets its key, and whether its lease still holds."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from gradmedic.protocol.service import FieldError
from gradmedic.protocol.trials import ClaimedTrial, TrialLease, TrialRedemption, TrialTicket
from gradmedic_service.access import service as access
from gradmedic_service.access.principal import OPERATOR, TICKET, Principal
from gradmedic_service.access.secrets import is_secret
from gradmedic_service.database import models
from gradmedic_service.database.clock import database_time
from gradmedic_service.database.engine import Session
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.reruns import repository as reruns
from gradmedic_service.reruns.advancing import MIN_SECONDS
from gradmedic_service.trainables import repository as trainables
from gradmedic_service.trials.claims import (
    create_attempt_key,
    describe_claimed_trial,
    key_expiry,
    seconds_for_another_trial,
)
from gradmedic_service.trials.errors import StaleAttempt
from gradmedic_service.trials.lookup import (
    check_running,
    find_trial,
    find_trial_of_worker,
    lock_running_attempt,
    trial_not_found,
)

MAX_TICKET_SECONDS = 86_400.0
"""Longest validity of a ticket. In most cases the lease of the attempt ends it earlier."""


def issue_ticket(session: Session, principal: Principal, trial_id: UUID, body: TrialTicket) -> TrialLease:
    """Store a ticket that can be redeemed once for a waiting attempt; the same request again changes nothing.

    Raises TrialNotFound, StaleAttempt, InvalidRequest.
    """
    errors = []
    if not is_secret(body.ticket):
        errors.append(FieldError(path="ticket", message="must have the form of an API key"))
    if not 0 < body.seconds <= MAX_TICKET_SECONDS:
        errors.append(FieldError(path="seconds", message=f"must be above 0 and at most {MAX_TICKET_SECONDS:g}"))
    if errors:
        raise InvalidRequest(errors)
    _, rerun = find_trial_of_worker(session, principal, trial_id)
    trial, attempt = lock_running_attempt(session, rerun.id, trial_id, body.attempt)
    at = database_time(session)
    if not attempt.is_waiting:
        raise StaleAttempt(f"Attempt {attempt.number} at this trial has started: its ticket was redeemed.")
    if not access.is_secret_of(session, attempt.key_id, body.ticket):
        if access.is_secret_taken(session, body.ticket):
            raise InvalidRequest.at("ticket", "was used before")
        if attempt.key_id is not None:
            access.revoke_key(session, OPERATOR, attempt.key_id)
        ticket, _ = access.create_key(
            session,
            project=rerun.project,
            name=f"ticket of trial {trial_id} attempt {attempt.number}",
            scopes=[TICKET],
            run_id=attempt.run_id,
            expires_at=at + timedelta(seconds=body.seconds),
            secret=body.ticket,
            by=principal,
        )
        attempt.key_id = ticket.id
    return _describe_lease(trial, attempt, at)


def redeem_ticket(
    session: Session, principal: Principal, trial_id: UUID, body: TrialRedemption, lease: float
) -> ClaimedTrial:
    """Exchange the ticket of a waiting attempt, once, for what its process needs. The attempt's time counts from now.

    Raises TrialNotFound where the ticket is not this attempt's, StaleAttempt.
    """
    _, rerun = find_trial(session, trial_id)
    unlocked_attempt = reruns.find_attempt(session, trial_id, body.attempt)
    if unlocked_attempt is None or principal.run_id != unlocked_attempt.run_id:
        raise trial_not_found(trial_id)
    if not principal.reaches_run(unlocked_attempt.run_id, rerun.project):
        raise trial_not_found(trial_id)
    trial, attempt = lock_running_attempt(session, rerun.id, trial_id, body.attempt)
    at = database_time(session)
    if not attempt.is_waiting or principal.key_id is None or principal.key_id != attempt.key_id:
        raise StaleAttempt(f"The ticket of attempt {attempt.number} at this trial was redeemed before.")
    if _describe_lease(trial, attempt, at).seconds < 0:
        raise StaleAttempt(
            f"The lease of attempt {attempt.number} at this trial has expired: no heartbeat came in time."
        )
    access.revoke_key(session, OPERATOR, principal.key_id)
    others = [other for other in reruns.read_trials(session, rerun.id) if other.id != trial_id]
    seconds = seconds_for_another_trial(session, rerun, others, at)
    trainable = trainables.find(session, rerun.owner, rerun.trainable)
    timeout = max(MIN_SECONDS, seconds if trainable is None else min(seconds, trainable.timeout))
    attempt.is_waiting, attempt.started_at = False, at
    secret = create_attempt_key(session, principal, rerun, attempt, key_expiry(at, timeout, lease))
    return describe_claimed_trial(rerun, trial, attempt, trainable, lease, timeout, secret)


def read_lease(session: Session, principal: Principal, trial_id: UUID, number: int) -> TrialLease:
    """Return the lease of a running attempt to the attempt's process. Raises TrialNotFound, StaleAttempt."""
    trial, rerun = find_trial(session, trial_id)
    attempt = reruns.find_attempt(session, trial_id, number)
    if attempt is None or not principal.reaches_run(attempt.run_id, rerun.project):
        raise trial_not_found(trial_id)
    check_running(trial, number)
    return _describe_lease(trial, attempt, database_time(session))


def _describe_lease(trial: models.Trial, attempt: models.Attempt, at: datetime) -> TrialLease:
    until = trial.lease_expires_at or at
    return TrialLease(trial_id=trial.id, attempt=attempt.number, seconds=(until - at).total_seconds())
