"""A run's row, its diagnosis state, snapshots and verdict changes in the database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import Connection, Row, Table, Text, bindparam, delete, exists, func, insert, select, update
from sqlalchemy import cast as cast_type

from gradmedic.protocol.diagnosis import VerdictChange
from gradmedic_service.database import models
from gradmedic_service.database.prepared import PreparedStatement
from gradmedic_service.runs.stalling import SilenceLimit

_PROJECTS = cast("Table", models.Project.__table__)
_RUNS = cast("Table", models.Run.__table__)
_RERUNS = cast("Table", models.Rerun.__table__)
_STATES = cast("Table", models.DiagnosisState.__table__)
_SNAPSHOTS = cast("Table", models.DiagnosisSnapshot.__table__)
NOTHING_MUTED: Final = "[]"
"""The muted detectors of a project that mutes none, as they are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """The columns of a run's row that appending and reading need."""

    id: UUID
    project: str
    status: str
    created_at: datetime
    generation: int
    revision: int
    last_step: int | None
    verdict: str
    level: str
    since_step: int | None
    statistics: list[str]
    metrics: list[str]
    layer_counts: list[int]
    facts_digest: bytes
    muted_by_run: list[str] | None
    muted_by_project: str | None
    """As it is stored: JSON."""
    rewound_to: int | None
    parent_id: UUID | None
    stop_after: int | None
    silence_seconds: float | None
    stalls_at: datetime | None
    progress: bytes | None

    @property
    def muted_detectors(self) -> frozenset[str]:
        """Ids of the detectors that are muted, by the run or by its project."""
        return frozenset((*(self.muted_by_run or ()), *json.loads(self.muted_by_project or NOTHING_MUTED)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunVersion:
    """What the diagnosis of a run depends on; equal for the same diagnosis. And what else its readers need."""

    created_at: datetime
    generation: int
    revision: int
    last_step: int | None
    facts_digest: bytes
    muted_by_run: list[str] | None
    muted_by_project: str | None
    """As it is stored: JSON."""
    project: str = field(compare=False)
    has_reruns: bool = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedProgress:
    """What lists show of a run's steps and their diagnosis."""

    progress: bytes
    """The progress, from which the next append goes on."""
    last_values: dict[str, float]
    """Last loss and last metrics, by the names by which lists sort and filter."""
    duration: float | None
    """Seconds from the first step to the last one."""
    first_bad_layer: str | None


@dataclass(frozen=True, slots=True)
class StoredDiagnosis:
    """The state of a run's diagnostician as it was stored last, up to some steps ago."""

    state: bytes
    steps_since_snapshot: int
    """Number of steps that the diagnostician had read since the last snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisSnapshot:
    """The compressed state of a run's diagnostician after a step."""

    step: int
    state: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendedRun:
    """The new values of a run after an append."""

    revision: int
    last_step: int
    verdict: str
    learning: str
    level: str
    score: float
    since_step: int | None
    metrics: list[str]
    listed: ListedProgress
    diagnosis: StoredDiagnosis | None
    """New diagnosis state; None keeps the stored one."""
    snapshots: Sequence[DiagnosisSnapshot]
    verdict_changes: Sequence[VerdictChange]
    updated_at: datetime
    silence_limit: SilenceLimit | None
    """New silence limit; None keeps the stored one."""
    ends_stall: bool = False
    """Whether the run was stalled, or failed because it stayed so, and is running again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewoundRun:
    """The new values of a run after a rewind."""

    generation: int
    revision: int
    rewound_to: int
    last_step: int | None
    verdict: str
    learning: str
    level: str
    score: float
    since_step: int | None
    listed: ListedProgress
    diagnosis: StoredDiagnosis | None
    """New diagnosis state; None where no step is left."""
    updated_at: datetime


_MUTED_BY_PROJECT = cast_type(_PROJECTS.c.muted_detectors, Text).label("muted_by_project")
# Statements of the append path are built once, over tables: building them anew costs more than running them.
_RUN_COLUMNS = (
    _RUNS.c.id,
    _RUNS.c.project,
    _RUNS.c.status,
    _RUNS.c.created_at,
    _RUNS.c.generation,
    _RUNS.c.revision,
    _RUNS.c.last_step,
    _RUNS.c.verdict,
    _RUNS.c.level,
    _RUNS.c.since_step,
    _RUNS.c.statistics,
    _RUNS.c.metrics,
    _RUNS.c.layer_counts,
    _RUNS.c.facts_digest,
    _RUNS.c.muted_detectors.label("muted_by_run"),
    _MUTED_BY_PROJECT,
    _RUNS.c.rewound_to,
    _RUNS.c.parent_id,
    _RUNS.c.stop_after,
    _RUNS.c.patience.label("silence_seconds"),
    _RUNS.c.stalls_at,
    _RUNS.c.progress,
)
_RUN_FIELDS = tuple(column.name for column in _RUN_COLUMNS)
_READ_RUN = (
    select(*_RUN_COLUMNS)
    .select_from(_RUNS.outerjoin(_PROJECTS, _PROJECTS.c.name == _RUNS.c.project))
    .where(_RUNS.c.id == bindparam("run_id"))
)
_VERSION_COLUMNS = (
    _RUNS.c.created_at,
    _RUNS.c.generation,
    _RUNS.c.revision,
    _RUNS.c.last_step,
    _RUNS.c.facts_digest,
    _RUNS.c.muted_detectors.label("muted_by_run"),
    _MUTED_BY_PROJECT,
    _RUNS.c.project,
    exists().where(_RERUNS.c.run_id == _RUNS.c.id).label("has_reruns"),
)
_VERSION_FIELDS = tuple(column.name for column in _VERSION_COLUMNS)
_READ_VERSION = PreparedStatement(
    select(*_VERSION_COLUMNS)
    .select_from(_RUNS.outerjoin(_PROJECTS, _PROJECTS.c.name == _RUNS.c.project))
    .where(_RUNS.c.id == bindparam("run_id"))
)
_READ_RUN_LOCKED = _READ_RUN.with_for_update(of=_RUNS)
_READ_DIAGNOSIS = select(_STATES.c.state, _STATES.c.steps_since_snapshot).where(_STATES.c.run_id == bindparam("run_id"))
_UPDATE_RUN = update(_RUNS).where(_RUNS.c.id == bindparam("run_id"))
_UPDATE_UNCHANGED_RUN = PreparedStatement(
    update(_RUNS).where(
        _RUNS.c.id == bindparam("run_id"),
        _RUNS.c.revision == bindparam("revision_before"),
        # Some changes do not raise the revision, so these columns are compared too.
        _RUNS.c.status == bindparam("status_before"),
        _RUNS.c.last_step.is_not_distinct_from(bindparam("last_step_before")),
        _RUNS.c.stop_after.is_not_distinct_from(bindparam("stop_after_before")),
        _RUNS.c.generation == bindparam("generation_before"),
        _RUNS.c.facts_digest == bindparam("facts_digest_before"),
        # It is another run with the same id otherwise.
        _RUNS.c.created_at == bindparam("created_at_before"),
        func.coalesce(
            select(cast_type(_PROJECTS.c.muted_detectors, Text))
            .where(_PROJECTS.c.name == bindparam("project_before"))
            .scalar_subquery(),
            NOTHING_MUTED,
        )
        == bindparam("muted_by_project_before"),
    )
)
_UPDATE_STATE = update(_STATES).where(_STATES.c.run_id == bindparam("id"))
_ADD_STATE = insert(_STATES)


def read_run(connection: Connection, run_id: UUID, *, is_locked: bool = False) -> RunRow | None:
    """Read a run's row. With `is_locked`, no other transaction appends to the run until this one ends.

    Read what belongs to the row by later statements: after PostgreSQL has waited for the lock, it reads the locked row
    anew, but a row joined to it as it was before the wait.
    """
    statement = _READ_RUN_LOCKED if is_locked else _READ_RUN
    row = connection.execute(statement, {"run_id": run_id}).one_or_none()
    return None if row is None else RunRow(**dict(zip(_RUN_FIELDS, row, strict=True)))


def read_version(connection: Connection, run_id: UUID) -> RunVersion | None:
    """Read less than the row of a run, for readers that mostly have its diagnosis already."""
    row = _READ_VERSION.fetch_one(connection, {"run_id": run_id})
    return None if row is None else RunVersion(**dict(zip(_VERSION_FIELDS, row, strict=True)))


def read_diagnosis(connection: Connection, run_id: UUID) -> StoredDiagnosis | None:
    """Read the stored diagnosis state of a run; None before its first step."""
    row = connection.execute(_READ_DIAGNOSIS, {"run_id": run_id}).one_or_none()
    return None if row is None else StoredDiagnosis(row.state, row.steps_since_snapshot or 0)


def write_append(connection: Connection, run_id: UUID, appended: AppendedRun) -> None:
    """Write a run after an append. The run must be locked."""
    connection.execute(_UPDATE_RUN, {"run_id": run_id, **_columns_after(appended)})
    _write_history(connection, run_id, appended)


def write_append_if_unchanged(connection: Connection, run: RunRow, appended: AppendedRun) -> bool:
    """Write a run after an append if its row is still `run`, and lock it; return whether it was, and was written."""
    update_run = {
        "run_id": run.id,
        "revision_before": run.revision,
        "status_before": run.status,
        "last_step_before": run.last_step,
        "stop_after_before": run.stop_after,
        "generation_before": run.generation,
        "facts_digest_before": run.facts_digest,
        "created_at_before": run.created_at,
        "project_before": run.project,
        "muted_by_project_before": run.muted_by_project or NOTHING_MUTED,
        **_columns_after(appended),
    }
    if _UPDATE_UNCHANGED_RUN.execute(connection, update_run) == 0:
        return False
    _write_history(connection, run.id, appended)
    return True


def _columns_after(appended: AppendedRun) -> dict[str, Any]:
    limit = appended.silence_limit
    return {
        "revision": appended.revision,
        "last_step": appended.last_step,
        "verdict": appended.verdict,
        "learning": appended.learning,
        "level": appended.level,
        "score": appended.score,
        "since_step": appended.since_step,
        "metrics": appended.metrics,
        **_columns_of(appended.listed),
        "updated_at": appended.updated_at,
        **({} if limit is None else {"patience": limit.seconds, "stalls_at": limit.stalls_at}),
        **({"status": "running"} if appended.ends_stall else {}),
    }


def _write_history(connection: Connection, run_id: UUID, appended: AppendedRun) -> None:
    """Write the diagnosis, snapshots and changes of the verdict that an append brought."""
    if appended.diagnosis is not None:
        _write_diagnosis(connection, run_id, appended.diagnosis)
    if appended.snapshots:
        rows = [{"run_id": run_id, "step": snapshot.step, "state": snapshot.state} for snapshot in appended.snapshots]
        connection.execute(insert(_SNAPSHOTS), rows)
    if appended.verdict_changes:
        connection.execute(
            insert(models.VerdictChange),
            [
                {
                    "run_id": run_id,
                    "step": change.step,
                    "verdict": change.verdict,
                    "learning": change.learning,
                    "level": change.level,
                    "score": change.score,
                    "finding": change.finding,
                }
                for change in appended.verdict_changes
            ],
        )


def write_rewind(connection: Connection, run_id: UUID, rewound: RewoundRun) -> None:
    """Write a run after a rewind; its later steps have been removed."""
    limit = SilenceLimit.at_start(rewound.updated_at)
    connection.execute(
        _UPDATE_RUN,
        {
            "run_id": run_id,
            "generation": rewound.generation,
            "revision": rewound.revision,
            "rewound_to": rewound.rewound_to,
            "last_step": rewound.last_step,
            "verdict": rewound.verdict,
            "learning": rewound.learning,
            "level": rewound.level,
            "score": rewound.score,
            "since_step": rewound.since_step,
            **_columns_of(rewound.listed),
            "status": "running",
            "updated_at": rewound.updated_at,
            "patience": limit.seconds,
            "stalls_at": limit.stalls_at,
        },
    )
    if rewound.diagnosis is None:
        connection.execute(delete(_STATES).where(_STATES.c.run_id == run_id))
    else:
        _write_diagnosis(connection, run_id, rewound.diagnosis)


def write_listed(connection: Connection, run_id: UUID, listed: ListedProgress) -> None:
    """Write what lists show of a run; its revision stays."""
    connection.execute(_UPDATE_RUN, {"run_id": run_id, **_columns_of(listed)})


def _columns_of(listed: ListedProgress) -> dict[str, Any]:
    return {
        "progress": listed.progress,
        "last_values": listed.last_values,
        "duration": listed.duration,
        "first_bad_layer": listed.first_bad_layer,
    }


def _write_diagnosis(connection: Connection, run_id: UUID, diagnosis: StoredDiagnosis) -> None:
    columns = {"state": diagnosis.state, "steps_since_snapshot": diagnosis.steps_since_snapshot}
    if connection.execute(_UPDATE_STATE, {"id": run_id, **columns}).rowcount == 0:
        connection.execute(_ADD_STATE, {"run_id": run_id, **columns})


def remove_diagnosis_history(connection: Connection, run_id: UUID, after_step: int = -1) -> None:
    """Remove the snapshots and the verdict changes of the steps after `after_step`; of all steps by default."""
    connection.execute(delete(_SNAPSHOTS).where(_SNAPSHOTS.c.run_id == run_id, _SNAPSHOTS.c.step > after_step))
    change = models.VerdictChange
    connection.execute(delete(change).where(change.run_id == run_id, change.step > after_step))


def read_last_snapshot(connection: Connection, run_id: UUID, at_step: int) -> DiagnosisSnapshot | None:
    """Read the last snapshot of a run's diagnosis at or before a step."""
    row = connection.execute(
        select(_SNAPSHOTS.c.step, _SNAPSHOTS.c.state)
        .where(_SNAPSHOTS.c.run_id == run_id, _SNAPSHOTS.c.step <= at_step)
        .order_by(_SNAPSHOTS.c.step.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else DiagnosisSnapshot(step=row.step, state=row.state)


def read_times(connection: Connection, run_id: UUID) -> tuple[datetime, datetime]:
    """Read when a run was created and when it changed last."""
    run = models.Run
    row = connection.execute(select(run.created_at, run.updated_at).where(run.id == run_id)).one()
    return row.created_at, row.updated_at


def list_runs_without_progress(connection: Connection, limit: int) -> list[UUID]:
    """Read the ids of runs with steps that only an earlier version has stored. No index has them: it reads all runs."""
    run = models.Run
    query = select(run.id).where(run.progress.is_(None), run.last_step.is_not(None))
    return list(connection.scalars(query.order_by(run.created_at.desc()).limit(limit)))


def read_run_ids(connection: Connection) -> list[UUID]:
    """Read the ids of all runs, oldest first."""
    return list(connection.scalars(select(models.Run.id).order_by(models.Run.created_at, models.Run.id)))


def read_verdict_changes(connection: Connection, run_id: UUID) -> Sequence[Row[int, str, str, str, float, str | None]]:
    """Read every change of a run's verdict, oldest first: step, verdict, learning, level, score, finding."""
    change = models.VerdictChange
    query = select(change.step, change.verdict, change.learning, change.level, change.score, change.finding)
    return connection.execute(query.where(change.run_id == run_id).order_by(change.step, change.id)).all()


def read_layer_names(connection: Connection, run_id: UUID) -> list[str]:
    """Read the names of a run's layers, in the order in which they were added."""
    layers = connection.scalar(select(models.RunDetails.layers).where(models.RunDetails.run_id == run_id))
    return [layer["name"] for layer in layers or []]
