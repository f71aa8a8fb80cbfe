"""Liveness, readiness and the published limits."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient
from tests.support.service_app import ReplaceServices

import gradmedic
from gradmedic.protocol.service import Limits
from gradmedic_service.app import build_services
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.http.routes import RouteTable
from gradmedic_service.settings import Settings


def test_alive(client: TestClient, replace_services: ReplaceServices) -> None:
    """`/healthz` answers that the process is alive, and what it is; where no key is needed, also its database."""
    answer = client.get("/healthz").json()
    assert (answer.pop("status"), answer.pop("version")) == ("ok", gradmedic.__version__)
    assert answer.pop("started_at").endswith("Z")
    assert answer.keys() == {"database"}
    for requires_keys in (False, True):
        settings = Settings(database_url=SecretStr("postgresql://u:hidden@h/d"), require_auth=requires_keys)
        replace_services(liveness=build_services(settings, RouteTable(FastAPI())).liveness)
        named = client.get("/healthz").json()["database"]
        assert named == (None if requires_keys else "postgresql+psycopg://u:***@h/d")


def test_ready(client: TestClient) -> None:
    """With a migrated database the service is ready."""
    assert client.get("/readyz").json() == {"status": "ok"}


def test_not_ready_without_migrations(
    session_app: FastAPI, replace_services: ReplaceServices, empty_database_url: str
) -> None:
    """With a database at another revision `/readyz` answers 503 and the command to run; the process is alive."""
    schema.upgrade(empty_database_url)
    schema.downgrade(empty_database_url, "base")
    replace_services(database=Database(Settings(database_url=SecretStr(empty_database_url))))
    with TestClient(session_app, raise_server_exceptions=False) as client:
        response = client.get("/readyz")
        assert (response.status_code, response.json()["error_code"]) == (503, "database_not_migrated")
        assert "`gradmedic db upgrade`" in response.json()["detail"]
        assert client.get("/healthz").status_code == 200


def test_limits_are_published(sqlite_client: TestClient) -> None:
    """The published limits are those of the settings, and clients can decode them."""
    response = sqlite_client.get("/api/v1/limits")
    assert msgspec.json.decode(response.content, type=Limits) == Settings().limits()
    assert response.json()["wire_versions"] == [1]


def test_every_bound_is_published(sqlite_client: TestClient) -> None:
    """Every bound that a single client can exceed is published."""
    published = sqlite_client.get("/api/v1/limits").json()
    bounds = {name for name in Settings.model_fields if name.startswith("max_")}
    assert bounds - published.keys() == {
        "max_concurrent_requests",
        "max_waiting_requests",
        "max_streams",
        "max_connections",
        "max_connections_per_address",
        "max_arrived_bytes",
        "max_answer_bytes",
    }
