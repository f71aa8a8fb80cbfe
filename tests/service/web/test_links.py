"""The links that the client prints lead somewhere."""

from __future__ import annotations

from fastapi.testclient import TestClient


def test_the_start_leads_to_the_documentation(client: TestClient) -> None:
    """`/` in a browser ends at the API's documentation."""
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.url.path == "/docs"


def test_a_run_link_leads_to_its_diagnosis(client: TestClient) -> None:
    """The URL that `gradmedic.init()` prints ends at the run's diagnosis."""
    run = client.post("/api/v1/runs", json={"project": "p", "layers": []}).json()
    answer = client.get(f"/runs/{run['id']}")
    assert answer.status_code == 200
    assert answer.json()["run_id"] == run["id"]


def test_a_link_to_no_run_is_a_problem(client: TestClient) -> None:
    """A link with something else in the place of an id is refused as every bad request is."""
    assert client.get("/runs/nonsense").json()["status"] == 422
