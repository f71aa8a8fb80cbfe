"""Telemetry: rewinding, diagnosing, and reading series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.diagnosis import Diagnosis, VerdictChange, VerdictHistory
from gradmedic.protocol.guards import GuardReport
from gradmedic.protocol.packed_blocks import BlocksResult
from gradmedic.protocol.steps import RewindResult, RunRewind
from gradmedic_diagnosis import StepSeries
from gradmedic_service.access.principal import Principal
from gradmedic_service.database.engine import Connection, Database
from gradmedic_service.guards import repository as guards
from gradmedic_service.guards.report import REWINDS_NAMED, describe_guards
from gradmedic_service.http.answers import AnswerMemory
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry import (
    block_reading,
    chunk_reading,
    chunk_repository,
    diagnosis_state,
    repository,
    series_reading,
)
from gradmedic_service.telemetry.chunk_repository import ChunkExtent
from gradmedic_service.telemetry.chunk_writer import FULL_CHUNK_STEPS, MAX_TAIL_CHUNKS, write_block
from gradmedic_service.telemetry.chunks import Chunk, decode_chunk
from gradmedic_service.telemetry.diagnosis_cache import DiagnosisCache
from gradmedic_service.telemetry.diagnosis_state import cut_after, read_facts
from gradmedic_service.telemetry.progress_reading import current_progress, listed_progress, rebuild_progress
from gradmedic_service.telemetry.repository import RewoundRun, RunRow, StoredDiagnosis
from gradmedic_service.telemetry.rollup_cache import RollupCache
from gradmedic_service.telemetry.run_rules import check_generation, find_run, not_found, record_changes
from gradmedic_service.telemetry.series_accumulator import SeriesSelection
from gradmedic_service.telemetry.series_table import SeriesTable

GUARDED_CHUNKS = 4
"""Number of the last full chunks, of 50 to 99 steps each, from which on the actions of guards are counted."""
MAX_SERIES_POINTS = 1_000_000
"""Largest number of series times buckets in an answer, some 40 MB of JSON."""


def rewind(
    connection: Connection, principal: Principal, facts: FactsCache, run_id: UUID, body: RunRewind
) -> RewindResult:
    """Drop the steps after `body.step` and the diagnosis of them, and begin a new generation.

    The same request again, after the answer was lost, changes nothing. Raises RunNotFound, StaleGeneration,
    UnknownGeneration.
    """
    run = find_run(connection, principal, run_id, is_locked=True)
    if body.generation == run.generation - 1 and body.step == run.rewound_to:
        return RewindResult(
            generation=run.generation,
            last_step=run.last_step,
            revision=run.revision,
            verdict=run.verdict,
            since_step=run.since_step,
        )
    check_generation(run, body.generation)
    repository.remove_diagnosis_history(connection, run_id, body.step)
    for data in chunk_repository.remove_steps_after(connection, run_id, body.step):
        write_block(connection, run_id, cut_after(decode_chunk(data), body.step))
    diagnostician, steps_since_snapshot = diagnosis_state.replay(
        connection, run, read_facts(connection, facts, run), body.step
    )
    diagnosis = diagnostician.diagnose()
    progress = rebuild_progress(connection, run, run.generation + 1, -1 if diagnosis.step is None else diagnosis.step)
    rewound = RewoundRun(
        generation=run.generation + 1,
        revision=run.revision + 1,
        rewound_to=body.step,
        last_step=diagnosis.step,
        verdict=diagnosis.verdict,
        learning=diagnosis.learning,
        level=diagnosis.level,
        score=float(diagnosis.score),
        since_step=diagnosis.since_step,
        listed=listed_progress(progress, diagnosis, diagnostician.decider),
        diagnosis=None if diagnosis.step is None else StoredDiagnosis(diagnostician.to_bytes(), steps_since_snapshot),
        updated_at=datetime.now(UTC),
    )
    repository.write_rewind(connection, run_id, rewound)
    record_changes(connection, run, rewound.revision, diagnosis, "running")
    guards.mark_dropped(connection, run_id, body.step)
    if body.guard_action is not None:
        guards.add_actions(
            connection,
            run_id,
            run.generation,
            [body.guard_action],
            rewound.updated_at,
            to_step=body.step,
            verdict=run.verdict,
            since_step=run.since_step,
        )
    return RewindResult(
        generation=rewound.generation,
        last_step=rewound.last_step,
        revision=rewound.revision,
        verdict=rewound.verdict,
        since_step=rewound.since_step,
    )


def fill_progress(database: Database, facts: FactsCache, run_id: UUID) -> bool:
    """Write what lists show of a run whose steps an earlier version has stored.

    Reading the stored steps may take long, so it locks nothing. Returns False if the run has changed meanwhile, has its
    progress already, or is gone.
    """
    with database.reading_rows() as connection:
        run = repository.read_run(connection, run_id)
        if run is None or run.progress is not None:
            return False
        diagnostician, _ = diagnosis_state.restore(connection, run, read_facts(connection, facts, run))
        progress = current_progress(connection, run)
    listed = listed_progress(progress, diagnostician.diagnose(), diagnostician.decider)
    with database.writing_rows() as connection:
        locked = repository.read_run(connection, run_id, is_locked=True)
        if locked is None or locked.revision != run.revision or locked.progress is not None:
            return False
        repository.write_listed(connection, run_id, listed)
    return True


def diagnose(connection: Connection, principal: Principal, facts: FactsCache, run_id: UUID) -> Diagnosis:
    """Return the diagnosis of a run now. Raises RunNotFound."""
    return _diagnose(connection, facts, find_run(connection, principal, run_id), None)


def read_diagnosis(
    connection: Connection,
    principal: Principal,
    facts: FactsCache,
    run_id: UUID,
    at_step: int | None,
    cache: DiagnosisCache,
) -> tuple[Diagnosis, bool]:
    """Return the diagnosis of a run, now or as it was at a step, and whether the run has reruns. Raises RunNotFound.

    `cache` has the diagnoses of runs that have not changed since they were read.
    """
    version = repository.read_version(connection, run_id)
    if version is None or not principal.reaches_run(run_id, version.project):
        raise not_found(run_id)
    if at_step is not None and not (version.last_step is not None and at_step >= version.last_step):
        return _diagnose(connection, facts, find_run(connection, principal, run_id), at_step), version.has_reruns
    diagnosis = cache.find(run_id, version)
    if diagnosis is None:
        run = find_run(connection, principal, run_id)
        diagnosis = _diagnose(connection, facts, run, None)
        cache.add(version, diagnosis, run.layer_counts[-1])
    return diagnosis, version.has_reruns


def _diagnose(connection: Connection, facts: FactsCache, run: RunRow, at_step: int | None) -> Diagnosis:
    """Return the diagnosis of a run at a step before its last one; at its last step for None."""
    run_facts = read_facts(connection, facts, run)
    if at_step is None:
        diagnostician, _ = diagnosis_state.restore(connection, run, run_facts)
    else:
        diagnostician, _ = diagnosis_state.replay(connection, run, run_facts, at_step)
    at_that_step = diagnostician.diagnose()
    return Diagnosis(
        run_id=run.id,
        guards=_report_guards(connection, run) if at_step is None else None,
        **{field.name: getattr(at_that_step, field.name) for field in fields(at_that_step)},
    )


def _report_guards(connection: Connection, run: RunRow) -> GuardReport | None:
    """Return what the guards of a run did; None if they did nothing."""
    counts = guards.count_actions(connection, run.id)
    if not counts:
        return None
    extents = _guarded_chunks(chunk_repository.read_last_extents(connection, run.id, MAX_TAIL_CHUNKS + GUARDED_CHUNKS))
    first = extents[-1].first_step if extents else 0
    return describe_guards(
        counts,
        guards.list_rewinds(connection, run.id, REWINDS_NAMED),
        sum(extent.step_count for extent in extents),
        guards.count_steps_with_actions(connection, run.id, first),
    )


def _guarded_chunks(extents: Sequence[ChunkExtent]) -> Sequence[ChunkExtent]:
    """Return the chunks in whose steps the actions of guards are counted, of the last ones of a run, the last first."""
    full = [index for index, extent in enumerate(extents) if extent.step_count >= FULL_CHUNK_STEPS]
    return extents if len(full) < GUARDED_CHUNKS else extents[: full[GUARDED_CHUNKS - 1] + 1]


def read_verdict_history(connection: Connection, principal: Principal, run_id: UUID) -> VerdictHistory:
    """Return every change of a run's verdict, oldest first. Raises RunNotFound."""
    find_run(connection, principal, run_id)
    return VerdictHistory(
        items=[
            VerdictChange(
                step=change.step,
                verdict=change.verdict,
                learning=change.learning,
                level=change.level,
                score=change.score,
                finding=change.finding,
            )
            for change in repository.read_verdict_changes(connection, run_id)
        ]
    )


def read_series(
    connection: Connection,
    principal: Principal,
    run_id: UUID,
    names: Sequence[str],
    layers: Sequence[str],
    from_step: int,
    to_step: int | None,
    max_points: int,
    memory: AnswerMemory,
    cache: RollupCache,
) -> SeriesTable:
    """Return series in at most `max_points` buckets; without `layers`, of every layer of the run.

    Raises RunNotFound, InvalidRequest for unknown names and for an answer that would be too large, and Overloaded if
    other answers take the memory for it.
    """
    run = find_run(connection, principal, run_id)
    selection = series_reading.select_series(connection, run, names, layers)
    if selection.series_count * max_points > MAX_SERIES_POINTS:
        most = MAX_SERIES_POINTS // selection.series_count
        message = f"{selection.series_count} series allow {most}; ask for fewer layers, statistics or points"
        raise InvalidRequest.at("max_points", message)
    return series_reading.read_table(connection, run, selection, from_step, to_step, max_points, memory, cache)


def read_blocks(
    connection: Connection,
    principal: Principal,
    run_id: UUID,
    from_step: int,
    to_step: int | None,
    memory: AnswerMemory,
) -> BlocksResult:
    """Return stored blocks from a step on, as many as one answer holds.

    Raises RunNotFound, and Overloaded if other answers take the memory for it.
    """
    return block_reading.read_page(connection, find_run(connection, principal, run_id), from_step, to_step, memory)


def select_for_export(
    connection: Connection, principal: Principal, run_id: UUID, names: Sequence[str], layers: Sequence[str]
) -> tuple[SeriesSelection, int, int]:
    """Return the series to export, the run's generation, and its last step or -1.

    Raises RunNotFound, InvalidRequest for unknown names.
    """
    run = find_run(connection, principal, run_id)
    selection = series_reading.select_series(connection, run, names, layers)
    return selection, run.generation, -1 if run.last_step is None else run.last_step


def read_losses(connection: Connection, run_id: UUID, last_step: int) -> NDArray[np.float64]:
    """Return the losses of a run up to a step, in order; steps without a loss are left out."""
    return _read_values(connection, run_id, last_step, lambda chunk: chunk.series.get("loss"))


def read_values(connection: Connection, run_id: UUID, metric: str, last_step: int) -> NDArray[np.float64]:
    """Return the values of a metric of a run up to a step, in order; steps without a value are left out."""
    return _read_values(connection, run_id, last_step, lambda chunk: chunk.metrics.get(metric))


def _read_values(
    connection: Connection, run_id: UUID, last_step: int, choose: Callable[[Chunk], StepSeries | None]
) -> NDArray[np.float64]:
    values = [np.zeros(0)]
    for chunk in chunk_reading.read_chunks(connection, run_id, 0, last_step):
        series = choose(chunk)
        if series is not None:
            values.append(series.values[series.present & (chunk.steps <= last_step)])
    return np.concatenate(values)


def read_verdict_at(connection: Connection, run_id: UUID, step: int) -> str:
    """Return the verdict on a run as it was at a step."""
    changes = repository.read_verdict_changes(connection, run_id)
    return next((change.verdict for change in reversed(changes) if change.step <= step), "undetermined")
