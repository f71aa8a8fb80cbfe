"""Keeps the last good states of a training, at ages that grow exponentially.

A state is taken as often as a small share of the training's time allows. When there are too many, the one is dropped
whose neighbours are closest to each other, measured by the ratio of their ages. So the newest state is a few steps old,
and the oldest is from well before the onset of any trouble that is found late.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradmedic.torch.guards.snapshots import CannotRestore, Snapshot, TrainingState
from gradmedic.torch.guards.snapshots_room import Room, SnapshotFolder, find_room

logger = logging.getLogger("gradmedic")

TIME_SHARE = 0.015
"""Share of the training's time that snapshots may take."""
SUFFICIENT_AGE = 400
"""Steps. The oldest state is dropped once the second oldest has this age: PaLM went back by about 100 steps (Chowdhery
et al. 2022, section 5.1), and a verdict may come some hundred steps after the onset."""
LARGEST_AGE = 4 * SUFFICIENT_AGE
"""Steps after which a state is dropped in any case when there are too many: else three could keep the first one for
ever."""
_TIMED_STEPS = 32
"""Last durations of steps of which the median counts."""
_TIMED_SNAPSHOTS = 4
"""Last durations of snapshots of which the smallest counts: the others contain an allocation, or an interrupt."""


@dataclass(slots=True, eq=False)
class KeptState:
    """A state that is kept, in memory or on disk."""

    snapshot: Snapshot
    """Without its tensors, if they are on disk."""
    path: Path | None = None
    """File of the tensors; None if they are in memory."""

    @property
    def step(self) -> int:
        """Last step that is in the state."""
        return self.snapshot.step


class SnapshotRing:
    """The last good states of a training.

    Args:
        state: the state of the training.
        folder: folder for states that do not fit into memory.
        processes: processes of this machine that keep as much each.
        clock: function that returns seconds.
        interval: steps between two states; by default the share of the time decides.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: SnapshotFolder,
        *,
        processes: int = 1,
        clock: Callable[[], float] = time.perf_counter,
        interval: int | None = None,
    ) -> None:
        self._state = state
        self._folder = folder
        self._processes = processes
        self._clock = clock
        self._fixed_interval = interval
        self._room: Room | None = None
        self._kept: list[KeptState] = []  # oldest first
        self._free: Snapshot | None = None  # its memory is used again
        self._taken = self._ended_steps = 0
        self._steps_left = 0
        self._step_seconds: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._snapshot_seconds: deque[float] = deque(maxlen=_TIMED_SNAPSHOTS)
        self._last_at: float | None = None
        self.is_over = False
        """Whether there is no room for states any more."""

    @property
    def steps(self) -> list[int]:
        """The steps of which states are kept, oldest first."""
        return [kept.step for kept in self._kept]

    @property
    def interval(self) -> int:
        """Number of steps between two states."""
        if self._fixed_interval is not None:
            return self._fixed_interval
        if not self._snapshot_seconds or not self._step_seconds:
            return 1  # the first state takes longer than others, so that its time is no measure
        step_seconds = max(1e-9, statistics.median(self._step_seconds))
        return max(1, math.ceil(min(self._snapshot_seconds) / (TIME_SHARE * step_seconds)))

    def end_step(self) -> bool:
        """Account for a step; return whether a state should be taken now."""
        now = self._clock()
        if self._last_at is not None:
            self._step_seconds.append(now - self._last_at)
        self._last_at = now
        self._steps_left -= 1
        self._ended_steps += 1
        return self._steps_left <= 0 and not self.is_over

    def take(self, step: int) -> None:
        """Keep the state after a step. Without room, log it once and keep none from then on."""
        if self.is_over:
            return
        began = self._clock()
        try:
            self._take(step)
        except (OSError, MemoryError, RuntimeError) as error:  # torch raises a RuntimeError without memory
            self._end(f"{error}")
        self._last_at = self._clock()
        if self._taken > 1:
            self._snapshot_seconds.append(self._last_at - began + self._read_device_seconds())
        self._steps_left = self.interval
        if len(self._snapshot_seconds) < _TIMED_SNAPSHOTS:  # what few of them took may be far too much
            self._steps_left = min(self._steps_left, self._ended_steps)

    def list_before(self, step: int) -> list[KeptState]:
        """Return the states from before a step, newest first."""
        return [kept for kept in reversed(self._kept) if kept.step < step]

    def load(self, kept: KeptState) -> Snapshot:
        """Return the snapshot of a state.

        Raises:
            CannotRestore: it is not finite, does not fit the training any more, or cannot be read.
        """
        snapshot = kept.snapshot
        if kept.path is not None:
            try:
                tensors = self._folder.read(kept.path)
            except OSError as error:
                raise CannotRestore(str(error)) from error
            snapshot = snapshot.with_tensors(tensors)
        if not self._state.is_finite(snapshot):
            raise CannotRestore(f"the state after step {kept.step} is not finite itself")
        self._state.check(snapshot)
        return snapshot

    def drop_after(self, step: int) -> None:
        """Drop the states of later steps."""
        for kept in [kept for kept in self._kept if kept.step > step]:
            self.drop(kept)
        self._steps_left = self.interval
        self._last_at = None

    def close(self) -> None:
        """Drop everything."""
        self.is_over = True
        self._kept.clear()
        self._free = None
        self._folder.close()

    def _take(self, step: int) -> None:
        snapshot = self._state.take(step, self._free)
        if snapshot is None:
            return
        self._free = None
        self._taken += 1
        if self._room is None:
            self._room = find_room(snapshot.nbytes, self._folder.path, self._processes)
            if self._room is None:
                self._end(f"a state of this training takes {_describe(snapshot.nbytes)}, and three do not fit")
                return
            self._describe_room(self._room, snapshot)
        if self._kept and self._kept[-1].snapshot.layout != snapshot.layout:
            # Of the state of an optimizer, more is there after its first step: earlier states still fit.
            self._kept = [kept for kept in self._kept if self._state.fits(kept.snapshot)]
        kept = KeptState(snapshot)
        if self._room.is_on_disk:
            snapshot.wait()
            kept = KeptState(snapshot.with_tensors([]), self._folder.write(step, snapshot.tensors))
            self._free = snapshot
        self._kept.append(kept)
        while len(self._kept) > self._room.count:
            self.drop(self._kept[self._choose_dropped(self.interval)])

    def _choose_dropped(self, interval: int) -> int:
        """Return the index of the state that is needed least."""
        newest = self._kept[-1].step
        ages = [newest - kept.step + interval for kept in self._kept]
        if ages[1] >= SUFFICIENT_AGE or ages[0] > LARGEST_AGE:
            return 0
        return min(range(1, len(ages) - 1), key=lambda i: ages[i - 1] / ages[i + 1])

    def drop(self, kept: KeptState) -> None:
        """Drop a state; its memory is used again."""
        self._kept.remove(kept)
        if kept.path is not None:
            kept.path.unlink(missing_ok=True)
        else:
            self._free = kept.snapshot

    def _read_device_seconds(self) -> float:
        """Return the seconds that the copies of the state before the last one took on their device."""
        earlier = self._kept[-2].snapshot if len(self._kept) > 1 else None
        return earlier.read_device_seconds() if earlier is not None else 0.0

    def _end(self, reason: str) -> None:
        self.is_over = True
        logger.warning(
            "gradmedic: no further state of this training is kept, so that a guard can%s: %s",
            f" go back to step {self._kept[-1].step} at most" if self._kept else "not go back",
            reason,
        )

    def _describe_room(self, room: Room, snapshot: Snapshot) -> None:
        place = f"on disk in {self._folder.path}" if room.is_on_disk else "in memory"
        logger.info(
            "gradmedic: a guard keeps up to %d states of this training %s, of %s each: models, optimizers%s%s",
            room.count,
            place,
            _describe(snapshot.nbytes),
            ", loss scaler" if self._state.has_scaler else "",
            f", {self._state.scheduler_count} scheduler(s)" if self._state.scheduler_count else ", no scheduler found",
        )


def _describe(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
