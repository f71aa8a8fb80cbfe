"""Builds the diagnosis of a run anew from its stored steps, with the rules of this version.

Reading a long run takes long, and its lock must not be held meanwhile. So steps are read in transactions that lock
nothing. Under the run's lock, the code only checks that the run has not changed. If it has, the next round reads the
new steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from gradmedic.protocol.diagnosis import VerdictChange
from gradmedic_service.database.engine import Connection, Database
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import diagnosis_state, repository
from gradmedic_service.telemetry.progress_reading import current_progress, listed_progress
from gradmedic_service.telemetry.repository import AppendedRun, DiagnosisSnapshot, RunRow, StoredDiagnosis


@dataclass(frozen=True, slots=True)
class Rediagnosis:
    """The verdict of a run before and after its diagnosis was built anew."""

    run_id: UUID
    before: str
    after: str


class Rebuild:
    """A diagnosis that is built from the first step of a run on."""

    def __init__(self, connection: Connection, facts: FactsCache, run: RunRow) -> None:
        self._first_row = run
        self._facts = diagnosis_state.read_facts(connection, facts, run)
        self._diagnostician = diagnosis_state.new_diagnostician(self._facts, run)
        self._steps_since_snapshot = 0
        self._changes: list[VerdictChange] = []
        self._snapshots: list[DiagnosisSnapshot] = []
        self._last_step = -1

    def can_continue(self, run: RunRow) -> bool:
        """Whether the steps that were read are still the beginning of the run, and its facts are the same."""
        row = self._first_row
        return (row.generation, row.facts_digest, row.muted_detectors) == (
            run.generation,
            run.facts_digest,
            run.muted_detectors,
        )

    def read_new_steps(self, connection: Connection, run: RunRow) -> None:
        """Read the stored steps after those that were read."""
        layer_count, last_step = len(self._facts.layers), run.last_step or 0
        for block in diagnosis_state.read_blocks(connection, run.id, layer_count, self._last_step + 1, last_step):
            changes, snapshots, self._steps_since_snapshot = diagnosis_state.advance(
                self._diagnostician, block, self._steps_since_snapshot
            )
            self._changes += changes
            self._snapshots += snapshots
            self._last_step = int(block.steps[-1])

    def write(self, connection: Connection, run: RunRow) -> None:
        """Write the diagnosis in place of the stored one."""
        repository.remove_diagnosis_history(connection, run.id)
        diagnosis = self._diagnostician.diagnose()
        appended = AppendedRun(
            revision=run.revision + 1,
            last_step=self._last_step,
            verdict=diagnosis.verdict,
            learning=diagnosis.learning,
            level=diagnosis.level,
            score=float(diagnosis.score),
            since_step=diagnosis.since_step,
            metrics=run.metrics,
            listed=listed_progress(current_progress(connection, run), diagnosis, self._diagnostician.decider),
            diagnosis=StoredDiagnosis(self._diagnostician.to_bytes(), self._steps_since_snapshot),
            snapshots=self._snapshots,
            verdict_changes=self._changes,
            updated_at=datetime.now(UTC),
            silence_limit=None,
        )
        repository.write_append(connection, run.id, appended)


def read_run_ids(database: Database) -> list[UUID]:
    """Return the ids of all runs, oldest first."""
    with database.reading_rows() as connection:
        return repository.read_run_ids(connection)


def rediagnose(database: Database, facts: FactsCache, run_id: UUID) -> Rediagnosis:
    """Build the diagnosis of a run anew; steps may arrive meanwhile. Raises RunNotFound."""
    rebuild: Rebuild | None = None
    while True:
        with database.reading_rows() as connection:
            row_read = _find_run(connection, run_id, is_locked=False)
            if rebuild is None or not rebuild.can_continue(row_read):
                rebuild = Rebuild(connection, facts, row_read)
            rebuild.read_new_steps(connection, row_read)
        with database.writing_rows() as connection:
            run = _find_run(connection, run_id, is_locked=True)
            if run.revision != row_read.revision:
                continue
            if run.last_step is None:
                return Rediagnosis(run_id, run.verdict, run.verdict)
            rebuild.write(connection, run)
        with database.reading_rows() as connection:
            return Rediagnosis(run_id, run.verdict, _find_run(connection, run_id, is_locked=False).verdict)


def _find_run(connection: Connection, run_id: UUID, *, is_locked: bool) -> RunRow:
    run = repository.read_run(connection, run_id, is_locked=is_locked)
    if run is None:
        raise RunNotFound(f"There is no run {run_id}.")
    return run
