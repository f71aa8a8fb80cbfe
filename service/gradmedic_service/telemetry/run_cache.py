"""What this process knows of runs without asking, because it was the one that advanced them last.

One idea: the database decides. What is kept of a run is used only if the run's row, read under its lock, is at the very
revision at which this process left it, and it is kept only once that revision is durable. Whatever another replica, a
rewind or an update of the run did raises the revision, and the database is read instead.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from uuid import UUID

from gradmedic_diagnosis import Diagnostician
from gradmedic_service.telemetry.chunk_writer import Tail
from gradmedic_service.telemetry.repository import RunState

MAX_WEIGHT = 50_000
"""Layers of all runs together. The buckets of a layer that wait for their row take 1 KB where it has eight statistics,
its diagnosis half of that: some 75 MB."""
WEIGHT_OF_A_RUN = 50
"""What a run weighs beside its layers."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CachedRun:
    """A run as of a revision."""

    run: RunState
    """As it was before the advance."""
    revision: int
    last_step: int
    diagnostician: Diagnostician
    steps_since_snapshot: int
    steps_since_state: int
    """How far the stored state lies behind."""
    tail: Tail

    @property
    def weight(self) -> int:
        """How much room it takes."""
        return WEIGHT_OF_A_RUN + self.run.layer_counts[-1]

    def is_of(self, run: RunState) -> bool:
        """Whether a run is still as this left it."""
        return (
            self.revision == run.revision
            and self.last_step == run.last_step
            and self.run.created_at == run.created_at
            and self.run.generation == run.generation
            and self.run.facts_digest == run.facts_digest
            and self.run.muted == run.muted
        )


class RunCache:
    """The runs advanced last; safe to share between threads."""

    def __init__(self, max_weight: int = MAX_WEIGHT) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[UUID, CachedRun] = OrderedDict()
        self._max_weight = max_weight
        self._weight = 0

    def take(self, run: RunState) -> CachedRun | None:
        """Hand over what is kept of a run, if it is as the run; nobody else gets it meanwhile."""
        with self._lock:
            warm = self._kept.pop(run.id, None)
            if warm is None:
                return None
            self._weight -= warm.weight
        return warm if warm.is_of(run) else None

    def keep(self, warm: CachedRun) -> None:
        """Keep a run whose advance is durable."""
        with self._lock:
            replaced = self._kept.pop(warm.run.id, None)
            self._weight += warm.weight - (0 if replaced is None else replaced.weight)
            self._kept[warm.run.id] = warm
            while self._weight > self._max_weight:
                _, dropped = self._kept.popitem(last=False)
                self._weight -= dropped.weight
