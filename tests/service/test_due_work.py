"""The due work: replicas share it, nothing is done twice, and errors do not end it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import event, select, text, update
from starlette.testclient import TestClient
from tests.support.patience import PATIENCE
from tests.support.played_worker import CLIP, PlayedWorker, expire_leases, read, rerun, suspect
from tests.support.service_app import CreateRun
from tests.support.services import Serve

from gradmedic_service import due_work
from gradmedic_service.database.engine import Database
from gradmedic_service.database.errors import DatabaseUnavailable
from gradmedic_service.database.models import Run
from gradmedic_service.due_work import do_due_work
from gradmedic_service.runs import service as runs
from gradmedic_service.settings import Settings
from gradmedic_service.trials.absences import Absences

WORKER_PATIENCE = 3600.0
Revisions = dict[str, tuple[str, int]]


@pytest.fixture
def silent_runs(client: TestClient, create_run: CreateRun, database: Database) -> list[str]:
    """Ids of five running runs that have been silent for longer than they may."""
    run_ids = [create_run(client).rpartition("/")[2] for _ in range(5)]
    end_patience(database)
    return run_ids


def end_patience(database: Database) -> None:
    """Let every run have been silent for longer than it may."""
    with database.writing() as session:
        session.execute(update(Run).values(stalls_at=datetime.now(UTC) - timedelta(seconds=1)))


def statuses(database: Database) -> Revisions:
    """Return status and revision of every run."""
    with database.reading() as session:
        return {str(row.id): (row.status, row.revision) for row in session.scalars(select(Run))}


@pytest.fixture
def other_replica(settings: Settings) -> Iterator[Database]:
    """The same database, as another process uses it."""
    other = Database(settings)
    yield other
    other.close()


@pytest.mark.parametrize("backend", ["postgresql"])
def test_replicas_share_the_work(silent_runs: list[str], database: Database, other_replica: Database) -> None:
    """A replica skips the rows that another one has locked, does all others, and waits for none."""
    locked, *others = silent_runs
    with database.writing() as session:
        assert runs.mark_stalled(session, UUID(locked))
        assert do_due_work(other_replica, WORKER_PATIENCE) == len(others)
        assert statuses(other_replica) == {locked: ("running", 1)} | dict.fromkeys(others, ("stalled", 2))
    assert statuses(other_replica) == dict.fromkeys(silent_runs, ("stalled", 2))
    assert do_due_work(database, WORKER_PATIENCE) == do_due_work(other_replica, WORKER_PATIENCE) == 0


@pytest.mark.parametrize("backend", ["postgresql"])
def test_one_replica_requeues_a_lost_trial(client: TestClient, database: Database, other_replica: Database) -> None:
    """A rerun that a replica holds is left to it, and its lost trial is queued again once."""
    worker = PlayedWorker(client)
    worker.register()
    asked = rerun(client, suspect(client), CLIP)
    assert worker.claim() is not None
    expire_leases(database)
    (job, *_) = due_work.jobs(WORKER_PATIENCE, Absences(interval=0.0, lease=0.0))
    with database.writing() as session:
        assert job.do(session, UUID(asked["id"]))
        assert do_due_work(other_replica, WORKER_PATIENCE) == 0
    assert do_due_work(other_replica, WORKER_PATIENCE) == 0
    (trial,) = read(client, f"/reruns/{asked['id']}")["trials"]
    assert (trial["status"], [attempt["status"] for attempt in trial["attempts"]]) == ("queued", ["lost"])


def test_nothing_is_done_twice(silent_runs: list[str], database: Database, other_replica: Database) -> None:
    """Of many replicas that work at the same time, one does each unit."""
    done: list[int] = []
    replicas = [database, other_replica] * 3
    threads = [
        threading.Thread(target=lambda replica=replica: done.append(do_due_work(replica, WORKER_PATIENCE)))
        for replica in replicas
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A unit that another replica held at that moment is left to the next run.
    done.append(do_due_work(database, WORKER_PATIENCE))
    assert sum(done) == len(silent_runs)
    assert statuses(database) == dict.fromkeys(silent_runs, ("stalled", 2))


def test_nothing_due_takes_no_lock(client: TestClient, create_run: CreateRun, database: Database) -> None:
    """While nothing is due, no transaction that may write is begun."""
    create_run(client)
    with database.writing():  # on SQLite, another writer would wait
        assert do_due_work(database, WORKER_PATIENCE) == 0


def test_silent_runs_are_found_by_their_index(sqlite_url: str, database: Database) -> None:
    """The search reads the index of running runs, not all runs."""
    statements: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    with database.reading() as session:
        runs.list_silent_runs(session, 10)
    (statement,) = (statement for statement in statements if "stalls_at" in statement)
    assert "status = 'running'" in statement
    if database.engine.dialect.name == "sqlite":
        with database.reading() as session:
            plan = str(session.execute(text(f"EXPLAIN QUERY PLAN {statement.replace('?', '1')}")).all())
        assert "ix_runs_running" in plan


def test_one_failing_unit_does_not_stop_the_others(
    silent_runs: list[str], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any error of a unit the other units are still done; the next run does the rest."""
    mark_stalled = runs.mark_stalled
    errors = {silent_runs[1]: RuntimeError("a bug"), silent_runs[3]: DatabaseUnavailable("It is away.")}

    def fail_for_some(session: Any, run_id: UUID) -> bool:
        if (error := errors.get(str(run_id))) is not None:
            raise error
        return mark_stalled(session, run_id)

    monkeypatch.setattr(runs, "mark_stalled", fail_for_some)
    assert do_due_work(database, WORKER_PATIENCE) == 3
    errors.clear()
    assert do_due_work(database, WORKER_PATIENCE) == 2
    assert statuses(database) == dict.fromkeys(silent_runs, ("stalled", 2))


def test_a_database_that_is_away_does_not_end_the_task() -> None:
    """Without a database nothing is done, and nothing is raised."""
    away = Database(Settings(database_url=SecretStr("postgresql://nobody@127.0.0.1:1/none"), database_timeout=1.0))
    assert do_due_work(away, WORKER_PATIENCE) == 0
    away.close()


def test_stopping_begins_no_further_unit(silent_runs: list[str], database: Database) -> None:
    """Once the service stops, the units that are left wait for the next process."""
    is_ending = threading.Event()
    is_ending.set()
    assert do_due_work(database, WORKER_PATIENCE, is_ending) == 0
    assert statuses(database) == dict.fromkeys(silent_runs, ("running", 1))


def test_a_running_service_does_it_by_itself(
    serve: Serve, database_url: str, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """A lost trial is queued again, and a silent run becomes stalled, without any request that causes it."""
    with (
        serve(database_url, lease=0.1, GRADMEDIC_DUE_WORK_INTERVAL="0.05") as served,
        httpx2.Client(base_url=served.url) as client,
    ):
        worker = PlayedWorker(client)
        worker.register()
        run_id = suspect(client)
        asked = rerun(client, run_id, CLIP)
        assert worker.claim() is not None
        wait_until(lambda: read(client, f"/reruns/{asked['id']}")["trials"][0]["status"] == "queued")
        database = Database(Settings(database_url=SecretStr(database_url), database_timeout=PATIENCE))
        end_patience(database)
        database.close()
        wait_until(lambda: read(client, f"/runs/{run_id}")["status"] == "stalled")
