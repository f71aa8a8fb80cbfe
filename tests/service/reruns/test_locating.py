"""Reruns of the kind `locate` over HTTP, on both databases; the test plays the worker."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.support.played_worker import API, CLIP, PlayedWorker, block, read, suspect

FAILED = 20
"""The step at which the suspect run fails."""
ORIGIN: dict[str, Any] = {
    "operation": "log", "direction": "forward", "module": None, "step": FAILED, "kind": "numeric", "value": "NaN",
    "source": {"file": "train.py", "line": 57, "text": "loss = x.log().mean()"}, "is_loss_finite": False,
    "input": {"special": "negative", "text": "the input was negative in 1 of 8 elements"},
    "batch_tensors": [{"digest": "0123456789abcdef"}],
    "text": "NaN is born at step 20 in `log` (train.py:57).",
}  # fmt: skip


def locate(client: TestClient, run_id: str, **fields: Any) -> Any:
    """Ask for a rerun of the kind `locate`, and return it."""
    response = client.post(f"{API}/runs/{run_id}/reruns", json={"kind": "locate", **fields})
    assert response.status_code == 202, response.text
    return response.json()


def play(
    worker: PlayedWorker, origin: dict[str, Any] | None, *, kind: str = "exploding", first: int = 0, steps: int = 40,
    seed: int | None = None, **fields: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run the trial that is waiting: its losses are those of a seed, and it reports an origin; return its claim."""
    claimed = worker.claim()
    assert claimed is not None
    worker.create_run(claimed)
    steps_of = block(kind, steps, claimed["seed"] if seed is None else seed, first)
    answer = worker.client.post(f"{API}/runs/{claimed['run_id']}/steps", json=steps_of)
    assert answer.status_code == 200, answer.text
    published = worker.publish(claimed, **fields | ({} if origin is None else {"origin": origin}))
    assert published.status_code == 200, published.text
    return claimed


def test_from_the_request_to_the_diagnosis(client: TestClient, worker: PlayedWorker) -> None:
    """Two trials on the run's seed agree, a third has another seed; the origin is on the parent's diagnosis."""
    run_id = suspect(client)
    asked = locate(client, run_id)
    assert (asked["kind"], asked["status"], asked["candidates"][0]["remedies"]) == ("locate", "queued", [])
    assert (asked["budget"]["steps"], asked["plan"]["trials"], asked["plan"]["candidates"]) == (FAILED + 11, 3, 0)
    first = play(worker, ORIGIN)
    assert (first["locate_from"], first["steps"], first["remedies"]) == (FAILED - 1, FAILED + 11, [])
    assert first["parameters"] == {"lr": 0.5, "depth": 3, "window": 50}
    running = read(client, f"/reruns/{asked['id']}")
    assert (running["status"], running["origin"], running["trials"][0]["origin"]["operation"]) == (
        "running",
        None,
        "log",
    )
    second = play(worker, ORIGIN)
    third = play(worker, {**ORIGIN, "batch_tensors": [{"digest": "f" * 16}]})
    assert [(each["candidate"], each["seed"]) for each in (first, second, third)] == [(0, 0), (1, 0), (0, 1)]
    done = read(client, f"/reruns/{asked['id']}")
    assert (done["status"], done["reason"], done["plan"]) == ("done", ORIGIN["text"].removesuffix("."), None)
    assert (done["origin"]["reproduced"], done["origin"]["kind"]) == ("2 of 2", "numeric")
    published = read(client, f"/runs/{run_id}/diagnosis")["origin"]
    assert published == done["origin"]
    assert (published["operation"], published["source"]["line"], published["value"]) == ("log", 57, "NaN")
    assert worker.claim() is None


def test_a_batch_that_fails_with_other_weights_is_the_data(client: TestClient, worker: PlayedWorker) -> None:
    """The same place, step and batch with the losses of another seed: the kind is `data`."""
    asked = locate(client, suspect(client))
    for _ in range(3):
        play(worker, ORIGIN)
    origin = read(client, f"/reruns/{asked['id']}")["origin"]
    assert (origin["kind"], origin["reproduced"]) == ("data", "2 of 2")
    assert origin["text"].endswith("The same batch fails with the weights of another seed too.")


def test_a_script_with_a_seed_of_its_own_shows_nothing_of_the_data(client: TestClient, worker: PlayedWorker) -> None:
    """Where the trial on another seed has the same losses, its weights were no other ones."""
    asked = locate(client, suspect(client))
    for _ in range(3):
        play(worker, ORIGIN, seed=0)
    assert read(client, f"/reruns/{asked['id']}")["origin"]["kind"] == "numeric"


def test_a_number_that_grew_too_large_is_no_matter_of_the_batch(client: TestClient, worker: PlayedWorker) -> None:
    """An overflow is not tried with other weights: a training that explodes does so on every seed."""
    asked = locate(client, suspect(client))
    for _ in range(2):
        play(worker, {**ORIGIN, "input": {"special": "overflow"}})
    assert worker.claim() is None
    assert read(client, f"/reruns/{asked['id']}")["origin"]["reproduced"] == "2 of 2"


@pytest.mark.parametrize(
    ("seed", "kind", "says"),
    [
        (0, "not_deterministic", "A second trial had the same losses and stayed finite"),
        (5, "numeric", "its losses were different"),
    ],
)
def test_a_second_trial_that_stays_finite(
    client: TestClient, worker: PlayedWorker, seed: int, kind: str, says: str
) -> None:
    """With the same losses the failure is not deterministic; with other ones, nothing is shown."""
    asked = locate(client, suspect(client))
    play(worker, {**ORIGIN, "step": 10}, kind="learning")
    play(worker, None, kind="learning", seed=seed)
    origin = read(client, f"/reruns/{asked['id']}")["origin"]
    assert (origin["kind"], origin["reproduced"]) == (kind, "1 of 2")
    assert says in origin["text"]


@pytest.mark.parametrize(("steps", "says"), [(31, "stayed finite in 31 steps"), (12, "ended after 12 steps")])
def test_a_trial_that_never_fails(client: TestClient, worker: PlayedWorker, steps: int, says: str) -> None:
    """The rerun ends `not_reproduced` and publishes nothing, also if the script's loader ends before the failure."""
    run_id = suspect(client)
    asked = locate(client, run_id)
    play(worker, None, kind="learning", steps=steps)
    done = read(client, f"/reruns/{asked['id']}")
    assert (done["status"], done["origin"]) == ("not_reproduced", None)
    assert says in done["reason"]
    assert "the run failed at step 20" in done["reason"]
    assert read(client, f"/runs/{run_id}/diagnosis")["origin"] is None


def test_a_trial_that_fails_earlier_is_followed_by_one_that_checks_earlier(
    client: TestClient, worker: PlayedWorker
) -> None:
    """A trial whose weights were not finite before its checks shows where the next one must begin."""
    run_id = client.post(
        f"{API}/runs",
        json={"project": "tests", "layers": [{"name": "a"}, {"name": "b"}], "statistics": ["grad_norm"],
              "trainable": "train", "config": {"lr": 0.5, "seed": 7}},
    ).json()["id"]  # fmt: skip
    late = block("learning", 60)
    late["loss"][50:] = ["NaN"] * 10
    assert client.post(f"{API}/runs/{run_id}/steps", json=late).status_code == 200
    asked = locate(client, run_id)
    assert asked["seeds"] == [7]
    nothing = {"reason": "the weights were not finite before the first step that was checked", "step": 49}
    assert play(worker, nothing)["locate_from"] == 49
    again = play(worker, ORIGIN)
    assert (again["locate_from"], again["candidate"], again["seed"]) == (FAILED - 1, 1, 7)
    assert play(worker, ORIGIN)["candidate"] == 2
    play(worker, ORIGIN)
    assert read(client, f"/reruns/{asked['id']}")["origin"]["reproduced"] == "2 of 2"


def test_an_origin_that_was_not_found_has_its_reason(client: TestClient, worker: PlayedWorker) -> None:
    """The rerun has the reason; the diagnosis has none, so that it does not hide what the training itself found."""
    run_id = suspect(client)
    asked = locate(client, run_id)
    play(worker, {"reason": "no operation of torch that was checked made it", "step": FAILED})
    done = read(client, f"/reruns/{asked['id']}")
    assert (done["status"], done["origin"]["operation"]) == ("done", None)
    assert "no operation of torch" in done["reason"]
    assert read(client, f"/runs/{run_id}/diagnosis")["origin"] is None


@pytest.mark.parametrize("status", ["failed", "not_applicable"])
def test_a_trial_that_cannot_be_checked(client: TestClient, worker: PlayedWorker, status: str) -> None:
    """The rerun fails with the trial's reason, such as several processes that train together."""
    asked = locate(client, suspect(client))
    reason = "a step of DistributedDataParallel is not repeated"
    play(worker, None, kind="learning", status=status, reason=reason)
    done = read(client, f"/reruns/{asked['id']}")
    assert (done["status"], done["reason"]) == ("failed", f"the trial did not run: {reason}")


def test_a_budget_of_one_trial_is_kept(client: TestClient, worker: PlayedWorker) -> None:
    """One trial finds the origin, reproduced once."""
    asked = locate(client, suspect(client), budget={"trials": 1, "steps": 25})
    assert (asked["plan"]["trials"], asked["budget"]["trials"]) == (1, 1)
    assert play(worker, ORIGIN)["steps"] == 25
    assert read(client, f"/reruns/{asked['id']}")["origin"]["reproduced"] == "1 of 1"


def test_an_exploding_trial_is_not_stopped(client: TestClient, worker: PlayedWorker) -> None:
    """A race stops what explodes; here the explosion is what the trials look for."""
    locate(client, suspect(client))
    play(worker, ORIGIN)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "exploding", FAILED + 5)
    assert worker.beat(claimed).json()["stop"] is False


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        ({"kind": "find"}, "kind", "'find' is not one of repair, locate"),
        ({"remedies": [CLIP]}, "remedies", "must be left out for the kind `locate`"),
        ({"seeds": 2}, "seeds", "must be left out for the kind `locate`"),
        ({"budget": {"rounds": 2}}, "budget.rounds", "must be left out for the kind `locate`"),
        ({"budget": {"steps": 20}}, "budget.steps", "must be at least 21, because the run failed at step 20"),
        ({"budget": {"trials": 0}}, "budget.trials", "must be from 1 to"),
    ],
)
def test_wrong_fields_are_refused(
    client: TestClient, worker: PlayedWorker, fields: dict[str, Any], path: str, says: str
) -> None:
    """The error names the field; the plan is refused as the rerun is."""
    run_id = suspect(client)
    for route in ("reruns", "reruns/plan"):
        response = client.post(f"{API}/runs/{run_id}/{route}", json={"kind": "locate", **fields})
        assert response.status_code == 422
        (error,) = response.json()["errors"]
        assert (error["path"], says in error["message"]) == (path, True)


def test_a_run_that_stayed_finite_has_nothing_to_locate(client: TestClient, worker: PlayedWorker) -> None:
    """The error says what the run lacks."""
    body = {"project": "tests", "layers": [{"name": "a"}, {"name": "b"}], "statistics": ["grad_norm"]}
    run_id = client.post(f"{API}/runs", json=body | {"trainable": "train", "config": {"lr": 0.5}}).json()["id"]
    client.post(f"{API}/runs/{run_id}/steps", json=block("learning"))
    response = client.post(f"{API}/runs/{run_id}/reruns", json={"kind": "locate"})
    assert (response.status_code, response.json()["error_code"]) == (409, "not_rerunnable")
    assert "no loss, gradient or weight that is not finite" in response.json()["detail"]


def test_a_run_without_a_trainable_is_refused(client: TestClient, worker: PlayedWorker) -> None:
    """The error names the argument of `init()`."""
    run_id = client.post(f"{API}/runs", json={"project": "tests", "layers": []}).json()["id"]
    response = client.post(f"{API}/runs/{run_id}/reruns", json={"kind": "locate"})
    assert (response.status_code, "trainable=" in response.json()["detail"]) == (409, True)


def test_an_origin_beyond_the_limits_is_refused(client: TestClient, worker: PlayedWorker) -> None:
    """The error names the field of the result."""
    locate(client, suspect(client))
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "exploding", 30)
    response = worker.publish(claimed, origin={**ORIGIN, "step": -1})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "origin.step")
