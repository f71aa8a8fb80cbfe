"""Steps, heartbeats and results of trials, on both databases; the test plays the worker."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.support.played_worker import (
    API,
    CLIP,
    LATE,
    SLOW,
    STEPS,
    PlayedWorker,
    block,
    expire_leases,
    read,
    rerun,
    suspect,
)

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.service import JSON_MEDIA_TYPE
from gradmedic_service.database.engine import Database


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
        ({"last_step": 2**53 + 1}, "last_step"),
        ({"last_step": -2}, "last_step"),
        ({"last_step": 1.5}, "last_step"),
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


STREAMED = 30
"""Number of steps that reach the service."""
LACKS_STEPS = "the script has logged its steps up to 79, and the service has its steps up to 29"


@pytest.mark.parametrize(
    ("status", "last_step", "ends_as", "reason"),
    [
        ("done", None, "done", None),
        ("done", STREAMED - 1, "done", None),
        ("done", STEPS - 1, "incomplete", LACKS_STEPS),
        ("done", -1, "incomplete", "the script ended before the SDK could send the steps after 29"),
        ("failed", None, "failed", "exit code 1"),
        ("failed", STREAMED - 1, "failed", "exit code 1"),
        ("failed", STEPS - 1, "incomplete", LACKS_STEPS),
        ("not_applicable", STEPS - 1, "not_applicable", None),
    ],
)
def test_an_attempt_that_lacks_steps_is_incomplete(
    client: TestClient, worker: PlayedWorker, status: str, last_step: int | None, ends_as: str, reason: str | None
) -> None:
    """A script that ends before its budget is complete; one whose last step has not arrived gets another attempt."""
    asked = rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "exploding", steps=STREAMED)
    worker.beat(claimed)
    facts = {"environment": {"torch": "2.13.0"}, "reason": "exit code 1" if status == "failed" else None}
    for _ in range(2):  # the same result again changes nothing
        answer = worker.publish(claimed, status, last_step=last_step, **facts)
        assert answer.status_code == 200
    (trial, *_) = read(client, f"/reruns/{asked['id']}")["trials"]
    (attempt,) = trial["attempts"]
    assert (attempt["status"], attempt["reason"]) == (ends_as, reason)
    assert (attempt["exit_code"], attempt["environment"]) == (0, {"torch": "2.13.0"})
    is_incomplete = ends_as == "incomplete"
    assert trial["status"] == ("queued" if is_incomplete else ends_as)
    assert (trial["verdict"], trial["start_loss"] is None) == (
        "undetermined" if is_incomplete else "exploding",
        is_incomplete,
    )
    if is_incomplete:
        again = worker.claim()
        assert again is not None
        assert (again["trial_id"], again["attempt"]) == (claimed["trial_id"], 2)
        assert again["run_id"] != claimed["run_id"]
        worker.stream(again, "exploding")
        worker.publish(again, last_step=STEPS - 1)
        (trial, *_) = read(client, f"/reruns/{asked['id']}")["trials"]
        assert (trial["status"], trial["verdict"], trial["step"]) == ("done", "exploding", STEPS - 1)


def test_a_trial_that_is_never_complete_has_failed(client: TestClient, worker: PlayedWorker) -> None:
    """After three incomplete attempts the trial has failed with the reason, and nothing is compared with it."""
    asked = rerun(client, suspect(client), CLIP)
    for attempt in (1, 2, 3):
        claimed = worker.claim()
        assert claimed is not None
        assert claimed["attempt"] == attempt
        worker.stream(claimed, "exploding", steps=STREAMED)
        assert worker.beat(claimed).json()["verdict"] == "exploding"
        worker.publish(claimed, last_step=STEPS - 1)
    done = read(client, f"/reruns/{asked['id']}")
    (trial,) = done["trials"]
    assert (trial["status"], trial["verdict"], trial["loss"]) == ("failed", "undetermined", None)
    assert trial["reason"] == f"3 attempts at it were lost or incomplete; the last one: {LACKS_STEPS}"
    assert (done["status"], done["reason"]) == ("failed", f"the control did not run: {trial['reason']}")


def test_an_attempt_with_dropped_steps_is_incomplete(client: TestClient, worker: PlayedWorker) -> None:
    """An attempt whose SDK had no room for some of the steps is made again, although the last step has arrived."""
    asked = rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    worker.stream(claimed, "exploding")
    patched = client.patch(f"{API}/runs/{claimed['run_id']}", json={"training": {"dropped_steps": 3}})
    assert patched.status_code == 200
    worker.publish(claimed, last_step=STEPS - 1)
    (attempt,) = read(client, f"/reruns/{asked['id']}")["trials"][0]["attempts"]
    assert (attempt["status"], attempt["reason"]) == ("incomplete", "the SDK had no room for 3 of its steps")


@pytest.mark.parametrize("has_same_losses", [True, False])
def test_a_control_with_the_losses_of_the_suspect_run_has_its_verdict(
    client: TestClient, worker: PlayedWorker, has_same_losses: bool
) -> None:
    """A failure is reproduced where all losses are the same, even if other steps were sampled."""
    body = {"project": "tests", "layers": [{"name": "a"}, {"name": "b"}], "statistics": ["grad_norm"]}
    run_id = client.post(f"{API}/runs", json=body | {"config": {"lr": 0.5}, "trainable": "train"}).json()["id"]
    steps = block("learning")
    norms = [[0.5, 0.6] if step < 20 else ["NaN", "NaN"] for step in steps["steps"]]
    sent = client.post(f"{API}/runs/{run_id}/steps", json=steps | {"statistics": {"grad_norm": norms}}).json()
    assert sent["verdict"] == "exploding"
    asked = rerun(client, run_id, CLIP)
    claimed = worker.claim()
    assert claimed is not None
    worker.create_run(claimed)
    if not has_same_losses:
        steps["loss"][-1] *= 1.0001
    answer = client.post(f"{API}/runs/{claimed['run_id']}/steps", json=steps).json()
    assert answer["verdict"] == "healthy"
    worker.publish(claimed, last_step=STEPS - 1)
    answered = read(client, f"/reruns/{asked['id']}")
    expected = ("running", "exploding") if has_same_losses else ("not_reproduced", "healthy")
    assert (answered["status"], answered["trials"][0]["verdict"]) == expected


@pytest.mark.parametrize("clock", [None, 4.0, -1e6, 1e6], ids=["none", "right", "behind", "ahead"])
def test_the_start_of_an_attempt_is_measured(
    client: TestClient, worker: PlayedWorker, database: Database, clock: float | None
) -> None:
    """An attempt has the seconds from its claim to its first step, by the script's clock where that may be right."""
    asked = rerun(client, suspect(client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    expire_leases(database, started_before=10.0)
    worker.beat(claimed)

    def read_attempt() -> dict[str, Any]:
        attempt: dict[str, Any] = read(client, f"/reruns/{asked['id']}")["trials"][0]["attempts"][0]
        return attempt

    worker.create_run(claimed)
    assert read_attempt()["start_seconds"] is None
    started = datetime.fromisoformat(read_attempt()["started_at"]).timestamp()
    steps = block("learning")
    if clock is not None:
        steps["time"] = [started + clock + step for step in steps["steps"]]
    assert client.post(f"{API}/runs/{claimed['run_id']}/steps", json=steps).status_code == 200
    created = datetime.fromisoformat(read(client, f"/runs/{claimed['run_id']}")["created_at"]).timestamp()
    expected = 4.0 if clock == 4.0 else created - started
    assert expected >= (4.0 if clock == 4.0 else 10.0)
    assert read_attempt()["start_seconds"] == pytest.approx(expected, abs=1e-3)
