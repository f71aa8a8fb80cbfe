"""Builds the progress of a run anew from its stored steps: after a rewind, and for runs of an earlier version.

It reads rollups where the run is long, so it costs the same at any length. Only the last values are read exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import numpy as np

from gradmedic.protocol.diagnosis import DiagnosisAtStep
from gradmedic.protocol.verdicts import UNHEALTHY_VERDICTS
from gradmedic_diagnosis import StepSeries
from gradmedic_service.database.engine import Connection
from gradmedic_service.runs.progress import (
    LOSS,
    MAX_CURVE_POINTS,
    CurveBucket,
    LastValue,
    RunProgress,
    last_value,
    listed_names,
    read_progress,
)
from gradmedic_service.telemetry import chunk_reading, chunk_repository, repository
from gradmedic_service.telemetry.chunks import Chunk
from gradmedic_service.telemetry.repository import ListedProgress, RunRow
from gradmedic_service.telemetry.series_accumulator import SeriesSelection
from gradmedic_service.telemetry.series_reading import accumulate_table

READ_POINTS = 32 * MAX_CURVE_POINTS
"""Number of parts of a run from which its curve is built: the edges of a bucket are exact to 1/16 of its width."""
SEARCH_POINTS = 64
"""Number of parts into which a range of steps is divided in the search for the last value of a series."""


def listed_progress(progress: RunProgress, diagnosis: DiagnosisAtStep | None, decider: str | None) -> ListedProgress:
    """Return what lists show of a run with this progress and this diagnosis.

    Without an unhealthy verdict, no diagnosis is needed. `decider` is the id of the detector that decided the verdict,
    None if there is none.
    """
    return ListedProgress(
        progress=progress.to_bytes(),
        last_values=progress.last_values(),
        duration=progress.duration(),
        first_bad_layer=None if diagnosis is None else _first_bad_layer(diagnosis, decider),
    )


def _first_bad_layer(diagnosis: DiagnosisAtStep, decider: str | None) -> str | None:
    """Return the first layer of the finding that decided an unhealthy verdict; None for other verdicts.

    Where that finding has no layer, it is the first layer of another finding for the verdict.
    """
    if diagnosis.verdict not in UNHEALTHY_VERDICTS:
        return None
    findings = [each for each in diagnosis.findings if each.verdict == diagnosis.verdict and each.layers]
    findings.sort(key=lambda finding: finding.detector != decider)
    return findings[0].layers[0] if findings else None


def current_progress(connection: Connection, run: RunRow) -> RunProgress:
    """Return the progress of a run up to its last step; built anew where the stored one is not up to date."""
    progress = read_progress(run.progress)
    is_current = progress is not None and (progress.generation, progress.step) == (
        run.generation,
        -1 if run.last_step is None else run.last_step,
    )
    if progress is not None and is_current:
        return progress
    if run.last_step is None:
        return RunProgress(generation=run.generation)
    return rebuild_progress(connection, run, run.generation, run.last_step)


def rebuild_progress(connection: Connection, run: RunRow, generation: int, last_step: int) -> RunProgress:
    """Return the progress of a run up to a step, from its stored steps."""
    progress = RunProgress(generation=generation, step=last_step)
    first_step = chunk_repository.read_first_step(connection, run.id)
    if first_step is None or first_step > last_step:
        return progress
    found = _find_last_values(connection, run.id, [LOSS, *listed_names(run.metrics)], first_step, last_step)
    progress.loss = found.pop(LOSS, None)
    progress.metrics = found
    if progress.loss is not None:
        _read_curve(connection, run.id, progress, first_step, progress.loss.step)
    for step in (first_step, last_step):
        _read_time(connection, run.id, progress, step)
    if progress.first_time is None:
        created_at, updated_at = repository.read_times(connection, run.id)
        progress.first_time, progress.last_time = created_at.timestamp(), updated_at.timestamp()
    return progress


def _read_curve(connection: Connection, run_id: UUID, progress: RunProgress, first: int, last: int) -> None:
    """Read the curve of the loss from the steps `first` to `last`. The last step has a loss, the first one may not."""
    selection = SeriesSelection((), (), (LOSS,))
    while True:
        table = accumulate_table(connection, run_id, selection, first, last, max_points=READ_POINTS)
        first_used = int(table.first_step[np.flatnonzero(table.count[0])[0]])
        if first_used == first:
            break
        first = first_used  # the loss begins later than the run: its steps get all the parts
    progress.make_room(first, last)
    columns = (table.first_step, table.numbers["mean"][0], table.count[0], table.nonfinite[0])
    for step, mean, count, nonfinite in zip(*(column.tolist() for column in columns), strict=True):
        if count:
            finite = count - nonfinite
            bucket = CurveBucket(step // progress.width, mean if finite else 0.0, finite, nonfinite)
            progress.add_bucket(bucket)


def _read_time(connection: Connection, run_id: UUID, progress: RunProgress, step: int) -> None:
    """Read the times of the chunk that holds a step, which is the first or the last one."""
    for data in chunk_repository.read_first_chunks(connection, run_id, step, step, 1):
        times = Chunk(data).series.get("time")
        if times is not None:
            progress.add_times(times)


def _find_last_values(
    connection: Connection, run_id: UUID, names: list[str], first: int, last: int
) -> dict[str, LastValue]:
    """Return the last value of each series that has one in a range of steps, in the order of the names."""
    found = _scan(connection, run_id, names, last, last)
    missing = [name for name in names if name not in found]
    if missing:
        table = accumulate_table(
            connection, run_id, SeriesSelection((), (), tuple(missing)), first, last, max_points=SEARCH_POINTS
        )
        for row, name in enumerate(missing):
            used = np.flatnonzero(table.count[row])
            if used.size:
                part = int(table.first_step[used[-1]]), int(table.last_step[used[-1]])
                found |= _find_last_value(connection, run_id, name, *part, is_part=part != (first, last))
    return {name: found[name] for name in names if name in found}


def _find_last_value(
    connection: Connection, run_id: UUID, name: str, first: int, last: int, *, is_part: bool
) -> dict[str, LastValue]:
    """Find the last value of a series that has one in a range of steps: in ever smaller parts of it."""
    while is_part and last - first >= SEARCH_POINTS:
        table = accumulate_table(
            connection, run_id, SeriesSelection((), (), (name,)), first, last, max_points=SEARCH_POINTS
        )
        used = np.flatnonzero(table.count[0])
        part = int(table.first_step[used[-1]]), int(table.last_step[used[-1]])
        is_part = part != (first, last)
        first, last = part
    return _scan(connection, run_id, [name], first, last)


def _scan(connection: Connection, run_id: UUID, names: Iterable[str], first: int, last: int) -> dict[str, LastValue]:
    """Read the chunks that touch a range of steps, up to its last step, and return the last values in them."""
    found: dict[str, LastValue] = {}
    for chunk in chunk_reading.read_chunks(connection, run_id, first, last):
        count = int(np.searchsorted(chunk.steps, last, side="right"))
        for name in names:
            series = chunk.series.get(name) or chunk.metrics.get(name)
            if series is not None:
                cut = StepSeries(series.values[:count], series.present[:count])
                value = last_value(chunk.steps[:count], cut)
                found |= {} if value is None else {name: value}
    return found
