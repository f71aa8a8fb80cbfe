"""The metrics count what has happened."""

from __future__ import annotations

import re
from typing import Any

from starlette.testclient import TestClient


def read_metric(client: TestClient, series: str) -> float:
    """Return the value of one series; 0 if it does not exist."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return 0.0 if found is None else float(found.group(1))


def test_requests_by_route_and_status(sqlite_client: TestClient, create_run: Any) -> None:
    """Requests are counted by the template of their route, so ids and names create no series."""
    path = create_run(sqlite_client)
    for target in (path, path, f"{path}x", "/made/up/1", "/made/up/2"):
        sqlite_client.get(target)
    sqlite_client.request("BREW", "/")
    route = "/api/v1/runs/{run_id}"
    total = "gradmedic_http_requests_total"
    assert read_metric(sqlite_client, f'{total}{{method="GET",route="{route}",status="200"}}') == 2
    assert read_metric(sqlite_client, f'{total}{{method="GET",route="{route}",status="422"}}') == 1
    assert read_metric(sqlite_client, f'{total}{{method="GET",route="none",status="404"}}') == 2
    assert read_metric(sqlite_client, f'{total}{{method="other",route="/",status="405"}}') == 1
    assert read_metric(sqlite_client, f'gradmedic_http_request_seconds_count{{method="GET",route="{route}"}}') == 3
    assert path.rpartition("/")[2] not in sqlite_client.get("/metrics").text
    assert "made" not in sqlite_client.get("/metrics").text


def test_stored_blocks(client: TestClient, create_run: Any) -> None:
    """Steps and values are counted once, when they are stored, and a verdict when it changes."""
    path = create_run(client, layers=2)
    body = {"steps": [0, 1, 2], "sampled": [True, False, True], "statistics": {"grad_norm": [[1, 2], [3, None]]}}
    for _ in range(2):
        assert client.post(f"{path}/steps", json=body).status_code == 200
    assert read_metric(client, "gradmedic_steps_ingested_total") == 3
    assert read_metric(client, "gradmedic_values_ingested_total") == 4
    body = {"steps": [3], "loss": ["NaN"], "statistics": {"grad_norm": [["NaN", "NaN"]]}}
    verdict = client.post(f"{path}/steps", json=body).json()["verdict"]
    assert verdict == "exploding"
    assert read_metric(client, 'gradmedic_verdict_changes_total{verdict="exploding"}') == 1


def test_connections(client: TestClient, database: Any) -> None:
    """The metrics show how many connections are in use."""
    assert read_metric(client, "gradmedic_database_connections_in_use") == 0
    with database.reading() as session:
        session.connection()
        assert read_metric(client, "gradmedic_database_connections_in_use") == 1
    assert read_metric(client, "gradmedic_database_connections_max") == 20
