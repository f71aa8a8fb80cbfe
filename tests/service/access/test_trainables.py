"""The names of trainables belong to a project, and their number to a key."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from starlette.testclient import TestClient
from tests.support.locks import is_transaction_waiting
from tests.support.played_worker import (
    API,
    CLIP,
    TRAINABLE,
    PlayedWorker,
    forget_offers,
    read,
    rerun,
    suspect,
)
from tests.support.service_app import ReplaceServices

from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Trainable
from gradmedic_service.services import services_of
from gradmedic_service.trainables import repository


def timeouts(client: TestClient) -> dict[str, float]:
    """Return the timeouts of the trainables that a client sees, by name."""
    return {item["name"]: item["timeout"] for item in read(client, "/trainables")["items"]}


def offer(client: httpx2.Client, *names: str, worker: str = "w") -> Any:
    """Offer trainables, and return the answer."""
    return client.put(f"{API}/trainables", json={"items": [{"name": name} for name in names], "worker": worker})


def test_one_name_in_two_projects(client_with_key: Any) -> None:
    """Keys of two projects register the same name; neither sees, overwrites or runs what is the other's."""
    people = {project: client_with_key("ingest", "read", "rerun", project=project) for project in ("mine", "theirs")}
    workers = {project: PlayedWorker(client_with_key("worker", project=project)) for project in people}
    for seconds, (project, worker) in enumerate(workers.items(), start=100):
        worker.register(timeout=float(seconds), parameters=[{"name": project, "type": "int", "default": 1}])
    assert [timeouts(person) for person in people.values()] == [{"train": 100.0}, {"train": 101.0}]
    runs = {project: suspect(person, project=project) for project, person in people.items()}
    made = {project: rerun(people[project], runs[project], CLIP) for project in people}
    assert {project: asked["parameters"] for project, asked in made.items()} == {
        "mine": {"mine": 1},
        "theirs": {"theirs": 1},
    }
    for project, worker in reversed(workers.items()):
        claimed = worker.claim()
        assert claimed is not None
        assert (claimed["rerun_id"], claimed["parameters"]) == (made[project]["id"], {project: 1})
        assert worker.claim() is None
    assert offer(workers["mine"].client).status_code == 200
    assert timeouts(people["theirs"]) == {"train": 101.0}


def test_a_projects_own_trainable_comes_first(client_with_key: Any, database: Database) -> None:
    """The runs of a project mean its own trainable; while it has none, they mean the one of all projects."""
    person, everyone = client_with_key("ingest", "read", "rerun"), PlayedWorker(client_with_key("worker", project=None))
    own = PlayedWorker(client_with_key("worker"))
    everyone.register(timeout=1.0)
    assert timeouts(person) == {"train": 1.0}
    own.client.put(f"{API}/trainables", json={"items": [TRAINABLE | {"timeout": 2.0}], "worker": "own"})
    assert timeouts(person) == {"train": 2.0}
    asked = rerun(person, suspect(person, project="mine"), CLIP)
    assert everyone.claim() is None
    claimed = own.claim()
    assert claimed is not None
    assert claimed["rerun_id"] == asked["id"]
    forget_offers(database)
    assert offer(own.client, worker="own").status_code == 200
    assert timeouts(person) == {"train": 1.0}
    asked = rerun(person, suspect(person, project="mine"), CLIP)
    claimed = everyone.claim()
    assert claimed is not None
    assert claimed["rerun_id"] == asked["id"]


def test_the_number_is_bounded_for_each_key(
    client_with_key: Any, database: Database, session_app: FastAPI, replace_services: ReplaceServices
) -> None:
    """A key has at most `max_trainables`. Those that its workers offer no more give way to others."""
    worker, reader = client_with_key("worker"), client_with_key("read")
    other = client_with_key("worker", project="theirs")
    replace_services(limits=replace(services_of(session_app).limits, max_trainables=3))
    for names in (["a", "b", "c", "d"], ["d", "e"]):
        refused = offer(worker, *names)
        (error,) = refused.json()["errors"]
        assert (refused.status_code, error["path"]) == (422, "items")
        assert "3" in error["message"]
        assert offer(worker, "a", "b", worker="first").status_code == 200
    assert set(timeouts(reader)) == {"a", "b"}
    assert offer(other, "d", "e", "f").status_code == 200
    forget_offers(database)
    assert offer(worker, "b", worker="first").status_code == 200  # so "a" is withdrawn
    assert offer(worker, "d", "e").status_code == 200
    assert set(timeouts(reader)) == {"b", "d", "e"}
    forget_offers(database)
    assert offer(worker, "g", worker="third").status_code == 200
    assert len(timeouts(reader)) == 3
    refused = worker.post(f"{API}/trials/claim", json={"worker": "w", "trainables": ["a", "b", "c", "d"]})
    assert refused.json()["errors"][0]["path"] == "trainables"


def test_two_projects_at_the_same_time(database: Database, wait_until: Any) -> None:
    """Of two transactions that store a name at the same time for two projects, both do; for one project, one does."""

    def store(project: str) -> str | None:
        with database.writing() as session:
            existing = repository.add(session, trainable(project), "train")
            return None if existing is None else existing.owner

    with ThreadPoolExecutor() as threads:
        with database.writing() as session:
            assert repository.add(session, trainable("first"), "train") is None
            session.flush()
            stored = [threads.submit(store, project) for project in ("second", "first")]
            wait_until(lambda: database.engine.dialect.name == "sqlite" or is_transaction_waiting(database))
        assert [each.result() for each in stored] == [None, "first"]
    with database.reading() as session:
        found = {row.project: row.name for row in repository.list_offered(session, None)}
        assert found == {"first": "train", "second": "train"}


def trainable(project: str) -> Trainable:
    """Return a trainable whose owner is named like its project."""
    now = datetime.now(UTC)
    return Trainable(owner=project, project=project, gpus=0, timeout=1.0, parameters=[], updated_at=now)


@pytest.mark.parametrize("is_first", [True, False])
def test_the_previous_version_beside_this_one(client_with_key: Any, database: Database, is_first: bool) -> None:
    """The version before finds one trainable by a name, that of the first project; this one finds what it stores."""
    mine, theirs = client_with_key("worker"), client_with_key("worker", project="theirs")
    if is_first:
        assert offer(mine, "train").status_code == 200
    else:
        insert = (
            "INSERT INTO trainables (name, owner, project, gpus, timeout, parameters, updated_at)"
            " VALUES ('train', 'someone', 'mine', 0, 3600, '[]', CURRENT_TIMESTAMP)"
        )
        with database.writing() as session:
            session.execute(text(insert))
        assert set(timeouts(client_with_key("read"))) == {"train"}
    assert offer(theirs, "train").status_code == 200
    with database.reading() as session:
        by_name = session.execute(text("SELECT project FROM trainables WHERE name = 'train'")).all()
        assert [row.project for row in by_name] == ["mine"]
    assert set(timeouts(client_with_key("read", project="theirs"))) == {"train"}
