"""A service that asks for keys, and clients that have some."""

from __future__ import annotations

import time
from typing import Protocol
from uuid import UUID

import pytest
from starlette.testclient import TestClient
from tests.service.conftest import ReplaceServices

from gradmedic_service.access import service
from gradmedic_service.database.engine import Database


class MakeSecret(Protocol):
    """Makes a key and returns its secret."""

    def __call__(self, *scopes: str, project: str | None = "mine", run_id: UUID | None = None, name: str = "k") -> str:
        """Store the key."""


class Bearing(Protocol):
    """Returns a client that sends a key."""

    def __call__(self, *scopes: str, project: str | None = "mine", run_id: UUID | None = None) -> TestClient:
        """Make the key and the client."""


@pytest.fixture
def make_secret(database: Database) -> MakeSecret:
    """Make keys in the test's database."""

    def make(*scopes: str, project: str | None = "mine", run_id: UUID | None = None, name: str = "k") -> str:
        with database.writing() as session:
            _, secret = service.create_key(session, project=project, name=name, scopes=scopes, run_id=run_id)
        return secret

    return make


@pytest.fixture
def guarded(client: TestClient, replace_services: ReplaceServices) -> TestClient:
    """A client without a key, of a service that requires keys, on each database in turn."""
    replace_services(requires_keys=True)
    return client


@pytest.fixture
def within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the clock that requests are counted by: a minute that ends meanwhile would allow some more."""
    moment = time.time()
    monkeypatch.setattr("time.time", lambda: moment)


@pytest.fixture
def bearing(guarded: TestClient, make_secret: MakeSecret) -> Bearing:
    """Make clients with keys of their own."""

    def bear(*scopes: str, project: str | None = "mine", run_id: UUID | None = None) -> TestClient:
        secret = make_secret(*scopes, project=project, run_id=run_id)
        headers = {"Authorization": f"Bearer {secret}"}
        return TestClient(guarded.app, raise_server_exceptions=False, headers=headers, base_url=str(guarded.base_url))

    return bear
