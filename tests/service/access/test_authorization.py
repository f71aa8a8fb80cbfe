"""Every route says what it needs, and gets it."""

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
from gradmedic_service.access.authorization import Need, Public, needs, require_needs
from gradmedic_service.access.errors import ApiKeyUnknown
from gradmedic_service.access.keyring import Keyring
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.database.engine import Database

API = API_PATH
PAGES = {"/", "/runs/{run_id}", "/compare", "/reruns", "/reruns/{rerun_id}", "/projects", "/api-keys", "/login"}
"""Public, since who is not known is led to the login; see tests/service/web."""
PUBLIC_PATHS = {
    *PAGES, "/docs", "/docs/files", "/healthz", "/openapi.json", "/readyz", "/static/{version}/{path:path}"
}  # fmt: skip


def concrete(path: str) -> str:
    """Fill a route's parameters."""
    return re.sub(r"\{\w*name(:path)?\}", "p", re.sub(r"\{\w*id\}", str(new_id()), path))


def test_every_route_says_what_it_needs(session_app: FastAPI) -> None:
    """The route table has no route without a declared need, and what is public is this list."""
    found = list(needs(session_app))
    assert all(need is not None for _, _, need in found)
    assert {path for path, _, need in found if isinstance(need, Public)} == PUBLIC_PATHS
    assert {path for path, _, _ in found if path.startswith(API)}.isdisjoint(PUBLIC_PATHS)


@pytest.mark.parametrize("kind", ["route", "plain route", "mounted application"])
def test_a_silent_route_does_not_start(kind: str) -> None:
    """A route, a Starlette route or a mounted application that does not say what it needs is an error by name."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    if kind == "route":

        @app.get("/leak")
        def leak() -> None:
            """Say nothing of what it needs."""

    elif kind == "plain route":
        app.add_route("/leak", lambda _request: None)  # type: ignore[arg-type,return-value]
    else:
        app.mount("/leak", Starlette())
    with pytest.raises(RuntimeError, match="/leak"):
        require_needs(app)


def test_every_route_refuses_without_a_key(guarded: TestClient, session_app: FastAPI) -> None:
    """Without a key every route that is not public answers 401 and how to authenticate, whatever else is wrong."""
    checked = 0
    for path, methods, need in needs(session_app):
        if isinstance(need, Public):
            continue
        for method in methods:
            response = guarded.request(method, concrete(path))
            assert (response.status_code, response.json()["error_code"]) == (401, "api_key_missing"), path
            assert response.headers["www-authenticate"].startswith("Bearer ")
            checked += 1
    assert checked >= 16


def test_every_route_refuses_other_scopes(bearing: Any, session_app: FastAPI) -> None:
    """A key with every scope but those that a route names gets 403, with what is needed and what it has."""
    clients: dict[tuple[str, ...], TestClient] = {}
    for path, methods, need in needs(session_app):
        if not isinstance(need, Need) or not need.scopes:
            continue
        others = tuple(scope for scope in SCOPES if scope not in (*need.scopes, "admin"))
        client = clients.setdefault(others, bearing(*others))
        for method in methods:
            options: dict[str, Any] = {} if method in ("GET", "DELETE") else {"json": {}}
            response = client.request(method, concrete(path), **options)
            assert (response.status_code, response.json()["error_code"]) == (403, "scope_missing"), path
            detail = response.json()["detail"]
            assert all(repr(scope) in detail for scope in need.scopes)
            assert ", ".join(sorted(others)) in detail


def test_admin_holds_every_scope(bearing: Any, create_run: Any) -> None:
    """An `admin` key of a project does there what every scope allows."""
    admin = bearing("admin")
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
def test_why_a_key_is_refused(guarded: TestClient, header: str | None, code: str, words: str) -> None:
    """The error alone says whether the key is missing, misspelled or unknown, and never repeats all of it."""
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    response = guarded.get(f"{API}/runs", headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (401, code)
    assert words in response.json()["detail"]
    assert "A" * 43 not in response.text


def test_expired_keys_are_refused(guarded: TestClient, database: Database) -> None:
    """A key is accepted until it expires, and the error says when that was."""
    with database.writing() as session:
        moment = datetime.now(UTC) - timedelta(seconds=1)
        _, secret = service.create_key(session, project="p", name="old", scopes=["read"], expires_at=moment)
    response = guarded.get(f"{API}/runs", headers={"Authorization": f"Bearer {secret}"})
    assert (response.status_code, response.json()["error_code"]) == (401, "api_key_expired")
    assert f"{moment:%Y-%m-%dT%H:%M}" in response.json()["detail"]
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


def test_without_keys_this_machine_is_trusted(client: TestClient) -> None:
    """On loopback no key is needed; one that is sent is checked all the same, and the error says what to do."""
    assert client.get(f"{API}/runs").status_code == 200
    response = client.get(f"{API}/runs", headers={"Authorization": f"Bearer gradmedic_{'A' * 43}"})
    assert (response.status_code, response.json()["error_code"]) == (401, "api_key_unknown")
    assert "unset GRADMEDIC_API_KEY" in response.json()["detail"]


def test_recognizing_a_key_costs_no_query(bearing: Any, guarded: TestClient, database: Database) -> None:
    """Of many requests with a key only the first asks the database for it."""
    reader = bearing("read")
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    for _ in range(20):
        assert reader.get(f"{API}/limits").status_code == 200
    assert len([one for one in statements if "api_keys" in one]) == 1


def test_another_replica_learns_of_a_revocation(database: Database, make_secret: Any) -> None:
    """What a process believes about a key it reads again after `VERIFIED_SECONDS`, and not before."""
    now = [100.0]
    replica, secret = Keyring(clock=lambda: now[0]), make_secret("read")
    key_id = replica.look_up(database, secret).key_id
    assert key_id is not None
    with database.writing() as session:
        service.revoke_key(session, OPERATOR, key_id)
    now[0] += keyring_module.VERIFIED_SECONDS - 0.01
    assert replica.recall(secret) is not None
    now[0] += 0.01
    assert replica.recall(secret) is None


def test_the_keyring_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many unknown keys are tried, no more than `KNOWN_KEYS` are remembered."""
    monkeypatch.setattr(keyring_module, "KNOWN_KEYS", 10)
    keyring = Keyring()
    for number in range(50):
        with pytest.raises(ApiKeyUnknown):
            keyring.look_up(database, f"gradmedic_{number:043d}")
    assert len(keyring._known) == 10


def test_metrics_concern_every_project(bearing: Any, guarded: TestClient) -> None:
    """Where keys are asked for, `/metrics` is read with one that reads every project, and with no other."""
    assert guarded.get("/metrics").status_code == 401
    assert bearing("ingest", project=None).get("/metrics").json()["error_code"] == "scope_missing"
    assert bearing("admin").get("/metrics").json()["error_code"] == "beyond_key"
    response = bearing("read", project=None).get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
