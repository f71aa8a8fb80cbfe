"""The last good states of a training, in memory or on disk."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.torch.guards.trainings import Training
from tests.client.torch.watched_models import OPTIMIZERS, perceptron

from gradmedic.torch.guards import snapshots_room
from gradmedic.torch.guards.snapshots import CannotRestore, TrainingState
from gradmedic.torch.guards.snapshots_ring import (
    LARGEST_AGE,
    SHORTEST_INTERVAL,
    START_SECONDS,
    SUFFICIENT_AGE,
    TIME_SHARE,
    KeptState,
    SnapshotRing,
)
from gradmedic.torch.guards.snapshots_room import MOST_KEPT, Room, SnapshotFolder, find_free_memory, find_room

MIB = 2**20


class Clock:
    """A clock that moves by the seconds of a step and of a snapshot."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class TimedState(TrainingState):
    """A state whose snapshots take some seconds of a clock: the first one ten times as many, one an interrupt too."""

    def __init__(self, training: Training, clock: Clock, seconds: float) -> None:
        super().__init__([training.model], [training.optimizer])
        self._clock, self._seconds = clock, seconds
        self.interruption = 0.0

    def take(self, step: int, reused: object = None) -> object:  # type: ignore[override]
        """Take a snapshot."""
        self._clock.now += self._seconds * (10 if reused is None and step < 1 else 1) + self.interruption
        self.interruption = 0.0
        return super().take(step, reused)  # type: ignore[arg-type]


@pytest.fixture
def training() -> Training:
    """A training that has made a step."""
    training = Training(perceptron(), OPTIMIZERS["adam"])
    training.step(0)
    return training


@pytest.fixture
def make_ring(training: Training, tmp_path: Path) -> Iterator[Callable[..., SnapshotRing]]:
    """Return a function that makes a ring of the training; it is closed at the end of the test."""
    rings: list[SnapshotRing] = []

    def make(**arguments: object) -> SnapshotRing:
        state = TrainingState([training.model], [training.optimizer])
        folder = SnapshotFolder(tmp_path / "unsent", "run")
        rings.append(SnapshotRing(state, folder, **arguments))  # type: ignore[arg-type]
        return rings[-1]

    yield make
    for ring in rings:
        ring.close()


def restore(training: Training, ring: SnapshotRing, kept: KeptState) -> None:
    """Write a state into the training."""
    TrainingState([training.model], [training.optimizer]).restore(ring.load(kept))


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no memory for snapshots."""
    monkeypatch.setattr(snapshots_room, "find_free_memory", lambda: 0)


@pytest.mark.parametrize(("interval", "count"), [(1, 5), (10, 5), (10, 3), (50, 4), (700, 5)])
def test_ages_grow_exponentially(
    make_ring: Callable[..., SnapshotRing], interval: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest state is at most an interval old, and another one is from well before, but never from long ago."""
    monkeypatch.setattr("gradmedic.torch.guards.snapshots_ring.find_room", lambda *_: Room(count, is_on_disk=False))
    ring = make_ring(interval=interval)
    for step in range(20 * max(interval, 150)):
        if ring.end_step():
            ring.take(step)
        assert len(ring.steps) <= count
        assert step - ring.steps[-1] <= interval
        if step > 2 * SUFFICIENT_AGE:
            ages = [step - each for each in ring.steps]
            assert max(ages) <= max(LARGEST_AGE, (count + 1) * interval)
            assert any(age >= 100 for age in ages)


@settings(max_examples=15, deadline=None)
@given(step=st.floats(1e-3, 10.0), snapshot=st.floats(1e-5, 10.0))
def test_states_take_their_share_of_the_time(step: float, snapshot: float) -> None:
    """They take no more than their share and a start, whatever the first one took; and no time is left unused."""
    ring, _, seconds = run_steps(step, snapshot, 1500)
    allowed = TIME_SHARE * 1500 * step + START_SECONDS
    assert seconds <= allowed + 11 * snapshot  # one at least, and the first one takes as long as ten
    unused = allowed - seconds
    assert unused < START_SECONDS + 2 * snapshot + TIME_SHARE * SHORTEST_INTERVAL * step or (
        ring.steps[-1] - ring.steps[-2] == SHORTEST_INTERVAL
    )


def test_a_short_training_has_a_state_of_each_ten_steps() -> None:
    """Its states take more than their share, but less time than the start may take; the first ones come soon."""
    _, taken, _ = run_steps(step=0.005, snapshot=0.001, steps=300)
    assert taken[:6] == [0, 1, 3, 7, 15, 25]
    assert taken[-1] >= 300 - SHORTEST_INTERVAL
    assert len(taken) < 300 / SHORTEST_INTERVAL + 5


def test_a_long_warm_up_does_not_keep_the_next_states_away() -> None:
    """The first state takes longer than all states at the start may; the next ones come as soon as without that."""
    _, taken, _ = run_steps(step=0.001, snapshot=0.001, steps=40, warm_up=10.0)
    assert taken == [0, 1, 3, 7, 15, 25, 35]


def test_an_interrupt_while_a_state_is_taken_is_paid_off() -> None:
    """The next state waits until the steps have earned what the interrupt took."""
    training, clock = Training(perceptron(), OPTIMIZERS["sgd"]), Clock()
    state = TimedState(training, clock, 0.01)
    ring = SnapshotRing(state, SnapshotFolder(Path("none"), "run"), clock=clock)
    taken: list[int] = []
    for number in range(1200):
        clock.now += 1.0
        if ring.end_step():
            state.interruption = 3.0 if len(taken) == 20 else 0.0
            ring.take(number)
            taken.append(number)
    after = taken[20:]
    assert after[1] - after[0] >= (3.0 - START_SECONDS) / TIME_SHARE
    assert after[2] - after[1] < 20


def run_steps(step: float, snapshot: float, steps: int, warm_up: float = 0.0) -> tuple[SnapshotRing, list[int], float]:
    """Run steps that take some seconds; return the ring, the steps of the states, and the seconds that they took."""
    training, clock = Training(perceptron(), OPTIMIZERS["sgd"]), Clock()
    state = TimedState(training, clock, snapshot)
    state.interruption = warm_up
    ring = SnapshotRing(state, SnapshotFolder(Path("none"), "run"), clock=clock)
    taken: list[int] = []
    seconds = 0.0
    for number in range(steps):
        clock.now += step
        if ring.end_step():
            began = clock.now
            ring.take(number)
            taken.append(number)
            seconds += clock.now - began
    return ring, taken, seconds


@pytest.mark.usefixtures("on_disk")
def test_states_on_disk_are_restored_to_the_bit(
    make_ring: Callable[..., SnapshotRing], training: Training, tmp_path: Path
) -> None:
    """Without memory, states are kept in a private folder, which is gone at the end."""
    ring = make_ring(interval=1)
    expected = {}
    for step in range(1, 9):
        training.step(step)
        expected[step] = training.read()
        ring.take(step)
    files = list((tmp_path / "unsent" / "states-run").glob("*.pt"))
    assert {int(file.stem) for file in files} == set(ring.steps)
    assert len(files) == MOST_KEPT
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    for kept in ring.list_before(100):
        restore(training, ring, kept)
        assert training.read() == expected[kept.step]
    ring.drop_after(ring.steps[1])
    assert len(list((tmp_path / "unsent" / "states-run").glob("*.pt"))) == 2
    ring.close()
    assert not (tmp_path / "unsent").exists()


@pytest.mark.usefixtures("on_disk")
def test_a_full_disk_is_logged_once_and_ends_the_keeping(
    make_ring: Callable[..., SnapshotRing],
    training: Training,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was written before can still be restored, and no part of a file is left."""
    ring = make_ring(interval=1)
    ring.take(1)
    expected = training.read()

    def write_half(tensors: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", write_half)
    for step in range(2, 5):
        training.step(step)
        if ring.end_step():
            ring.take(step)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "go back to step 1 at most: a state of the training could not be written" in caplog.text
    assert "No space left on device" in caplog.text
    assert ring.is_over
    assert {file.name for file in (tmp_path / "unsent" / "states-run").iterdir()} == {"1.pt", "lock"}
    restore(training, ring, ring.list_before(9)[0])
    assert training.read() == expected


@pytest.mark.usefixtures("on_disk")
def test_no_room_at_all_is_logged_once(
    make_ring: Callable[..., SnapshotRing], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The training goes on without states."""
    monkeypatch.setattr(snapshots_room, "_find_free_disk", lambda _: 0)
    ring = make_ring(interval=1)
    for step in range(5):
        if ring.end_step():
            ring.take(step)
    (record,) = caplog.records
    assert "a guard cannot go back: a state of this training takes 0.0 MiB, and three do not fit" in record.message
    assert ring.list_before(100) == []


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_ends_is_logged_once(
    make_ring: Callable[..., SnapshotRing],
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A state that does not fit into memory after all does not end the training."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "empty_like", fail)
    ring = make_ring(interval=1)
    for step in range(3):
        if ring.end_step():
            ring.take(step)
    assert len(caplog.records) == 1
    assert ring.is_over


@pytest.mark.usefixtures("on_disk")
def test_a_file_that_cannot_be_read_is_a_reason(make_ring: Callable[..., SnapshotRing], tmp_path: Path) -> None:
    """A damaged file, and one that was deleted, are refused without an effect."""
    ring = make_ring(interval=1)
    ring.take(1)
    ring.take(2)
    second, first = ring.list_before(9)
    (tmp_path / "unsent" / "states-run" / "1.pt").write_bytes(b"damaged")
    (tmp_path / "unsent" / "states-run" / "2.pt").unlink()
    for kept in (first, second):
        with pytest.raises(CannotRestore, match="could not be read"):
            ring.load(kept)


def test_a_state_that_is_not_finite_is_refused(make_ring: Callable[..., SnapshotRing], training: Training) -> None:
    """A state that was taken when the trouble was there already does not help."""
    ring = make_ring(interval=1)
    ring.take(1)
    with torch.no_grad():
        next(iter(training.model.parameters())).fill_(math.nan)
    ring.take(2)
    bad, good = ring.list_before(9)
    with pytest.raises(CannotRestore, match="the state after step 2 is not finite itself"):
        restore(training, ring, bad)
    restore(training, ring, good)


def test_states_of_a_model_that_has_changed_are_dropped(
    make_ring: Callable[..., SnapshotRing], training: Training
) -> None:
    """When a layer is added, only states from then on are kept; when the optimizer makes its state, all are."""
    training.optimizer.state.clear()
    ring = make_ring(interval=1)
    ring.take(0)
    training.step(1)
    ring.take(1)
    assert ring.steps == [0, 1]
    training.model.append(torch.nn.Linear(1, 1))  # type: ignore[operator]
    ring.take(2)
    assert ring.steps == [2]


def test_the_room_is_found_once_and_shown(
    make_ring: Callable[..., SnapshotRing], caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the number of states, their size, and what they contain."""
    caplog.set_level(logging.INFO, "gradmedic")
    ring = make_ring(interval=1)
    for step in range(3):
        ring.take(step)
    (record,) = caplog.records
    assert record.message == (
        "gradmedic: a guard keeps up to 5 states of this training in memory, of 0.0 MiB each: models, optimizers, "
        "no scheduler found"
    )


def test_memory_is_preferred_and_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A quarter of the free memory is taken, shared by the processes; else of the free disk; else nothing."""
    monkeypatch.setattr(snapshots_room, "find_free_memory", lambda: 100 * MIB)
    monkeypatch.setattr(snapshots_room, "_find_free_disk", lambda _: 1000 * MIB)
    assert find_room(MIB, tmp_path) == Room(MOST_KEPT, is_on_disk=False)
    assert find_room(8 * MIB, tmp_path) == Room(3, is_on_disk=False)
    assert find_room(8 * MIB, tmp_path, processes=2) == Room(MOST_KEPT, is_on_disk=True)
    assert find_room(80 * MIB, tmp_path) == Room(3, is_on_disk=True)
    assert find_room(90 * MIB, tmp_path) is None


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Free is what the machine has and what the container may have, its caches included."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4096 kB\n")
    monkeypatch.setattr(snapshots_room, "_MEMORY_FILES", tmp_path / "meminfo")
    group = (tmp_path, "memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(snapshots_room, "_CONTROL_GROUPS", (group,))
    assert find_free_memory() == 4 * MIB
    (tmp_path / "memory.stat").write_text(f"active_file 5\ninactive_file {MIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * MIB}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert find_free_memory() == 4 * MIB
    (tmp_path / "memory.max").write_text(f"{5 * MIB}\n")
    assert find_free_memory() == 3 * MIB
    monkeypatch.setattr(snapshots_room, "_MEMORY_FILES", tmp_path / "none")
    assert find_free_memory() == 3 * MIB


def test_the_folder_of_a_killed_process_is_deleted(tmp_path: Path) -> None:
    """The next process that needs the disk deletes it; the folder of a living process stays."""
    script = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from gradmedic.torch.guards.snapshots_room import SnapshotFolder\n"
        "folder = SnapshotFolder(Path(sys.argv[1]), 'other')\nfolder.write(1, [torch.ones(3)])\n"
        "print('written', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        folder = SnapshotFolder(tmp_path, "mine")
        folder.write(1, [torch.ones(3)])
        folder.close()
        assert (tmp_path / "states-other" / "1.pt").exists()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    folder = SnapshotFolder(tmp_path, "next")
    folder.write(1, [torch.ones(3)])
    assert not (tmp_path / "states-other").exists()
    folder.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_a_fork_leaves_the_folder_of_its_parent(tmp_path: Path) -> None:
    """The worker of a data loader that ends deletes no state."""
    folder = SnapshotFolder(tmp_path, "mine")
    path = folder.write(1, [torch.ones(3)])
    child = os.fork()
    if child == 0:
        folder.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert path.exists()
    folder.close()
    assert not path.exists()
