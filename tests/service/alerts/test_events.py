"""What happens to a run is recorded by the transaction that changes it, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, update
from starlette.testclient import TestClient
from tests.support.alerts import read_rows
from tests.support.played_worker import API, CLIP, PlayedWorker, block, read, rerun, suspect
from tests.support.service_app import CreateRun

from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.service import JSON_MEDIA_TYPE
from gradmedic_service.access.principal import LOOPBACK
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import AlertEvent, Run
from gradmedic_service.due_work import do_due_work, do_jobs, rare_jobs
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.appending import append as append_steps
from gradmedic_service.telemetry.decoding import decode_block
from gradmedic_service.telemetry.run_cache import RunCache


def troubles(database: Database) -> list[tuple[str, str]]:
    """Return subject and trouble of every event, the oldest first."""
    return [(row.subject, row.trouble) for row in read_rows(database, AlertEvent)]


def append(database: Database, run_id: str, body: dict[str, Any]) -> list[str]:
    """Append a block, and return the statements on the tables of alerts that it took."""
    statements: list[str] = []

    def keep(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "alert" in statement.partition("WHERE")[0]:
            statements.append(statement)

    received = decode_block(encode_json(body), JSON_MEDIA_TYPE, Settings().limits())
    event.listen(database.engine, "before_cursor_execute", keep)
    try:
        with database.writing_rows() as connection:
            append_steps(connection, LOOPBACK, FactsCache(), RunCache(), UUID(run_id), received)
    finally:
        event.remove(database.engine, "before_cursor_execute", keep)
    return statements


def test_a_run_that_explodes_is_recorded_once(client: TestClient, database: Database) -> None:
    """The append that makes a run critical writes one event with what an alert needs; later ones write none."""
    run_id = suspect(client)
    client.post(f"{API}/runs/{run_id}/steps", json=block("exploding", first=80))
    assert troubles(database) == [("level", "critical")]
    stored = read_rows(database, AlertEvent)[0]
    assert (str(stored.run_id), stored.project, stored.handled_at) == (run_id, "tests", None)
    assert stored.details["verdict"] == "exploding"
    assert stored.details["summary"].startswith("Exploding")
    assert "(" in stored.details["advice"]
    assert stored.revision == client.get(f"{API}/runs/{run_id}").json()["revision"] - 1


def test_an_append_costs_one_statement_when_the_level_changes(
    client: TestClient, create_run: CreateRun, database: Database
) -> None:
    """The append that makes a run critical runs one statement for alerts; those that change no level run none."""
    quiet, loud = (create_run(client).rpartition("/")[2] for _ in range(2))
    assert [append(database, quiet, block("learning", 40, first=first)) for first in (0, 40)] == [[], []]
    first, *later = (append(database, loud, block("exploding", 40, first=first)) for first in (0, 40, 80))
    assert [statement.split(" (")[0] for statement in first] == ["INSERT INTO alert_events"]
    assert later == [[], []]


def test_a_rewind_before_the_trouble_resolves_it(client: TestClient, database: Database) -> None:
    """A run that is rewound to a step before its trouble is recorded as resolved."""
    run_id = suspect(client)
    assert client.post(f"{API}/runs/{run_id}/rewind", json={"step": 10, "generation": 0}).status_code == 200
    assert troubles(database) == [("level", "critical"), ("level", "resolved")]


def test_a_failed_append_records_nothing(client: TestClient, create_run: CreateRun, database: Database) -> None:
    """An event is part of the transaction: where the steps are not stored, neither is the event."""
    run_id = create_run(client).rpartition("/")[2]

    def append_and_fail() -> None:
        received = decode_block(encode_json(block("exploding")), JSON_MEDIA_TYPE, Settings().limits())
        with database.writing_rows() as connection:
            append_steps(connection, LOOPBACK, FactsCache(), RunCache(), UUID(run_id), received)
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        append_and_fail()
    assert troubles(database) == []


def test_silence_and_its_end_are_recorded(client: TestClient, create_run: CreateRun, database: Database) -> None:
    """A run that stalls, fails a day later and then sends steps again is recorded at each change."""
    run = create_run(client)
    with database.writing() as session:
        session.execute(update(Run).values(stalls_at=datetime.now(UTC) - timedelta(seconds=1)))
    do_due_work(database, worker_patience=3600.0)
    do_due_work(database, worker_patience=3600.0)
    assert troubles(database) == [("status", "stalled")]
    with database.writing() as session:
        session.execute(update(Run).values(stalls_at=datetime.now(UTC) - timedelta(days=2)))
    do_jobs(database, rare_jobs())
    client.post(f"{run}/steps", json={"steps": [0], "loss": [1.0]})
    assert troubles(database)[1:] == [("status", "failed"), ("status", "resolved")]


def test_reported_ends_are_recorded(client: TestClient, create_run: CreateRun, database: Database) -> None:
    """A training that reports its failure is recorded, and one that finishes is not."""
    failed, finished = create_run(client), create_run(client)
    client.patch(failed, json={"status": "failed"})
    client.patch(failed, json={"notes": "n"})
    client.patch(finished, json={"status": "finished"})
    assert troubles(database) == [("status", "failed")]
    client.patch(failed, json={"status": "running"})
    assert troubles(database) == [("status", "failed"), ("status", "resolved")]


def test_trials_are_silent_and_their_proof_is_recorded(
    client: TestClient, worker: PlayedWorker, database: Database
) -> None:
    """Trials that explode record nothing; the rerun that verifies a remedy records that of the suspect run, once."""
    run_id = suspect(client)
    made = rerun(client, run_id, CLIP)
    worker.work({0: "exploding", 1: "learning"})
    assert read(client, f"/reruns/{made['id']}")["status"] == "done"
    assert troubles(database) == [("level", "critical"), ("rerun", "verified")]
    stored = read_rows(database, AlertEvent)[1]
    assert (str(stored.run_id), str(stored.rerun_id)) == (run_id, made["id"])
    assert stored.details["remedies"] == "clip_grad_norm(1.0)"
    assert stored.details["reason"]


def test_a_rerun_that_proves_nothing_is_not_recorded(
    client: TestClient, worker: PlayedWorker, database: Database
) -> None:
    """A rerun without a verified remedy is no news."""
    run_id = suspect(client)
    rerun(client, run_id, CLIP)
    worker.work({0: "exploding", 1: "exploding"})
    assert troubles(database) == [("level", "critical")]


def test_events_go_with_their_run(client: TestClient, database: Database) -> None:
    """Deleting a run deletes its events."""
    run_id = suspect(client)
    assert client.delete(f"{API}/runs/{run_id}").status_code == 204
    assert troubles(database) == []
