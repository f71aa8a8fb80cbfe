"""The service for the tests: in this process over ASGI, or a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient
from tests.support.patience import PATIENCE
from tests.support.postgres import PostgresServer

from gradmedic_service.app import build_services, create_app
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.services import Services, provide_services, services_of
from gradmedic_service.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def _answer_the_test_client() -> Iterator[None]:
    """Let services in this process answer under the name that Starlette's test client uses."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADMEDIC_ALLOWED_HOSTS", "testserver")
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_logging() -> None:
    """Print events without the local variables of every frame, which takes longer than the tests."""
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, structlog.processors.KeyValueRenderer()])


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings of a service on each database in turn."""
    return _patient_settings(database_url)


def _patient_settings(database_url: str) -> Settings:
    """Return settings for slow machines, and for tests that play a worker and send no heartbeats."""
    return Settings(database_url=SecretStr(database_url), database_timeout=PATIENCE, trial_lease=PATIENCE)


@pytest.fixture(scope="session")
def session_app(_answer_the_test_client: None, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """The application, built once, because that takes longer than most tests. Each test provides its own services."""
    return create_app(Settings(database_url=SecretStr(f"sqlite:///{tmp_path_factory.mktemp('app')}/unused.db")))


class ReplaceServices(Protocol):
    """Replaces some parts of the session's application until the end of the test, and returns its services."""

    def __call__(self, **parts: Any) -> Services:
        """Replace the parts with these names."""


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
    with TestClient(session_app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def sqlite_client(session_app: FastAPI, sqlite_url: str) -> Iterator[TestClient]:
    """A client of the service on SQLite, for what does not depend on the database."""
    route_table = services_of(session_app).route_table
    provide_services(session_app, build_services(_patient_settings(sqlite_url), route_table))
    with TestClient(session_app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """The database alone, on each backend in turn."""
    database = Database(settings)
    yield database
    database.close()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own, migrated."""
    with tempfile.TemporaryDirectory(prefix="gradmedic-faults-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder))
        try:
            server.start()
            schema.upgrade(server.url)
            yield server
        finally:
            server.stop(signal.SIGINT)


class CreateRun(Protocol):
    """Creates a run of some layers and statistics and returns its path."""

    def __call__(
        self, client: httpx2.Client, layers: int = 2, statistics: tuple[str, ...] = ("grad_norm",), **fields: Any
    ) -> str:
        """Send the request."""


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


@dataclass(frozen=True)
class Served:
    """A service in a process of its own."""

    url: str
    process: subprocess.Popen[str]


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Start `gradmedic serve` on a free port; it is killed at the end if it has not ended."""

    @contextmanager
    def start(database_url: str, *arguments: str, lease: float = 15.0, **environment: str) -> Iterator[Served]:
        command = [str(Path(sys.executable).parent / "gradmedic"), "serve", "--port", "0"]
        with (tmp_path / "serve.log").open("a") as log:
            process = subprocess.Popen(
                [*command, "--database-url", database_url, *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={"PATH": os.environ["PATH"], "GRADMEDIC_TRIAL_LEASE": str(lease), **environment},
                cwd=tmp_path,
            )
        with process:
            try:
                assert process.stdout is not None
                found = re.search(r"https?://\S+", process.stdout.readline())
                assert found is not None, (tmp_path / "serve.log").read_text()
                yield Served(found.group(), process)
            finally:
                if process.poll() is None:
                    process.kill()

    return start
