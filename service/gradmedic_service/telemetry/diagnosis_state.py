"""The state of a run's diagnosis: restoring it, replaying it from stored steps, and advancing it by a block.

The stored state may lie up to `STATE_STEPS` steps behind the run; restoring it reads the steps after it. A snapshot of
the state is stored after every `SNAPSHOT_STEPS` steps, so that going back to a step replays at most that many.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import numpy as np
import structlog

from gradmedic.protocol.diagnosis import VerdictChange
from gradmedic_diagnosis import Block, Diagnostician
from gradmedic_diagnosis.state import StateError
from gradmedic_service.database.engine import Connection
from gradmedic_service.runs.facts import FactsCache, RunFacts
from gradmedic_service.runs.repository import read_stored_facts
from gradmedic_service.telemetry import chunk_reading, repository
from gradmedic_service.telemetry.chunks import widen_block
from gradmedic_service.telemetry.codec import CorruptChunk, compress, decompress
from gradmedic_service.telemetry.repository import DiagnosisSnapshot, RunRow

STATE_STEPS = 100
"""Number of steps after which the state is stored again; it is also stored with a snapshot and a change of the verdict.
Restoring reads the steps after it, which takes some milliseconds; storing it with every block would cost more."""
SNAPSHOT_STEPS = 1_000
"""Number of steps between two snapshots."""

_logger = structlog.get_logger("gradmedic.telemetry")


def read_facts(connection: Connection, facts: FactsCache, run: RunRow) -> RunFacts:
    """Return the facts about a run that the diagnosis needs besides its steps."""
    return facts.get(run.facts_digest, lambda: read_stored_facts(connection, run.id))


def new_diagnostician(facts: RunFacts, run: RunRow) -> Diagnostician:
    """Return a diagnostician that has read no step of the run."""
    return Diagnostician(
        facts.layers,
        facts.training,
        framework=facts.framework,
        muted=run.muted_detectors,
        architecture=facts.architecture,
    )


def restore(connection: Connection, run: RunRow, facts: RunFacts) -> tuple[Diagnostician, int]:
    """Return the diagnostician as of the run's last step, and the number of steps since the last snapshot.

    It is restored from the stored state and reads the steps after it. Where another version of the code wrote a state
    that this one cannot read, it reads all stored steps.
    """
    stored = repository.read_diagnosis(connection, run.id)
    if stored is None or run.last_step is None:
        return new_diagnostician(facts, run), 0
    try:
        diagnostician = _restore_state(stored.state, facts, run)
    except StateError as error:
        _logger.warning("the diagnosis is rebuilt from the stored steps", run_id=str(run.id), reason=str(error))
        return replay(connection, run, facts, run.last_step, from_snapshot=False)
    next_step = 0 if diagnostician.last_step is None else diagnostician.last_step + 1
    count = _read_steps(connection, run, diagnostician, next_step, run.last_step)
    return diagnostician, stored.steps_since_snapshot + count


def replay(
    connection: Connection, run: RunRow, facts: RunFacts, last_step: int, *, from_snapshot: bool = True
) -> tuple[Diagnostician, int]:
    """Return the diagnostician as of `last_step`, and the number of steps since the last snapshot.

    It is restored from the last snapshot and reads the steps after it, a chunk at a time. It reads all stored steps
    where `from_snapshot` is false or another version of the code wrote the snapshot.
    """
    snapshot = repository.read_last_snapshot(connection, run.id, last_step) if from_snapshot else None
    diagnostician = new_diagnostician(facts, run)
    first_step = 0
    if snapshot is not None:
        try:
            diagnostician = _restore_state(decompress(snapshot.state), facts, run)
            first_step = snapshot.step + 1
        except (StateError, CorruptChunk) as error:
            _logger.warning("a snapshot of the diagnosis is passed over", run_id=str(run.id), reason=str(error))
    count = _read_steps(connection, run, diagnostician, first_step, last_step)
    return diagnostician, min(count, SNAPSHOT_STEPS - 1)


def advance(
    diagnostician: Diagnostician, block: Block, steps_since_snapshot: int
) -> tuple[list[VerdictChange], list[DiagnosisSnapshot], int]:
    """Advance a diagnostician by a block; take a snapshot after every `SNAPSHOT_STEPS` steps of the run.

    Returns the verdict changes of the whole block, the snapshots, and the number of steps since the last snapshot.
    """
    changes: list[VerdictChange] = []
    snapshots: list[DiagnosisSnapshot] = []
    start = 0
    while True:
        stop = min(len(block), start + SNAPSHOT_STEPS - steps_since_snapshot)
        changes += diagnostician.advance(block if stop - start == len(block) else block.cut(start, stop))
        steps_since_snapshot += stop - start
        if steps_since_snapshot >= SNAPSHOT_STEPS:
            state = compress(diagnostician.to_bytes())
            snapshots.append(DiagnosisSnapshot(step=int(block.steps[stop - 1]), state=state))
            steps_since_snapshot = 0
        if stop == len(block):
            return changes, snapshots, steps_since_snapshot
        start = stop


def read_blocks(
    connection: Connection, run_id: UUID, layer_count: int, first_step: int, last_step: int
) -> Iterator[Block]:
    """Yield the stored steps of a range, a chunk at a time, widened to `layer_count` layers."""
    for chunk in chunk_reading.read_chunks(connection, run_id, first_step, last_step):
        block = cut_after(widen_block(chunk.to_block(), layer_count), last_step)
        block = block.cut(int(np.searchsorted(block.steps, first_step)), len(block))
        if len(block):
            yield block


def cut_after(block: Block, last_step: int) -> Block:
    """Return the block without the steps after `last_step`."""
    return block.cut(0, int(np.searchsorted(block.steps, last_step, side="right")))


def _restore_state(state: bytes, facts: RunFacts, run: RunRow) -> Diagnostician:
    """Return a diagnostician with a stored state. Raises StateError."""
    return Diagnostician.from_bytes(
        state,
        facts.layers,
        facts.training,
        framework=facts.framework,
        muted=run.muted_detectors,
        architecture=facts.architecture,
    )


def _read_steps(
    connection: Connection, run: RunRow, diagnostician: Diagnostician, first_step: int, last_step: int
) -> int:
    """Update a diagnostician with the stored steps of a range, a chunk at a time; return the number of steps."""
    count = 0
    if first_step <= last_step:
        for block in read_blocks(connection, run.id, run.layer_counts[-1], first_step, last_step):
            diagnostician.advance(block)
            count += len(block)
    return count
