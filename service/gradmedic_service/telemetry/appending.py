"""Appending steps: exactly once, with the diagnosis of them, in one transaction.

Most appends go on where this process left the run. Then its row is not read. The update names the row as this process
left it, and finds it only if nothing has changed it. Otherwise, nothing is written, and the run is locked and read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import numpy as np

from gradmedic.protocol.diagnosis import DiagnosisAtStep, VerdictChange
from gradmedic.protocol.steps import AppendResult
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_diagnosis import Block
from gradmedic_service.access.principal import Principal
from gradmedic_service.database.engine import Connection
from gradmedic_service.guards import repository as guards
from gradmedic_service.http.errors import InvalidRequest, ServiceError
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.runs.stalling import SilenceLimit, recorded_at
from gradmedic_service.telemetry import diagnosis_state, repository
from gradmedic_service.telemetry.chunk_writer import write_block
from gradmedic_service.telemetry.decoding import ReceivedBlock
from gradmedic_service.telemetry.diagnosis_state import cut_after, read_facts
from gradmedic_service.telemetry.progress_reading import current_progress, listed_progress
from gradmedic_service.telemetry.repository import AppendedRun, RunRow, StoredDiagnosis
from gradmedic_service.telemetry.run_cache import CachedRun, RunCache
from gradmedic_service.telemetry.run_rules import check_generation, find_run, record_changes

MAX_METRICS_OF_A_RUN = 1_000
"""Largest number of metric names of a run. A script that needs more makes names up."""


@dataclass(frozen=True, slots=True)
class Append:
    """What an append did."""

    result: AppendResult
    """The answer."""
    verdict_before: str
    cached: CachedRun | None
    """The run, to be added to the cache once the transaction has been committed; None where this process would have to
    restore its diagnosis."""


@dataclass(frozen=True, slots=True)
class _NewSteps:
    """The steps of a request that its run does not have."""

    block: Block
    ignored: int
    """Number of the other steps of the request."""
    metrics: list[str]
    """Names of the metrics of the run, the new ones included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Advanced:
    """A run whose diagnosis has read new steps that are not stored yet."""

    run: RunRow
    """The row before."""
    new: _NewSteps
    appended: AppendedRun
    diagnosis: DiagnosisAtStep | None
    """None where the run stays healthy."""
    cached: CachedRun
    """The run as it will be, with the tail before."""


def append(
    connection: Connection,
    principal: Principal,
    facts: FactsCache,
    run_cache: RunCache,
    run_id: UUID,
    received: ReceivedBlock,
    sent_at: datetime | None = None,
) -> Append:
    """Store the steps that the run does not have yet and advance its diagnosis, in one transaction, exactly once.

    `sent_at` is the time of the request by the client's clock, None if it is not known.

    Raises RunNotFound, StaleGeneration, UnknownGeneration, InvalidRequest where the block does not fit the run.
    """
    cached = run_cache.pop(run_id)
    if cached is not None and (new := _find_continuation(cached.row, principal, received)) is not None:
        advanced = _advance(connection, facts, cached.row, cached, new, sent_at)
        if repository.write_append_if_unchanged(connection, cached.row, advanced.appended):
            return _write_steps(connection, advanced, received)
        cached = None  # its diagnostician has read the block
    try:
        run = find_run(connection, principal, run_id, is_locked=True)
        new = _choose_new_steps(run, received)
    except ServiceError:
        if cached is not None:
            run_cache.add(cached)
        raise
    if cached is not None and cached.row != run:
        cached = None
    if not len(new.block):
        return Append(_unchanged_result(run, ignored=new.ignored), run.verdict, cached)
    advanced = _advance(connection, facts, run, cached, new, sent_at)
    repository.write_append(connection, run_id, advanced.appended)
    return _write_steps(connection, advanced, received)


def _find_continuation(run: RunRow, principal: Principal, received: ReceivedBlock) -> _NewSteps | None:
    """Return the new steps of a request, as far as the row in the cache tells.

    Returns None if the stored row must decide: the request would be refused, or no step of it is new.
    """
    if not principal.reaches_run(run.id, run.project):
        return None
    try:
        new = _choose_new_steps(run, received)
    except ServiceError:
        return None
    return new if len(new.block) else None


def _choose_new_steps(run: RunRow, received: ReceivedBlock) -> _NewSteps:
    """Return the steps of a request that its run does not have.

    Raises StaleGeneration, UnknownGeneration, InvalidRequest.
    """
    check_generation(run, received.generation)
    block = received.fit(run.statistics, run.layer_counts)
    received_steps = len(block)
    if run.stop_after is not None:
        block = cut_after(block, run.stop_after)
    metrics = _merge_metrics(run, block)
    known_steps = 0 if run.last_step is None else int(np.searchsorted(block.steps, run.last_step, side="right"))
    if known_steps:
        block = block.cut(known_steps, len(block))
    return _NewSteps(block, received_steps - len(block), metrics)


def _advance(
    connection: Connection,
    facts: FactsCache,
    run: RunRow,
    cached: CachedRun | None,
    new: _NewSteps,
    sent_at: datetime | None,
) -> _Advanced:
    """Advance the diagnosis of a run by new steps; nothing is written."""
    block = new.block
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
        metrics=new.metrics,
        listed=listed_progress(progress, diagnosis, diagnostician.decider),
        diagnosis=StoredDiagnosis(diagnostician.to_bytes(), steps_since_snapshot) if stores_state else None,
        snapshots=snapshots,
        verdict_changes=changes,
        updated_at=changed_at,
        silence_limit=silence_limit,
        ends_stall=has_ended_silently and silence_limit.stalls_at > now,
    )
    return _Advanced(
        run=run,
        new=new,
        appended=appended,
        diagnosis=diagnosis,
        cached=CachedRun(
            row=_row_after(run, appended, silence_limit),
            diagnostician=diagnostician,
            steps_since_snapshot=steps_since_snapshot,
            steps_since_state=0 if stores_state else steps_since_state,
            tail=None if cached is None else cached.tail,
        ),
    )


def _row_after(run: RunRow, appended: AppendedRun, silence_limit: SilenceLimit) -> RunRow:
    """Return the row of a run as an append leaves it."""
    return replace(
        run,
        status="running" if appended.ends_stall else run.status,
        revision=appended.revision,
        last_step=appended.last_step,
        verdict=appended.verdict,
        level=appended.level,
        since_step=appended.since_step,
        metrics=appended.metrics,
        silence_seconds=silence_limit.seconds,
        stalls_at=silence_limit.stalls_at,
        progress=appended.listed.progress,
    )


def _write_steps(connection: Connection, advanced: _Advanced, received: ReceivedBlock) -> Append:
    """Write the new steps of a run whose row has been written, and what belongs to them."""
    run, block, appended = advanced.run, advanced.new.block, advanced.appended
    record_changes(connection, run, appended.revision, advanced.diagnosis, advanced.cached.row.status)
    tail = write_block(connection, run.id, block, advanced.cached.tail)
    first, last = int(block.steps[0]), appended.last_step
    if actions := [action for action in received.guard_actions if first <= action.step <= last]:
        guards.add_actions(connection, run.id, run.generation, actions, datetime.now(UTC))
    result = AppendResult(
        accepted=len(block),
        ignored=advanced.new.ignored,
        last_step=appended.last_step,
        generation=run.generation,
        revision=appended.revision,
        verdict=appended.verdict,
        since_step=appended.since_step,
        alerts=_alerts(
            run.verdict,
            appended.verdict_changes,
            "" if advanced.diagnosis is None else advanced.diagnosis.summary,
        ),
        stop=_is_over(run, appended.last_step),
    )
    return Append(result, run.verdict, replace(advanced.cached, tail=tail))


def _silence_limit(run: RunRow, now: datetime) -> SilenceLimit:
    if run.silence_seconds is None or run.stalls_at is None:
        return SilenceLimit.at_start(now)
    return SilenceLimit(run.silence_seconds, run.stalls_at)


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
