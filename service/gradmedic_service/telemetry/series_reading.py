"""Reading the stored series of a run: selecting them by name, and adding up chunks and rollups."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from uuid import UUID

from gradmedic.protocol.statistics import SERIES
from gradmedic_service.database.engine import Connection
from gradmedic_service.http.answers import AnswerMemory
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.telemetry import chunk_reading, chunk_repository, repository
from gradmedic_service.telemetry.chunk_repository import RollupExtent
from gradmedic_service.telemetry.repository import RunRow
from gradmedic_service.telemetry.rollup_cache import DecodedPart, RollupCache, RunKey, decode_part
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
    cache: RollupCache,
) -> SeriesTable:
    """Return the selected series in at most `max_points` buckets; without `to_step`, up to the last step.

    Raises Overloaded if other answers take the memory for it.
    """
    first = max(from_step, chunk_repository.read_first_step(connection, run.id) or 0)
    last = run.last_step if to_step is None else min(to_step, run.last_step or 0)
    if run.last_step is None or last is None or last < first:
        return SeriesAccumulator(selection, 0, 0, max_points).to_table()
    memory.reserve(selection.series_count * min(max_points, last - first + 1) * POINT_BYTES)
    key = RunKey(run.id, run.created_at, run.generation)
    return _SeriesReader(connection, run.id, selection, (cache, key)).read(first, last, max_points)


def accumulate_table(
    connection: Connection, run_id: UUID, selection: SeriesSelection, first: int, last: int, max_points: int
) -> SeriesTable:
    """Return the selected series of the steps from `first` to `last` in at most `max_points` buckets."""
    return _SeriesReader(connection, run_id, selection).read(first, last, max_points)


class _SeriesReader:
    """Reads the selected series of a run.

    Args:
        connection: to the database.
        run_id: id of the run.
        selection: the series to read.
        cache: decoded rollups and the run's key there; without it, every rollup is decoded.
    """

    def __init__(
        self,
        connection: Connection,
        run_id: UUID,
        selection: SeriesSelection,
        cache: tuple[RollupCache, RunKey] | None = None,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._selection = selection
        self._cache = cache

    def read(self, first: int, last: int, max_points: int) -> SeriesTable:
        """Return the steps from `first` to `last` in at most `max_points` buckets."""
        accumulator = SeriesAccumulator(self._selection, first, last, max_points)
        self._accumulate(self._coarsest_level(first, last, max_points), first, last, accumulator)
        return accumulator.to_table()

    def _accumulate(self, level: int, first: int, last: int, accumulator: SeriesAccumulator) -> None:
        """Add the steps from `first` to `last`: from the rollups of a level, and from finer ones at both ends."""
        if first > last:
            return
        if level == 0:
            accumulator.add_chunks(chunk_reading.read_chunks(self._connection, self._run_id, first, last))
            return
        extents = chunk_repository.read_rollup_extents(self._connection, self._run_id, level, first, last)
        if not extents:
            self._accumulate(level - 1, first, last, accumulator)
            return
        self._accumulate(level - 1, first, extents[0].first_step - 1, accumulator)
        accumulator.add_rollups(self._read_rollups(level, extents, accumulator))
        self._accumulate(level - 1, extents[-1].last_step + 1, last, accumulator)

    def _read_rollups(
        self, level: int, extents: Sequence[RollupExtent], accumulator: SeriesAccumulator
    ) -> Iterator[list[DecodedPart]]:
        """Yield the parts of the rollups of a level, those of the selected layers; store what had to be decoded."""
        known = [self._find(level, extent) for extent in extents]
        unknown = [extent for extent, parts in zip(extents, known, strict=True) if parts is None]
        with closing(self._read_stored(level, unknown)) as stored:
            for extent, parts in zip(extents, known, strict=True):
                is_stored = bool(unknown) and unknown[0].first_step <= extent.first_step <= unknown[-1].first_step
                data = next(stored) if is_stored else b""
                if parts is None:
                    rollup = Rollup(data)
                    parts = [self._decode(level, extent, rollup, name) for name in self._selection.names]
                count = len(self._selection.statistics)
                _, layers = accumulator.select_layers(parts[0].layer_count)
                yield [part.of_layers(layers) if index < count else part for index, part in enumerate(parts)]

    def _read_stored(self, level: int, unknown: Sequence[RollupExtent]) -> Generator[bytes, None, None]:
        """Yield the data of the rollups from the first to the last of these, those between them included."""
        if unknown:
            first_step, last_step = unknown[0].first_step, unknown[-1].last_step
            yield from chunk_repository.read_rollups(self._connection, self._run_id, level, first_step, last_step)

    def _find(self, level: int, extent: RollupExtent) -> list[DecodedPart] | None:
        if self._cache is None:
            return None
        cache, key = self._cache
        return cache.find(key, level, extent.first_step, self._selection.names)

    def _decode(self, level: int, extent: RollupExtent, rollup: Rollup, name: str) -> DecodedPart:
        part = decode_part(rollup, name)
        if self._cache is not None:
            cache, key = self._cache
            cache.add(key, level, extent.first_step, name, part)
        return part

    def _coarsest_level(self, first: int, last: int, max_points: int) -> int:
        """Return the highest level that has a bucket for each point of the answer, or 0, where all steps are read."""
        for level in range(chunk_repository.read_highest_level(self._connection, self._run_id), 0, -1):
            count = chunk_repository.count_rollups(self._connection, self._run_id, level, first, last)
            if count * ROLLUP_FACTOR >= max_points:
                return level
        return 0
