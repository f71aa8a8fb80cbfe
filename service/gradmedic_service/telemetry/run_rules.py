"""What appending, rewinding and reading have in common: the run of a request, its generation, and its alerts."""

from __future__ import annotations

from uuid import UUID

from gradmedic.protocol.diagnosis import DiagnosisAtStep
from gradmedic_service.access.principal import Principal
from gradmedic_service.alerts import events
from gradmedic_service.database.engine import Connection
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.telemetry import repository
from gradmedic_service.telemetry.errors import StaleGeneration, UnknownGeneration
from gradmedic_service.telemetry.repository import RunRow


def find_run(connection: Connection, principal: Principal, run_id: UUID, *, is_locked: bool = False) -> RunRow:
    """Return the row of a run. With `is_locked`, no other transaction changes it. Raises RunNotFound."""
    run = repository.read_run(connection, run_id, is_locked=is_locked)
    if run is None or not principal.reaches_run(run_id, run.project):
        raise not_found(run_id)
    return run


def not_found(run_id: UUID) -> RunNotFound:
    """Return the error of a run that does not exist, or that the sender of the request may not see."""
    return RunNotFound(f"There is no run {run_id}.")


def check_generation(run: RunRow, generation: int | None) -> None:
    """Raise StaleGeneration or UnknownGeneration unless steps of a generation belong to the run as it is."""
    if generation is None or generation == run.generation:
        return
    if generation < run.generation:
        raise StaleGeneration(
            f"The block is of generation {generation}; the run was rewound and is at {run.generation}."
        )
    raise UnknownGeneration(f"The block is of generation {generation}; the run is at {run.generation}.")


def record_changes(
    connection: Connection, run: RunRow, revision: int, diagnosis: DiagnosisAtStep | None, status: str
) -> None:
    """Record what may become an alert: a change of the run's level or status. `run` is its row before the change.

    `diagnosis` may be None where the level is as before.
    """
    changed = events.ChangedRun(id=run.id, project=run.project, parent_id=run.parent_id, revision=revision)
    level_change = None if diagnosis is None else events.level_change(run.level, diagnosis)
    changes = (level_change, events.status_change(run.status, status))
    events.record(connection, changed, changes)
