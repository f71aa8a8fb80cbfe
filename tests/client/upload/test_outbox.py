"""Entries that wait to be sent: in memory and on disk."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.upload.outboxes import SIZE, begin, step, steps_of

from gradmedic.protocol.ids import new_id
from gradmedic.recording.step import Entry, Rewind, Step
from gradmedic.upload.outbox import Outbox


def fill(outbox: Outbox, losses: list[float]) -> None:
    """Append a step for each loss."""
    for number, loss in enumerate(losses):
        outbox.append(Step(number=number, time=0.0, loss=loss))


def drain(outbox: Outbox, count: int = 7) -> list[int]:
    """Take everything block by block, as an uploader does."""
    taken: list[int] = []
    while entries := outbox.read_oldest(count):
        taken += steps_of(entries)
        outbox.acknowledge(entries[-1][0])
    assert len(outbox) == 0
    outbox.close()
    return taken


# --- memory alone -------------------------------------------------------------------------------------------------


def test_the_oldest_finite_steps_are_dropped_first() -> None:
    """A full memory keeps every non-finite step and the newest finite ones."""
    outbox = Outbox(SIZE * 20)
    fill(outbox, [math.nan if i in (3, 10) else 1.0 for i in range(100)])
    kept = drain(outbox)
    assert kept[:2] == [3, 10]
    assert kept[2:] == list(range(kept[2], 100))
    assert outbox.dropped == 100 - len(kept)


@given(st.lists(st.sampled_from([1.0, math.nan])), st.integers(1, 30))
def test_memory_stays_within_its_bytes_and_counts_what_it_drops(losses: list[float], room: int) -> None:
    """Memory is bounded, order is kept, the newest step stays, and every lost step is counted."""
    outbox = Outbox(SIZE * room)
    fill(outbox, losses)
    kept = drain(outbox)
    assert len(kept) <= room
    assert len(kept) + outbox.dropped == len(losses)
    assert kept == sorted(kept)
    assert not losses or kept[-1] == len(losses) - 1
    if losses.count(math.nan) < room * 7 // 8:
        assert all(i in set(kept) for i, loss in enumerate(losses) if math.isnan(loss))


def test_acknowledged_steps_leave_and_others_stay() -> None:
    """Steps that were appended while a block was in flight are not acknowledged with it."""
    outbox = Outbox(SIZE * 100)
    fill(outbox, [1.0] * 10)
    in_flight = outbox.read_oldest(4)
    outbox.append(Step(number=10, time=0.0))
    outbox.acknowledge(in_flight[-1][0])
    assert steps_of(outbox.read_oldest(100)) == [4, 5, 6, 7, 8, 9, 10]


def test_at_most_half_of_memory_is_in_flight_but_at_least_one_step() -> None:
    """A block in flight leaves memory to the newest steps."""
    outbox = Outbox(SIZE * 32)
    fill(outbox, [1.0] * 28)
    assert steps_of(outbox.read_oldest(50)) == list(range(16))
    tiny = Outbox(SIZE)
    fill(tiny, [1.0] * 30)
    assert steps_of(tiny.read_oldest(50)) == [29]


# --- with a disk --------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 12), max_size=60),
    st.integers(0, 6),
    st.integers(1, 9),
)
def test_steps_that_left_memory_are_read_from_disk(
    tmp_path_factory: pytest.TempPathFactory, actions: list[int], memory: int, count: int
) -> None:
    """However appending and acknowledging alternate, every step is returned once, in order, and none is dropped."""
    outbox = begin(tmp_path_factory.mktemp("journal"), new_id(), memory=memory * SIZE, segment=700)
    taken: list[int] = []
    appended = 0
    for action in actions:
        for _ in range(action):
            outbox.append(step(appended))
            appended += 1
        entries = outbox.read_oldest(count)
        if entries and action % 3:
            taken += steps_of(entries)
            outbox.acknowledge(entries[-1][0])
    assert taken + drain(outbox, count) == list(range(appended))
    assert outbox.dropped == 0


def test_beyond_the_disk_finite_steps_are_dropped_first_and_counted(tmp_path: Path) -> None:
    """The journal stays within its bound and keeps non-finite steps and the newest ones."""
    outbox = begin(tmp_path, new_id(), memory=2 * SIZE, disk=20_000)
    bad = (3, 50, 51, 300)
    for i in range(1000):
        outbox.append(step(i, math.nan if i in bad else 1.0))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.journal"))
    assert size <= 20_000
    kept = drain(outbox)
    assert kept[: len(bad)] == list(bad)
    assert kept[len(bad) :] == list(range(kept[len(bad)], 1000))
    assert len(kept) > 50
    assert len(kept) + outbox.dropped == 1000


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([1.0, 1.0, math.nan]), max_size=12),
            st.sampled_from(["send", "acknowledge", "rewind", "disk full"]),
        ),
        max_size=60,
    ),
    st.integers(0, 12),
    st.integers(1_000, 4_000),
    st.booleans(),
)
def test_what_was_in_flight_is_not_dropped_and_everything_else_is_counted(
    tmp_path_factory: pytest.TempPathFactory,
    actions: list[tuple[list[float], str]],
    memory: int,
    disk: int,
    has_disk: bool,
) -> None:
    """However sending and dropping interleave, each step was in flight or is counted as dropped, in the end.

    What is in flight stays in flight until it is acknowledged; no rewind is ever lost.
    """
    size = memory * step(0).nbytes
    folder = tmp_path_factory.mktemp("journal")
    outbox = begin(folder, new_id(), memory=size, disk=disk, segment=700) if has_disk else Outbox(size)
    sent: dict[int, None] = {}
    in_flight: list[tuple[int, Entry]] = []
    rewinds = appended = 0

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def send(count: int) -> None:
        nonlocal in_flight
        entries = outbox.read_oldest(count)
        assert steps_of(entries)[: len(steps_of(in_flight))] == steps_of(in_flight)[: len(steps_of(entries))]
        sent.update(dict.fromkeys(steps_of(entries)))
        in_flight = entries

    def acknowledge(count: int) -> None:
        nonlocal in_flight, rewinds
        if in_flight:
            done, in_flight = in_flight[:count], in_flight[count:]
            rewinds -= sum(isinstance(entry, Rewind) for _, entry in done)
            outbox.acknowledge(done[-1][0])

    for steps, act in actions:
        count = len(steps)
        for loss in steps:
            outbox.append(step(appended, loss))
            appended += 1
        if act == "send":
            send(1 + count)
        elif act == "acknowledge":
            acknowledge(1 + count // 2)
        elif act == "rewind":
            outbox.append(Rewind(appended))
            rewinds += 1
        elif outbox.journal is not None:
            outbox.journal.append = fail  # type: ignore[method-assign]
    for _ in range(len(outbox) + 1):
        send(7)
        acknowledge(7)
    assert len(outbox) == 0
    assert rewinds == 0
    assert len(sent) + outbox.dropped == appended, (actions, memory, disk, has_disk)
    assert list(sent) == sorted(sent)
    outbox.close()


def test_a_journal_that_vanishes_costs_steps_that_are_counted(tmp_path: Path) -> None:
    """If the folder is deleted, the steps that were only on disk are dropped, and no others."""
    outbox = begin(tmp_path, new_id(), memory=4 * step(0).nbytes)
    for i in range(50):
        outbox.append(step(i))
    shutil.rmtree(tmp_path)
    kept = drain(outbox)
    assert kept[-1] == 49
    assert len(kept) + outbox.dropped == 50


def test_a_journal_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without disk space, steps wait in memory, and those on disk are still read."""
    outbox = begin(tmp_path, new_id(), memory=4 * step(0).nbytes)
    for i in range(10):
        outbox.append(step(i))
    assert outbox.journal is not None

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    outbox.journal.append = fail  # type: ignore[method-assign]
    for i in range(10, 13):
        outbox.append(step(i))
    assert drain(outbox) == list(range(13))
    assert caplog.text.count("No space left") == 1


@pytest.mark.parametrize("has_disk", [True, False])
def test_unsent_steps_are_counted_without_rewinds(tmp_path: Path, has_disk: bool) -> None:
    """Of what is not acknowledged, the steps count, in flight or not, and dropped ones do not."""
    outbox = begin(tmp_path, new_id(), memory=20 * SIZE) if has_disk else Outbox(20 * SIZE)
    for i in range(10):
        outbox.append(step(i))
    outbox.append(Rewind(4))
    for i in range(5, 40):
        outbox.append(step(i))
    assert outbox.unsent_steps == 45 - outbox.dropped
    entries = outbox.read_oldest(6)
    assert outbox.unsent_steps == 45 - outbox.dropped
    outbox.acknowledge(entries[3][0])
    assert outbox.unsent_steps == 45 - outbox.dropped - len(steps_of(entries[:4]))
    while entries := outbox.read_oldest(10):
        outbox.acknowledge(entries[-1][0])
    assert outbox.unsent_steps == 0
    outbox.close()
