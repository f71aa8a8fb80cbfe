"""Every route declares a requirement, and the service enforces it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event
from starlette.applications import Starlette
from starlette.testclient import TestClient

from gradmedic.protocol.access import SCOPES
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.service import API_PATH
from gradmedic_service.access import keyring as keyring_module
from gradmedic_service.access import service
from gradmedic_service.access.authorization import Public, ScopeRequirement, check_requirements, route_requirements
from gradmedic_service.access.errors import ApiKeyUnknown
from gradmedic_service.access.keyring import Keyring
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.database.engine import Database

API = API_PATH
PAGES = {
    "/", "/runs/{run_id}", "/compare", "/reruns", "/reruns/{rerun_id}", "/alerts", "/projects", "/api-keys", "/login",
}  # fmt: skip
"""Public, because they redirect to the login without a session; see tests/service/web."""
PUBLIC_PATHS = {
    *PAGES, "/conditions", "/conditions/{name}", "/docs", "/docs/files", "/healthz", "/openapi.json",
    "/operations", "/operations/{name}", "/readyz",
    "/static/{version}/{path:path}"
}  # fmt: skip


def concrete(path: str) -> str:
    """Return the path of a route with values for its parameters."""
    return re.sub(r"\{\w*name(:path)?\}", "p", re.sub(r"\{\w*id\}", str(new_id()), path))


def test_every_route_declares_a_requirement(session_app: FastAPI) -> None:
    """No route lacks a requirement, and exactly the listed paths are public."""
    found = list(route_requirements(session_app))
    assert all(requirement is not None for _, _, requirement in found)
    assert {path for path, _, requirement in found if isinstance(requirement, Public)} == PUBLIC_PATHS
    assert {path for path, _, _ in found if path.startswith(API)}.isdisjoint(PUBLIC_PATHS)


@pytest.mark.parametrize("kind", ["route", "plain route", "mounted application"])
def test_a_route_without_a_requirement(kind: str) -> None:
    """A route, a Starlette route or a mounted application without a requirement is an error that names its path."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    if kind == "route":

        @app.get("/leak")
        def leak() -> None:
            """Declare no requirement."""

    elif kind == "plain route":
        app.add_route("/leak", lambda _request: None)  # type: ignore[arg-type,return-value]
    else:
        app.mount("/leak", Starlette())
    with pytest.raises(RuntimeError, match="/leak"):
        check_requirements(app)


def test_every_route_refuses_without_a_key(client_without_key: TestClient, session_app: FastAPI) -> None:
    """Without a key every route that is not public answers 401, whatever else is wrong with the request."""
    checked = 0
    for path, methods, requirement in route_requirements(session_app):
        if isinstance(requirement, Public):
            continue
        for method in methods:
            response = client_without_key.request(method, concrete(path))
            assert (response.status_code, response.json()["error_code"]) == (401, "api_key_missing"), path
            assert response.headers["www-authenticate"].startswith("Bearer ")
            checked += 1
    assert checked >= 16


def test_every_route_refuses_other_scopes(client_with_key: Any, session_app: FastAPI) -> None:
    """A key without a route's scopes gets 403; the detail names the scopes that are needed and those of the key."""
    clients: dict[tuple[str, ...], TestClient] = {}
    for path, methods, requirement in route_requirements(session_app):
        if not isinstance(requirement, ScopeRequirement) or not requirement.scopes:
            continue
        others = tuple(scope for scope in SCOPES if scope not in (*requirement.scopes, "admin"))
        client = clients.setdefault(others, client_with_key(*others))
        for method in methods:
            options: dict[str, Any] = {} if method in ("GET", "DELETE") else {"json": {}}
            response = client.request(method, concrete(path), **options)
            assert (response.status_code, response.json()["error_code"]) == (403, "scope_missing"), path
            detail = response.json()["detail"]
            assert all(repr(scope) in detail for scope in requirement.scopes)
            assert ", ".join(sorted(others)) in detail


def test_admin_includes_every_scope(client_with_key: Any, create_run: Any) -> None:
    """An `admin` key of a project may do there what any scope allows."""
    admin = client_with_key("admin")
    path = create_run(admin, project="mine")
    assert admin.post(f"{path}/steps", json={"steps": [0], "loss": [1.0]}).status_code == 200
    assert admin.get(f"{API}/runs").status_code == 200
    assert admin.delete(path).status_code == 204


@pytest.mark.parametrize(
    ("header", "code", "words"),
    [
        (None, "api_key_missing", "GRADMEDIC_API_KEY"),
        ("Basic YTpi", "api_key_missing", "Bearer"),
        ("Bearer", "api_key_missing", "Bearer"),
        ("Bearer ", "api_key_missing", "Bearer"),
        ("Bearer hello", "api_key_unknown", "form"),
        ("Bearer gradmedic_" + "A" * 43, "api_key_unknown", "gradmedic_AAAAAA..."),
        ("Bearer gradmedic_" + "A" * 42 + "é", "api_key_unknown", "form"),
    ],
)
def test_reasons_of_refused_keys(client_without_key: TestClient, header: str | None, code: str, words: str) -> None:
    """The error distinguishes missing, malformed and unknown keys, and never contains the whole key."""
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    response = client_without_key.get(f"{API}/runs", headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (401, code)
    assert words in response.json()["detail"]
    assert "A" * 43 not in response.text


def test_expired_keys_are_refused(client_without_key: TestClient, database: Database) -> None:
    """An expired key is refused, and the error contains the time of its expiry."""
    with database.writing() as session:
        moment = datetime.now(UTC) - timedelta(seconds=1)
        _, secret = service.create_key(session, project="p", name="old", scopes=["read"], expires_at=moment)
    response = client_without_key.get(f"{API}/runs", headers={"Authorization": f"Bearer {secret}"})
    assert (response.status_code, response.json()["error_code"]) == (401, "api_key_expired")
    assert f"{moment:%Y-%m-%dT%H:%M}" in response.json()["detail"]
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


def test_without_keys_this_machine_is_trusted(client: TestClient) -> None:
    """On loopback no key is needed. A key that is sent is checked nevertheless, and the error names the remedy."""
    assert client.get(f"{API}/runs").status_code == 200
    response = client.get(f"{API}/runs", headers={"Authorization": f"Bearer gradmedic_{'A' * 43}"})
    assert (response.status_code, response.json()["error_code"]) == (401, "api_key_unknown")
    assert "unset GRADMEDIC_API_KEY" in response.json()["detail"]


def test_authentication_is_cached(client_with_key: Any, client_without_key: TestClient, database: Database) -> None:
    """Of many requests with a key, only the first reads the key from the database."""
    reader = client_with_key("read")
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    for _ in range(20):
        assert reader.get(f"{API}/limits").status_code == 200
    assert len([statement for statement in statements if "api_keys" in statement]) == 1


def test_a_revocation_reaches_other_processes(database: Database, make_secret: Any) -> None:
    """A process uses a cached key for `CACHE_SECONDS`, and reads it again afterwards."""
    now = [100.0]
    replica, secret = Keyring(clock=lambda: now[0]), make_secret("read")
    key_id = replica.read_key(database, secret).key_id
    assert key_id is not None
    with database.writing() as session:
        service.revoke_key(session, OPERATOR, key_id)
    now[0] += keyring_module.CACHE_SECONDS - 0.01
    assert replica.find_key(secret) is not None
    now[0] += 0.01
    assert replica.find_key(secret) is None


def test_the_keyring_is_bounded(database: Database, make_secret: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many unknown keys are tried, at most `MAX_CACHED_KEYS` are cached, and none displaces a valid key."""
    monkeypatch.setattr(keyring_module, "MAX_CACHED_KEYS", 10)
    keyring, secret = Keyring(), make_secret("read")
    keyring.read_key(database, secret)
    for number in range(50):
        with pytest.raises(ApiKeyUnknown):
            keyring.read_key(database, f"gradmedic_{number:043d}")
    assert len(keyring._unknown) == 10
    assert keyring.find_key(secret) is not None


def test_metrics_need_a_key_of_every_project(client_with_key: Any, client_without_key: TestClient) -> None:
    """Where keys are required, only a key that may read every project may read `/metrics`."""
    assert client_without_key.get("/metrics").status_code == 401
    assert client_with_key("ingest", project=None).get("/metrics").json()["error_code"] == "scope_missing"
    assert client_with_key("admin").get("/metrics").json()["error_code"] == "beyond_key"
    response = client_with_key("read", project=None).get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
