"""What another process reads of a journal."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.client.upload.outboxes import RUN, begin, step

from gradmedic.protocol.ids import new_id
from gradmedic.recording.step import Rewind, Step
from gradmedic.upload.journal import Journal, list_sessions


def test_a_session_is_read_by_another_process_from_where_it_was_acknowledged(tmp_path: Path) -> None:
    """Another process reads steps to the bit, rewinds in their place, the description, position and final status."""
    run_id = new_id()
    outbox = begin(tmp_path, run_id, memory=2**20, segment=400)
    steps = [step(i, math.inf if i == 7 else 0.1) for i in range(20)]
    for i, recorded in enumerate(steps):
        outbox.append(recorded, RUN)
        if i == 14:
            outbox.append(Rewind(9))
    outbox.acknowledge(outbox.read_oldest(5)[-1][0])
    outbox.write_final_status("failed")
    assert outbox.journal is not None
    outbox.journal.save_position(generation=3)
    outbox.journal.close()
    (session,) = list_sessions(tmp_path / str(run_id))
    journal = Journal.open(session, 2**30)
    assert journal is not None
    assert (journal.position.acknowledged, journal.position.generation) == (5, 3)
    assert journal.final_status == "failed"
    assert journal.description() == RUN.content
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
    """A torn or changed record ends its segment; the records before it are read."""
    outbox = begin(tmp_path, new_id(), memory=2**20, segment=10**6)
    for i in range(10):
        outbox.append(step(i))
    assert outbox.journal is not None
    outbox.journal.close()
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
