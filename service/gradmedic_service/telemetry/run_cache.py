"""Runs that this process appended to last, with their diagnosticians, so that the next append restores nothing.

The database decides. A cached run is used only where the run's row is as this process left it, and it is cached only
after that is durable. Where something else has changed the row, the database is read instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from gradmedic_diagnosis import Diagnostician
from gradmedic_service.bounded_cache import BoundedCache
from gradmedic_service.telemetry.chunk_writer import Tail
from gradmedic_service.telemetry.repository import RunRow

MAX_SIZE = 50_000
"""Number of layers of all cached runs together, some 75 MB: a layer with eight statistics needs 1 KB for buckets in the
tail and half of that in the diagnostician."""
RUN_SIZE = 50
"""Size of a run without layers, in layers."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CachedRun:
    """A run after an append of this process."""

    row: RunRow
    """The run's row after the append."""
    diagnostician: Diagnostician
    steps_since_snapshot: int
    """Number of steps that the diagnostician has read since the last snapshot."""
    steps_since_state: int
    """Number of steps that the diagnostician has read since its state was stored."""
    tail: Tail | None
    """The end of its stored steps; None where this process has not read it."""

    @property
    def size(self) -> int:
        """Memory of the cached run, in layers."""
        return RUN_SIZE + self.row.layer_counts[-1]


class RunCache:
    """The cached runs, the one that was appended to longest ago first. Threads may share it."""

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self._runs: BoundedCache[UUID, CachedRun] = BoundedCache(max_size)

    def pop(self, run_id: UUID) -> CachedRun | None:
        """Remove a run and return it, so that no other thread gets it; None if it is not here."""
        return self._runs.pop(run_id)

    def add(self, cached: CachedRun) -> None:
        """Add a run whose append is durable; remove the oldest runs where the cache is full."""
        self._runs.add(cached.row.id, cached, cached.size)
