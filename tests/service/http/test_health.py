"""Liveness, readiness and the published limits."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient
from tests.service.conftest import ReplaceServices

from gradmedic.protocol.service import Limits
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings


def test_alive(client: TestClient) -> None:
    """A process that serves requests is alive."""
    assert client.get("/healthz").json() == {"status": "ok"}


def test_ready(client: TestClient) -> None:
    """A migrated database makes the service ready."""
    assert client.get("/readyz").json() == {"status": "ok"}


def test_not_ready_without_migrations(
    session_app: FastAPI, replace_services: ReplaceServices, empty_database_url: str
) -> None:
    """A database at another revision answers 503 and the command to run; the process is alive all the same."""
    schema.upgrade(empty_database_url)
    schema.downgrade(empty_database_url, "base")
    replace_services(database=Database(Settings(database_url=SecretStr(empty_database_url))))
    with TestClient(session_app, raise_server_exceptions=False) as client:
        response = client.get("/readyz")
        assert (response.status_code, response.json()["error_code"]) == (503, "database_not_migrated")
        assert "`gradmedic db upgrade`" in response.json()["detail"]
        assert client.get("/healthz").status_code == 200


def test_limits_are_published(sqlite_client: TestClient) -> None:
    """The limits are those of the settings, in the form that clients decode."""
    response = sqlite_client.get("/api/v1/limits")
    assert msgspec.json.decode(response.content, type=Limits) == Settings().limits()
    assert response.json()["wire_versions"] == [1]
