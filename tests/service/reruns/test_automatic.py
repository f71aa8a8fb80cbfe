"""Automatic reruns never cost an append: the steps are stored and acknowledged first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import update
from starlette.testclient import TestClient
from tests.support.played_worker import API, PlayedWorker, block, suspect
from tests.support.service_app import ReplaceServices

from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.service import JSON_MEDIA_TYPE, Limits
from gradmedic.protocol.steps import AppendResult
from gradmedic_service.access.principal import LOOPBACK, Principal
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import RunDetails, Trainable
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.appending import append as append_steps
from gradmedic_service.telemetry.decoding import decode_block
from gradmedic_service.telemetry.run_cache import RunCache


@pytest.fixture(autouse=True)
def _project(client: TestClient, worker: PlayedWorker) -> None:
    """A project that reruns its runs, and a worker that offers their trainable."""
    first = suspect(client)
    client.patch(f"{API}/projects/tests", json={"rerun_automatically": True})
    client.delete(f"{API}/runs/{first}")


def new_run(client: TestClient) -> str:
    """Create a run without steps, and return its id."""
    body = {"project": "tests", "layers": [{"name": "a"}, {"name": "b"}], "config": {"lr": 0.5}, "trainable": "train"}
    run_id: str = client.post(f"{API}/runs", json=body).json()["id"]
    return run_id


def append(client: TestClient, run_id: str, **options: int) -> Any:
    """Append steps in which the run explodes, and return the answer."""
    response = client.post(f"{API}/runs/{run_id}/steps", json=block("exploding", **options))
    assert response.status_code == 200, response.text
    return response.json()


def append_alone(database: Database, limits: Limits, run_id: str) -> AppendResult:
    """Append steps in which the run explodes, as a service that ends right after the commit; return the answer."""
    received = decode_block(encode_json(block("exploding")), JSON_MEDIA_TYPE, limits)
    with database.writing_rows() as connection:
        return append_steps(connection, LOOPBACK, FactsCache(), RunCache(), UUID(run_id), received).result


def reruns_of(client: TestClient, run_id: str) -> list[Any]:
    """Return the reruns of a run."""
    items: list[Any] = client.get(f"{API}/reruns", params={"run_id": run_id}).json()["items"]
    return items


def count(client: TestClient, result: str) -> int:
    """Return the number of automatic reruns with a result."""
    series = f'gradmedic_automatic_reruns_total{{result="{result}"}} '
    lines = client.get("/metrics").text.splitlines()
    return int(sum(float(line.removeprefix(series)) for line in lines if line.startswith(series)))


def test_a_config_that_cannot_be_rerun(client: TestClient, database: Database) -> None:
    """An integer that no float holds, which an earlier version stored, is refused for the rerun, not for the steps."""
    run_id = new_run(client)
    with database.writing() as session:
        session.execute(update(RunDetails).values(config={"lr": 10**400}))
    assert append(client, run_id)["accepted"] == 80
    assert client.get(f"{API}/runs/{run_id}").json()["last_step"] == 79
    assert (reruns_of(client, run_id), count(client, "refused")) == ([], 1)
    asked = client.post(f"{API}/runs/{run_id}/reruns", json={})
    assert (asked.status_code, asked.json()["error_code"]) == (409, "not_rerunnable")


def test_an_unexpected_error_of_the_rerun(client: TestClient, database: Database) -> None:
    """Whatever goes wrong with the rerun, the steps are acknowledged; the failure is counted."""
    run_id = new_run(client)
    with database.writing() as session:
        session.execute(update(Trainable).values(parameters=[{"no": "parameter"}]))
    assert append(client, run_id)["verdict"] == "exploding"
    assert client.get(f"{API}/runs/{run_id}").json()["last_step"] == 79
    assert (reruns_of(client, run_id), count(client, "failed")) == ([], 1)


def test_steps_that_are_sent_again(client: TestClient, database: Database, replace_services: ReplaceServices) -> None:
    """If the service ended between the append and the rerun, the steps come again, and the rerun starts, once."""
    run_id = new_run(client)
    append_alone(database, replace_services().limits, run_id)
    assert reruns_of(client, run_id) == []
    assert append(client, run_id)["ignored"] == 80
    assert append(client, run_id, steps=90)["accepted"] == 10
    assert [item["is_automatic"] for item in reruns_of(client, run_id)] == [True]
    assert count(client, "started") == 1


def test_a_database_that_is_away(
    client: TestClient, database: Database, replace_services: ReplaceServices, tmp_path: Path
) -> None:
    """A rerun that the database could not store is started as soon as it can."""
    services = replace_services()
    away = Database(Settings(database_url=SecretStr(f"sqlite:///{tmp_path}/no such folder/gradmedic.db")))
    run_id = new_run(client)
    alarm = append_alone(database, services.limits, run_id)
    services.automatic_reruns.start_after(away, LOOPBACK, UUID(run_id), alarm)
    away.close()
    assert count(client, "failed") == 1
    services.automatic_reruns.start_waiting(database)
    services.automatic_reruns.start_waiting(database)
    assert len(reruns_of(client, run_id)) == 1


def test_a_key_without_the_scope(client: TestClient, database: Database, replace_services: ReplaceServices) -> None:
    """Steps that are sent again start no rerun if their key lacks the scope `rerun`."""
    services = replace_services()
    run_id = new_run(client)
    alarm = append_alone(database, services.limits, run_id)
    repeated = replace(alarm, accepted=0, ignored=80, alerts=[])
    for scopes, expected in (({"ingest"}, 0), ({"ingest", "rerun"}, 1)):
        sender = Principal(name="job", project="tests", scopes=frozenset(scopes))
        services.automatic_reruns.start_after(database, sender, UUID(run_id), repeated)
        assert len(reruns_of(client, run_id)) == expected
