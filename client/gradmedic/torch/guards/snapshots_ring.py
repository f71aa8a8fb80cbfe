"""Keeps the last good states of a training, at ages that grow exponentially.

A state is taken as often as an account of its time allows. Each state is charged what it took, and each step of the
training pays off a small share of its own time. When there are too many states, the one is dropped whose neighbours are
closest to each other, measured by the ratio of their ages. So the newest state is some ten steps old, and the oldest is
from well before the onset of any trouble that is found late.

The time is the CPU time of the training thread, as that of the sampler: a busy machine lengthens steps more than the
short time of a state, which would be taken too often then. Where a device or a disk is waited for, it is the time on
the wall.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradmedic.recording.sampling_cost import choose_clock
from gradmedic.torch.guards.snapshots import CannotRestore, Snapshot, TrainingState
from gradmedic.torch.guards.snapshots_room import Room, SnapshotFolder, find_room

logger = logging.getLogger("gradmedic")

TIME_SHARE = 0.005
"""Share of the training's time that states may take, beside 0.015 for the statistics."""
START_SECONDS = 0.5
"""Seconds that states may take at the start beyond their share. So a short training, whose states cost little, has one
of every `SHORTEST_INTERVAL` steps; and the memory of the first ones, which takes longer than they do, can be paid."""
SHORTEST_INTERVAL = 10
"""Fewest steps between two states. The training goes back by 20 steps more than needed after most kinds of trouble, so
that states of each step would not help."""
SUFFICIENT_AGE = 400
"""Steps. The oldest state is dropped once the second oldest has this age: PaLM went back by about 100 steps (Chowdhery
et al. 2022, section 5.1), and a verdict may come some hundred steps after the onset."""
LARGEST_AGE = 4 * SUFFICIENT_AGE
"""Steps after which a state is dropped in any case when there are too many: else three could keep the first one for
ever."""
_TIMED_STEPS = 32
"""Last durations of steps of which the median counts."""


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
        clock: function that returns seconds; by default, the CPU time of the calling thread, or the time on the wall
            where a device or a disk is waited for.
        interval: steps between two states; by default the account of their time decides.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: SnapshotFolder,
        *,
        processes: int = 1,
        clock: Callable[[], float] | None = None,
        interval: int | None = None,
    ) -> None:
        self._state = state
        self._folder = folder
        self._processes = processes
        self._given_clock = clock
        self._clock = clock or choose_clock()
        self._fixed_interval = interval
        self._room: Room | None = None
        self._kept: list[KeptState] = []  # oldest first
        self._free: Snapshot | None = None  # its memory is used again
        self._ended_steps = 0
        self._since_state = 0  # steps
        self._owed = 0.0  # seconds that states took beyond their share so far
        self._expected = 0.0  # seconds of the next state
        self._step_seconds: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._last_at: float | None = None
        self.is_over = False
        """Whether there is no room for states any more."""

    @property
    def steps(self) -> list[int]:
        """The steps of which states are kept, oldest first."""
        return [kept.step for kept in self._kept]

    def end_step(self) -> bool:
        """Account for a step; return whether a state should be taken now."""
        now = self._clock()
        if self._last_at is not None:
            self._step_seconds.append(now - self._last_at)
            # The median, because an evaluation between two steps is no time of the training.
            self._owed = max(0.0, self._owed - TIME_SHARE * statistics.median(self._step_seconds))
        self._last_at = now
        self._ended_steps += 1
        self._since_state += 1
        return not self.is_over and self._since_state >= self._shortest_interval and self._is_affordable()

    def take(self, step: int) -> None:
        """Keep the state after a step. Without room, log it once and keep none from then on."""
        if self.is_over:
            return
        clock = self._clock
        began = clock()
        try:
            self._take(step)
        except (OSError, MemoryError, RuntimeError) as error:  # torch raises a RuntimeError without memory
            self._end(f"{error}")
        seconds = clock() - began + self._read_device_seconds()
        if not self._expected:  # its warm-up, of unknown length, must not keep the second one away
            seconds = min(seconds, START_SECONDS / 2)
        # An interrupt may hit any of them: it is paid for, and not expected.
        self._expected = min(self._expected or seconds, seconds)
        self._owed += seconds
        self._since_state = 0
        self._last_at = self._clock()

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
        self._since_state = 0
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
        if self._room is None:
            self._room = find_room(snapshot.nbytes, self._folder.path, self._processes)
            if self._room is None:
                self._end(f"a state of this training takes {_describe(snapshot.nbytes)}, and three do not fit")
                return
            self._describe_room(self._room, snapshot)
            if self._given_clock is None and (self._room.is_on_disk or snapshot.copying):
                self._clock = time.perf_counter
                self._step_seconds.clear()
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
            self.drop(self._kept[self._choose_dropped()])

    @property
    def _shortest_interval(self) -> int:
        """Fewest steps from the last state to the next one."""
        longest = SHORTEST_INTERVAL if self._fixed_interval is None else self._fixed_interval
        return min(longest, max(1, self._ended_steps - self._since_state))  # 1, 2, 4, 8 steps at the start

    def _is_affordable(self) -> bool:
        """Whether the account has room for another state."""
        return self._fixed_interval is not None or self._owed <= max(0.0, START_SECONDS - self._expected)

    def _choose_dropped(self) -> int:
        """Return the index of the state that is needed least."""
        newest, before = self._kept[-1].step, self._kept[-2].step
        ages = [newest - kept.step + newest - before for kept in self._kept]  # when the next state is taken
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
