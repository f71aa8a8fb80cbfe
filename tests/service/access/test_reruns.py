"""Who may rerun, who may work, and what a trial's key opens."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tests.service.reruns.conftest import API, CLIP, PlayedWorker, rerun, suspect

from gradmedic_service.services import services_of


def code(response: Any) -> str:
    """Return the error code of an answer."""
    found: str = response.json()["error_code"]
    return found


@pytest.fixture
def team(bearing: Any) -> tuple[TestClient, PlayedWorker]:
    """A person with every scope of a project, and a worker with its own key."""
    person = bearing("ingest", "read", "rerun")
    worker = PlayedWorker(bearing("worker"))
    worker.register()
    return person, worker


def test_a_name_belongs_to_the_key_that_registered_it(team: Any, bearing: Any) -> None:
    """Another worker can neither take the name over nor run what was asked of its owner."""
    person, worker = team
    stranger = PlayedWorker(bearing("worker"))
    taken = stranger.client.put(f"{API}/trainables", json={"items": [{"name": "train"}]})
    assert (taken.status_code, code(taken)) == (409, "trainable_taken")
    rerun(person, suspect(person, project="mine"), CLIP)
    assert stranger.claim() is None
    claimed = worker.claim()
    assert claimed is not None
    assert code(stranger.beat(claimed)) == "trial_not_found"
    assert code(stranger.publish(claimed)) == "trial_not_found"
    assert worker.beat(claimed).status_code == 200


def test_a_worker_of_another_project_is_not_asked(bearing: Any) -> None:
    """A trainable of one project's worker is unknown to the runs of another."""
    PlayedWorker(bearing("worker", project="theirs")).register()
    person = bearing("ingest", "read", "rerun")
    refused = person.post(f"{API}/runs/{suspect(person, project='mine')}/reruns", json={"remedies": [CLIP]})
    assert (refused.status_code, code(refused)) == (409, "trainable_unknown")
    assert person.get(f"{API}/trainables").json() == {"items": []}


def test_reruns_of_another_project_do_not_exist(team: Any, bearing: Any) -> None:
    """Reading, cancelling and reading output of what is another project's answers as if it never was."""
    person, worker = team
    run_id = suspect(person, project="mine")
    made = rerun(person, run_id, CLIP)
    claimed = worker.claim()
    assert claimed is not None
    other = bearing("admin", project="theirs")
    assert code(other.get(f"{API}/reruns/{made['id']}")) == "rerun_not_found"
    assert code(other.post(f"{API}/reruns/{made['id']}/cancel")) == "rerun_not_found"
    assert code(other.get(f"{API}/trials/{claimed['trial_id']}/output")) == "trial_not_found"
    assert code(other.post(f"{API}/runs/{run_id}/reruns", json={})) == "run_not_found"
    assert other.get(f"{API}/reruns").json()["items"] == []
    assert person.get(f"{API}/reruns/{made['id']}").status_code == 200


def test_scopes(team: Any, bearing: Any) -> None:
    """Asking takes `rerun`, working takes `worker`, and neither is the other."""
    person, _ = team
    run_id = suspect(person, project="mine")
    assert code(bearing("ingest", "read", "worker").post(f"{API}/runs/{run_id}/reruns", json={})) == "scope_missing"
    claim = {"worker": "w", "trainables": ["train"]}
    assert code(bearing("rerun", "read").post(f"{API}/trials/claim", json=claim)) == "scope_missing"


def test_a_trial_has_a_key_for_its_run_alone(team: Any, guarded: TestClient, session_app: FastAPI) -> None:
    """The key of an attempt creates and streams its own run, opens nothing else, and is worth nothing afterwards."""
    person, worker = team
    run_id = suspect(person, project="mine")
    rerun(person, run_id, CLIP)
    claimed = worker.claim()
    assert claimed is not None
    headers = {"Authorization": f"Bearer {claimed['api_key']}"}
    trial = TestClient(session_app, raise_server_exceptions=False, headers=headers, base_url=str(guarded.base_url))
    PlayedWorker(trial).stream(claimed, "exploding")
    assert code(trial.post(f"{API}/runs/{run_id}/steps", json={"steps": [99], "loss": [1.0]})) == "run_not_found"
    assert code(trial.post(f"{API}/runs/{run_id}/reruns", json={})) == "scope_missing"
    assert code(trial.post(f"{API}/trials/claim", json={"worker": "w", "trainables": []})) == "scope_missing"
    assert worker.publish(claimed).status_code == 200
    services_of(session_app).keyring.clear()
    assert code(trial.get(f"{API}/runs/{claimed['run_id']}")) == "api_key_revoked"


def test_only_keys_that_may_rerun_rerun_by_themselves(team: Any, bearing: Any) -> None:
    """A run whose key cannot ask for reruns is not rerun automatically either."""
    person, _ = team
    suspect(person, project="mine")
    bearing("admin").patch(f"{API}/projects/mine", json={"rerun_automatically": True})
    suspect(bearing("ingest"), project="mine")
    assert person.get(f"{API}/reruns").json()["items"] == []
    suspect(person, project="mine")
    assert len(person.get(f"{API}/reruns").json()["items"]) == 1


def test_a_name_whose_key_was_revoked_is_free(team: Any, bearing: Any) -> None:
    """An operator who renews a worker's key keeps the name; what was asked of the old key ends, and says why."""
    person, _ = team
    asked = rerun(person, suspect(person, project="mine"), CLIP)
    admin = bearing("admin", project=None)
    keys = admin.get(f"{API}/api-keys").json()["items"]
    of_worker = next(one for one in keys if one["scopes"] == ["worker"])
    renewed = PlayedWorker(bearing("worker"))
    offer = {"items": [{"name": "train"}]}
    assert renewed.client.put(f"{API}/trainables", json=offer).status_code == 409
    assert admin.delete(f"{API}/api-keys/{of_worker['id']}").status_code < 300
    assert renewed.client.put(f"{API}/trainables", json=offer).status_code == 200
    ended = person.get(f"{API}/reruns/{asked['id']}").json()
    assert ended["status"] == "failed"
    assert "the trainable 'train' belongs to another key now" in ended["reason"]
