"""Claiming trials, on both databases; the test plays the worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient
from tests.service.reruns.conftest import API, CLIP, SLOW, STEPS, PlayedWorker, rerun, suspect


def test_a_trial_is_claimed_once(client: TestClient, worker: PlayedWorker) -> None:
    """Ten workers that claim at the same time get each trial once."""
    candidates = [[{"id": "clip_grad_norm", "parameters": {"max_norm": norm}}] for norm in range(1, 7)]
    rerun(client, suspect(client), *candidates)
    worker.work({0: "exploding"}, limit=1)
    with ThreadPoolExecutor(10) as pool:
        found = [claimed for claimed in pool.map(lambda _: worker.claim(), range(30)) if claimed is not None]
    found += iter(worker.claim, None)
    assert len({claimed["trial_id"] for claimed in found}) == len(found) == 6
    assert len({claimed["run_id"] for claimed in found}) == 6
    assert {claimed["attempt"] for claimed in found} == {1}


def test_parameters_carry_out_remedies_and_the_sdk_applies_the_rest(client: TestClient, worker: PlayedWorker) -> None:
    """A parameter carries out its remedy, `set_parameter` sets parameters by name, and the SDK applies the rest."""
    truncate = [{"id": "truncate_backpropagation", "parameters": {"time_steps": 7}}, *CLIP]
    by_name = [{"id": "set_parameter", "parameters": {"depth": 1, "lr": 0.01}}]
    rerun(client, suspect(client), truncate, by_name)
    worker.work({0: "exploding"}, limit=1)
    first, second = worker.claim(), worker.claim()
    assert first is not None
    assert second is not None
    assert (first["parameters"], first["remedies"]) == ({"lr": 0.5, "depth": 3, "window": 7}, CLIP)
    assert (second["parameters"], second["remedies"]) == ({"lr": 0.01, "depth": 1, "window": 50}, [])


def test_running_trials_share_the_seconds(client: TestClient, worker: PlayedWorker) -> None:
    """Each claim gets its share of the seconds that are left, and a heartbeat answers how many that still are."""
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


def test_projects_cap_running_trials_and_seconds(client: TestClient, worker: PlayedWorker) -> None:
    """No more trials of a project run at a time than it allows; its cap on seconds holds for new reruns."""
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
