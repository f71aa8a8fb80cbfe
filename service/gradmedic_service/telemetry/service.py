"""Telemetry: appending steps, rewinding, diagnosing, and reading series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.diagnosis import Diagnosis, DiagnosisAtStep, VerdictChange, VerdictHistory
from gradmedic.protocol.guards import GuardReport
from gradmedic.protocol.packed_blocks import BlocksResult
from gradmedic.protocol.steps import AppendResult, RewindResult, RunRewind
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_diagnosis import Block, StepSeries
from gradmedic_service.access.principal import Principal
from gradmedic_service.alerts import events
from gradmedic_service.database.engine import Connection, Database
from gradmedic_service.guards import repository as guards
from gradmedic_service.guards.report import REWINDS_NAMED, describe_guards
from gradmedic_service.http.answers import AnswerMemory
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.runs.stalling import SilenceLimit, recorded_at
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
from gradmedic_service.telemetry.decoding import ReceivedBlock
from gradmedic_service.telemetry.diagnosis_cache import DiagnosisCache
from gradmedic_service.telemetry.diagnosis_state import cut_after, read_facts
from gradmedic_service.telemetry.errors import StaleGeneration, UnknownGeneration
from gradmedic_service.telemetry.progress_reading import current_progress, listed_progress, rebuild_progress
from gradmedic_service.telemetry.repository import AppendedRun, RewoundRun, RunRow, StoredDiagnosis
from gradmedic_service.telemetry.rollup_cache import RollupCache
from gradmedic_service.telemetry.run_cache import CachedRun, RunCache
from gradmedic_service.telemetry.series_accumulator import SeriesSelection
from gradmedic_service.telemetry.series_table import SeriesTable

MAX_METRICS_OF_A_RUN = 1_000
"""Largest number of metric names of a run. A script that needs more makes names up."""
GUARDED_CHUNKS = 4
"""Number of the last full chunks, of 50 to 99 steps each, from which on the actions of guards are counted."""
MAX_SERIES_POINTS = 1_000_000
"""Largest number of series times buckets in an answer, some 40 MB of JSON."""


def append(
    connection: Connection,
    principal: Principal,
    facts: FactsCache,
    run_cache: RunCache,
    run_id: UUID,
    received: ReceivedBlock,
    sent_at: datetime | None = None,
) -> tuple[AppendResult, CachedRun | None]:
    """Store the steps that the run does not have yet and advance its diagnosis, in one transaction, exactly once.

    `sent_at` is the time of the request by the client's clock, None if it is not known.

    Returns the answer, and the run to add to `run_cache` once the transaction has been committed; None where the run
    had all steps already.

    Raises RunNotFound, StaleGeneration, UnknownGeneration, InvalidRequest where the block does not fit the run.
    """
    run = _find_run(connection, principal, run_id, is_locked=True)
    _check_generation(run, received.generation)
    block = received.fit(run.statistics, run.layer_counts)
    received_steps = len(block)
    if run.stop_after is not None:
        block = cut_after(block, run.stop_after)
    metrics = _merge_metrics(run, block)
    known_steps = 0 if run.last_step is None else int(np.searchsorted(block.steps, run.last_step, side="right"))
    if known_steps == len(block):
        return _unchanged_result(run, ignored=received_steps), None
    if known_steps:
        block = block.cut(known_steps, len(block))

    cached = run_cache.pop(run)
    if cached is None:
        diagnostician, steps_since_snapshot = diagnosis_state.restore(
            connection, run, read_facts(connection, facts, run)
        )
        steps_since_state = diagnosis_state.STATE_STEPS
    else:
        diagnostician, steps_since_snapshot = cached.diagnostician, cached.steps_since_snapshot
        steps_since_state = cached.steps_since_state + len(block)
    changes, snapshots, steps_since_snapshot = diagnosis_state.advance(diagnostician, block, steps_since_snapshot)
    verdict, level = diagnostician.verdict, diagnostician.level
    is_reported = bool(changes) or verdict in UNHEALTHY_VERDICTS or level != run.level
    diagnosis = diagnostician.diagnose() if is_reported else None  # nothing reads that of a run that stays healthy
    now = datetime.now(UTC)
    changed_at = recorded_at(block.series.get("time"), sent_at, now)
    silence_limit = _silence_limit(run, now).after_append(changed_at)
    has_ended_silently = run.status == "stalled" or (run.status == "failed" and run.stalls_at is None)
    progress = current_progress(connection, run)
    progress.add(block, run.created_at, changed_at)
    stores_state = steps_since_state >= diagnosis_state.STATE_STEPS or bool(changes or snapshots)
    appended = AppendedRun(
        revision=run.revision + 1,
        last_step=int(block.steps[-1]),
        verdict=verdict,
        learning=diagnostician.learning,
        level=level,
        score=float(diagnostician.score),
        since_step=diagnostician.since_step,
        metrics=metrics,
        listed=listed_progress(progress, diagnosis, diagnostician.decider),
        diagnosis=StoredDiagnosis(diagnostician.to_bytes(), steps_since_snapshot) if stores_state else None,
        snapshots=snapshots,
        verdict_changes=changes,
        updated_at=changed_at,
        silence_limit=silence_limit,
        ends_stall=has_ended_silently and silence_limit.stalls_at > now,
    )
    repository.write_append(connection, run_id, appended)
    _record_changes(connection, run, appended.revision, diagnosis, "running" if appended.ends_stall else run.status)
    tail = write_block(connection, run_id, block, None if cached is None else cached.tail)
    first, last = int(block.steps[0]), appended.last_step
    if actions := [action for action in received.guard_actions if first <= action.step <= last]:
        guards.add_actions(connection, run_id, run.generation, actions, now)
    result = AppendResult(
        accepted=len(block),
        ignored=received_steps - len(block),
        last_step=appended.last_step,
        generation=run.generation,
        revision=appended.revision,
        verdict=appended.verdict,
        since_step=appended.since_step,
        alerts=_alerts(run.verdict, changes, "" if diagnosis is None else diagnosis.summary),
        stop=_is_over(run, appended.last_step),
    )
    return result, CachedRun(
        row_before=run,
        revision=appended.revision,
        last_step=appended.last_step,
        diagnostician=diagnostician,
        steps_since_snapshot=steps_since_snapshot,
        steps_since_state=0 if stores_state else steps_since_state,
        tail=tail,
    )


def rewind(
    connection: Connection, principal: Principal, facts: FactsCache, run_id: UUID, body: RunRewind
) -> RewindResult:
    """Drop the steps after `body.step` and the diagnosis of them, and begin a new generation.

    The same request again, after the answer was lost, changes nothing. Raises RunNotFound, StaleGeneration,
    UnknownGeneration.
    """
    run = _find_run(connection, principal, run_id, is_locked=True)
    if body.generation == run.generation - 1 and body.step == run.rewound_to:
        return RewindResult(
            generation=run.generation,
            last_step=run.last_step,
            revision=run.revision,
            verdict=run.verdict,
            since_step=run.since_step,
        )
    _check_generation(run, body.generation)
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
    _record_changes(connection, run, rewound.revision, diagnosis, "running")
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
    return _diagnose(connection, facts, _find_run(connection, principal, run_id), None)


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
    found = repository.read_version(connection, run_id)
    if found is None or not principal.reaches_run(run_id, found[1]):
        raise _not_found(run_id)
    version, _, has_reruns = found
    if at_step is not None and not (version.last_step is not None and at_step >= version.last_step):
        return _diagnose(connection, facts, _find_run(connection, principal, run_id), at_step), has_reruns
    diagnosis = cache.find(run_id, version)
    if diagnosis is None:
        run = _find_run(connection, principal, run_id)
        diagnosis = _diagnose(connection, facts, run, None)
        cache.add(version, diagnosis, run.layer_counts[-1])
    return diagnosis, has_reruns


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
    _find_run(connection, principal, run_id)
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
    run = _find_run(connection, principal, run_id)
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
    return block_reading.read_page(connection, _find_run(connection, principal, run_id), from_step, to_step, memory)


def select_for_export(
    connection: Connection, principal: Principal, run_id: UUID, names: Sequence[str], layers: Sequence[str]
) -> tuple[SeriesSelection, int, int]:
    """Return the series to export, the run's generation, and its last step or -1.

    Raises RunNotFound, InvalidRequest for unknown names.
    """
    run = _find_run(connection, principal, run_id)
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


def _find_run(connection: Connection, principal: Principal, run_id: UUID, *, is_locked: bool = False) -> RunRow:
    run = repository.read_run(connection, run_id, is_locked=is_locked)
    if run is None or not principal.reaches_run(run_id, run.project):
        raise _not_found(run_id)
    return run


def _not_found(run_id: UUID) -> RunNotFound:
    return RunNotFound(f"There is no run {run_id}.")


def _record_changes(
    connection: Connection, run: RunRow, revision: int, diagnosis: DiagnosisAtStep | None, status: str
) -> None:
    """Record what may become an alert: a change of the run's level or status. `run` is its row before the change.

    `diagnosis` may be None where the level is as before.
    """
    changed = events.ChangedRun(id=run.id, project=run.project, parent_id=run.parent_id, revision=revision)
    level_change = None if diagnosis is None else events.level_change(run.level, diagnosis)
    changes = (level_change, events.status_change(run.status, status))
    events.record(connection, changed, changes)


def _silence_limit(run: RunRow, now: datetime) -> SilenceLimit:
    if run.silence_seconds is None or run.stalls_at is None:
        return SilenceLimit.at_start(now)
    return SilenceLimit(run.silence_seconds, run.stalls_at)


def _check_generation(run: RunRow, generation: int | None) -> None:
    if generation is None or generation == run.generation:
        return
    if generation < run.generation:
        raise StaleGeneration(
            f"The block is of generation {generation}; the run was rewound and is at {run.generation}."
        )
    raise UnknownGeneration(f"The block is of generation {generation}; the run is at {run.generation}.")


def _merge_metrics(run: RunRow, block: Block) -> list[str]:
    """Return the metric names of the run and the block together. Raises InvalidRequest for too many."""
    metrics = list(dict.fromkeys([*run.metrics, *block.metrics]))
    if len(metrics) > MAX_METRICS_OF_A_RUN:
        message = f"make {len(metrics)} names with those that the run has; at most {MAX_METRICS_OF_A_RUN} are allowed"
        raise InvalidRequest.at("metrics", message)
    return metrics


def _unchanged_result(run: RunRow, *, ignored: int) -> AppendResult:
    """Return the answer to a block whose steps are all ignored."""
    return AppendResult(
        accepted=0,
        ignored=ignored,
        last_step=run.last_step,
        generation=run.generation,
        revision=run.revision,
        verdict=run.verdict,
        since_step=run.since_step,
        alerts=[],
        stop=_is_over(run, run.last_step),
    )


def _is_over(run: RunRow, last_step: int | None) -> bool:
    """Whether the run takes no more steps: the budget of its trial is spent, or the trial has ended."""
    return run.stop_after is not None and (-1 if last_step is None else last_step) >= run.stop_after


def _alerts(verdict_before: str, changes: Sequence[VerdictChange], summary: str) -> list[str]:
    """Return a message for each change to an unhealthy verdict.

    The last message is the summary of the diagnosis where its verdict is the run's verdict now.
    """
    alerts = []
    for change in changes:
        if change.verdict in UNHEALTHY_VERDICTS and change.verdict != verdict_before:
            finding = f": {change.finding}." if change.finding else "."
            alerts.append(f"{change.verdict.capitalize()} at step {change.step}{finding}")
        verdict_before = change.verdict
    if alerts and changes[-1].verdict in UNHEALTHY_VERDICTS:
        alerts[-1] = summary
    return alerts
