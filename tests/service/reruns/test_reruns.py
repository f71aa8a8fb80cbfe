"""Reruns over HTTP, on both databases; the test plays the worker."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.support.played_worker import API, CLIP, SLOW, STEPS, PlayedWorker, block, read, rerun, suspect

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.remedies import REMEDIES
from gradmedic_service.reruns.candidates import GENERAL, LEAST_CANDIDATES


def long_suspect(client: TestClient) -> str:
    """Create a run that explodes, of 700 steps of half a second each, and return its id."""
    body = {"project": "tests", "layers": [{"name": "a"}, {"name": "b"}], "statistics": ["grad_norm"]}
    made = client.post(f"{API}/runs", json=body | {"config": {"lr": 0.5}, "trainable": "train"})
    run_id: str = made.json()["id"]
    steps = block("exploding", 700) | {"time": [1e9 + 0.5 * step for step in range(700)]}
    assert client.post(f"{API}/runs/{run_id}/steps", json=steps).status_code == 200
    return run_id


def test_a_race_from_the_request_to_the_outcome(client: TestClient, worker: PlayedWorker) -> None:
    """After control, race and confirmation, the suspect run's diagnosis has the outcome with losses, seeds and cost."""
    run_id = suspect(client)
    asked = rerun(client, run_id, CLIP, SLOW)
    assert (asked["status"], asked["seeds"], len(asked["trials"])) == ("queued", [0, 1, 2], 1)
    assert asked["parameters"] == {"lr": 0.5, "depth": 3, "window": 50}
    worker.work({0: "exploding", 1: "learning", 2: "exploding"})
    assert worker.ended == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    done = read(client, f"/reruns/{asked['id']}")
    assert (done["status"], done["reason"]) == ("done", "1 of 2 candidates verified")
    first, second = done["candidates"][1:]
    assert first["outcome"] | {"cost_seconds": 0, "loss": 0} == {
        "state": "verified", "rerun_id": asked["id"], "seeds": 3, "healthy": 3, "loss": 0, "control_loss": "NaN",
        "cost_seconds": 0, "environment": {"torch": "2.13.0", "device": "cpu"}, "judged_by": None, "judged_value": None,
        "control_judged_value": None,
    }  # fmt: skip
    assert 0.2 < first["outcome"]["loss"] < 1.0
    assert (second["outcome"]["state"], second["outcome"]["healthy"]) == ("failed", 0)
    assert "exploding on seed 0" in second["reason"]
    tried = read(client, f"/runs/{run_id}/diagnosis")["tried"]
    assert [entry["remedies"] for entry in tried] == [CLIP, SLOW]
    assert tried[0]["outcome"] == first["outcome"]
    assert worker.claim() is None


def test_the_advice_is_raced_and_read_with_its_outcomes(client: TestClient, worker: PlayedWorker) -> None:
    """Without remedies the run's advice is raced. The advice then has its outcomes, the best verified one first."""
    run_id = suspect(client)
    before = read(client, f"/runs/{run_id}/diagnosis")["advice"]
    asked = rerun(client, run_id, seeds=1)
    candidates = [candidate["remedies"] for candidate in asked["candidates"]]
    assert candidates[0] == []
    possible = [id for id, kind in REMEDIES.items() if not kind.needs_script] + ["truncate_backpropagation"]
    ids = [entry["remedy"]["id"] for entry in before if entry["remedy"]["id"] in possible]
    singles = [remedies[0]["id"] for remedies in candidates[1:] if len(remedies) == 1]
    assert singles[: len(ids)] == ids
    assert len(candidates) - 1 >= LEAST_CANDIDATES, "general remedies complete the advice"
    single = [index for index, remedies in enumerate(candidates) if len(remedies) == 1]
    ends = {single[0]: "learning", single[2]: "learning fast"}
    worker.work({index: ends.get(index, "exploding") for index in range(len(candidates))})
    after = read(client, f"/runs/{run_id}/diagnosis")["advice"]
    assert [entry["rank"] for entry in after] == list(range(1, len(before) + 1))
    assert (after[0]["remedy"], after[0]["outcome"]["state"]) == (candidates[single[2]][0], "verified")
    assert (after[1]["remedy"], after[1]["outcome"]["state"]) == (candidates[single[0]][0], "verified")
    assert (after[0]["outcome"]["seeds"], after[0]["outcome"]["healthy"]) == (1, 1)


def test_a_round_without_proof_is_followed_by_another(client: TestClient, worker: PlayedWorker) -> None:
    """Where all candidates explode, the next round builds on their trials; the combination it proves is advice."""
    run_id = suspect(client)
    asked = rerun(client, run_id, CLIP, SLOW, seeds=1, budget={"steps": STEPS, "rounds": 2})
    assert asked["plan"] | {"step_seconds": 0, "seconds_left": 0} == {
        "candidates": 2, "trials": 3, "steps": STEPS, "step_seconds": 0, "seconds_left": 0, "budget": asked["budget"],
    }  # fmt: skip
    worker.work({0: "exploding", 1: "exploding", 2: "exploding"}, limit=3)
    opened = read(client, f"/reruns/{asked['id']}")
    assert (opened["status"], opened["plan"]["trials"]) == ("running", 3 + opened["plan"]["candidates"] - 2)
    added = [candidate for candidate in opened["candidates"] if candidate["round"] == 2]
    assert [{"id": "scale_learning_rate", "parameters": {"factor": 0.03}}] in [entry["remedies"] for entry in added]
    together = next(index for index, candidate in enumerate(opened["candidates"]) if len(candidate["remedies"]) == 2)
    worker.work(defaultdict(lambda: "exploding", {together: "learning"}))
    done = read(client, f"/reruns/{asked['id']}")
    assert done["reason"] == f"1 of {2 + len(added)} candidates verified in 2 rounds"
    assert (done["plan"], done["candidates"][together]["outcome"]["state"]) == (None, "verified")
    diagnosis = read(client, f"/runs/{run_id}/diagnosis")
    first, *others = diagnosis["advice"]
    remedies = done["candidates"][together]["remedies"]
    assert ([first["remedy"], *first["with_remedies"]], first["rank"]) == (remedies, 1)
    assert (first["outcome"]["state"], first["snippet"].count("\n") >= 1) == ("verified", True)
    assert all(entry["reason"] and entry["cost"] and entry["rank"] > 1 for entry in others)
    states = [entry["outcome"] and entry["outcome"]["state"] for entry in diagnosis["advice"]]
    assert states == sorted(states, key=["verified", "healthy", None, "failed", "not_applicable"].index)


def test_survivors_of_short_trials_run_again_for_as_long_as_the_job(client: TestClient, worker: PlayedWorker) -> None:
    """Where a short trial shows too little, candidate and control run again with the steps of the suspect run."""
    run_id = long_suspect(client)
    asked = rerun(client, run_id, CLIP, seeds=1, budget={"rounds": 2, "seconds": 400})
    assert (asked["budget"]["steps"], asked["budget"]["rounds"]) == (200, 2)
    for kind, steps in (("exploding", 200), ("flat", 200), ("exploding", 700), ("learning", 700)):
        claimed = worker.claim()
        assert claimed is not None
        assert claimed["steps"] == steps
        worker.stream(claimed, kind, 700)
        assert read(client, f"/runs/{claimed['run_id']}")["last_step"] == steps - 1
        assert worker.publish(claimed, seconds=0.5).status_code == 200
    done = read(client, f"/reruns/{asked['id']}")
    assert [(c["round"], c["steps"], len(c["remedies"])) for c in done["candidates"]] == [
        (1, 200, 0), (1, 200, 1), (2, 700, 0), (2, 700, 1),
    ]  # fmt: skip
    assert [(c["outcome"] or {}).get("state") for c in done["candidates"]] == [None, "healthy", None, "verified"]
    advice = read(client, f"/runs/{run_id}/diagnosis")["advice"][0]
    assert (advice["remedy"], advice["outcome"]["state"]) == (CLIP[0], "verified")


def test_the_cost_is_shown_before_anything_is_stored(client: TestClient, worker: PlayedWorker) -> None:
    """The plan has the trials, steps and seconds of the rerun that the same body creates, and makes none."""
    run_id = suspect(client)
    body = {"remedies": [CLIP, SLOW], "budget": {"steps": 60}}
    plan = client.post(f"{API}/runs/{run_id}/reruns/plan", json=body)
    assert plan.status_code == 200
    assert read(client, "/reruns")["items"] == []
    assert (plan.json()["trials"], plan.json()["steps"], plan.json()["budget"]["rounds"]) == (9, 60, 1)
    assert client.post(f"{API}/runs/{run_id}/reruns", json=body).json()["plan"] == plan.json()
    assert client.post(f"{API}/runs/{run_id}/reruns/plan", json={}).json()["budget"]["rounds"] == 3
    refused = client.post(f"{API}/runs/{run_id}/reruns/plan", json={"budget": {"rounds": 6}})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "budget.rounds")


def test_the_default_steps_are_those_of_the_job_if_the_time_allows(client: TestClient, worker: PlayedWorker) -> None:
    """A trial has as many steps as the suspect run, or as many as half of the seconds allow by its own step time."""
    run_id = long_suspect(client)

    def plan(seconds: float) -> Any:
        body = {"remedies": [CLIP], "budget": {"seconds": seconds}}
        return client.post(f"{API}/runs/{run_id}/reruns/plan", json=body).json()

    seconds = 6 * 700 * 0.5  # control and candidate on three seeds
    assert plan(2.1 * seconds)["steps"] == 700
    assert plan(2.1 * seconds)["seconds_left"] == pytest.approx(seconds)
    assert plan(seconds)["steps"] == 350
    assert plan(seconds / 10)["steps"] == 200


def test_a_failure_that_does_not_show_again(client: TestClient, worker: PlayedWorker) -> None:
    """A control that stays healthy ends the rerun, and nothing is published."""
    run_id = suspect(client)
    asked = rerun(client, run_id, CLIP)
    worker.work({0: "learning"})
    done = read(client, f"/reruns/{asked['id']}")
    assert (done["status"], len(done["trials"])) == ("not_reproduced", 1)
    assert done["candidates"][1]["outcome"] is None
    assert read(client, f"/runs/{run_id}/diagnosis")["tried"] == []


def test_a_run_that_learns_nothing_is_rerun(client: TestClient, worker: PlayedWorker) -> None:
    """Where the loss is stuck and no advice is known, general remedies race against a control that is stuck too."""
    steps = 300
    body = {"project": "tests", "layers": [{"name": "a"}, {"name": "b"}], "statistics": ["grad_norm"]}
    run_id = client.post(f"{API}/runs", json=body | {"trainable": "train", "config": {"lr": 0.5}}).json()["id"]
    answer = client.post(f"{API}/runs/{run_id}/steps", json=block("stuck", steps)).json()
    assert answer["verdict"] == "healthy"
    diagnosis = read(client, f"/runs/{run_id}/diagnosis")
    assert (diagnosis["learning"], diagnosis["level"], diagnosis["advice"]) == ("stuck", "attention", [])
    asked = rerun(client, run_id, seeds=1, budget={"steps": steps, "rounds": 1})
    candidates = [candidate["remedies"][0]["id"] for candidate in asked["candidates"][1:]]
    assert candidates == [remedy.id for remedy in GENERAL]
    while (claimed := worker.claim()) is not None:
        kind = "learning" if claimed["candidate"] == 2 else "stuck"
        worker.stream(claimed, kind, steps)
        assert worker.publish(claimed).status_code == 200
    done = read(client, f"/reruns/{asked['id']}")
    assert (done["status"], done["reason"]) == ("done", f"1 of {len(GENERAL)} candidates verified")
    assert done["candidates"][2]["outcome"]["state"] == "verified"
    assert read(client, f"/runs/{run_id}/diagnosis")["advice"][0]["remedy"]["id"] == GENERAL[1].id


def test_each_attempt_is_a_run_of_its_own(client: TestClient, worker: PlayedWorker) -> None:
    """A trial's run is a child of the suspect run, has the name of its remedies, and is not in the list of runs."""
    run_id = suspect(client)
    rerun(client, run_id, CLIP)
    worker.work({0: "exploding", 1: "learning"}, limit=2)
    assert [run["id"] for run in read(client, "/runs")["items"]] == [run_id]
    children = read(client, f"/runs?parent_id={run_id}&sort=created_at")["items"]
    assert [(run["name"], run["status"], run["parent_id"]) for run in children] == [
        ("control, seed 0", "finished", run_id),
        ("clip_grad_norm(1.0), seed 0", "finished", run_id),
    ]
    assert client.delete(f"{API}/runs/{run_id}").status_code == 204
    assert read(client, "/reruns")["items"] == []
    assert client.get(f"{API}/runs/{children[0]['id']}").status_code == 404


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        ({"budget": {"steps": 0}}, "budget.steps", "from 1 to"),
        ({"budget": {"seconds": 0}}, "budget.seconds", "from 1 to"),
        ({"budget": {"seconds": 1e9}}, "budget.seconds", "from 1 to 86400"),
        ({"budget": {"trials": 0}}, "budget.trials", "from 1 to"),
        ({"budget": {"rounds": 0}}, "budget.rounds", "from 1 to 5"),
        ({"seeds": 0}, "seeds", "from 1 to 10"),
        ({"seeds": 11}, "seeds", "from 1 to 10"),
        ({"executor": "kubernetes"}, "executor", "is not one of local"),
        ({"remedies": []}, "remedies", "leave it out to race the run's advice"),
        ({"remedies": [[]]}, "remedies[0]", "the control is always run"),
        ({"remedies": [CLIP, CLIP]}, "remedies[1]", "repeats another"),
        ({"remedies": [[*CLIP, *CLIP]]}, "remedies[0][1].id", "applied once"),
        ({"remedies": [[{"id": "pray", "parameters": {}}]]}, "remedies[0][0].id", "is not one of clip_grad_norm"),
        ({"remedies": [[{"id": "warm_up", "parameters": {}}]]}, "remedies[0][0].parameters.steps", "is required"),
        (
            {"remedies": [[{"id": "clip_grad_norm", "parameters": {"max_norm": -1}}]]},
            "remedies[0][0].parameters.max_norm",
            "must be from",
        ),
        (
            {"remedies": [[{"id": "add_residual", "parameters": {"x": 1}}]]},
            "remedies[0][0].parameters.x",
            "no such parameter",
        ),
        ({"remedies": [[{"id": "use_bfloat16", "parameters": {}}]]}, "remedies[0][0].id", "only the script"),
        (
            {"remedies": [[{"id": "truncate_backpropagation", "parameters": {"time_steps": 1000}}]]},
            "remedies[0][0].parameters.time_steps",
            "from 1 to 99",
        ),
        (
            {"remedies": [[{"id": "set_parameter", "parameters": {"lr": 11.0}}]]},
            "remedies[0][0].parameters.lr",
            "from 0.001 to 10",
        ),
        (
            {"remedies": [[{"id": "set_parameter", "parameters": {"depth": "rm -rf"}}]]},
            "remedies[0][0].parameters.depth",
            "of type int",
        ),
        (
            {"remedies": [[{"id": "set_parameter", "parameters": {"command": 1}}]]},
            "remedies[0][0].parameters.command",
            "no such parameter",
        ),
        ({"command": ["rm"]}, "command", "no such field"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_requests_name_the_field(sqlite_client: TestClient, body: dict[str, Any], path: str, message: str) -> None:
    """A field that is not allowed is refused with its path and its limit, and nothing is stored."""
    PlayedWorker(sqlite_client).register()
    run_id = suspect(sqlite_client)
    refused = sqlite_client.post(f"{API}/runs/{run_id}/reruns", json=body)
    assert refused.status_code == 422, refused.text
    (error,) = refused.json()["errors"]
    assert (error["path"], message in error["message"]) == (path, True), error
    assert read(sqlite_client, "/reruns")["items"] == []


def test_a_run_that_cannot_be_rerun_is_refused_with_the_reason(sqlite_client: TestClient) -> None:
    """The reason: no trainable, not offered, a config that does not fit, no advice to try, the run of a trial."""
    client = sqlite_client

    def refusal(run_id: str, **body: Any) -> tuple[int, str, str]:
        response = client.post(f"{API}/runs/{run_id}/reruns", json=body)
        return response.status_code, response.json()["error_code"], response.json()["detail"]

    assert refusal(suspect(client, trainable=None))[:2] == (409, "not_rerunnable")
    assert refusal(suspect(client))[:2] == (409, "trainable_unknown")
    worker = PlayedWorker(client)
    worker.register()
    status, code, detail = refusal(suspect(client, config={"depth": 3}))
    assert (status, code) == (409, "not_rerunnable")
    assert "lr has no value" in detail
    assert "lr must be from 0.001 to 10" in refusal(suspect(client, config={"lr": 100.0}))[2]
    healthy = client.post(f"{API}/runs", json={"project": "p", "layers": [], "trainable": "train", "config": {"lr": 1}})
    assert "name remedies" in refusal(healthy.json()["id"])[2]
    assert refusal(str(new_id()))[:2] == (404, "run_not_found")
    rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    worker.create_run(claimed)
    assert "attempt at a trial" in refusal(claimed["run_id"])[2]


def test_the_same_request_makes_one_rerun(client: TestClient, worker: PlayedWorker) -> None:
    """A client that sends the same id again gets the rerun that it has created."""
    run_id, id = suspect(client), str(new_id())
    body = {"remedies": [CLIP], "id": id}
    answers = [client.post(f"{API}/runs/{run_id}/reruns", json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 200]
    assert answers[0].json() == answers[1].json()
    assert len(read(client, "/reruns")["items"]) == 1
    other = client.post(f"{API}/runs/{suspect(client)}/reruns", json=body)
    assert (other.status_code, other.json()["error_code"]) == (409, "rerun_exists")


def test_cancelling_ends_everything(client: TestClient, worker: PlayedWorker) -> None:
    """A cancelled rerun starts no trial, and the next answers stop the worker and the script of a running one."""
    asked = rerun(client, suspect(client), CLIP, SLOW)
    worker.work({0: "exploding"}, limit=1)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "learning", steps=5)
    cancelled = client.post(f"{API}/reruns/{asked['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert {trial["status"] for trial in cancelled.json()["trials"]} == {"done", "cancelled"}
    assert client.post(f"{API}/reruns/{asked['id']}/cancel").json() == cancelled.json()
    beat = worker.beat(claimed)
    assert (beat.status_code, beat.json()["error_code"]) == (409, "stale_attempt")
    assert "cancelled" in beat.json()["detail"]
    assert worker.publish(claimed).status_code == 409
    steps = {"steps": [5], "loss": [1.0]}
    assert client.post(f"{API}/runs/{claimed['run_id']}/steps", json=steps).json()["stop"] is True
    assert worker.claim() is None


def test_a_project_may_rerun_automatically(client: TestClient, worker: PlayedWorker) -> None:
    """A run that turns unhealthy is rerun once without a request, if its project wants that."""
    suspect(client)
    assert read(client, "/reruns")["items"] == []
    client.patch(f"{API}/projects/tests", json={"rerun_automatically": True})
    run_id = suspect(client)
    (made,) = read(client, "/reruns")["items"]
    assert (made["run_id"], made["is_automatic"], made["status"]) == (run_id, True, "queued")
    suspect(client, trainable=None)
    suspect(client, config={})
    worker.work({0: "exploding"}, limit=1)
    assert len(read(client, "/reruns")["items"]) == 1


def test_lists_page_and_filter(client: TestClient, worker: PlayedWorker) -> None:
    """Reruns are listed newest first, page by page, by run, project and status."""
    run_ids = [suspect(client, project=f"p{index}") for index in range(3)]
    made = [rerun(client, run_id, CLIP)["id"] for run_id in run_ids]
    client.post(f"{API}/reruns/{made[0]}/cancel")
    found: list[str] = []
    token = None
    while True:
        page = client.get(f"{API}/reruns", params={"max_results": 2} | ({"page_token": token} if token else {})).json()
        found += [item["id"] for item in page["items"]]
        token = page["next_page_token"]
        if token is None:
            break
    assert found == made[::-1]
    for query, expected in (
        (f"run_id={run_ids[1]}", [made[1]]),
        ("project=p2", [made[2]]),
        ("status=cancelled", [made[0]]),
        ("status=queued&project=p0", []),
    ):
        assert [item["id"] for item in read(client, f"/reruns?{query}")["items"]] == expected
    assert client.get(f"{API}/reruns?status=odd").json()["errors"][0]["path"] == "status"
    assert client.get(f"{API}/reruns?page_token=W10").json()["errors"][0]["path"] == "page_token"
    assert client.get(f"{API}/reruns/{new_id()}").json()["error_code"] == "rerun_not_found"
