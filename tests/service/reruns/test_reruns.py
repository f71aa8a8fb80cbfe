"""Reruns over HTTP, on both databases; the test plays the worker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.service.conftest import ReplaceServices
from tests.service.reruns.conftest import API, CLIP, LATE, SLOW, STEPS, PlayedWorker, rerun, suspect

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.remedies import REMEDIES


def get(client: TestClient, path: str) -> Any:
    """Return an answer's body."""
    response = client.get(f"{API}{path}")
    assert response.status_code == 200, response.text
    return response.json()


def test_a_race_from_the_question_to_the_proof(client: TestClient, worker: PlayedWorker) -> None:
    """Control, race, confirmation: the outcome stands on the suspect run's diagnosis, with losses, seeds and cost."""
    run_id = suspect(client)
    asked = rerun(client, run_id, CLIP, SLOW)
    assert (asked["status"], asked["seeds"], len(asked["trials"])) == ("queued", [0, 1, 2], 1)
    assert asked["parameters"] == {"lr": 0.5, "depth": 3, "window": 50}
    worker.work({0: "exploding", 1: "learning", 2: "exploding"})
    assert worker.ended == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    done = get(client, f"/reruns/{asked['id']}")
    assert (done["status"], done["reason"]) == ("done", "1 of 2 candidates verified")
    first, second = done["candidates"][1:]
    assert first["outcome"] | {"cost_seconds": 0, "loss": 0} == {
        "state": "verified", "rerun_id": asked["id"], "seeds": 3, "healthy": 3, "loss": 0, "control_loss": "NaN",
        "cost_seconds": 0, "environment": {"torch": "2.13.0", "device": "cpu"},
    }  # fmt: skip
    assert 0.2 < first["outcome"]["loss"] < 1.0
    assert (second["outcome"]["state"], second["outcome"]["healthy"]) == ("failed", 0)
    assert "exploding on seed 0" in second["reason"]
    tried = get(client, f"/runs/{run_id}/diagnosis")["tried"]
    assert [one["remedies"] for one in tried] == [CLIP, SLOW]
    assert tried[0]["outcome"] == first["outcome"]
    assert worker.claim() is None


def test_the_advice_is_raced_and_read_with_its_proof(client: TestClient, worker: PlayedWorker) -> None:
    """Without remedies the run's own advice is raced; each outcome stands beside its advice, the best proven first."""
    run_id = suspect(client)
    before = get(client, f"/runs/{run_id}/diagnosis")["advice"]
    asked = rerun(client, run_id, seeds=1)
    remedies = [one["remedies"] for one in asked["candidates"]]
    assert remedies[0] == []
    possible = [id for id, kind in REMEDIES.items() if kind.tier <= 2] + ["truncate_backpropagation"]
    ids = [one["remedy"]["id"] for one in before if one["remedy"]["id"] in possible]
    assert [one[0]["id"] for one in remedies[1:] if len(one) == 1] == ids
    alone = [index for index, one in enumerate(remedies) if len(one) == 1]
    ends = {alone[0]: "learning", alone[2]: "learning fast"}
    worker.work({index: ends.get(index, "exploding") for index in range(len(remedies))})
    after = get(client, f"/runs/{run_id}/diagnosis")["advice"]
    assert [one["rank"] for one in after] == list(range(1, len(before) + 1))
    assert (after[0]["remedy"], after[0]["outcome"]["state"]) == (remedies[alone[2]][0], "verified")
    assert (after[1]["remedy"], after[1]["outcome"]["state"]) == (remedies[alone[0]][0], "verified")
    assert (after[0]["outcome"]["seeds"], after[0]["outcome"]["healthy"]) == (1, 1)


def test_a_failure_that_does_not_show_again(client: TestClient, worker: PlayedWorker) -> None:
    """A control that stays healthy ends the rerun, and nothing is published."""
    run_id = suspect(client)
    asked = rerun(client, run_id, CLIP)
    worker.work({0: "learning"})
    done = get(client, f"/reruns/{asked['id']}")
    assert (done["status"], len(done["trials"])) == ("not_reproduced", 1)
    assert done["candidates"][1]["outcome"] is None
    assert get(client, f"/runs/{run_id}/diagnosis")["tried"] == []


def test_each_attempt_is_a_run_of_its_own(client: TestClient, worker: PlayedWorker) -> None:
    """A trial's run is the suspect run's child, named for its remedies, and not among the other runs."""
    run_id = suspect(client)
    rerun(client, run_id, CLIP)
    worker.work({0: "exploding", 1: "learning"}, limit=2)
    assert [one["id"] for one in get(client, "/runs")["items"]] == [run_id]
    children = get(client, f"/runs?parent_id={run_id}&sort=created_at")["items"]
    assert [(one["name"], one["status"], one["parent_id"]) for one in children] == [
        ("control, seed 0", "finished", run_id),
        ("clip_grad_norm(1.0), seed 0", "finished", run_id),
    ]
    assert client.delete(f"{API}/runs/{run_id}").status_code == 204
    assert get(client, "/reruns")["items"] == []
    assert client.get(f"{API}/runs/{children[0]['id']}").status_code == 404


def test_parameters_reach_the_command_and_the_optimizer_gets_the_rest(client: TestClient, worker: PlayedWorker) -> None:
    """What the script can do by a parameter is done by it; parameters can be set by name; the rest is for the SDK."""
    truncate = [{"id": "truncate_backpropagation", "parameters": {"time_steps": 7}}, *CLIP]
    by_name = [{"id": "set_parameter", "parameters": {"depth": 1, "lr": 0.01}}]
    rerun(client, suspect(client), truncate, by_name)
    worker.work({0: "exploding"}, limit=1)
    first, second = worker.claim(), worker.claim()
    assert first is not None
    assert second is not None
    assert (first["parameters"], first["remedies"]) == ({"lr": 0.5, "depth": 3, "window": 7}, CLIP)
    assert (second["parameters"], second["remedies"]) == ({"lr": 0.01, "depth": 1, "window": 50}, [])


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        ({"budget": {"steps": 0}}, "budget.steps", "from 1 to"),
        ({"budget": {"seconds": 0}}, "budget.seconds", "from 1 to"),
        ({"budget": {"seconds": 1e9}}, "budget.seconds", "from 1 to 86400"),
        ({"budget": {"trials": 0}}, "budget.trials", "from 1 to"),
        ({"seeds": 0}, "seeds", "from 1 to 10"),
        ({"seeds": 11}, "seeds", "from 1 to 10"),
        ({"executor": "kubernetes"}, "executor", "is not one of local"),
        ({"remedies": []}, "remedies", "names none"),
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
def test_bad_questions_name_the_field(sqlite_client: TestClient, body: dict[str, Any], path: str, message: str) -> None:
    """Whatever cannot be asked for is refused with its path and its limit, and nothing is stored."""
    PlayedWorker(sqlite_client).register()
    run_id = suspect(sqlite_client)
    refused = sqlite_client.post(f"{API}/runs/{run_id}/reruns", json=body)
    assert refused.status_code == 422, refused.text
    (error,) = refused.json()["errors"]
    assert (error["path"], message in error["message"]) == (path, True), error
    assert get(sqlite_client, "/reruns")["items"] == []


def test_runs_that_cannot_be_rerun_say_why(sqlite_client: TestClient) -> None:
    """No trainable, one that nobody offers, a config that does not fit it, no advice that can be tried, a trial."""
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


def test_the_same_question_makes_one_rerun(client: TestClient, worker: PlayedWorker) -> None:
    """A client that asks again with the id of its choice gets the rerun that it has."""
    run_id, id = suspect(client), str(new_id())
    body = {"remedies": [CLIP], "id": id}
    answers = [client.post(f"{API}/runs/{run_id}/reruns", json=body) for _ in range(2)]
    assert [one.status_code for one in answers] == [202, 200]
    assert answers[0].json() == answers[1].json()
    assert len(get(client, "/reruns")["items"]) == 1
    other = client.post(f"{API}/runs/{suspect(client)}/reruns", json=body)
    assert (other.status_code, other.json()["error_code"]) == (409, "rerun_exists")


def test_a_trial_is_claimed_once(client: TestClient, worker: PlayedWorker) -> None:
    """Ten workers that ask at the same time get each trial once."""
    candidates = [[{"id": "clip_grad_norm", "parameters": {"max_norm": norm}}] for norm in range(1, 7)]
    rerun(client, suspect(client), *candidates)
    worker.work({0: "exploding"}, limit=1)
    with ThreadPoolExecutor(10) as pool:
        found = [one for one in pool.map(lambda _: worker.claim(), range(30)) if one is not None]
    found += iter(worker.claim, None)
    assert len({one["trial_id"] for one in found}) == len(found) == 6
    assert len({one["run_id"] for one in found}) == 6
    assert {one["attempt"] for one in found} == {1}


def test_a_result_is_published_once(client: TestClient, worker: PlayedWorker) -> None:
    """The same result, sent by many at the same time and again later, counts once."""
    asked = rerun(client, suspect(client), CLIP, seeds=1)
    worker.work({0: "exploding"}, limit=1)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "learning")
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: worker.publish(claimed), range(10)))
    assert {one.status_code for one in answers} == {200}
    done = get(client, f"/reruns/{asked['id']}")
    assert (done["status"], len(done["trials"])) == ("done", 2)
    assert worker.publish(claimed).json() == done


def test_a_lost_worker_is_replaced(
    client: TestClient, worker: PlayedWorker, short_lease: None, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """Without heartbeats a trial gets another attempt, with a run of its own; the first can do no more harm."""
    asked = rerun(client, suspect(client), CLIP)
    first = worker.claim()
    assert first is not None
    worker.stream(first, "learning", steps=10)
    wait_until(lambda: worker.claim() is not None)
    (trial,) = get(client, f"/reruns/{asked['id']}")["trials"]
    assert trial["attempts"][0]["status"] == "lost"
    late = worker.publish(first)
    assert (late.status_code, late.json()["error_code"]) == (409, "stale_attempt")
    assert worker.beat(first).json()["error_code"] == "stale_attempt"
    answer = client.post(f"{API}/runs/{first['run_id']}/steps", json={"steps": [10, 11], "loss": [1.0, 1.0]}).json()
    assert (answer["stop"], answer["accepted"], answer["ignored"]) == (True, 0, 2)
    assert get(client, f"/runs/{first['run_id']}")["status"] == "failed"


def test_a_trial_that_loses_its_workers_is_given_up(
    client: TestClient, worker: PlayedWorker, short_lease: None, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """After three lost workers the trial has failed, every attempt is visible, and the rerun goes on."""
    asked = rerun(client, suspect(client), CLIP)
    seen: list[dict[str, Any]] = []

    def is_over() -> bool:
        claimed = worker.claim()
        if claimed is not None:
            seen.append(claimed)
        status: str = get(client, f"/reruns/{asked['id']}")["status"]
        return status == "failed"

    wait_until(is_over)
    assert [one["attempt"] for one in seen] == [1, 2, 3]
    done = get(client, f"/reruns/{asked['id']}")
    assert "3 attempts at it were lost" in done["reason"]
    assert [one["status"] for one in done["trials"][0]["attempts"]] == ["lost"] * 3
    assert len({one["run_id"] for one in done["trials"][0]["attempts"]}) == 3


def test_cancelling_ends_everything(client: TestClient, worker: PlayedWorker) -> None:
    """A cancelled rerun has no more trials; the worker of one that runs is told, and so is its script."""
    asked = rerun(client, suspect(client), CLIP, SLOW)
    worker.work({0: "exploding"}, limit=1)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "learning", steps=5)
    cancelled = client.post(f"{API}/reruns/{asked['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert {one["status"] for one in cancelled.json()["trials"]} == {"done", "cancelled"}
    assert client.post(f"{API}/reruns/{asked['id']}/cancel").json() == cancelled.json()
    beat = worker.beat(claimed)
    assert (beat.status_code, beat.json()["error_code"]) == (409, "stale_attempt")
    assert "cancelled" in beat.json()["detail"]
    assert worker.publish(claimed).status_code == 409
    steps = {"steps": [5], "loss": [1.0]}
    assert client.post(f"{API}/runs/{claimed['run_id']}/steps", json=steps).json()["stop"] is True
    assert worker.claim() is None


def test_steps_beyond_the_budget_are_not_taken(client: TestClient, worker: PlayedWorker) -> None:
    """A trial that goes on sending is told to stop, and what is beyond its steps is not stored."""
    rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    assert claimed["steps"] == STEPS
    assert worker.stream(claimed, "exploding", steps=STEPS - 1)["stop"] is False
    more = {"steps": [STEPS - 1, STEPS, STEPS + 1], "loss": [1.0, 1.0, 1.0]}
    answer = client.post(f"{API}/runs/{claimed['run_id']}/steps", json=more).json()
    assert (answer["stop"], answer["accepted"], answer["ignored"], answer["last_step"]) == (True, 1, 2, STEPS - 1)


def test_the_worse_half_is_stopped_at_a_rung(client: TestClient, worker: PlayedWorker) -> None:
    """A candidate that is worse than two others at the same step is stopped, and that is its outcome."""
    asked = rerun(client, suspect(client), CLIP, SLOW, LATE)
    worker.work({0: "exploding", 1: "learning", 2: "learning"}, limit=3)
    third = worker.claim()
    assert third is not None
    worker.stream(third, "idle", steps=STEPS // 2)
    beat = worker.beat(third).json()
    assert (beat["stop"], beat["reason"]) == (True, "2 of 2 others were better at the same step")
    stopped = worker.publish(third).json()["trials"][3]
    assert (stopped["status"], stopped["attempts"][0]["status"]) == ("stopped", "stopped")
    worker.work({0: "exploding", 1: "learning", 2: "learning"})
    done = get(client, f"/reruns/{asked['id']}")
    assert [one["outcome"]["state"] for one in done["candidates"][1:]] == ["verified", "verified", "healthy"]


def test_seconds_are_shared_by_what_runs(client: TestClient, worker: PlayedWorker) -> None:
    """Each claim is given its share of what is left, and a heartbeat says how much that still is."""
    rerun(client, suspect(client), CLIP, SLOW, budget={"steps": STEPS, "seconds": 100.0})
    control = worker.claim()
    assert control is not None
    assert control["seconds"] == pytest.approx(100.0, abs=5)
    worker.stream(control, "exploding")
    worker.publish(control)
    first, second = worker.claim(), worker.claim()
    assert first is not None
    assert second is not None
    assert first["seconds"] == pytest.approx(100.0, abs=10)
    assert second["seconds"] == pytest.approx(50.0, abs=10)
    assert worker.beat(first).json()["seconds"] == pytest.approx(50.0, abs=10)


def test_trials_without_steps_have_failed(client: TestClient, worker: PlayedWorker) -> None:
    """A script that ends well but never created its run, or never logged, has shown nothing."""
    asked = rerun(client, suspect(client), CLIP, SLOW, LATE)
    worker.work({0: "exploding"}, limit=1)
    silent = worker.claim()
    assert silent is not None
    worker.publish(silent)
    created = worker.claim()
    assert created is not None
    worker.create_run(created)
    worker.publish(created)
    refused = worker.claim()
    assert refused is not None
    worker.publish(refused, "not_applicable", reason="no use")
    done = get(client, f"/reruns/{asked['id']}")
    assert [one["outcome"]["state"] for one in done["candidates"][1:]] == ["failed", "failed", "not_applicable"]
    assert "gradmedic.init()" in done["candidates"][1]["reason"]
    assert "run.log()" in done["candidates"][2]["reason"]
    assert done["candidates"][3]["reason"] == "no use"


def test_output_is_readable_and_bounded(client: TestClient, worker: PlayedWorker) -> None:
    """The end of what a trial prints can be read while it runs and afterwards, whatever is in it."""
    rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    path = f"/trials/{claimed['trial_id']}/output"
    worker.beat(claimed, output="step 1\n")
    assert get(client, path) == {"trial_id": claimed["trial_id"], "attempt": 1, "output": "step 1\n"}
    worker.publish(claimed, "failed", output="x" * 100_000 + "\x00 the end", reason="r" * 10_000, exit_code=-9)
    output = get(client, f"{path}?attempt=1")["output"]
    assert len(output) == 64 * 1024
    assert output.endswith("x the end")
    assert client.get(f"{API}{path}?attempt=2").json()["error_code"] == "trial_not_found"
    assert client.get(f"{API}/trials/{new_id()}/output").json()["error_code"] == "trial_not_found"


def test_what_a_trial_took_is_what_its_worker_says(client: TestClient, worker: PlayedWorker) -> None:
    """A result that a service was not there for costs the time of the trial, and never more than has passed."""
    asked = rerun(client, suspect(client), CLIP, seeds=1)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "exploding")
    assert worker.publish(claimed, seconds=-1.0).json()["errors"][0]["path"] == "seconds"
    worker.publish(claimed, seconds=0.0)
    claimed = worker.claim()
    assert claimed is not None
    worker.publish(claimed, seconds=1e6)
    trials = get(client, f"/reruns/{asked['id']}")["trials"]
    assert trials[0]["seconds"] == 0.0
    assert 0.0 < trials[1]["seconds"] < 60.0


def test_a_lost_worker_costs_no_more_than_there_is(
    client: TestClient,
    worker: PlayedWorker,
    replace_services: ReplaceServices,
    short_lease: None,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    """A lease that ends beyond the budget is not counted to its end: the trial was ended before."""
    asked = rerun(client, suspect(client), CLIP, budget={"steps": STEPS, "seconds": 1.0})
    replace_services(trial_lease=1.5)
    assert worker.claim() is not None

    def is_lost() -> bool:
        worker.claim()
        status: str = get(client, f"/reruns/{asked['id']}")["status"]
        return status == "failed"

    wait_until(is_lost)
    ended = get(client, f"/reruns/{asked['id']}")
    assert [one["status"] for one in ended["trials"][0]["attempts"]] == ["lost"]
    assert ended["cost_seconds"] == 1.0
    assert "budget of seconds is spent" in ended["reason"]


def test_projects_cap_what_runs_at_the_same_time(client: TestClient, worker: PlayedWorker) -> None:
    """No more trials of a project run than it allows; its cap on seconds holds for new reruns."""
    rerun(client, suspect(client), CLIP)
    rerun(client, suspect(client), CLIP)
    changes = {"max_concurrent_trials": 1, "max_rerun_seconds": 60.0}
    changed = client.patch(f"{API}/projects/tests", json=changes).json()
    assert (changed["max_concurrent_trials"], changed["max_rerun_seconds"]) == (1, 60.0)
    claimed = worker.claim()
    assert claimed is not None
    assert worker.claim() is None
    worker.stream(claimed, "exploding")
    worker.publish(claimed)
    assert worker.claim() is not None
    refused = client.post(f"{API}/runs/{suspect(client)}/reruns", json={"budget": {"seconds": 61}})
    assert refused.json()["errors"][0]["path"] == "budget.seconds"
    assert rerun(client, suspect(client), CLIP)["budget"]["seconds"] == 60.0
    for field, value in (("max_concurrent_trials", 0), ("max_rerun_seconds", 0.0)):
        bad = client.patch(f"{API}/projects/tests", json={field: value})
        assert (bad.status_code, bad.json()["errors"][0]["path"]) == (422, field)


def test_reruns_by_themselves_where_the_project_wants_them(client: TestClient, worker: PlayedWorker) -> None:
    """A run that turns unhealthy is rerun once, without being asked, if its project says so."""
    suspect(client)
    assert get(client, "/reruns")["items"] == []
    client.patch(f"{API}/projects/tests", json={"rerun_automatically": True})
    run_id = suspect(client)
    (made,) = get(client, "/reruns")["items"]
    assert (made["run_id"], made["is_automatic"], made["status"]) == (run_id, True, "queued")
    suspect(client, trainable=None)
    suspect(client, config={})
    worker.work({0: "exploding"}, limit=1)
    assert len(get(client, "/reruns")["items"]) == 1


def test_lists_page_and_filter(client: TestClient, worker: PlayedWorker) -> None:
    """Reruns are listed newest first, page by page, by run, project and status."""
    run_ids = [suspect(client, project=f"p{index}") for index in range(3)]
    made = [rerun(client, run_id, CLIP)["id"] for run_id in run_ids]
    client.post(f"{API}/reruns/{made[0]}/cancel")
    found: list[str] = []
    token = None
    while True:
        page = client.get(f"{API}/reruns", params={"max_results": 2} | ({"page_token": token} if token else {})).json()
        found += [one["id"] for one in page["items"]]
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
        assert [one["id"] for one in get(client, f"/reruns?{query}")["items"]] == expected
    assert client.get(f"{API}/reruns?status=odd").json()["errors"][0]["path"] == "status"
    assert client.get(f"{API}/reruns?page_token=W10").json()["errors"][0]["path"] == "page_token"
    assert client.get(f"{API}/reruns/{new_id()}").json()["error_code"] == "rerun_not_found"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": ""}, "items[0].name"),
        ({"gpus": -1}, "items[0].gpus"),
        ({"timeout": 0}, "items[0].timeout"),
        ({"parameters": [{"name": "a", "type": "shell"}]}, "items[0].parameters[0].type"),
        ({"parameters": [{"name": "a", "type": "str"}]}, "items[0].parameters[0].choices"),
        ({"parameters": [{"name": "a", "type": "int"}] * 2}, "items[0].parameters[1].name"),
        ({"parameters": [{"name": "a", "type": "int", "default": "x"}]}, "items[0].parameters[0].default"),
        ({"parameters": [{"name": "a", "type": "int", "remedy": "magic"}]}, "items[0].parameters[0].remedy"),
        ({"parameters": [{"name": "a", "type": "int", "remedy": "warm_up"}]}, "items[0].parameters[0].remedy"),
        ({"parameters": [{"name": "a", "type": "int", "remedy": "use_bfloat16"}]}, "items[0].parameters[0].remedy"),
        ({"command": ["rm"]}, "items[0].command"),
    ],
    ids=[
        "name",
        "gpus",
        "timeout",
        "type",
        "choices",
        "twice",
        "default",
        "remedy",
        "no parameter",
        "not bool",
        "command",
    ],
)
def test_bad_trainables_name_the_field(sqlite_client: TestClient, change: dict[str, Any], path: str) -> None:
    """What a worker cannot offer is refused with its path; a command is no field at all."""
    response = sqlite_client.put(f"{API}/trainables", json={"items": [{"name": "t"} | change]})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, path)


def test_trainables_are_listed(client: TestClient, worker: PlayedWorker) -> None:
    """What was offered is listed by name; offering again replaces it."""
    worker.register(gpus=2, timeout=5.0)
    (found,) = get(client, "/trainables")["items"]
    assert (found["name"], found["gpus"], found["timeout"], len(found["parameters"])) == ("train", 2, 5.0, 3)
