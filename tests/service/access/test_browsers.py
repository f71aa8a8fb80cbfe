"""A page of another site can neither reach the service under another name, nor change anything, nor read an answer."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.browsers import SECURITY_HEADERS
from gradmedic_service.settings import Settings

RUNS = f"{API_PATH}/runs"
RUN = {"project": "p", "layers": []}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST", "localhost:8642", "[::1]:1"])
def test_names_of_this_machine(sqlite_client: TestClient, host: str) -> None:
    """Every name of this machine is accepted, with any port."""
    assert sqlite_client.get(RUNS, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8642", "", "[::1", "127.0.0.2"]
)
@pytest.mark.parametrize("path", [RUNS, "/docs", "/openapi.json", "/"])
def test_rebound_names(sqlite_client: TestClient, host: str, path: str) -> None:
    """A foreign name that resolves to this machine (DNS rebinding) is refused; the error has the option to allow it."""
    response = sqlite_client.get(path, headers={"Host": host})
    assert (response.status_code, response.json()["error_code"]) == (403, "host_not_allowed")
    assert "--allowed-host" in response.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://testserver:8080"},
        {"Origin": "http://testserver.evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "PUT"])
def test_cross_origin_writes(sqlite_client: TestClient, headers: dict[str, str], method: str) -> None:
    """A page of another origin, or of another port, cannot change anything."""
    response = sqlite_client.request(method, RUNS, json=RUN, headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (403, "cross_origin")
    assert sqlite_client.get(RUNS).json()["items"] == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://testserver"}, {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}],
    ids=str,
)
def test_own_pages_and_programs_may_write(sqlite_client: TestClient, headers: dict[str, str]) -> None:
    """The service's own pages may change things, and so may programs, which send neither header."""
    assert sqlite_client.post(RUNS, json=RUN, headers=headers).status_code == 201


def test_no_cors(sqlite_client: TestClient) -> None:
    """Neither a preflight nor an answer allows another origin to read anything."""
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
    for response in (sqlite_client.options(RUNS, headers=headers), sqlite_client.get(RUNS, headers=headers)):
        assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", [RUNS, f"{RUNS}/x", "/docs", "/nothing", "/healthz", "/docs/files/swagger-ui.css"])
def test_security_headers(sqlite_client: TestClient, path: str) -> None:
    """Every answer, error, page and file has all security headers; only answers of the API have `no-store`."""
    headers = sqlite_client.get(path).headers
    assert {name.lower() for name in SECURITY_HEADERS} <= headers.keys()
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert (headers.get("cache-control") == "no-store") == path.startswith(API_PATH)


def test_security_headers_of_refusals(sqlite_client: TestClient) -> None:
    """The refusal of a name has the security headers and a request id, too."""
    response = sqlite_client.get(RUNS, headers={"Host": "evil.example"})
    assert {name.lower() for name in SECURITY_HEADERS} <= response.headers.keys()
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_accepted_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of this machine and of the setting are accepted; if keys are required and no name is set, all are."""
    monkeypatch.delenv("GRADMEDIC_ALLOWED_HOSTS")
    assert Settings().accepted_hosts == ("localhost", "127.0.0.1", "[::1]")
    assert Settings(host="::1").accepted_hosts == ("localhost", "127.0.0.1", "[::1]")
    assert Settings(require_auth=True).accepted_hosts is None
    assert Settings(behind_proxy=True).accepted_hosts is None
    monkeypatch.setenv("GRADMEDIC_ALLOWED_HOSTS", "a.example, b.example")
    assert Settings(require_auth=True).accepted_hosts == ("localhost", "127.0.0.1", "[::1]", "a.example", "b.example")


@pytest.mark.slow
def test_allowed_host(serve: Any, sqlite_url: str) -> None:
    """`--allowed-host` adds a name to those of this machine."""
    with serve(sqlite_url, "--allowed-host", "gradmedic.lan") as served:
        for host, status in (("gradmedic.lan", 200), ("other.lan", 403)):
            assert httpx2.get(f"{served.url}/api/v1/limits", headers={"Host": host}).status_code == status
