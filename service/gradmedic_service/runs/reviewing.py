"""Reviewing runs: a user confirms or rejects the verdict."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from uuid import UUID

from gradmedic.protocol.reviews import Review, ReviewWrite
from gradmedic_service.access.errors import BeyondKey
from gradmedic_service.access.principal import Principal
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.runs import repository, service


def review(session: Session, principal: Principal, run_id: UUID, body: ReviewWrite) -> Review:
    """Store a review of a run in place of an earlier one.

    Raises RunNotFound, BeyondKey for the key of one run, InvalidRequest where the review does not fit the run.
    """
    run = _find_reviewable(session, principal, run_id)
    step, verdict, level = _find_judgement(session, run, body.step)
    if body.verdict in (None, verdict) and body.level in (None, level) and (body.verdict or body.level):
        given = " and ".join(text for text in (body.verdict, body.level) if text is not None)
        path = "verdict" if body.verdict is not None else "level"
        raise InvalidRequest.at(path, f"the service's answer at step {step} was also {given}, so it is not wrong")
    if run.review is None:
        run.review = models.RunReview()
    stored = run.review
    stored.answer, stored.verdict, stored.level, stored.note = body.answer, body.verdict, body.level, body.note
    stored.step, stored.judged_verdict, stored.judged_level = step, verdict, level
    stored.diagnosis_version, stored.reviewed_at = version("gradmedic"), datetime.now(UTC)
    repository.touch(run)
    return service.to_review(stored)


def take_back(session: Session, principal: Principal, run_id: UUID) -> None:
    """Delete the review of a run, if there is one. Raises RunNotFound, BeyondKey for the key of one run."""
    run = _find_reviewable(session, principal, run_id)
    if run.review is not None:
        run.review = None
        repository.touch(run)


def _find_reviewable(session: Session, principal: Principal, run_id: UUID) -> models.Run:
    run = service.find_run(session, principal, run_id, is_locked=True)
    if principal.run_id is not None:
        raise BeyondKey(f"The API key {principal.name!r} is that of a job; a job may not review its own run.")
    return run


def _find_judgement(session: Session, run: models.Run, step: int | None) -> tuple[int | None, str, str]:
    """Return the step that is reviewed, and the verdict and the level at that step. Raises InvalidRequest."""
    if step is None or step == run.last_step:
        return run.last_step, run.verdict, run.level
    if run.last_step is None:
        raise InvalidRequest.at("step", "must be left out: the run has no step")
    if step > run.last_step:
        raise InvalidRequest.at("step", f"must be from 0 to {run.last_step}, the run's last step")
    return step, *(repository.read_judgement(session, run.id, step) or ("undetermined", "unknown"))
