"""Building the diagnosis of a run anew from its stored steps, with the code of today.

One idea: reading a long run takes longer than others should wait. Steps are read in transactions that lock nothing, and
under the run's lock it is only checked that nothing came since; what did is read in the next round.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from gradmedic_diagnosis import Diagnosis, Diagnostician, VerdictChange
from gradmedic_service.database.engine import Connection, Database
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import repository
from gradmedic_service.telemetry.repository import RunAppend, RunState, Snapshot, StoredState
from gradmedic_service.telemetry.service import advance_through, chunk_blocks, facts_of


@dataclass(frozen=True, slots=True)
class Rediagnosed:
    """A run's verdict before and after."""

    run_id: UUID
    before: str
    after: str


class _Reading:
    """A diagnostician that reads a run from its first step."""

    def __init__(self, connection: Connection, facts: FactsCache, run: RunState) -> None:
        self._started = run
        self._facts = facts_of(connection, facts, run)
        self._diagnostician = Diagnostician(self._facts.layers, self._facts.training, run.muted)
        self._steps_since_snapshot = 0
        self._changes: list[VerdictChange] = []
        self._snapshots: list[Snapshot] = []
        self._last_step = -1
        self._diagnosis: Diagnosis = self._diagnostician.diagnose()

    def is_of(self, run: RunState) -> bool:
        """Whether what was read is still the beginning of the run."""
        then = self._started
        return (then.generation, then.facts_digest, then.muted) == (run.generation, run.facts_digest, run.muted)

    def read_on(self, connection: Connection, run: RunState) -> None:
        """Read the steps that were not read yet."""
        for block in chunk_blocks(connection, run.id, len(self._facts.layers), self._last_step + 1, run.last_step or 0):
            self._diagnosis, changes, snapshots, self._steps_since_snapshot = advance_through(
                self._diagnostician, block, self._steps_since_snapshot
            )
            self._changes += changes
            self._snapshots += snapshots
            self._last_step = int(block.steps[-1])

    def replace(self, connection: Connection, run: RunState) -> None:
        """Write the diagnosis in place of the stored one."""
        repository.forget_diagnosis(connection, run.id)
        to = RunAppend(
            revision=run.revision + 1,
            last_step=self._last_step,
            verdict=self._diagnosis.verdict,
            score=float(self._diagnosis.score),
            since_step=self._diagnosis.since_step,
            metrics=run.metrics,
            state=StoredState(self._diagnostician.to_bytes(), self._steps_since_snapshot),
            snapshots=self._snapshots,
            changes=self._changes,
            at=datetime.now(UTC),
            patience=None,
        )
        repository.advance(connection, run.id, to)


def every_run(database: Database) -> list[UUID]:
    """Return the ids of every run, oldest first."""
    with database.reading_rows() as connection:
        return repository.run_ids(connection)


def rediagnose(database: Database, facts: FactsCache, run_id: UUID) -> Rediagnosed:
    """Build the diagnosis of a run anew, while it may go on. Raises RunNotFound."""
    reading: _Reading | None = None
    while True:
        with database.reading_rows() as connection:
            seen = _state(connection, run_id, is_locked=False)
            if reading is None or not reading.is_of(seen):
                reading = _Reading(connection, facts, seen)
            reading.read_on(connection, seen)
        with database.writing_rows() as connection:
            run = _state(connection, run_id, is_locked=True)
            if run.revision != seen.revision:
                continue
            if run.last_step is None:
                return Rediagnosed(run_id, run.verdict, run.verdict)
            reading.replace(connection, run)
        with database.reading_rows() as connection:
            return Rediagnosed(run_id, run.verdict, _state(connection, run_id, is_locked=False).verdict)


def _state(connection: Connection, run_id: UUID, *, is_locked: bool) -> RunState:
    run = repository.read_state(connection, run_id, is_locked=is_locked)
    if run is None:
        raise RunNotFound(f"There is no run {run_id}.")
    return run
