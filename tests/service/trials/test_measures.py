"""What a trial is judged by, from its result and the facts of its run to the outcome, over HTTP."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient
from tests.support.played_worker import API, CLIP, SLOW, PlayedWorker, block, read, rerun, suspect

from gradmedic_service.reruns import repository


def end_trial(
    worker: PlayedWorker,
    kind: str,
    *,
    training: dict[str, Any] | None = None,
    metrics: dict[str, list[float | None]] | None = None,
    has_loss: bool = True,
    **result: Any,
) -> None:
    """Claim the next trial, stream its steps with these facts and metrics, and publish its result."""
    claimed = worker.claim()
    assert claimed is not None
    body = {"id": claimed["run_id"], "project": claimed["project"], "layers": [{"name": "a"}, {"name": "b"}]}
    created = worker.client.post(f"{API}/runs", json=body | {"statistics": ["grad_norm"], "training": training})
    assert created.status_code in (200, 201), created.text
    steps = block(kind, seed=claimed["seed"]) | ({} if metrics is None else {"metrics": metrics})
    if not has_loss:
        del steps["loss"]
    answer = worker.client.post(f"{API}/runs/{claimed['run_id']}/steps", json=steps)
    assert answer.status_code == 200, answer.text
    published = worker.publish(claimed, **result)
    assert published.status_code == 200, published.text


def at_end(value: float) -> list[float | None]:
    """Return a metric that is logged at the middle of the steps, as 0.1, and at their end."""
    return [None] * 39 + [0.1] + [None] * 39 + [value]


def outcomes(client: TestClient, rerun_id: str) -> list[tuple[str, str]]:
    """Return state and reason of each candidate's outcome."""
    candidates = read(client, f"/reruns/{rerun_id}")["candidates"][1:]
    return [(candidate["outcome"]["state"], candidate["reason"]) for candidate in candidates]


def test_predicting_the_mean_is_not_verified(client: TestClient, worker: PlayedWorker) -> None:
    """A loss that falls to what a constant answer gets is shown beside that level, and verifies nothing."""
    asked = rerun(client, suspect(client), CLIP, seeds=1)
    training: dict[str, Any] = {"loss": {"kind": "squared_error", "constant_level": 0.42}}
    end_trial(worker, "exploding", training=training)
    end_trial(worker, "learning", training=training)
    ((state, reason),) = outcomes(client, asked["id"])
    assert state == "healthy"
    _, trial = read(client, f"/reruns/{asked['id']}")["trials"]
    assert (trial["judged_by"], trial["constant_level"], trial["has_converged"]) == ("loss", 0.42, False)
    assert trial["judged_value"] == trial["loss"]
    relation = "is no better than" if trial["loss"] >= 0.42 else "is less than a tenth below"
    assert reason == f"on seed 0: its loss {trial['loss']:.3g} {relation} a constant answer's 0.42"


@pytest.mark.parametrize(("in_eval", "state"), [(0.45, "verified"), (3.0, "healthy")])
def test_a_model_that_is_bad_in_eval_is_not_verified(
    client: TestClient, worker: PlayedWorker, in_eval: float, state: str
) -> None:
    """The loss in `eval()` decides, and is the value that the trial shows; a good one passes."""
    asked = rerun(client, suspect(client), CLIP, seeds=1)
    training: dict[str, Any] = {"loss": {"kind": "cross_entropy", "constant_level": 2.3}}
    nothing: dict[str, Any] = {"batches": 4, "training_loss": "NaN", "loss": "NaN", "output_difference": None}
    end_trial(worker, "exploding", training=training, evaluation=nothing)
    end_trial(worker, "learning", training=training, evaluation=nothing | {"training_loss": 0.4, "loss": in_eval})
    assert outcomes(client, asked["id"])[0][0] == state
    control, trial = read(client, f"/reruns/{asked['id']}")["trials"]
    assert control["judged_by"] == "loss"
    assert trial["judged_by"] == "loss in eval()"
    assert trial["judged_value"] == pytest.approx(trial["loss"] + in_eval - 0.4)


def test_outputs_that_differ_wildly_are_not_verified(client: TestClient, worker: PlayedWorker) -> None:
    """Where only the outputs could be compared, the reason tells the user to name a metric."""
    asked = rerun(client, suspect(client), CLIP, seeds=1)
    end_trial(worker, "exploding")
    end_trial(worker, "learning", evaluation={"batches": 1, "output_difference": 1.5})
    ((state, reason),) = outcomes(client, asked["id"])
    assert state == "healthy"
    assert "differ from those in train() by 150% of their own standard deviation" in reason
    assert "judge_by" in reason


def test_the_operators_metric_decides(client: TestClient, worker: PlayedWorker) -> None:
    """With `judge_by`, a metric of control and candidates is compared, not their losses or the script's objective."""
    asked = rerun(client, suspect(client), CLIP, SLOW, seeds=1)
    training = {"objective": {"kind": "metric", "metric": "other", "direction": "minimize"}}
    judge: dict[str, Any] = {"judge_by": "maximize val_accuracy", "training": training}
    end_trial(worker, "exploding", metrics={"val_accuracy": at_end(0.3)}, **judge)
    end_trial(worker, "flat", metrics={"val_accuracy": at_end(0.9)}, **judge)
    end_trial(worker, "learning", metrics={"val_accuracy": at_end(0.2)}, **judge)
    (flat, learning) = outcomes(client, asked["id"])
    assert flat[0] == "verified"
    assert learning == ("healthy", "on seed 0: its val_accuracy 0.2 is no better than the control's best, 0.3")
    trials = read(client, f"/reruns/{asked['id']}")["trials"]
    assert [(t["judged_by"], t["judged_value"]) for t in trials] == [
        ("maximize val_accuracy", 0.3), ("maximize val_accuracy", 0.9), ("maximize val_accuracy", 0.2)
    ]  # fmt: skip


def test_trials_race_by_the_metric(client: TestClient, worker: PlayedWorker) -> None:
    """At a rung, trials are compared by the control's metric: the best by the loss does not stop the best by it."""
    asked = rerun(client, suspect(client), CLIP, SLOW, seeds=1)
    end_trial(worker, "exploding", metrics={"reward": at_end(0.1)}, judge_by="maximize reward")
    end_trial(worker, "learning", metrics={"reward": at_end(0.2)}, judge_by="maximize reward")
    claimed = worker.claim()
    assert claimed is not None
    worker.create_run(claimed)
    steps = block("learning") | {"metrics": {"reward": at_end(0.5)}}
    assert client.post(f"{API}/runs/{claimed['run_id']}/steps", json=steps).status_code == 200
    assert worker.beat(claimed).status_code == 200
    with client.app.state.services.database.reading() as session:  # type: ignore[attr-defined]
        rungs = {trial.candidate: trial.rungs for trial in repository.read_trials(session, UUID(asked["id"]))}
    assert rungs[2] == [-0.1, -0.1]


def test_a_metric_that_is_never_logged_is_named(client: TestClient, worker: PlayedWorker) -> None:
    """A metric of `judge_by` that the script never logs verifies nothing, and the reason names it."""
    asked = rerun(client, suspect(client), CLIP, seeds=1)
    end_trial(worker, "exploding", judge_by="maximize val_accuracy")
    end_trial(worker, "learning", judge_by="maximize val_accuracy")
    expected = "on seed 0: the metric 'val_accuracy', by which it is judged, was never logged"
    assert outcomes(client, asked["id"]) == [("healthy", expected)]
    trial = read(client, f"/reruns/{asked['id']}")["trials"][1]
    assert (trial["judged_by"], trial["judged_value"]) == ("maximize val_accuracy", None)


def test_a_script_may_log_its_metric_alone(client: TestClient, worker: PlayedWorker) -> None:
    """The objective of the script counts without `judge_by`, also where no loss is logged."""
    training = {"objective": {"kind": "metric", "metric": "reward", "direction": "maximize"}}
    asked = rerun(client, suspect(client), CLIP, seeds=1)
    end_trial(worker, "exploding", training=training)
    end_trial(worker, "learning", training=training, has_loss=False, metrics={"reward": at_end(0.9)})
    assert outcomes(client, asked["id"])[0][0] == "verified"
    trial = read(client, f"/reruns/{asked['id']}")["trials"][1]
    assert (trial["loss"], trial["start_loss"], trial["judged_value"]) == (None, None, 0.9)


@pytest.mark.parametrize(
    ("judge_by", "message"),
    [
        ("accuracy", "minimize METRIC"),
        ("maximize grad_norm", "must name the loss or a metric"),
        ("", "minimize METRIC"),
    ],
)
def test_an_odd_objective_is_refused(sqlite_client: TestClient, judge_by: str, message: str) -> None:
    """A result with a `judge_by` of another grammar is refused with its path, and the trial goes on."""
    worker = PlayedWorker(sqlite_client)
    worker.register()
    rerun(sqlite_client, suspect(sqlite_client), CLIP)
    claimed = worker.claim()
    assert claimed is not None
    refused = worker.publish(claimed, judge_by=judge_by)
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert (error["path"], message in error["message"]) == ("judge_by", True), error


def test_advice_is_listed_by_the_metric_that_judges_it(client: TestClient, worker: PlayedWorker) -> None:
    """Of two verified remedies the one with the better metric comes first, and its outcome has the metric's values."""
    run_id = suspect(client)
    rerun(client, run_id, CLIP, SLOW, seeds=1)
    judge: dict[str, Any] = {"judge_by": "maximize val_accuracy"}
    for kind, value in (("exploding", 0.3), ("learning fast", 0.8), ("learning", 0.9)):
        end_trial(worker, kind, metrics={"val_accuracy": at_end(value)}, **judge)
    first, second = read(client, f"/runs/{run_id}/diagnosis")["advice"][:2]
    assert ([first["remedy"]], [second["remedy"]]) == (SLOW, CLIP)
    assert (first["outcome"]["loss"] > second["outcome"]["loss"], first["outcome"]["judged_by"]) == (
        True,
        "maximize val_accuracy",
    )
    assert [entry["outcome"]["judged_value"] for entry in (first, second)] == [0.9, 0.8]
    assert first["outcome"]["control_judged_value"] == 0.3
