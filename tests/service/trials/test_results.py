"""Steps, heartbeats and results of trials, on both databases; the test plays the worker."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.support.played_worker import API, CLIP, LATE, SLOW, STEPS, PlayedWorker, read, rerun, suspect

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.service import JSON_MEDIA_TYPE


def test_a_result_is_published_once(client: TestClient, worker: PlayedWorker) -> None:
    """The same result, sent by many at the same time and again later, counts once."""
    asked = rerun(client, suspect(client), CLIP, seeds=1)
    worker.work({0: "exploding"}, limit=1)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "learning")
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: worker.publish(claimed), range(10)))
    assert {answer.status_code for answer in answers} == {200}
    done = read(client, f"/reruns/{asked['id']}")
    assert (done["status"], len(done["trials"])) == ("done", 2)
    assert worker.publish(claimed).json() == done


def test_steps_beyond_the_budget_are_not_taken(client: TestClient, worker: PlayedWorker) -> None:
    """Steps beyond the budget are not stored, and the answer has `stop` for the script."""
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
    done = read(client, f"/reruns/{asked['id']}")
    assert [tried["outcome"]["state"] for tried in done["candidates"][1:]] == [
        "verified",
        "verified",
        "healthy",
    ]


def test_trials_without_steps_have_failed(client: TestClient, worker: PlayedWorker) -> None:
    """A script that ends with code 0 without having created its run, or logged a step, has failed."""
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
    done = read(client, f"/reruns/{asked['id']}")
    assert [tried["outcome"]["state"] for tried in done["candidates"][1:]] == [
        "failed",
        "failed",
        "not_applicable",
    ]
    assert "gradmedic.init()" in done["candidates"][1]["reason"]
    assert "run.log()" in done["candidates"][2]["reason"]
    assert done["candidates"][3]["reason"] == "no use"


def test_output_is_readable_and_bounded(client: TestClient, worker: PlayedWorker) -> None:
    """The end of a trial's output can be read while it runs and afterwards, with any characters in it."""
    rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    path = f"/trials/{claimed['trial_id']}/output"
    worker.beat(claimed, output="step 1\n")
    assert read(client, path) == {"trial_id": claimed["trial_id"], "attempt": 1, "output": "step 1\n"}
    worker.publish(claimed, "failed", output="x" * 100_000 + "\x00 the end", reason="r" * 10_000, exit_code=-9)
    output = read(client, f"{path}?attempt=1")["output"]
    assert len(output) == 64 * 1024
    assert output.endswith("x the end")
    assert client.get(f"{API}{path}?attempt=2").json()["error_code"] == "trial_not_found"
    assert client.get(f"{API}/trials/{new_id()}/output").json()["error_code"] == "trial_not_found"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"reason": "a\x00"}, "reason"),
        ({"reason": "\ud800"}, "reason"),
        ({"environment": {"torch": "\x00"}}, "environment.torch"),
        ({"environment": {"a\udfff": "1"}}, "environment.a\ufffd\ufffd\ufffd"),
        ({"exit_code": 2**31}, "exit_code"),
        ({"attempt": 2**63}, "attempt"),
    ],
)
def test_a_result_that_no_database_stores(
    fields: dict[str, Any], path: str, client: TestClient, worker: PlayedWorker
) -> None:
    """Both databases refuse such a result with the path of the field, and the worker may publish another one."""
    asked = rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    body = json.dumps({"attempt": 1, "status": "failed", "output": "\x00\ud800"} | fields)
    target = f"{API}/trials/{claimed['trial_id']}/result"
    refused = client.post(target, content=body, headers={"Content-Type": JSON_MEDIA_TYPE})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, path)
    assert worker.publish(claimed, "failed").status_code == 200
    trial = read(client, f"/reruns/{asked['id']}")["trials"][0]
    assert (trial["status"], read(client, f"/trials/{trial['id']}/output")["output"]) == ("failed", "")


def test_the_worker_reports_the_seconds_of_a_trial(client: TestClient, worker: PlayedWorker) -> None:
    """A result that arrives late costs the seconds that its worker reports, and never more than have passed."""
    asked = rerun(client, suspect(client), CLIP, seeds=1)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "exploding")
    assert worker.publish(claimed, seconds=-1.0).json()["errors"][0]["path"] == "seconds"
    worker.publish(claimed, seconds=0.0)
    claimed = worker.claim()
    assert claimed is not None
    worker.publish(claimed, seconds=1e6)
    trials = read(client, f"/reruns/{asked['id']}")["trials"]
    assert trials[0]["seconds"] == 0.0
    assert 0.0 < trials[1]["seconds"] < 60.0
