"""Steps and outboxes for the tests of the outbox and the journal."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import numpy as np

from gradmedic.protocol.runs import Layer, RunCreate
from gradmedic.recording.description import RunDescription
from gradmedic.recording.step import Entry, Row, Step
from gradmedic.upload.journal import Journal
from gradmedic.upload.outbox import Outbox

SIZE = Step(number=0, time=0.0).nbytes
RUN = RunDescription(1, RunCreate(project="p", layers=[Layer(name="w")]))


def step(number: int, loss: float = 1.0) -> Step:
    """Return a step with statistics."""
    row = Row(("grad_norm",), np.array([0], dtype=np.int32), np.array([[number]], dtype=np.float32))
    return Step(number=number, time=float(number), loss=loss, metrics={"m": 0.5}, row=row)


def steps_of(entries: list[tuple[int, Entry]]) -> list[int]:
    """Return the numbers of the steps among some entries."""
    return [entry.number for _, entry in entries if isinstance(entry, Step)]


def begin(folder: Path, run_id: UUID, *, memory: int, disk: int = 2**30, segment: int = 2_000) -> Outbox:
    """Return an outbox with a journal of small segments."""
    return Outbox(memory, lambda: Journal(folder / str(run_id) / "session", disk, segment))
