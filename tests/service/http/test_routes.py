"""The route table: unknown query parameters are refused, and a 405 names the methods of the path."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from gradmedic.protocol.service import API_PATH

RUNS = f"{API_PATH}/runs"


@pytest.mark.parametrize("query", ["?nonsense=1", "?Project=p", "?project=p&x", "?verdict%00=1", "?max_results[]=3"])
def test_unknown_query_parameters(sqlite_client: TestClient, query: str) -> None:
    """An unknown query parameter is refused, and the error names the parameters of the route."""
    response = sqlite_client.get(f"{RUNS}{query}")
    assert (response.status_code, response.json()["error_code"]) == (422, "invalid_request")
    assert "max_results, page_token, parent_id, project" in response.json()["detail"]
    assert sqlite_client.get(f"{API_PATH}/limits?x=1").status_code == 422


@pytest.mark.parametrize(
    ("target", "path"),
    [("/runs?q=%00", "q"), ("/reruns?project=a%00", "project"), ("/runs?page_token=%00", "page_token"),
     ("/projects/a%00b", "name")],
)  # fmt: skip
def test_text_in_the_url_that_no_database_stores(sqlite_client: TestClient, target: str, path: str) -> None:
    """A NUL character in the path or in the query is refused with the name of its parameter."""
    response = sqlite_client.get(f"{API_PATH}{target}")
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, path)
    assert "NUL" in response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(RUNS, "GET, POST"), (f"{RUNS}/x", "DELETE, GET, PATCH"), (f"{RUNS}/x/steps", "GET, POST"), ("/healthz", "GET")],
)
def test_allowed_methods(sqlite_client: TestClient, path: str, allowed: str) -> None:
    """The `Allow` of a 405 has every method of the path, of all its routes."""
    for method in ("PUT", "OPTIONS"):
        response = sqlite_client.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)


def test_a_deletion_has_no_content(sqlite_client: TestClient, create_run: Any) -> None:
    """The answer 204 has neither a body nor a Content-Type."""
    response = sqlite_client.delete(create_run(sqlite_client))
    assert (response.status_code, response.content) == (204, b"")
    assert "content-type" not in response.headers
