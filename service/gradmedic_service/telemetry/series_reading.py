"""Reading the stored series of a run: selecting them by name, and adding up chunks and rollups."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from gradmedic.protocol.statistics import SERIES
from gradmedic_service.database.engine import Connection
from gradmedic_service.http.answers import AnswerMemory
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.telemetry import chunk_reading, chunk_repository, repository
from gradmedic_service.telemetry.repository import RunRow
from gradmedic_service.telemetry.rollups import ROLLUP_FACTOR, Rollup
from gradmedic_service.telemetry.series_accumulator import POINT_BYTES, SeriesAccumulator, SeriesSelection
from gradmedic_service.telemetry.series_table import SeriesTable

MAX_NAMES_IN_ERROR = 40


def select_series(connection: Connection, run: RunRow, names: Sequence[str], layers: Sequence[str]) -> SeriesSelection:
    """Return the selection of series by their names and layers; without `layers`, of every layer of the run.

    Raises InvalidRequest for a name or a layer that the run does not have.
    """
    run_layers = repository.read_layer_names(connection, run.id)
    available = [*run.statistics, *SERIES, *run.metrics]
    for index, name in enumerate(names):
        if name not in available:
            listed = (
                f"{', '.join(available[:MAX_NAMES_IN_ERROR])}{', ...' if len(available) > MAX_NAMES_IN_ERROR else ''}"
            )
            raise InvalidRequest.at(f"statistic[{index}]", f"{name!r} is none of the run's: {listed}")
    positions = {name: position for position, name in enumerate(run_layers)}
    for index, layer in enumerate(layers):
        if layer not in positions:
            raise InvalidRequest.at(f"layer[{index}]", f"{layer!r} is not a layer of the run")
    selected_layers = list(dict.fromkeys(layers)) or run_layers
    unique_names = list(dict.fromkeys(names))
    return SeriesSelection(
        statistics=tuple(name for name in unique_names if name in run.statistics),
        layers=tuple((name, positions[name]) for name in selected_layers),
        series=tuple(name for name in unique_names if name not in run.statistics),
    )


def read_table(
    connection: Connection,
    run: RunRow,
    selection: SeriesSelection,
    from_step: int,
    to_step: int | None,
    max_points: int,
    memory: AnswerMemory,
) -> SeriesTable:
    """Return the selected series in at most `max_points` buckets; without `to_step`, up to the last step.

    Raises Overloaded if other answers take the memory for it.
    """
    first = max(from_step, chunk_repository.read_first_step(connection, run.id) or 0)
    last = run.last_step if to_step is None else min(to_step, run.last_step or 0)
    if run.last_step is None or last is None or last < first:
        return SeriesAccumulator(selection, 0, 0, max_points).to_table()
    memory.reserve(selection.series_count * min(max_points, last - first + 1) * POINT_BYTES)
    return accumulate_table(connection, run.id, selection, first, last, max_points)


def accumulate_table(
    connection: Connection, run_id: UUID, selection: SeriesSelection, first: int, last: int, max_points: int
) -> SeriesTable:
    """Return the selected series of the steps from `first` to `last` in at most `max_points` buckets."""
    accumulator = SeriesAccumulator(selection, first, last, max_points)
    level = _coarsest_level(connection, run_id, first, last, max_points)
    _accumulate(connection, run_id, level, first, last, accumulator)
    return accumulator.to_table()


def _accumulate(
    connection: Connection, run_id: UUID, level: int, first: int, last: int, accumulator: SeriesAccumulator
) -> None:
    """Add the steps from `first` to `last`: from the rollups of a level, and from finer ones at both ends."""
    if first > last:
        return
    if level == 0:
        for chunk in chunk_reading.read_chunks(connection, run_id, first, last):
            accumulator.add_chunk(chunk)
        return
    _, rollups_first, rollups_last = chunk_repository.read_rollup_extent(connection, run_id, level, first, last)
    _accumulate(connection, run_id, level - 1, first, rollups_first - 1, accumulator)
    if rollups_first <= rollups_last:
        rollups = chunk_repository.read_rollups(connection, run_id, level, rollups_first, rollups_last)
        accumulator.add_rollups(map(Rollup, rollups))
        _accumulate(connection, run_id, level - 1, rollups_last + 1, last, accumulator)


def _coarsest_level(connection: Connection, run_id: UUID, first: int, last: int, max_points: int) -> int:
    """Return the highest level that has a bucket for each point of the answer, or 0, where all steps are read."""
    for level in range(chunk_repository.read_highest_level(connection, run_id), 0, -1):
        count, _, _ = chunk_repository.read_rollup_extent(connection, run_id, level, first, last)
        if count * ROLLUP_FACTOR >= max_points:
            return level
    return 0
