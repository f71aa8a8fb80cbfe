"""A silent run becomes stalled, and is running again after its next block."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from starlette.testclient import TestClient

from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Run
from gradmedic_service.due_work import do_due_work
from gradmedic_service.runs.stalling import MAX_PAUSE_FACTOR, MIN_SECONDS, PAUSE_FACTOR, SilenceLimit

BEGIN = datetime(2026, 1, 2, tzinfo=UTC)
RUNS = "/api/v1/runs"


def limit_after(pauses: list[float]) -> tuple[SilenceLimit, datetime]:
    """Return the silence limit after appends with pauses between them, and the time of the last append."""
    now, limit = BEGIN, SilenceLimit.at_start(BEGIN)
    for pause in pauses:
        now += timedelta(seconds=pause)
        limit = limit.after_append(now)
    return limit, now


def let_silence_limit_pass(run: str, database: Database) -> None:
    """Let the silence limit of a run have passed, and do the due work."""
    moment = datetime.now(UTC) - timedelta(seconds=1)
    with database.writing() as session:
        session.execute(update(Run).where(Run.id == UUID(run.rpartition("/")[2])).values(stalls_at=moment))
    do_due_work(database, worker_patience=3600.0)


def test_a_run_of_short_pauses_stalls_after_a_minute() -> None:
    """After hours with an append a second, the limit is a minute, however long the start took."""
    limit, now = limit_after([100.0] + [1.0] * 4 * 3600)
    assert limit.stalls_at - now == timedelta(seconds=MIN_SECONDS)


def test_a_run_of_long_pauses_has_a_longer_limit() -> None:
    """A run that evaluates for ten minutes after every epoch of an hour never stalls."""
    limit, now = SilenceLimit.at_start(BEGIN), BEGIN
    for epoch in (10, 400, 400, 400, 400):
        for pause in [1.0, *[9.0] * epoch, 590.0]:
            now += timedelta(seconds=pause)
            assert now < limit.stalls_at
            limit = limit.after_append(now)


def test_a_very_long_pause_counts_only_in_part() -> None:
    """A pause counts for at most ten times the limit before it."""
    limit, _ = limit_after([1.0] * 4 * 3600 + [12 * 3600.0])
    assert limit.seconds == PAUSE_FACTOR * MAX_PAUSE_FACTOR * MIN_SECONDS


@given(st.lists(st.floats(-10, 1e5), max_size=5))
def test_the_limit_is_bounded(pauses: list[float]) -> None:
    """For any pauses, negative ones included, the limit is at least a minute and at most 40 times the one before."""
    limit, now = limit_after(pauses)
    later = limit.after_append(now + timedelta(days=30))
    assert limit.seconds >= MIN_SECONDS
    assert MIN_SECONDS <= later.seconds <= PAUSE_FACTOR * MAX_PAUSE_FACTOR * limit.seconds


def test_a_silent_run_is_stalled_until_its_next_block(client: TestClient, create_run: Any, database: Database) -> None:
    """Run, list and filters have `stalled` and a new revision after the limit, and `running` after the next block."""
    run = create_run(client)
    client.post(f"{run}/steps", json={"steps": [0], "loss": [1.0]})
    revision = client.get(run).json()["revision"]
    let_silence_limit_pass(run, database)
    assert client.get(run).json()["revision"] == revision + 1
    assert do_due_work(database, worker_patience=3600.0) == 0
    assert client.get(run).json()["status"] == "stalled"
    assert [item["status"] for item in client.get(RUNS).json()["items"]] == ["stalled"]
    assert len(client.get(RUNS, params={"status": "stalled"}).json()["items"]) == 1
    assert client.get(RUNS, params={"status": "running"}).json()["items"] == []
    client.post(f"{run}/steps", json={"steps": [1], "loss": [1.0]})
    assert client.get(run).json()["status"] == "running"
    assert client.get(RUNS, params={"status": "stalled"}).json()["items"] == []
    assert len(client.get(RUNS, params={"status": "running"}).json()["items"]) == 1


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_an_ended_run_is_not_stalled(client: TestClient, create_run: Any, database: Database, status: str) -> None:
    """A finished or failed run does not stall; set to running again, it has the limit of a start."""
    run = create_run(client)
    client.patch(run, json={"status": status})
    let_silence_limit_pass(run, database)
    assert client.get(run).json()["status"] == status
    assert client.get(RUNS, params={"status": "stalled"}).json()["items"] == []
    assert client.patch(run, json={"status": "running"}).json()["status"] == "running"


def test_a_rewind_ends_a_stall(client: TestClient, create_run: Any, database: Database) -> None:
    """A rewound run is running and has the limit of a start."""
    run = create_run(client)
    client.post(f"{run}/steps", json={"steps": [0, 1], "loss": [1.0, 1.0]})
    let_silence_limit_pass(run, database)
    assert client.post(f"{run}/rewind", json={"step": 0, "generation": 0}).status_code == 200
    assert client.get(run).json()["status"] == "running"


def test_resent_steps_do_not_end_a_stall(client: TestClient, create_run: Any, database: Database) -> None:
    """A stalled run stays stalled when only stored steps are sent again."""
    run = create_run(client)
    client.post(f"{run}/steps", json={"steps": [0], "loss": [1.0]})
    let_silence_limit_pass(run, database)
    assert client.post(f"{run}/steps", json={"steps": [0], "loss": [1.0]}).json()["ignored"] == 1
    assert client.get(run).json()["status"] == "stalled"
