"""Projects over HTTP, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.support.service_app import ReplaceServices

from gradmedic_service.settings import Settings

PROJECTS = "/api/v1/projects"
RUNS = "/api/v1/runs"


def test_a_project_appears_with_its_first_run(client: TestClient, create_run: Any) -> None:
    """A project exists, once, as soon as a run names it, whatever its name is."""
    name = "team/ünit 1"
    missing = client.get(f"{PROJECTS}/{name}")
    assert (missing.status_code, missing.json()["error_code"]) == (404, "project_not_found")
    for _ in range(2):
        create_run(client, project=name)
    project = client.get(f"{PROJECTS}/team%2F%C3%BCnit%201").json()
    assert (project["name"], project["muted_detectors"]) == (name, [])
    assert client.get(PROJECTS).json() == {"items": [project], "next_page_token": None}


def test_pages_cover_every_project_once(client: TestClient, create_run: Any) -> None:
    """The pages of the list contain every project once, sorted by name, in both directions."""
    names = [f"p{index}" for index in range(5)]
    for name in reversed(names):
        create_run(client, project=name)
    for sort, expected in (("name", names), ("-name", names[::-1])):
        query = {"sort": sort, "max_results": "2"}
        found: list[str] = []
        while True:
            page = client.get(PROJECTS, params=query).json()
            found += [project["name"] for project in page["items"]]
            if page["next_page_token"] is None:
                break
            query["page_token"] = page["next_page_token"]
        assert found == expected
        refused = client.get(PROJECTS, params={**query, "sort": "-name" if sort == "name" else "name"})
        assert refused.json()["errors"][0]["path"] == "page_token"


@pytest.mark.parametrize(
    ("parameters", "path"),
    [({"max_results": 0}, "max_results"), ({"sort": "size"}, "sort"), ({"page_token": "W10"}, "page_token")],
)
def test_invalid_queries(sqlite_client: TestClient, parameters: dict[str, Any], path: str) -> None:
    """The error of an invalid query parameter names the parameter."""
    response = sqlite_client.get(PROJECTS, params=parameters)
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, path)


def test_muting_the_alerts_of_a_project(client: TestClient, create_run: Any) -> None:
    """A project's alerts are muted until a time, at most a year from now; a time that has passed ends the mute."""
    create_run(client, project="p")
    assert client.get(f"{PROJECTS}/p").json()["alerts_muted_until"] is None
    until = (datetime.now(UTC) + timedelta(days=365)).replace(microsecond=0)
    muted = client.patch(f"{PROJECTS}/p", json={"alerts_muted_until": until.isoformat()})
    assert datetime.fromisoformat(muted.json()["alerts_muted_until"]) == until
    for wrong, message in (
        ((until + timedelta(days=2)).isoformat(), "must be at most 366 days from now"),
        ("2026-01-02T00:00:00", "must have a time zone"),
    ):
        refused = client.patch(f"{PROJECTS}/p", json={"alerts_muted_until": wrong})
        assert refused.status_code == 422
        (error,) = refused.json()["errors"]
        assert error["path"] == "alerts_muted_until"
        assert message in error["message"]
    ended = client.patch(f"{PROJECTS}/p", json={"alerts_muted_until": "2026-01-02T00:00:00Z"})
    assert ended.json()["alerts_muted_until"] == "2026-01-02T00:00:00Z"


def test_muting_for_a_project(client: TestClient, create_run: Any) -> None:
    """A project's muted detectors stay until they are changed; an unknown id is refused, with the known ids."""
    create_run(client, project="p")
    changed = client.patch(f"{PROJECTS}/p", json={"muted_detectors": ["plateau", "nonfinite"]}).json()
    assert changed["muted_detectors"] == ["plateau", "nonfinite"]
    assert client.patch(f"{PROJECTS}/p", json={}).json() == changed == client.get(f"{PROJECTS}/p").json()
    refused = client.patch(f"{PROJECTS}/p", json={"muted_detectors": ["noise"]})
    error = refused.json()["errors"][0]
    assert (refused.status_code, error["path"]) == (422, "muted_detectors[0]")
    assert "nonfinite, loss_divergence, growth_in_time" in error["message"]
    assert client.patch(f"{PROJECTS}/q", json={}).json()["error_code"] == "project_not_found"


def explode(client: TestClient, run: str, first: int) -> Any:
    """Append a step whose loss and gradients are not finite."""
    body = {"steps": [first], "loss": ["NaN"], "statistics": {"grad_norm": [["NaN", "NaN"]]}}
    response = client.post(f"{run}/steps", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("place", ["run", "project"])
def test_a_muted_detector(client: TestClient, create_run: Any, place: str) -> None:
    """A muted detector decides no verdict and has no finding; once unmuted, it has the finding of the steps before."""
    run = create_run(client, project="p", muted_detectors=["nonfinite"] if place == "run" else [])
    where = run if place == "run" else f"{PROJECTS}/p"
    if place == "project":
        client.patch(where, json={"muted_detectors": ["nonfinite"]})
    steps = list(range(30))
    calm = {"steps": steps, "loss": [1.0] * 30, "statistics": {"grad_norm": [[1, 1]] * 30}}
    assert client.post(f"{run}/steps", json=calm).status_code == 200
    assert explode(client, run, 30)["verdict"] == "healthy"
    assert explode(client, run, 31)["verdict"] == "healthy"
    assert "nonfinite" not in [finding["detector"] for finding in client.get(f"{run}/diagnosis").json()["findings"]]
    assert client.patch(where, json={"muted_detectors": []}).status_code == 200
    finding = client.get(f"{run}/diagnosis").json()["findings"][0]
    assert (finding["detector"], finding["first_step"]) == ("nonfinite", 30)
    assert client.get(run).json()["verdict"] == "healthy"  # decided anew with the next block
    assert explode(client, run, 32)["verdict"] == "exploding"


def test_a_run_and_its_project_mute_together(client: TestClient, create_run: Any) -> None:
    """A detector is muted if the run or its project mutes it."""
    run = create_run(client, project="p", muted_detectors=["nonfinite"])
    client.patch(f"{PROJECTS}/p", json={"muted_detectors": ["plateau"]})
    for step in range(30):
        answer = explode(client, run, step)
    assert answer["verdict"] != "exploding"
    assert client.get(run).json()["muted_detectors"] == ["nonfinite"]


@pytest.mark.parametrize(("framework", "word"), [("jax 0.10", "optax"), ("torch 2.13.0", "torch"), (None, "torch")])
def test_snippets_fit_the_runs_framework(client: TestClient, create_run: Any, framework: str | None, word: str) -> None:
    """Snippets of advice are for the run's framework, also after a run of the same model in another framework."""
    answers = {}
    for name in ("keras 3.0", framework):
        run = create_run(client, framework=name)
        growth = [[2.0 ** max(0, step - 30), 1.0] for step in range(60)]
        body = {"steps": list(range(60)), "loss": [1.0] * 60, "statistics": {"grad_norm": growth}}
        assert client.post(f"{run}/steps", json=body).status_code == 200
        for step in (60, 61):
            explode(client, run, step)
        answers[name] = client.get(f"{run}/diagnosis").json()
    assert answers[framework]["verdict"] == "exploding"
    assert word in "".join(advice["snippet"] for advice in answers[framework]["advice"])


def test_a_full_project(client: TestClient, replace_services: ReplaceServices, create_run: Any) -> None:
    """A full project refuses another run until one is deleted; other projects are not concerned."""
    replace_services(limits=Settings(max_runs_per_project=2).limits())
    paths = [create_run(client, project="full") for _ in range(2)]
    body = {"project": "full", "layers": []}
    refused = client.post(RUNS, json=body)
    assert (refused.status_code, refused.json()["error_code"]) == (409, "project_full")
    assert len(client.get(RUNS).json()["items"]) == 2
    assert client.post(RUNS, json=body | {"project": "other"}).status_code == 201
    client.delete(paths[0])
    assert client.post(RUNS, json=body).status_code == 201
