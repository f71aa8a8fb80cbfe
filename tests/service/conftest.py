"""The service for the tests, in this process over ASGI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient
from tests.support.app_client import AppClient
from tests.support.patience import PATIENCE
from tests.support.service_app import CreateRun, ReplaceServices

from gradmedic_service.app import build_services, create_app
from gradmedic_service.database.engine import Database
from gradmedic_service.services import Services, provide_services, services_of
from gradmedic_service.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def _allow_test_host() -> Iterator[None]:
    """Make services in this process answer under the host name of Starlette's test client, and encrypt secrets."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADMEDIC_ALLOWED_HOSTS", "testserver")
        environment.setenv("GRADMEDIC_SECRET_KEY", 43 * "k")
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_logging() -> None:
    """Print events without the local variables of every frame, which takes longer than the tests."""
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, structlog.processors.KeyValueRenderer()])


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings of a service, on each database in turn."""
    return _patient_settings(database_url)


def _patient_settings(database_url: str) -> Settings:
    """Return settings for slow machines, and for tests that play a worker, send no heartbeats and do the due work."""
    return Settings(
        database_url=SecretStr(database_url),
        database_timeout=PATIENCE,
        trial_lease=PATIENCE,
        due_work_interval=24 * 3600.0,
    )


@pytest.fixture(scope="session")
def session_app(_allow_test_host: None, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """The application, built once, because that takes longer than most tests. Each test provides its own services."""
    return create_app(Settings(database_url=SecretStr(f"sqlite:///{tmp_path_factory.mktemp('app')}/unused.db")))


@pytest.fixture
def replace_services(session_app: FastAPI) -> ReplaceServices:
    """Replace parts of the services that a client's fixture has provided."""

    def replace_parts(**parts: Any) -> Services:
        services = replace(services_of(session_app), **parts)
        provide_services(session_app, services)
        return services

    return replace_parts


@pytest.fixture
def client(session_app: FastAPI, settings: Settings, database: Database) -> Iterator[TestClient]:
    """A client of the service on each database in turn."""
    services = build_services(settings, services_of(session_app).route_table)
    provide_services(session_app, replace(services, database=database))
    with AppClient(session_app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def sqlite_client(session_app: FastAPI, sqlite_url: str) -> Iterator[TestClient]:
    """A client of the service on SQLite, for what does not depend on the database."""
    route_table = services_of(session_app).route_table
    provide_services(session_app, build_services(_patient_settings(sqlite_url), route_table))
    with AppClient(session_app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """The database alone, on each backend in turn."""
    database = Database(settings)
    yield database
    database.close()


@pytest.fixture
def create_run() -> CreateRun:
    """Create runs whose layers are `layer0`, `layer1`, ..."""

    def create(
        client: httpx2.Client, layers: int = 2, statistics: tuple[str, ...] = ("grad_norm",), **fields: Any
    ) -> str:
        body = {
            "project": "tests",
            "layers": [{"name": f"layer{index}"} for index in range(layers)],
            "statistics": list(statistics),
            **fields,
        }
        response = client.post("/api/v1/runs", json=body)
        assert response.status_code == 201, response.text
        return f"/api/v1/runs/{response.json()['id']}"

    return create
