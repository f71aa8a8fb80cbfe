"""Trials whose worker is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient
from tests.support.played_worker import API, CLIP, STEPS, PlayedWorker, expire_leases, read, rerun, suspect

from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Run
from gradmedic_service.due_work import do_due_work
from gradmedic_service.trials.absences import Absences

WORKER_PATIENCE = 3600.0
LEASE = 60.0
"""Seconds."""


class NoAbsences(Absences):
    """The absences of a process that has answered every request."""

    def record_work(self, _at: datetime) -> timedelta:
        """Return no grace."""
        return self.grace


def lose_worker(database: Database, *, started_before: float = 0.0) -> None:
    """Let the leases of all running trials expire, and do the due work."""
    expire_leases(database, started_before=started_before)
    assert do_due_work(database, WORKER_PATIENCE) == 1


def test_a_lost_worker_is_replaced(client: TestClient, worker: PlayedWorker, database: Database) -> None:
    """Without heartbeats a trial gets another attempt with a run of its own; the first one has no effect any more."""
    asked = rerun(client, suspect(client), CLIP)
    first = worker.claim()
    assert first is not None
    worker.stream(first, "learning", steps=10)
    assert worker.claim() is None
    lose_worker(database)
    second = worker.claim()
    assert second is not None
    assert (second["trial_id"], second["attempt"]) == (first["trial_id"], 2)
    (trial,) = read(client, f"/reruns/{asked['id']}")["trials"]
    assert [attempt["status"] for attempt in trial["attempts"]] == ["lost", "running"]
    assert trial["attempts"][0]["reason"] == "its worker sent no heartbeat in time"
    late = worker.publish(first)
    assert (late.status_code, late.json()["error_code"]) == (409, "stale_attempt")
    assert worker.beat(first).json()["error_code"] == "stale_attempt"
    answer = client.post(f"{API}/runs/{first['run_id']}/steps", json={"steps": [10, 11], "loss": [1.0, 1.0]}).json()
    assert (answer["stop"], answer["accepted"], answer["ignored"]) == (True, 0, 2)
    assert read(client, f"/runs/{first['run_id']}")["status"] == "failed"


def test_a_heartbeat_keeps_a_trial(client: TestClient, worker: PlayedWorker, database: Database) -> None:
    """A trial whose lease was renewed is not lost."""
    rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    expire_leases(database)
    assert worker.beat(claimed).status_code == 200
    assert do_due_work(database, WORKER_PATIENCE) == 0
    assert worker.beat(claimed).status_code == 200


@pytest.mark.parametrize("is_killed", [False, True])
def test_steps_keep_a_trial_whose_worker_is_starved(
    client: TestClient, worker: PlayedWorker, database: Database, is_killed: bool
) -> None:
    """A worker that sends no heartbeat keeps its trial while its script sends steps, and no longer than a lease."""
    asked = rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "learning", steps=10)
    expire_leases(database)
    if is_killed:
        with database.writing() as session:
            session.execute(update(Run).values(updated_at=datetime.now(UTC) - timedelta(seconds=LEASE + 1)))
    assert do_due_work(database, WORKER_PATIENCE, absences=NoAbsences(interval=1.0, lease=LEASE)) == is_killed
    (trial,) = read(client, f"/reruns/{asked['id']}")["trials"]
    assert trial["status"] == ("queued" if is_killed else "running")
    assert worker.beat(claimed).status_code == (409 if is_killed else 200)


def test_the_time_before_a_service_has_started_does_not_count(
    client: TestClient, worker: PlayedWorker, database: Database
) -> None:
    """A process that has just started leaves workers time to renew leases that have expired while there was none."""
    rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    expire_leases(database)
    assert do_due_work(database, WORKER_PATIENCE, absences=Absences(interval=1.0, lease=60.0)) == 0
    assert worker.beat(claimed).status_code == 200
    expire_leases(database)
    assert do_due_work(database, WORKER_PATIENCE) == 1
    assert worker.beat(claimed).status_code == 409


def test_a_trial_that_loses_its_workers_is_given_up(
    client: TestClient, worker: PlayedWorker, database: Database
) -> None:
    """After three lost workers the trial has failed, every attempt is visible, and the rerun goes on."""
    asked = rerun(client, suspect(client), CLIP)
    for attempt in (1, 2, 3):
        claimed = worker.claim()
        assert claimed is not None
        assert claimed["attempt"] == attempt
        lose_worker(database)
    done = read(client, f"/reruns/{asked['id']}")
    assert done["status"] == "failed"
    assert "3 attempts at it were lost" in done["reason"]
    assert [attempt["status"] for attempt in done["trials"][0]["attempts"]] == ["lost"] * 3
    assert len({attempt["run_id"] for attempt in done["trials"][0]["attempts"]}) == 3


def test_a_lost_worker_costs_at_most_the_budget(client: TestClient, worker: PlayedWorker, database: Database) -> None:
    """A lease that ends beyond the budget is not counted to its end: the trial was ended before."""
    asked = rerun(client, suspect(client), CLIP, budget={"steps": STEPS, "seconds": 1.0})
    assert worker.claim() is not None
    lose_worker(database, started_before=10.0)
    ended = read(client, f"/reruns/{asked['id']}")
    assert [attempt["status"] for attempt in ended["trials"][0]["attempts"]] == ["lost"]
    assert ended["cost_seconds"] == 1.0
    assert "budget of seconds is spent" in ended["reason"]
