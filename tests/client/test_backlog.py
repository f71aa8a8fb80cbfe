"""What waits to be sent: in memory, and on disk."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.runs import Layer, RunCreate
from gradmedic.recording.step import Entry, Rewind, Row, Step
from gradmedic.upload.journal import Journal, sessions
from gradmedic.upload.outbox import Backlog

SIZE = Step(number=0, time=0.0).nbytes
RUN = RunCreate(project="p", layers=[Layer(name="w")])


class Known:
    """Says what the run is."""

    def describe(self) -> RunCreate:
        """Return the same description always."""
        return RUN

    def description_key(self) -> object:
        """It never changes."""
        return None


def step(number: int, loss: float = 1.0) -> Step:
    """Return a step with statistics."""
    row = Row(("grad_norm",), np.array([0], dtype=np.int32), np.array([[number]], dtype=np.float32))
    return Step(number=number, time=float(number), loss=loss, metrics={"m": 0.5}, row=row)


def fill(backlog: Backlog, losses: list[float]) -> None:
    """Append a step for each loss."""
    for number, loss in enumerate(losses):
        backlog.append(Step(number=number, time=0.0, loss=loss))


def steps_of(entries: list[tuple[int, Entry]]) -> list[int]:
    """Return the numbers of the steps among some entries."""
    return [entry.number for _, entry in entries if isinstance(entry, Step)]


def drain(backlog: Backlog, count: int = 7) -> list[int]:
    """Take everything as a sender does, block by block."""
    taken: list[int] = []
    while front := backlog.front(count):
        taken += steps_of(front)
        backlog.acknowledge(front[-1][0])
    assert len(backlog) == 0
    backlog.close()
    return taken


# --- memory alone -------------------------------------------------------------------------------------------------


def test_the_oldest_healthy_steps_are_dropped_first() -> None:
    """Of a memory that is full, what remains is every non-finite step and the newest healthy ones."""
    backlog = Backlog(SIZE * 20)
    fill(backlog, [math.nan if i in (3, 10) else 1.0 for i in range(100)])
    kept = drain(backlog)
    assert kept[:2] == [3, 10]
    assert kept[2:] == list(range(kept[2], 100))
    assert backlog.dropped == 100 - len(kept)


@given(st.lists(st.sampled_from([1.0, math.nan])), st.integers(1, 30))
def test_memory_stays_within_its_bytes_and_counts_what_it_drops(losses: list[float], room: int) -> None:
    """Whatever comes, memory is bounded, order is kept, the newest step is there and none is lost uncounted."""
    backlog = Backlog(SIZE * room)
    fill(backlog, losses)
    kept = drain(backlog)
    assert len(kept) <= room
    assert len(kept) + backlog.dropped == len(losses)
    assert kept == sorted(kept)
    assert not losses or kept[-1] == len(losses) - 1
    if losses.count(math.nan) < room * 7 // 8:
        assert all(i in set(kept) for i, loss in enumerate(losses) if math.isnan(loss))


def test_acknowledged_steps_leave_and_others_stay() -> None:
    """What was appended while a block was under way is not taken for acknowledged."""
    backlog = Backlog(SIZE * 100)
    fill(backlog, [1.0] * 10)
    offered = backlog.front(4)
    backlog.append(Step(number=10, time=0.0))
    backlog.acknowledge(offered[-1][0])
    assert steps_of(backlog.front(100)) == [4, 5, 6, 7, 8, 9, 10]


def test_half_of_memory_is_in_hand_at_most_but_one_step_always() -> None:
    """A block that is being sent leaves memory to the newest steps."""
    backlog = Backlog(SIZE * 32)
    fill(backlog, [1.0] * 28)
    assert steps_of(backlog.front(50)) == list(range(16))
    tiny = Backlog(SIZE)
    fill(tiny, [1.0] * 30)
    assert steps_of(tiny.front(50)) == [29]


# --- with a disk --------------------------------------------------------------------------------------------------


def begin(folder: Path, run_id: UUID, *, memory: int, disk: int = 2**30, segment: int = 2_000) -> Backlog:
    """Return a backlog with a journal of small segments."""
    return Backlog(memory, Known(), lambda: Journal(folder / str(run_id) / "session", disk, segment))


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 12), max_size=60),
    st.integers(0, 6),
    st.integers(1, 9),
)
def test_what_memory_forgets_comes_back_from_disk(
    tmp_path_factory: pytest.TempPathFactory, acts: list[int], memory: int, count: int
) -> None:
    """However appending and acknowledging alternate, every step comes out once, in order, and none is dropped."""
    backlog = begin(tmp_path_factory.mktemp("journal"), new_id(), memory=memory * SIZE, segment=700)
    taken: list[int] = []
    appended = 0
    for act in acts:
        for _ in range(act):
            backlog.append(step(appended))
            appended += 1
        front = backlog.front(count)
        if front and act % 3:
            taken += steps_of(front)
            backlog.acknowledge(front[-1][0])
    assert taken + drain(backlog, count) == list(range(appended))
    assert backlog.dropped == 0


def test_beyond_the_disk_healthy_steps_are_given_up_first_and_counted(tmp_path: Path) -> None:
    """The journal stays within its bound; non-finite steps and the newest ones are there."""
    backlog = begin(tmp_path, new_id(), memory=2 * SIZE, disk=20_000)
    bad = (3, 50, 51, 300)
    for i in range(1000):
        backlog.append(step(i, math.nan if i in bad else 1.0))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.journal"))
    assert size <= 20_000
    kept = drain(backlog)
    assert kept[: len(bad)] == list(bad)
    assert kept[len(bad) :] == list(range(kept[len(bad)], 1000))
    assert len(kept) > 50
    assert len(kept) + backlog.dropped == 1000


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([1.0, 1.0, math.nan]), max_size=12),
            st.sampled_from(["offer", "acknowledge", "rewind", "disk full"]),
        ),
        max_size=60,
    ),
    st.integers(0, 12),
    st.integers(1_000, 4_000),
    st.booleans(),
)
def test_what_was_offered_is_not_dropped_and_everything_else_is_counted(
    tmp_path_factory: pytest.TempPathFactory,
    acts: list[tuple[list[float], str]],
    memory: int,
    disk: int,
    has_disk: bool,
) -> None:
    """However sending and giving up interleave, each step is either offered or counted as dropped, in the end.

    An offer whose answer is lost is made again; no rewind is ever lost.
    """
    size = memory * step(0).nbytes
    folder = tmp_path_factory.mktemp("journal")
    backlog = begin(folder, new_id(), memory=size, disk=disk, segment=700) if has_disk else Backlog(size)
    offered: dict[int, None] = {}
    in_hand: list[tuple[int, Entry]] = []
    rewinds = appended = 0

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def offer(count: int) -> None:
        nonlocal in_hand
        front = backlog.front(count)
        assert steps_of(front)[: len(steps_of(in_hand))] == steps_of(in_hand)[: len(steps_of(front))]
        offered.update(dict.fromkeys(steps_of(front)))
        in_hand = front

    def acknowledge(count: int) -> None:
        nonlocal in_hand, rewinds
        if in_hand:
            done, in_hand = in_hand[:count], in_hand[count:]
            rewinds -= sum(isinstance(entry, Rewind) for _, entry in done)
            backlog.acknowledge(done[-1][0])

    for steps, act in acts:
        count = len(steps)
        for loss in steps:
            backlog.append(step(appended, loss))
            appended += 1
        if act == "offer":
            offer(1 + count)
        elif act == "acknowledge":
            acknowledge(1 + count // 2)
        elif act == "rewind":
            backlog.append(Rewind(appended))
            rewinds += 1
        elif backlog.journal is not None:
            backlog.journal.append = fail  # type: ignore[method-assign]
    for _ in range(len(backlog) + 1):
        offer(7)
        acknowledge(7)
    assert len(backlog) == 0
    assert rewinds == 0
    assert len(offered) + backlog.dropped == appended, (acts, memory, disk, has_disk)
    assert list(offered) == sorted(offered)
    backlog.close()


def test_a_journal_that_vanishes_costs_steps_that_are_counted(tmp_path: Path) -> None:
    """Somebody deletes the folder while steps wait there: what was only on disk is dropped, and nothing else."""
    backlog = begin(tmp_path, new_id(), memory=4 * step(0).nbytes)
    for i in range(50):
        backlog.append(step(i))
    shutil.rmtree(tmp_path)
    kept = drain(backlog)
    assert kept[-1] == 49
    assert len(kept) + backlog.dropped == 50


def test_a_journal_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Steps wait in memory then, and those on disk are still read."""
    backlog = begin(tmp_path, new_id(), memory=4 * step(0).nbytes)
    for i in range(10):
        backlog.append(step(i))
    assert backlog.journal is not None

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    backlog.journal.append = fail  # type: ignore[method-assign]
    for i in range(10, 13):
        backlog.append(step(i))
    assert drain(backlog) == list(range(13))
    assert caplog.text.count("No space left") == 1


# --- what another process reads -----------------------------------------------------------------------------------


def test_a_session_is_read_by_another_process_from_where_it_was_acknowledged(tmp_path: Path) -> None:
    """Steps to the bit, rewinds in their place, the description, the position and the ending."""
    run_id = new_id()
    backlog = begin(tmp_path, run_id, memory=2**20, segment=400)
    steps = [step(i, math.inf if i == 7 else 0.1) for i in range(20)]
    for i, each in enumerate(steps):
        backlog.append(each)
        if i == 14:
            backlog.append(Rewind(9))
    backlog.acknowledge(backlog.front(5)[-1][0])
    backlog.end("failed")
    assert backlog.journal is not None
    backlog.journal.move(generation=3)
    backlog.journal.close()
    (session,) = sessions(tmp_path)
    journal = Journal.open(session, 2**30)
    assert journal is not None
    assert (journal.position.acknowledged, journal.position.generation) == (5, 3)
    assert journal.ending() == "failed"
    assert journal.description() == RUN
    entries = [entry for _, entry in journal.read(5, 100)]
    assert entries[10] == Rewind(9)
    for found, expected in zip([e for e in entries if isinstance(e, Step)], steps[5:], strict=True):
        assert found.row is not None
        assert expected.row is not None
        assert found.row.values.tobytes() == expected.row.values.tobytes()
        assert (found.number, found.time, found.loss, found.metrics) == (
            expected.number, expected.time, expected.loss, expected.metrics
        )  # fmt: skip
    assert Journal.open(session, 2**30) is None, "it is locked while it is read"
    journal.delete()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_a_damaged_tail_costs_what_is_damaged(tmp_path: Path, damage: str) -> None:
    """A record that is cut short or changed ends its segment; what stands before it is read."""
    backlog = begin(tmp_path, new_id(), memory=2**20, segment=10**6)
    for i in range(10):
        backlog.append(step(i))
    assert backlog.journal is not None
    backlog.journal.close()
    (file,) = tmp_path.rglob("*.journal")
    data = bytearray(file.read_bytes())
    if damage == "torn":
        del data[-5:]
    else:
        data[-5] ^= 1
    file.write_bytes(data)
    journal = Journal.open(file.parent, 2**30)
    assert journal is not None
    assert [entry.number for _, entry in journal.read(0, 100) if isinstance(entry, Step)] == list(range(9))
    journal.close()
