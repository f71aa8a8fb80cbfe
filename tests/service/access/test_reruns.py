"""The scopes and the reach that reruns, workers and trials need."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tests.support.app_client import AppClient
from tests.support.played_worker import API, CLIP, PlayedWorker, rerun, suspect

from gradmedic_service.database.engine import Database
from gradmedic_service.due_work import do_due_work
from gradmedic_service.services import services_of


def code(response: Any) -> str:
    """Return the error code of an answer."""
    found: str = response.json()["error_code"]
    return found


@pytest.fixture
def team(client_with_key: Any) -> tuple[TestClient, PlayedWorker]:
    """A person with every scope of a project, and a worker with its own key."""
    person = client_with_key("ingest", "read", "rerun")
    worker = PlayedWorker(client_with_key("worker"))
    worker.register()
    return person, worker


def test_a_trainable_belongs_to_its_key(team: Any, client_with_key: Any) -> None:
    """Another worker of the project can neither register the same trainable nor run the trials of its owner."""
    person, worker = team
    stranger = PlayedWorker(client_with_key("worker"))
    taken = stranger.client.put(f"{API}/trainables", json={"items": [{"name": "train"}]})
    assert (taken.status_code, code(taken)) == (409, "trainable_taken")
    rerun(person, suspect(person, project="mine"), CLIP)
    assert stranger.claim() is None
    claimed = worker.claim()
    assert claimed is not None
    assert code(stranger.beat(claimed)) == "trial_not_found"
    assert code(stranger.publish(claimed)) == "trial_not_found"
    assert worker.beat(claimed).status_code == 200


def test_a_trainable_of_another_project(client_with_key: Any) -> None:
    """A trainable of one project's worker is unknown to the runs of another project."""
    PlayedWorker(client_with_key("worker", project="theirs")).register()
    person = client_with_key("ingest", "read", "rerun")
    refused = person.post(f"{API}/runs/{suspect(person, project='mine')}/reruns", json={"remedies": [CLIP]})
    assert (refused.status_code, code(refused)) == (409, "trainable_unknown")
    assert person.get(f"{API}/trainables").json() == {"items": []}


def test_reruns_of_another_project(team: Any, client_with_key: Any) -> None:
    """Requests about another project's reruns are answered as for a rerun that does not exist."""
    person, worker = team
    run_id = suspect(person, project="mine")
    made = rerun(person, run_id, CLIP)
    claimed = worker.claim()
    assert claimed is not None
    other = client_with_key("admin", project="theirs")
    assert code(other.get(f"{API}/reruns/{made['id']}")) == "rerun_not_found"
    assert code(other.post(f"{API}/reruns/{made['id']}/cancel")) == "rerun_not_found"
    assert code(other.get(f"{API}/trials/{claimed['trial_id']}/output")) == "trial_not_found"
    assert code(other.post(f"{API}/runs/{run_id}/reruns", json={})) == "run_not_found"
    assert other.get(f"{API}/reruns").json()["items"] == []
    assert person.get(f"{API}/reruns/{made['id']}").status_code == 200


def test_scopes(team: Any, client_with_key: Any) -> None:
    """Requesting a rerun needs the scope `rerun`, and working needs the scope `worker`; neither includes the other."""
    person, _ = team
    run_id = suspect(person, project="mine")
    assert (
        code(client_with_key("ingest", "read", "worker").post(f"{API}/runs/{run_id}/reruns", json={}))
        == "scope_missing"
    )
    claim = {"worker": "w", "trainables": ["train"]}
    assert code(client_with_key("rerun", "read").post(f"{API}/trials/claim", json=claim)) == "scope_missing"


def test_the_key_of_an_attempt(team: Any, client_without_key: TestClient, session_app: FastAPI) -> None:
    """The key of an attempt creates and streams only its own run, and is revoked after the attempt."""
    person, worker = team
    run_id = suspect(person, project="mine")
    rerun(person, run_id, CLIP)
    claimed = worker.claim()
    assert claimed is not None
    headers = {"Authorization": f"Bearer {claimed['api_key']}"}
    trial = AppClient(
        session_app, raise_server_exceptions=False, headers=headers, base_url=str(client_without_key.base_url)
    )
    PlayedWorker(trial).stream(claimed, "exploding")
    assert code(trial.post(f"{API}/runs/{run_id}/steps", json={"steps": [99], "loss": [1.0]})) == "run_not_found"
    assert code(trial.post(f"{API}/runs/{run_id}/reruns", json={})) == "scope_missing"
    assert code(trial.post(f"{API}/trials/claim", json={"worker": "w", "trainables": []})) == "scope_missing"
    assert worker.publish(claimed).status_code == 200
    services_of(session_app).keyring.clear()
    assert code(trial.get(f"{API}/runs/{claimed['run_id']}")) == "api_key_revoked"


def test_the_id_promised_to_an_attempt(team: Any, client_with_key: Any, client_without_key: TestClient) -> None:
    """Only the key of an attempt creates the attempt's run; for other keys, the id is taken and nothing happens."""
    person, worker = team
    rerun(person, suspect(person, project="mine"), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    promised = UUID(claimed["run_id"])
    body = {"id": claimed["run_id"], "layers": [{"name": "a"}, {"name": "b"}]}
    others = [
        (client_with_key("ingest", project="theirs"), "theirs"),
        (client_with_key("ingest", project="theirs", run_id=promised), "theirs"),
        (client_with_key("ingest", run_id=promised), "mine"),
        (client_with_key("admin", project=None), "theirs"),
        (person, "mine"),
    ]
    for other, project in others:
        refused = other.post(f"{API}/runs", json=body | {"project": project})
        assert (refused.status_code, code(refused)) == (409, "run_exists")
        assert other.get(f"{API}/runs/{promised}").status_code in (403, 404)
    headers = {"Authorization": f"Bearer {claimed['api_key']}"}
    created = client_without_key.post(f"{API}/runs", json=body | {"project": "mine"}, headers=headers)
    assert (created.status_code, created.json()["project"]) == (201, "mine")


def test_a_key_of_a_run_of_another_project(team: Any, client_with_key: Any) -> None:
    """A key of one run is for a run of its own project: not for another project's run, or that of its attempt."""
    person, worker = team
    run_id = suspect(person, project="mine")
    rerun(person, run_id, CLIP)
    claimed = worker.claim()
    assert claimed is not None
    for admin in (client_with_key("admin", project="theirs"), client_with_key("admin", project=None)):
        for target in (run_id, claimed["run_id"]):
            body = {"project": "theirs", "scopes": ["ingest"], "run_id": target}
            refused = admin.post(f"{API}/api-keys", json=body)
            assert (refused.status_code, code(refused)) == (403, "beyond_key")
    body = {"project": "mine", "scopes": ["read"], "run_id": run_id}
    assert client_with_key("admin").post(f"{API}/api-keys", json=body).status_code == 201


def test_automatic_reruns_need_the_scope(team: Any, client_with_key: Any) -> None:
    """A run is rerun automatically only if its key has the scope `rerun`."""
    person, _ = team
    suspect(person, project="mine")
    client_with_key("admin").patch(f"{API}/projects/mine", json={"rerun_automatically": True})
    suspect(client_with_key("ingest"), project="mine")
    assert person.get(f"{API}/reruns").json()["items"] == []
    suspect(person, project="mine")
    assert len(person.get(f"{API}/reruns").json()["items"]) == 1


def test_a_trainable_of_a_revoked_key(team: Any, client_with_key: Any, database: Database) -> None:
    """A new key of the worker takes the trainable over; reruns of the revoked key end with the reason."""
    person, _ = team
    asked = rerun(person, suspect(person, project="mine"), CLIP)
    admin = client_with_key("admin", project=None)
    keys = admin.get(f"{API}/api-keys").json()["items"]
    of_worker = next(key for key in keys if key["scopes"] == ["worker"])
    renewed = PlayedWorker(client_with_key("worker"))
    offer = {"items": [{"name": "train"}]}
    assert renewed.client.put(f"{API}/trainables", json=offer).status_code == 409
    assert admin.delete(f"{API}/api-keys/{of_worker['id']}").status_code < 300
    assert renewed.client.put(f"{API}/trainables", json=offer).status_code == 200
    assert do_due_work(database, worker_patience=3600.0) == 1
    ended = person.get(f"{API}/reruns/{asked['id']}").json()
    assert ended["status"] == "failed"
    assert "the key that offered the trainable 'train' does not have it any more" in ended["reason"]
