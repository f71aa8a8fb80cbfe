"""What happens to runs and may become an alert, written by the transaction that changes the run.

A change of the level or the status of a run is one row. Nothing else happens here: a periodic task makes the alerts.
Runs of trials make no alerts, because a rerun expects that some of them fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from gradmedic.protocol.diagnosis import DiagnosisAtStep
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.remedies import Remedy, describe_remedies
from gradmedic_service.alerts import repository
from gradmedic_service.alerts.policy import LEVEL, RERUN, STATUS, due_after
from gradmedic_service.database import models
from gradmedic_service.database.engine import Connection

TROUBLE_LEVELS = ("critical", "attention")
TROUBLE_STATUSES = ("stalled", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedRun:
    """A run that a transaction has changed, while its row is locked."""

    id: UUID
    project: str
    parent_id: UUID | None
    """The suspect run, if this run is an attempt at a trial."""
    revision: int
    """Revision after the change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of a run that may become an alert."""

    subject: str
    trouble: str
    details: dict[str, Any] = field(default_factory=dict)
    rerun_id: UUID | None = None


def changed_run(run: models.Run) -> ChangedRun:
    """Return a run after its change."""
    return ChangedRun(id=run.id, project=run.project, parent_id=run.parent_id, revision=run.revision)


def level_change(before: str, diagnosis: DiagnosisAtStep) -> Change | None:
    """Return the change of a run's level from `before` to that of its diagnosis; None if it needs no alert."""
    trouble = _trouble(before, diagnosis.level, TROUBLE_LEVELS)
    if trouble is None:
        return None
    details: dict[str, Any] = {
        "step": diagnosis.step,
        "level": diagnosis.level,
        "verdict": diagnosis.verdict,
        "summary": diagnosis.summary,
    }
    if diagnosis.advice and trouble != "resolved":
        advice = diagnosis.advice[0]
        details["advice"] = f"{describe_remedies(advice.remedies)}: {advice.reason}"
    return Change(subject=LEVEL, trouble=trouble, details=details)


def status_change(before: str, after: str) -> Change | None:
    """Return the change of a run's status; None if it needs no alert."""
    trouble = _trouble(before, after, TROUBLE_STATUSES)
    return None if trouble is None else Change(subject=STATUS, trouble=trouble, details={"before": before})


def verified_change(rerun_id: UUID, remedies: Sequence[Remedy], reason: str) -> Change:
    """Return the change of a run of which a rerun has verified remedies; `reason` is that of their outcome."""
    details = {"remedies": describe_remedies(remedies), "reason": reason}
    return Change(subject=RERUN, trouble="verified", details=details, rerun_id=rerun_id)


def record(connection: Connection, run: ChangedRun, changes: Sequence[Change | None]) -> None:
    """Write the changes of a run that may become alerts, by one statement; by none if there is no such change."""
    found = [change for change in changes if change is not None]
    if not found or run.parent_id is not None:
        return
    now = datetime.now(UTC)
    repository.add_events(
        connection,
        [
            {
                "id": new_id(),
                "project": run.project,
                "run_id": run.id,
                "revision": run.revision,
                "subject": change.subject,
                "trouble": change.trouble,
                "rerun_id": change.rerun_id,
                "details": change.details,
                "created_at": now,
                "due_at": now + timedelta(seconds=due_after(change.trouble)),
            }
            for change in found
        ],
    )


def _trouble(before: str, after: str, troubles: Sequence[str]) -> str | None:
    if before == after:
        return None
    if after in troubles:
        return after
    return "resolved" if before in troubles else None
