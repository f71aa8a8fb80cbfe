"""A process that is killed at any statement of a transaction has committed all of it or nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from gradmedic.protocol.service import JSON_MEDIA_TYPE
from gradmedic.protocol.steps import RunRewind
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.database.engine import Connection, Database
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry import appending, chunk_writer, diagnosis_state, series_reading, service
from gradmedic_service.telemetry.decoding import decode_block
from gradmedic_service.telemetry.run_cache import RunCache

BEFORE = [23, 3, 2]
"""Steps of the blocks before; the next block is merged with the last ones, which are short."""
NEXT = 5
"""Steps of the next block."""
SNAPSHOT_STEPS = 30
"""Steps from one snapshot to the next; the next block passes a snapshot."""
Act = Callable[[Connection, UUID], object]


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks, rollups and snapshots so short that one block completes each of them."""
    monkeypatch.setattr(chunk_writer, "FULL_CHUNK_STEPS", 10)
    monkeypatch.setattr(chunk_writer, "ROLLUP_FACTOR", 3)
    monkeypatch.setattr(series_reading, "ROLLUP_FACTOR", 3)
    monkeypatch.setattr(diagnosis_state, "SNAPSHOT_STEPS", SNAPSHOT_STEPS)


def block(first: int, count: int) -> dict[str, Any]:
    """Return steps whose gradients are NaN from step 30 on, where the verdict changes."""
    steps = list(range(first, first + count))
    norms = [["NaN" if step >= SNAPSHOT_STEPS else 1.0 + step, 1.0] for step in steps]
    losses = ["NaN" if step >= SNAPSHOT_STEPS else 1.0 for step in steps]
    return {"steps": steps, "loss": losses, "statistics": {"grad_norm": norms}}


def append(connection: Connection, run_id: UUID) -> None:
    """Append the next block."""
    body = msgspec.json.encode(block(sum(BEFORE), NEXT))
    received = decode_block(body, JSON_MEDIA_TYPE, Settings().limits())
    appending.append(connection, OPERATOR, FactsCache(), RunCache(), run_id, received)


def rewind(connection: Connection, run_id: UUID) -> None:
    """Rewind to a step of the first block."""
    service.rewind(connection, OPERATOR, FactsCache(), run_id, RunRewind(step=20, generation=0))


def act_until(settings: Settings, act: Act, run_id: UUID, point: int) -> bool:
    """Run `act` in a process that kills itself at a point of the transaction; return whether it survived."""
    child = os.fork()
    if child == 0:
        database = Database(settings)
        passed = 0

        def pass_point(*_arguments: object) -> None:
            nonlocal passed
            passed += 1
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)

        for moment in ("begin", "before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(database.engine, moment, pass_point)
        try:
            with database.writing_rows() as connection:
                act(connection, run_id)
            pass_point()
        finally:
            os._exit(0 if passed < point else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.waitstatus_to_exitcode(status) == 0


def answers_about(client: TestClient, run: str) -> dict[str, Any]:
    """Return all answers of the service about a run, without its ids, its name and the times."""
    steps = {"statistic": ["loss", "grad_norm"]}
    answers = {
        "run": client.get(run).json(),
        "every step": client.get(f"{run}/steps", params={**steps, "max_points": 100}).json(),
        "two buckets": client.get(f"{run}/steps", params={**steps, "max_points": 2}).json(),
        "diagnosis": client.get(f"{run}/diagnosis").json(),
        "earlier": client.get(f"{run}/diagnosis", params={"at_step": 12}).json(),
        "history": client.get(f"{run}/diagnosis/history").json(),
    }
    for answer in answers.values():
        for name in ("id", "run_id", "name", "created_at", "updated_at", "duration"):
            answer.pop(name, None)
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("act", [append, rewind])
def test_a_killed_transaction_is_all_or_nothing(
    client: TestClient, create_run: Any, settings: Settings, act: Act
) -> None:
    """After any kill the run is as before or as after the request. After all of them, the same request completes it."""

    def create_filled_run() -> tuple[str, UUID]:
        run = create_run(client)
        first = 0
        for count in BEFORE:
            assert client.post(f"{run}/steps", json=block(first, count)).status_code == 200
            first += count
        return run, UUID(run.rpartition("/")[2])

    run, run_id = create_filled_run()
    before = answers_about(client, run)
    assert act_until(settings, act, run_id, 10**6)
    after = answers_about(client, run)
    assert after["run"]["last_step"] == (sum(BEFORE) + NEXT - 1 if act is append else 20)
    assert after["diagnosis"]["verdict"] == ("exploding" if act is append else "healthy")

    found, point = [], 0
    run, run_id = create_filled_run()
    while not act_until(settings, act, run_id, point := point + 1):
        left = answers_about(client, run)
        assert left in (before, after)
        found.append(left == after)
        if left == after:  # else the next process finds the run as it was
            assert act_until(settings, act, run_id, 10**6)
            assert answers_about(client, run) == after
            run, run_id = create_filled_run()
    assert answers_about(client, run) == after
    assert point > 20
    assert found == [False] * (point - 2) + [True]
