"""Telemetry: what appending steps and reading them back means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
import structlog
from numpy.typing import NDArray

from gradmedic.protocol.diagnosis import Advice, Cause, Diagnosis, Finding, VerdictChange, VerdictHistory
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.statistics import SERIES
from gradmedic.protocol.steps import AppendResult, RewindResult, RunRewind
from gradmedic_diagnosis import Block, Diagnostician, report
from gradmedic_diagnosis.state import StateError
from gradmedic_service.access.principal import Principal
from gradmedic_service.database.engine import Connection
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.runs.facts import FactsCache, RunFacts
from gradmedic_service.runs.repository import stored_facts
from gradmedic_service.runs.stalling import Patience
from gradmedic_service.telemetry import repository
from gradmedic_service.telemetry.buckets import Buckets, Selection
from gradmedic_service.telemetry.chunk_writer import store
from gradmedic_service.telemetry.chunks import Chunk, decode, widen
from gradmedic_service.telemetry.codec import CorruptChunk, compress, decompress
from gradmedic_service.telemetry.decoding import ReceivedBlock
from gradmedic_service.telemetry.errors import StaleGeneration, UnknownGeneration
from gradmedic_service.telemetry.repository import RunAppend, RunRewindUpdate, RunState, Snapshot, StoredState
from gradmedic_service.telemetry.rollups import FACTOR, Rollup
from gradmedic_service.telemetry.run_cache import CachedRun, RunCache
from gradmedic_service.telemetry.series_table import SeriesTable

STATE_STEPS = 100
"""Steps after which the diagnosis state is stored anew; also with a snapshot and when the verdict changes. Who has to
restore it reads the steps behind it, a few milliseconds; to store it with every block would cost every block more."""
SNAPSHOT_STEPS = 1_000
"""Stored steps from one snapshot of the diagnosis to the next, and so the most that going back replays."""
MAX_METRICS_OF_A_RUN = 1_000
"""Names of metrics over the whole run; more come from a script that makes names up."""
MAX_SERIES_POINTS = 1_000_000
"""Series times buckets of one answer: some 40 MB of JSON."""
ALARMING = ("vanishing", "exploding")

_logger = structlog.get_logger("gradmedic.telemetry")


def append(
    connection: Connection,
    principal: Principal,
    facts: FactsCache,
    warm: RunCache,
    run_id: UUID,
    received: ReceivedBlock,
) -> tuple[AppendResult, CachedRun | None]:
    """Store the steps that the run does not have yet and advance its diagnosis; in one transaction, exactly once.

    Returns the answer, and what `warm` may keep once the transaction has been committed.

    Raises RunNotFound, StaleGeneration, UnknownGeneration, InvalidRequest where the block does not fit the run.
    """
    run = _state(connection, principal, run_id, is_locked=True)
    _check_generation(run, received.generation)
    block = received.fit(run.statistics, run.layer_counts)
    sent = len(block)
    if run.stop_after is not None:
        block = _until(block, run.stop_after)
    metrics = list(dict.fromkeys([*run.metrics, *block.metrics]))
    if len(metrics) > MAX_METRICS_OF_A_RUN:
        message = f"make {len(metrics)} names with those that the run has; at most {MAX_METRICS_OF_A_RUN} are allowed"
        raise InvalidRequest.at("metrics", message)
    ignored = 0 if run.last_step is None else int(np.searchsorted(block.steps, run.last_step, side="right"))
    if ignored == len(block):
        return _result(run, accepted=0, ignored=sent), None
    block = block.cut(ignored, len(block))

    known = warm.take(run)
    if known is None:
        diagnostician, steps_since_snapshot = _diagnostician(connection, run, facts_of(connection, facts, run))
        steps_since_state = STATE_STEPS
    else:
        diagnostician, steps_since_snapshot = known.diagnostician, known.steps_since_snapshot
        steps_since_state = known.steps_since_state + len(block)
    diagnosis, changes, snapshots, steps_since_snapshot = advance_through(diagnostician, block, steps_since_snapshot)
    now = datetime.now(UTC)
    saves_state = steps_since_state >= STATE_STEPS or bool(changes or snapshots)
    advance = RunAppend(
        revision=run.revision + 1,
        last_step=int(block.steps[-1]),
        verdict=diagnosis.verdict,
        score=float(diagnosis.score),
        since_step=diagnosis.since_step,
        metrics=metrics,
        state=StoredState(diagnostician.to_bytes(), steps_since_snapshot) if saves_state else None,
        snapshots=snapshots,
        changes=changes,
        at=now,
        patience=_patience(run, now).after_append(now),
    )
    repository.advance(connection, run_id, advance)
    tail = store(connection, run_id, block, None if known is None else known.tail)
    result = AppendResult(
        accepted=len(block),
        ignored=sent - len(block),
        last_step=advance.last_step,
        generation=run.generation,
        revision=advance.revision,
        verdict=advance.verdict,
        since_step=advance.since_step,
        alerts=_alerts(changes, diagnosis.summary),
        stop=_is_spent(run, advance.last_step),
    )
    return result, CachedRun(
        run=run,
        revision=advance.revision,
        last_step=advance.last_step,
        diagnostician=diagnostician,
        steps_since_snapshot=steps_since_snapshot,
        steps_since_state=0 if saves_state else steps_since_state,
        tail=tail,
    )


def rewind(
    connection: Connection, principal: Principal, facts: FactsCache, run_id: UUID, body: RunRewind
) -> RewindResult:
    """Drop the steps behind one, with what was concluded from them, and begin a new generation.

    The same request again, after the answer was lost, changes nothing. Raises RunNotFound, StaleGeneration,
    UnknownGeneration.
    """
    run = _state(connection, principal, run_id, is_locked=True)
    if body.generation == run.generation - 1 and body.step == run.rewound_to:
        return RewindResult(
            generation=run.generation,
            last_step=run.last_step,
            revision=run.revision,
            verdict=run.verdict,
            since_step=run.since_step,
        )
    _check_generation(run, body.generation)
    for data in repository.remove_steps_after(connection, run_id, body.step):
        store(connection, run_id, _until(decode(data), body.step))
    diagnostician, steps_since_snapshot = _replayed(connection, run, facts_of(connection, facts, run), body.step)
    diagnosis = diagnostician.diagnose()
    retreat = RunRewindUpdate(
        generation=run.generation + 1,
        revision=run.revision + 1,
        rewound_to=body.step,
        last_step=diagnosis.step,
        verdict=diagnosis.verdict,
        score=float(diagnosis.score),
        since_step=diagnosis.since_step,
        state=None if diagnosis.step is None else StoredState(diagnostician.to_bytes(), steps_since_snapshot),
        at=datetime.now(UTC),
    )
    repository.retreat(connection, run_id, retreat)
    return RewindResult(
        generation=retreat.generation,
        last_step=retreat.last_step,
        revision=retreat.revision,
        verdict=retreat.verdict,
        since_step=retreat.since_step,
    )


def diagnose(
    connection: Connection, principal: Principal, facts: FactsCache, run_id: UUID, at_step: int | None
) -> Diagnosis:
    """Return the diagnosis of a run, now or as it was at a step. Raises RunNotFound."""
    run = _state(connection, principal, run_id)
    known = facts_of(connection, facts, run)
    if at_step is None or (run.last_step is not None and at_step >= run.last_step):
        return _on_the_wire(run_id, _diagnostician(connection, run, known)[0].diagnose())
    return _on_the_wire(run_id, _replayed(connection, run, known, at_step)[0].diagnose())


def history(connection: Connection, principal: Principal, run_id: UUID) -> VerdictHistory:
    """Return every change of a run's verdict. Raises RunNotFound."""
    _state(connection, principal, run_id)
    return VerdictHistory(
        items=[
            VerdictChange(step=change.step, verdict=change.verdict, score=change.score, finding=change.finding)
            for change in repository.verdict_changes(connection, run_id)
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
) -> SeriesTable:
    """Return series over at most `max_points` buckets. Raises RunNotFound, InvalidRequest for names there are not.

    Without `layers`, a statistic answers with every layer of the run.
    """
    run = _state(connection, principal, run_id)
    selection = _selection(run, repository.layer_names(connection, run_id), names, layers)
    if selection.series_count * max_points > MAX_SERIES_POINTS:
        most = MAX_SERIES_POINTS // selection.series_count
        message = f"{selection.series_count} series allow {most}; ask for fewer layers, statistics or points"
        raise InvalidRequest.at("max_points", message)
    first = max(from_step, repository.first_step(connection, run_id) or 0)
    last = run.last_step if to_step is None else min(to_step, run.last_step or 0)
    if run.last_step is None or last is None or last < first:
        return Buckets(selection, 0, 0, max_points).table()
    buckets = Buckets(selection, first, last, max_points)
    _read(connection, run_id, _coarsest_level(connection, run_id, first, last, max_points), first, last, buckets)
    return buckets.table()


def select_for_export(
    connection: Connection, principal: Principal, run_id: UUID, names: Sequence[str], layers: Sequence[str]
) -> tuple[Selection, int, int]:
    """Return what to export, the run's generation and its last step. Raises RunNotFound, InvalidRequest."""
    run = _state(connection, principal, run_id)
    selection = _selection(run, repository.layer_names(connection, run_id), names, layers)
    return selection, run.generation, -1 if run.last_step is None else run.last_step


def losses(connection: Connection, run_id: UUID, last_step: int) -> NDArray[np.float64]:
    """Return every loss of a run up to a step, in order; the steps without one are left out."""
    found = [np.zeros(0)]
    for data in repository.chunks(connection, run_id, 0, last_step):
        chunk = Chunk(data)
        series = chunk.series.get("loss")
        if series is not None:
            found.append(series.values[series.present & (chunk.steps <= last_step)])
    return np.concatenate(found)


def _state(connection: Connection, principal: Principal, run_id: UUID, *, is_locked: bool = False) -> RunState:
    run = repository.read_state(connection, run_id, is_locked=is_locked)
    if run is None or not principal.reaches_run(run_id, run.project):
        raise RunNotFound(f"There is no run {run_id}.")
    return run


def _patience(run: RunState, now: datetime) -> Patience:
    if run.patience is None or run.stalls_at is None:
        return Patience.at_start(now)
    return Patience(run.patience, run.stalls_at)


def _check_generation(run: RunState, generation: int | None) -> None:
    if generation is None or generation == run.generation:
        return
    if generation < run.generation:
        raise StaleGeneration(
            f"The block is of generation {generation}; the run was rewound and is at {run.generation}."
        )
    raise UnknownGeneration(f"The block is of generation {generation}; the run is at {run.generation}.")


def facts_of(connection: Connection, facts: FactsCache, run: RunState) -> RunFacts:
    """Return what the diagnosis is told about a run besides its steps."""
    return facts.get(run.facts_digest, lambda: stored_facts(connection, run.id))


def _diagnostician(connection: Connection, run: RunState, facts: RunFacts) -> tuple[Diagnostician, int]:
    """Return the run's diagnostician as of its last step, and how many steps lie behind the last snapshot.

    The stored state, and what was stored since; everything anew where another version of the code left the state.
    """
    stored = repository.read_stored_state(connection, run.id)
    if stored is None or run.last_step is None:
        return Diagnostician(facts.layers, facts.training, run.muted), 0
    try:
        restored = Diagnostician.from_bytes(stored.state, facts.layers, facts.training, run.muted)
    except StateError as error:
        _logger.warning("the diagnosis is rebuilt from the stored steps", run_id=str(run.id), reason=str(error))
        return _replayed(connection, run, facts, run.last_step, from_snapshot=False)
    next_step = 0 if restored.last_step is None else restored.last_step + 1
    read = _read_on(connection, run, restored, next_step, run.last_step)
    return restored, stored.steps_since_snapshot + read


def advance_through(
    diagnostician: Diagnostician, block: Block, steps_since_snapshot: int
) -> tuple[report.Diagnosis, list[report.VerdictChange], list[Snapshot], int]:
    """Let a diagnostician read a block, with a stop for a snapshot after every `SNAPSHOT_STEPS` steps of the run.

    Returns the diagnosis, the changes of the whole block, the snapshots, and how many steps lie behind the last one.
    """
    changes: list[report.VerdictChange] = []
    snapshots: list[Snapshot] = []
    start = 0
    while True:
        stop = min(len(block), start + SNAPSHOT_STEPS - steps_since_snapshot)
        diagnosis = diagnostician.update(block if stop - start == len(block) else block.cut(start, stop))
        changes += diagnosis.changes
        steps_since_snapshot += stop - start
        if steps_since_snapshot >= SNAPSHOT_STEPS:
            snapshots.append(Snapshot(step=int(block.steps[stop - 1]), state=compress(diagnostician.to_bytes())))
            steps_since_snapshot = 0
        if stop == len(block):
            return diagnosis, changes, snapshots, steps_since_snapshot
        start = stop


def _replayed(
    connection: Connection, run: RunState, facts: RunFacts, last_step: int, *, from_snapshot: bool = True
) -> tuple[Diagnostician, int]:
    """Return a diagnostician that has read the stored steps up to one, and how many of them since the last snapshot.

    It reads a chunk at a time, and only what follows the last snapshot; everything where `from_snapshot` is false or
    the snapshot is of another version of the code.
    """
    snapshot = repository.last_snapshot(connection, run.id, last_step) if from_snapshot else None
    diagnostician = Diagnostician(facts.layers, facts.training, run.muted)
    first_step = 0
    if snapshot is not None:
        try:
            state = decompress(snapshot.state)
            diagnostician = Diagnostician.from_bytes(state, facts.layers, facts.training, run.muted)
            first_step = snapshot.step + 1
        except (StateError, CorruptChunk) as error:
            _logger.warning("a snapshot of the diagnosis is passed over", run_id=str(run.id), reason=str(error))
    steps_since_snapshot = _read_on(connection, run, diagnostician, first_step, last_step)
    return diagnostician, min(steps_since_snapshot, SNAPSHOT_STEPS - 1)


def _read_on(
    connection: Connection, run: RunState, diagnostician: Diagnostician, first_step: int, last_step: int
) -> int:
    """Let a diagnostician read stored steps, a chunk at a time; return how many there were."""
    count = 0
    if first_step <= last_step:
        for block in chunk_blocks(connection, run.id, run.layer_counts[-1], first_step, last_step):
            diagnostician.update(block)
            count += len(block)
    return count


def chunk_blocks(
    connection: Connection, run_id: UUID, layer_count: int, first_step: int, last_step: int
) -> Iterator[Block]:
    """Yield the stored steps of a range, a chunk at a time, each with as many layers as the run has now."""
    for data in repository.chunks(connection, run_id, first_step, last_step):
        block = _until(widen(decode(data), layer_count), last_step)
        block = block.cut(int(np.searchsorted(block.steps, first_step)), len(block))
        if len(block):
            yield block


def _until(block: Block, last_step: int) -> Block:
    """Return the block without the steps behind one."""
    return block.cut(0, int(np.searchsorted(block.steps, last_step, side="right")))


def _read(connection: Connection, run_id: UUID, level: int, first: int, last: int, buckets: Buckets) -> None:
    """Add the steps from `first` to `last`: from the rollups of a level, and from finer ones at both ends."""
    if first > last:
        return
    if level == 0:
        for data in repository.chunks(connection, run_id, first, last):
            buckets.add(Chunk(data))
        return
    _, begin, end = repository.rollup_extent(connection, run_id, level, first, last)
    _read(connection, run_id, level - 1, first, begin - 1, buckets)
    if begin <= end:
        buckets.add_rollups(map(Rollup, repository.rollups(connection, run_id, level, begin, end)))
        _read(connection, run_id, level - 1, end + 1, last, buckets)


def _coarsest_level(connection: Connection, run_id: UUID, first: int, last: int, max_points: int) -> int:
    """Return the highest level that still has a bucket for each point of a picture, or 0, where all steps are read."""
    for level in range(repository.top_level(connection, run_id), 0, -1):
        count, _, _ = repository.rollup_extent(connection, run_id, level, first, last)
        if count * FACTOR >= max_points:
            return level
    return 0


def _result(run: RunState, *, accepted: int, ignored: int) -> AppendResult:
    return AppendResult(
        accepted=accepted,
        ignored=ignored,
        last_step=run.last_step,
        generation=run.generation,
        revision=run.revision,
        verdict=run.verdict,
        since_step=run.since_step,
        alerts=[],
        stop=_is_spent(run, run.last_step),
    )


def _is_spent(run: RunState, last_step: int | None) -> bool:
    """Whether a run takes no further step: a trial's budget is spent, or the trial is over."""
    return run.stop_after is not None and (-1 if last_step is None else last_step) >= run.stop_after


def _alerts(changes: Sequence[report.VerdictChange], summary: str) -> list[str]:
    """Tell each change to an alarming verdict; the last one in the diagnosis's own words."""
    alerts = [
        f"{change.verdict.capitalize()} at step {change.step}" + (f": {change.finding}." if change.finding else ".")
        for change in changes
        if change.verdict in ALARMING
    ]
    if changes and changes[-1].verdict in ALARMING:
        alerts[-1] = summary
    return alerts


def _selection(run: RunState, run_layers: list[str], names: Sequence[str], layers: Sequence[str]) -> Selection:
    known = [*run.statistics, *SERIES, *run.metrics]
    for index, name in enumerate(names):
        if name not in known:
            message = f"{name!r} is none of the run's: {', '.join(known[:40])}{', ...' if len(known) > 40 else ''}"
            raise InvalidRequest.at(f"statistic[{index}]", message)
    positions = {name: position for position, name in enumerate(run_layers)}
    for index, layer in enumerate(layers):
        if layer not in positions:
            raise InvalidRequest.at(f"layer[{index}]", f"{layer!r} is not a layer of the run")
    chosen = list(dict.fromkeys(layers)) or run_layers
    unique = list(dict.fromkeys(names))
    return Selection(
        statistics=tuple(name for name in unique if name in run.statistics),
        layers=tuple((name, positions[name]) for name in chosen),
        series=tuple(name for name in unique if name not in run.statistics),
    )


def _on_the_wire(run_id: UUID, diagnosis: report.Diagnosis) -> Diagnosis:
    return Diagnosis(
        run_id=run_id,
        step=diagnosis.step,
        verdict=diagnosis.verdict,
        score=float(diagnosis.score),
        since_step=diagnosis.since_step,
        summary=diagnosis.summary,
        findings=[
            Finding(
                detector=finding.detector,
                class_=finding.class_,
                severity=finding.severity,
                layers=list(finding.layers),
                first_step=finding.first_step,
                last_step=finding.last_step,
                resolved_step=finding.resolved_step,
                evidence={name: float(value) for name, value in finding.evidence.items()},
                explanation=finding.explanation,
            )
            for finding in diagnosis.findings
        ],
        causes=[
            Cause(
                cause=cause.cause,
                score=float(cause.score),
                evidence={name: float(value) for name, value in cause.evidence.items()},
                explanation=cause.explanation,
            )
            for cause in diagnosis.causes
        ],
        advice=[
            Advice(
                remedy=Remedy(id=advice.remedy.id, parameters=dict(advice.remedy.parameters)),
                rank=advice.rank,
                reason=advice.reason,
                cost=advice.cost,
                snippet=advice.snippet,
                sources=list(advice.sources),
            )
            for advice in diagnosis.advice
        ],
    )
