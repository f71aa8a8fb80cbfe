"""Trainables that are no longer offered: their reruns end with a reason, or say what they wait for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.service.conftest import ReplaceServices
from tests.service.reruns.conftest import API, CLIP, SLOW, TRAINABLE, PlayedWorker, rerun, suspect

from gradmedic_service.reruns import service

Wait = Callable[[Callable[[], bool]], None]


def offer(client: TestClient, worker: str, *names: str) -> None:
    """Offer trainables as a worker of a name."""
    body = {"items": [TRAINABLE | {"name": name} for name in names], "worker": worker}
    response = client.put(f"{API}/trainables", json=body)
    assert response.status_code == 200, response.text


def get(client: TestClient, made: dict[str, Any]) -> Any:
    """Return a rerun as it stands."""
    response = client.get(f"{API}/reruns/{made['id']}")
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def no_lapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an offer be old at once."""
    monkeypatch.setattr(service, "OFFER_LAPSE", timedelta(0))


def test_a_trainable_that_its_worker_has_no_more(client: TestClient, no_lapse: None) -> None:
    """The rerun that waits for it ends at once, named; nothing can be asked of it until it is offered again."""
    offer(client, "gpu-7", "train", "other")
    asked = rerun(client, suspect(client), CLIP)
    offer(client, "gpu-7", "other")
    ended = get(client, asked)
    reason = "the worker 'gpu-7' does not offer the trainable 'train' any more"
    assert (ended["status"], ended["reason"]) == ("failed", f"the control did not run: {reason}")
    assert [(one["status"], one["reason"]) for one in ended["trials"]] == [("cancelled", reason)]
    assert [one["name"] for one in client.get(f"{API}/trainables").json()["items"]] == ["other"]
    refused = client.post(f"{API}/runs/{suspect(client)}/reruns", json={"remedies": [CLIP]})
    assert refused.json()["error_code"] == "trainable_unknown"
    offer(client, "gpu-7", "train")
    assert rerun(client, suspect(client), CLIP)["status"] == "queued"
    assert get(client, asked) == ended


def test_a_claim_of_another_worker_shows_it_too(client: TestClient, no_lapse: None) -> None:
    """Whoever asks for work next ends the reruns of what was withdrawn."""
    offer(client, "gpu-7", "train")
    rerun(client, suspect(client), CLIP)
    offer(client, "gpu-7")
    assert PlayedWorker(client).claim() is None
    assert [one["status"] for one in client.get(f"{API}/reruns").json()["items"]] == ["failed"]


def test_the_trial_that_runs_may_end(client: TestClient, no_lapse: None) -> None:
    """What is under way is published; nothing else is started, and what has ended is summed up."""
    offer(client, "gpu-7", "train")
    worker = PlayedWorker(client)
    asked = rerun(client, suspect(client), CLIP, SLOW, seeds=1)
    worker.work({0: "exploding"}, limit=1)
    claimed = worker.claim()
    assert claimed is not None
    offer(client, "gpu-7")
    assert get(client, asked)["status"] == "running"
    worker.stream(claimed, "learning")
    ended = worker.publish(claimed).json()
    assert ended["status"] == "done"
    assert ended["reason"].startswith("1 of 1 candidates verified; not everything was tried: the worker 'gpu-7'")
    assert [one["status"] for one in ended["trials"]] == ["done", "done", "cancelled"]
    assert ended["candidates"][2]["outcome"] is None


def test_what_another_offers_is_not_withdrawn(client: TestClient, no_lapse: None) -> None:
    """It counts who offered it last; a worker without a name withdraws nothing."""
    offer(client, "gpu-7", "train")
    offer(client, "gpu-8", "train")
    asked = rerun(client, suspect(client), CLIP)
    offer(client, "gpu-7")
    assert client.put(f"{API}/trainables", json={"items": []}).status_code == 200
    assert get(client, asked)["status"] == "queued"
    assert PlayedWorker(client).claim() is not None


def test_a_worker_of_the_same_name_has_a_minute(client: TestClient) -> None:
    """What was offered a moment ago is not withdrawn: two workers of one name may offer different things."""
    offer(client, "here", "train")
    asked = rerun(client, suspect(client), CLIP)
    offer(client, "here", "other")
    assert (get(client, asked)["status"], get(client, asked)["reason"]) == ("queued", None)
    assert {one["name"] for one in client.get(f"{API}/trainables").json()["items"]} == {"train", "other"}


def test_a_rerun_says_that_it_waits_for_a_worker(
    client: TestClient, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody offers its trainable it says so, and since when; once a trial runs, no more."""
    asked = rerun(client, suspect(client), CLIP)
    assert asked["reason"] is None
    monkeypatch.setattr(service, "OFFER_LAPSE", timedelta(0))
    reason = get(client, asked)["reason"]
    assert reason.startswith("waits for a worker: none has offered the trainable 'train' since 20")
    assert worker.claim() is not None
    assert get(client, asked)["reason"] is None


@pytest.fixture
def lose_patience(client: TestClient, replace_services: ReplaceServices) -> Callable[[], object]:
    """Wait for a worker a tenth of a second, from the call on."""
    return lambda: replace_services(worker_patience=0.1)


def test_patience_has_an_end(
    client: TestClient, worker: PlayedWorker, short_lease: None, lose_patience: Callable[[], object], wait_until: Wait
) -> None:
    """Where no worker comes back, whoever looks finds the rerun ended, its lost trial included."""
    asked = rerun(client, suspect(client), CLIP)
    assert worker.claim() is not None
    lose_patience()
    wait_until(lambda: get(client, asked)["status"] == "failed")
    ended = get(client, asked)
    assert "no worker has offered the trainable 'train' for 0.1 seconds" in ended["reason"]
    assert [one["status"] for one in ended["trials"]] == ["cancelled"]
    assert [one["status"] for one in ended["trials"][0]["attempts"]] == ["lost"]
    assert client.get(f"{API}/runs/{asked['run_id']}/diagnosis").json()["tried"] == []


def test_an_offer_is_checked(sqlite_client: TestClient) -> None:
    """A worker's name is a name."""
    response = sqlite_client.put(f"{API}/trainables", json={"items": [], "worker": ""})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "worker")
