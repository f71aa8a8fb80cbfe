"""Request ids, and one log line per request."""

from __future__ import annotations

import pytest
import structlog
from starlette.testclient import TestClient


def test_a_valid_request_id_is_kept(sqlite_client: TestClient) -> None:
    """The answer has the client's own request id, so that the client finds its request in the log."""
    response = sqlite_client.get("/healthz", headers={"X-Request-ID": "job-7.retry_2"})
    assert response.headers["x-request-id"] == "job-7.retry_2"


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"a;drop", b"\xc3\xa9"])
def test_an_invalid_request_id_is_replaced(sqlite_client: TestClient, given: bytes) -> None:
    """A request id that could break a log line or a header is replaced by a new one."""
    response = sqlite_client.get("/healthz", headers={b"X-Request-ID": given})
    assert len(response.headers["x-request-id"]) == 32


def test_one_log_line_per_request(sqlite_client: TestClient) -> None:
    """A request is logged once, with method, path and status, and without its query, which may contain a secret."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        sqlite_client.get("/api/v1/runs?q=secret", headers={"X-Request-ID": "r1"})
    (line,) = lines
    assert (line["method"], line["path"], line["status"], line["request_id"]) == ("GET", "/api/v1/runs", 200, "r1")
    assert "secret" not in str(line)


def test_control_characters_of_a_path_are_escaped(sqlite_client: TestClient) -> None:
    """A path cannot put NUL, line breaks or a terminal's commands into the log."""
    with structlog.testing.capture_logs() as lines:
        sqlite_client.get("/%00%0A%1B%5B2J/%C3%A9")
    assert [line["path"] for line in lines] == [r"/\x00\n\x1b[2J/é"]


def test_health_checks_are_not_logged(sqlite_client: TestClient) -> None:
    """A health check that succeeds is not logged."""
    with structlog.testing.capture_logs() as lines:
        sqlite_client.get("/healthz")
        sqlite_client.get("/readyz")
    assert lines == []


def test_a_failure_is_logged_with_its_reason(sqlite_client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of an unexpected error is in the log but not in the answer; both have the same request id."""

    def fail(*_arguments: object) -> None:
        raise RuntimeError("kaboom")

    monkeypatch.setattr("gradmedic_service.runs.service.get", fail)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        response = sqlite_client.get("/api/v1/runs/0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50")
    assert response.status_code == 500
    assert "kaboom" not in response.text
    failure, request = lines
    assert failure["exc_info"]
    assert (failure["event"], request["status"]) == ("failed", 500)
    assert failure["request_id"] == response.json()["request_id"]
