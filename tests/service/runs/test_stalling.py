"""A silent run becomes stalled, and is running again after its next block."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from starlette.testclient import TestClient

from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Run
from gradmedic_service.due_work import do_due_work, do_jobs, rare_jobs
from gradmedic_service.runs.stalling import (
    MAX_PAUSE_FACTOR,
    MIN_SECONDS,
    PAUSE_FACTOR,
    SECONDS_TO_FAILURE,
    SilenceLimit,
)

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


# --- steps that are sent late, and runs that stay stalled -----------------------------------------------------------


def http_date(moment: datetime) -> dict[str, str]:
    """Return the header with the time of a request."""
    return {"Date": format_datetime(moment, usegmt=True)}


@pytest.mark.parametrize("clock_error", [timedelta(0), timedelta(days=-40), timedelta(hours=3)])
def test_late_steps_do_not_hide_that_the_process_is_gone(
    client: TestClient, create_run: Any, database: Database, clock_error: timedelta
) -> None:
    """A run whose steps come hours late is stalled since its last step, however wrong its machine's clock is."""
    run = create_run(client)
    now = datetime.now(UTC)
    last = now - timedelta(hours=5)
    times = [(last + clock_error).timestamp() - 1, (last + clock_error).timestamp()]
    body = {"steps": [0, 1], "loss": [1.0, 1.0], "time": times}
    assert client.post(f"{run}/steps", json=body, headers=http_date(now + clock_error)).status_code == 200
    do_due_work(database, worker_patience=3600.0)
    stored = client.get(run).json()
    assert (stored["status"], stored["is_end_reported"]) == ("stalled", False)
    assert abs(datetime.fromisoformat(stored["updated_at"]) - last) < timedelta(minutes=10)
    body = {"steps": [2], "time": [times[1] + 1]}
    client.post(f"{run}/steps", json=body, headers=http_date(now + clock_error))
    assert client.get(run).json()["status"] == "stalled", "further late steps are no sign of life"
    body = {"steps": [3], "time": [(now + clock_error).timestamp()]}
    client.post(f"{run}/steps", json=body, headers=http_date(now + clock_error))
    assert client.get(run).json()["status"] == "running"


@pytest.mark.parametrize(
    ("time", "date"),
    [
        (None, "Sun, 29 Nov 2026 09:17:42 GMT"),
        (1.7e9, None),
        (1.7e9, "yesterday"),
        (1.7e9, "Mon, 01 Jan 0001 00:00:00 +2359"),
        (-1e300, "Sun, 29 Nov 2026 09:17:42 GMT"),
        (0.0, "Sun, 29 Nov 2026 09:17:42 -0000"),
        (1e300, "Sun, 29 Nov 2026 09:17:42 GMT"),
    ],
)
def test_what_is_no_time_counts_as_now(
    client: TestClient, create_run: Any, database: Database, time: float | None, date: str | None
) -> None:
    """Without both times, or with impossible ones, the steps count as recorded when they arrive."""
    run = create_run(client)
    before = client.get(run).json()["updated_at"]
    headers = {} if date is None else {"Date": date}
    body = {"steps": [0], "loss": [1.0]} | ({} if time is None else {"time": [time]})
    assert client.post(f"{run}/steps", json=body, headers=headers).status_code == 200
    do_due_work(database, worker_patience=3600.0)
    stored = client.get(run).json()
    assert stored["status"] == "running"
    assert stored["updated_at"] >= before


def test_a_run_that_stays_stalled_has_failed_until_its_next_step(
    client: TestClient, create_run: Any, database: Database
) -> None:
    """After a day it is `failed` with a new revision and the time of its last step; a new step makes it `running`."""
    run = create_run(client)
    client.post(f"{run}/steps", json={"steps": [0], "loss": [1.0]})
    let_silence_limit_pass(run, database)
    assert do_jobs(database, rare_jobs()) == 0
    stalled = client.get(run).json()
    moment = datetime.now(UTC) - timedelta(seconds=SECONDS_TO_FAILURE + 1)
    with database.writing() as session:
        session.execute(update(Run).values(stalls_at=moment))
    assert do_jobs(database, rare_jobs()) == 1
    assert do_jobs(database, rare_jobs()) == 0
    failed = client.get(run).json()
    assert (failed["status"], failed["is_end_reported"]) == ("failed", False)
    assert failed["revision"] == stalled["revision"] + 1
    assert failed["updated_at"] == stalled["updated_at"]
    client.post(f"{run}/steps", json={"steps": [1], "loss": [1.0]})
    assert client.get(run).json()["status"] == "running"
    assert client.get(run).json()["is_end_reported"] is True


def test_late_steps_do_not_reopen_a_run_that_reported_its_end(client: TestClient, create_run: Any) -> None:
    """A run that its job called failed stays failed when further steps of it arrive."""
    run = create_run(client)
    client.patch(run, json={"status": "failed"})
    client.post(f"{run}/steps", json={"steps": [0], "loss": [1.0]})
    stored = client.get(run).json()
    assert (stored["status"], stored["is_end_reported"]) == ("failed", True)
