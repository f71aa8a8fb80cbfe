"""Ending an attempt at a trial."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from gradmedic_service.access import service as access
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.reruns import repository

MAX_OUTPUT = 64 * 1024
"""Number of characters that are kept of an attempt's output: the last ones."""


def end_attempt(
    session: Session,
    trial: models.Trial,
    at: datetime,
    *,
    status: str,
    reason: str | None,
    exit_code: int | None = None,
    output: str | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> None:
    """End the latest attempt at a trial: its run accepts no further step, and its key is revoked.

    Args:
        session: a session of the transaction that ends the attempt.
        trial: the trial, whose seconds grow by those of the attempt.
        at: the time at which the attempt ended.
        status: the new status of the attempt.
        reason: why the attempt ended early; None if it ran to its end.
        exit_code: the exit code of its process.
        output: the text that its process has printed.
        environment: the versions and the device that it ran on.
        seconds: the seconds that it took, at most the time since its start; by default, the time since its start.
    """
    attempt = repository.find_attempt(session, trial.id, trial.attempt)
    if attempt is None:
        return
    attempt.status, attempt.reason, attempt.exit_code, attempt.ended_at = status, reason, exit_code, at
    if output is not None:
        attempt.output = last_output(output)
    if environment:
        attempt.environment = {str(name)[:64]: str(value)[:256] for name, value in list(environment.items())[:32]}
    if not attempt.is_waiting:
        passed = max(0.0, (at - attempt.started_at).total_seconds())
        trial.seconds += passed if seconds is None else min(passed, seconds)
    attempt.is_waiting = False
    repository.stop_run(session, attempt.run_id)
    repository.end_run(session, attempt.run_id, "finished" if status in ("done", "stopped") else "failed")
    if attempt.key_id is not None:
        access.revoke_key(session, OPERATOR, attempt.key_id)


def last_output(text: str) -> str:
    """Return the end of an output, in characters that a database can store."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[-MAX_OUTPUT:]
