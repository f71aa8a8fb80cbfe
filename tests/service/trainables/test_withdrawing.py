"""Trainables that no worker offers any more: their reruns end with a reason, or show what they wait for."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient
from tests.service.reruns.conftest import (
    API,
    CLIP,
    SLOW,
    TRAINABLE,
    PlayedWorker,
    expire_leases,
    forget_offers,
    read,
    rerun,
    suspect,
)

from gradmedic_service.database.engine import Database
from gradmedic_service.due_work import do_due_work

WORKER_PATIENCE = 3600.0


def offer(client: TestClient, worker: str, *names: str) -> None:
    """Offer trainables as a worker of a name."""
    body = {"items": [TRAINABLE | {"name": name} for name in names], "worker": worker}
    response = client.put(f"{API}/trainables", json=body)
    assert response.status_code == 200, response.text


def offer_later(client: TestClient, database: Database, worker: str, *names: str) -> None:
    """Offer trainables as a worker of a name, a minute after all other offers."""
    forget_offers(database)
    offer(client, worker, *names)


def read_later(client: TestClient, database: Database, asked: dict[str, Any]) -> Any:
    """Do the due work, and return a rerun as it stands then."""
    do_due_work(database, WORKER_PATIENCE)
    return read(client, f"/reruns/{asked['id']}")


def test_a_trainable_that_its_worker_has_no_more(client: TestClient, database: Database) -> None:
    """The waiting rerun ends with the reason; the trainable cannot be rerun until it is offered again."""
    offer(client, "gpu-7", "train", "other")
    asked = rerun(client, suspect(client), CLIP)
    offer_later(client, database, "gpu-7", "other")
    ended = read_later(client, database, asked)
    reason = "the worker 'gpu-7' does not offer the trainable 'train' any more"
    assert (ended["status"], ended["reason"]) == ("failed", f"the control did not run: {reason}")
    assert [(trial["status"], trial["reason"]) for trial in ended["trials"]] == [("cancelled", reason)]
    assert [item["name"] for item in read(client, "/trainables")["items"]] == ["other"]
    refused = client.post(f"{API}/runs/{suspect(client)}/reruns", json={"remedies": [CLIP]})
    assert refused.json()["error_code"] == "trainable_unknown"
    offer(client, "gpu-7", "train")
    assert rerun(client, suspect(client), CLIP)["status"] == "queued"
    assert read_later(client, database, asked) == ended


def test_reading_and_claiming_end_no_rerun(client: TestClient, database: Database) -> None:
    """Only the due work ends the rerun of a withdrawn trainable; a claim until then starts nothing of it."""
    offer(client, "gpu-7", "train")
    asked = rerun(client, suspect(client), CLIP)
    offer_later(client, database, "gpu-7")
    assert PlayedWorker(client).claim() is None
    assert read(client, f"/reruns/{asked['id']}")["status"] == "queued"
    assert [item["status"] for item in read(client, "/reruns")["items"]] == ["queued"]
    assert do_due_work(database, WORKER_PATIENCE) == 1
    assert [item["status"] for item in read(client, "/reruns")["items"]] == ["failed"]


def test_the_trial_that_runs_may_end(client: TestClient, database: Database) -> None:
    """A running trial is published; no other trial is started, and what has ended is summed up."""
    offer(client, "gpu-7", "train")
    worker = PlayedWorker(client)
    asked = rerun(client, suspect(client), CLIP, SLOW, seeds=1)
    worker.work({0: "exploding"}, limit=1)
    claimed = worker.claim()
    assert claimed is not None
    offer_later(client, database, "gpu-7")
    assert read_later(client, database, asked)["status"] == "running"
    worker.stream(claimed, "learning")
    ended = worker.publish(claimed).json()
    assert ended["status"] == "done"
    assert ended["reason"].startswith("1 of 1 candidates verified; not everything was tried: the worker 'gpu-7'")
    assert [trial["status"] for trial in ended["trials"]] == ["done", "done", "cancelled"]
    assert ended["candidates"][2]["outcome"] is None


def test_what_another_offers_is_not_withdrawn(client: TestClient, database: Database) -> None:
    """Only the worker of the last offer withdraws; a worker without a name withdraws nothing."""
    offer(client, "gpu-7", "train")
    offer(client, "gpu-8", "train")
    asked = rerun(client, suspect(client), CLIP)
    offer_later(client, database, "gpu-7")
    assert client.put(f"{API}/trainables", json={"items": []}).status_code == 200
    assert read_later(client, database, asked)["status"] == "queued"
    assert PlayedWorker(client).claim() is not None


def test_a_worker_of_the_same_name_has_a_minute(client: TestClient, database: Database) -> None:
    """A fresh offer is not withdrawn: two workers of one name may offer different trainables."""
    offer(client, "here", "train")
    asked = rerun(client, suspect(client), CLIP)
    offer(client, "here", "other")
    found = read_later(client, database, asked)
    assert (found["status"], found["reason"]) == ("queued", None)
    assert {item["name"] for item in read(client, "/trainables")["items"]} == {"train", "other"}


def test_a_rerun_shows_that_it_waits_for_a_worker(client: TestClient, worker: PlayedWorker, database: Database) -> None:
    """While no worker offers its trainable, a rerun shows that, and since when; not while a trial runs."""
    asked = rerun(client, suspect(client), CLIP)
    assert asked["reason"] is None
    forget_offers(database)
    reason = read_later(client, database, asked)["reason"]
    assert reason.startswith("waits for a worker: none has offered the trainable 'train' since 20")
    assert worker.claim() is not None
    assert read_later(client, database, asked)["reason"] is None


def test_patience_has_an_end(client: TestClient, worker: PlayedWorker, database: Database) -> None:
    """Where no worker comes back, the rerun ends, and its lost trial is cancelled."""
    asked = rerun(client, suspect(client), CLIP)
    assert worker.claim() is not None
    forget_offers(database)
    assert do_due_work(database, worker_patience=30.0) == 0
    expire_leases(database)
    assert do_due_work(database, worker_patience=30.0) == 2
    ended = read(client, f"/reruns/{asked['id']}")
    assert ended["status"] == "failed"
    assert "no worker has offered the trainable 'train' for 30 seconds" in ended["reason"]
    assert [trial["status"] for trial in ended["trials"]] == ["cancelled"]
    assert [attempt["status"] for attempt in ended["trials"][0]["attempts"]] == ["lost"]
    assert read(client, f"/runs/{asked['run_id']}/diagnosis")["tried"] == []
