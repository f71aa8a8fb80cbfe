"""Diagnosticians that this process need not restore, because it was the one that advanced them last.

One idea: the database decides. A kept diagnostician is used only if the run's row, read under its lock, is at the very
revision at which this process left it, and it is kept only once that revision is durable. Whatever another replica, a
rewind or an update of the run did raises the revision, and the state in the database is read instead.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from uuid import UUID

from gradmedic_service.diagnosis import Diagnostician
from gradmedic_service.telemetry.repository import RunState

MAX_WEIGHT = 100_000
"""Layers of all runs together, some 0.5 KB each: about 50 MB."""
WEIGHT_OF_A_RUN = 50
"""What a run weighs beside its layers."""


@dataclass(frozen=True, slots=True, eq=False)
class WarmDiagnostician:
    """A diagnostician as of a revision of its run."""

    diagnostician: Diagnostician
    run: RunState
    """As it was before the advance."""
    revision: int
    last_step: int
    steps_since_snapshot: int

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


class WarmDiagnosticians:
    """The diagnosticians of the runs advanced last; safe to share between threads."""

    def __init__(self, max_weight: int = MAX_WEIGHT) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[UUID, WarmDiagnostician] = OrderedDict()
        self._max_weight = max_weight
        self._weight = 0

    def take(self, run: RunState) -> WarmDiagnostician | None:
        """Hand over the diagnostician of a run, if it is kept and as the run; nobody else gets it meanwhile."""
        with self._lock:
            warm = self._kept.pop(run.id, None)
            if warm is None:
                return None
            self._weight -= warm.weight
        return warm if warm.is_of(run) else None

    def keep(self, warm: WarmDiagnostician) -> None:
        """Keep a diagnostician whose advance is durable."""
        with self._lock:
            replaced = self._kept.pop(warm.run.id, None)
            self._weight += warm.weight - (0 if replaced is None else replaced.weight)
            self._kept[warm.run.id] = warm
            while self._weight > self._max_weight:
                _, dropped = self._kept.popitem(last=False)
                self._weight -= dropped.weight
