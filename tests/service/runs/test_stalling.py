"""A silent run becomes stalled, and a new step makes it running again."""

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
from gradmedic_service.runs.stalling import LEAST_SECONDS, MOST_PAUSES, PAUSES, Patience

BEGIN = datetime(2026, 1, 2, tzinfo=UTC)
RUNS = "/api/v1/runs"


def after(pauses: list[float]) -> tuple[Patience, datetime]:
    """Return the patience with a run that sent steps after each of some pauses, and the time of the last ones."""
    now, patience = BEGIN, Patience.at_start(BEGIN)
    for pause in pauses:
        now += timedelta(seconds=pause)
        patience = patience.after_append(now)
    return patience, now


def let_patience_end(run: str, database: Database) -> None:
    """Let a run have been silent for longer than it may, and do the due work."""
    moment = datetime.now(UTC) - timedelta(seconds=1)
    with database.writing() as session:
        session.execute(update(Run).where(Run.id == UUID(run.rpartition("/")[2])).values(stalls_at=moment))
    do_due_work(database, worker_patience=3600.0)


def test_a_quick_run_is_missed_after_a_minute() -> None:
    """A run that sends steps every second for hours may be silent for a minute, also after a slow start."""
    patience, now = after([100.0] + [1.0] * 4 * 3600)
    assert patience.stalls_at - now == timedelta(seconds=LEAST_SECONDS)


def test_a_run_with_long_pauses_is_given_longer() -> None:
    """A run that evaluates for ten minutes after every epoch of an hour is stalled in none of these pauses."""
    patience, now = Patience.at_start(BEGIN), BEGIN
    for epoch in (10, 400, 400, 400, 400):
        for pause in [1.0, *[9.0] * epoch, 590.0]:
            now += timedelta(seconds=pause)
            assert now < patience.stalls_at
            patience = patience.after_append(now)


def test_a_nights_stall_does_not_buy_a_week() -> None:
    """A pause counts for no more than ten times what was allowed."""
    patience, _ = after([1.0] * 4 * 3600 + [12 * 3600.0])
    assert patience.seconds == PAUSES * MOST_PAUSES * LEAST_SECONDS


@given(st.lists(st.floats(-10, 1e5), max_size=5))
def test_patience_is_bounded_by_what_was_allowed(pauses: list[float]) -> None:
    """After any pauses, also negative ones, a run may be silent for a minute, and at most 40 times what it was."""
    patience, now = after(pauses)
    later = patience.after_append(now + timedelta(days=30))
    assert patience.seconds >= LEAST_SECONDS
    assert LEAST_SECONDS <= later.seconds <= PAUSES * MOST_PAUSES * patience.seconds


def test_a_silent_run_is_stalled_and_comes_back(client: TestClient, create_run: Any, database: Database) -> None:
    """Detail, list and filters show `stalled`, with a new revision, when the time is over; `running` after a block."""
    run = create_run(client)
    client.post(f"{run}/steps", json={"steps": [0], "loss": [1.0]})
    revision = client.get(run).json()["revision"]
    let_patience_end(run, database)
    assert client.get(run).json()["revision"] == revision + 1
    assert do_due_work(database, worker_patience=3600.0) == 0
    assert client.get(run).json()["status"] == "stalled"
    assert [one["status"] for one in client.get(RUNS).json()["items"]] == ["stalled"]
    assert len(client.get(RUNS, params={"status": "stalled"}).json()["items"]) == 1
    assert client.get(RUNS, params={"status": "running"}).json()["items"] == []
    client.post(f"{run}/steps", json={"steps": [1], "loss": [1.0]})
    assert client.get(run).json()["status"] == "running"
    assert client.get(RUNS, params={"status": "stalled"}).json()["items"] == []
    assert len(client.get(RUNS, params={"status": "running"}).json()["items"]) == 1


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_run_that_ended_is_not_stalled(client: TestClient, create_run: Any, database: Database, status: str) -> None:
    """What ended is silent by right; set running again, it is given the time of a start."""
    run = create_run(client)
    client.patch(run, json={"status": status})
    let_patience_end(run, database)
    assert client.get(run).json()["status"] == status
    assert client.get(RUNS, params={"status": "stalled"}).json()["items"] == []
    assert client.patch(run, json={"status": "running"}).json()["status"] == "running"


def test_a_rewind_ends_a_stall(client: TestClient, create_run: Any, database: Database) -> None:
    """A job that resumes from its checkpoint is running, and is given the time of a start."""
    run = create_run(client)
    client.post(f"{run}/steps", json={"steps": [0, 1], "loss": [1.0, 1.0]})
    let_patience_end(run, database)
    assert client.post(f"{run}/rewind", json={"step": 0, "generation": 0}).status_code == 200
    assert client.get(run).json()["status"] == "running"


def test_resent_steps_do_not_end_a_stall(client: TestClient, create_run: Any, database: Database) -> None:
    """Only new steps make a run running again: a journal that is sent again does not show that the job lives."""
    run = create_run(client)
    client.post(f"{run}/steps", json={"steps": [0], "loss": [1.0]})
    let_patience_end(run, database)
    assert client.post(f"{run}/steps", json={"steps": [0], "loss": [1.0]}).json()["ignored"] == 1
    assert client.get(run).json()["status"] == "stalled"
