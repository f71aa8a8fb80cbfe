"""A service that asks for keys, and clients that have some."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol
from uuid import UUID

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from gradmedic_service.access import service
from gradmedic_service.access.keyring import Keyring
from gradmedic_service.access.rates import Rates
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings


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
def guarded(session_app: FastAPI, client: TestClient) -> Iterator[TestClient]:
    """The service on each database in turn, with authentication on; this client has no key."""
    state = session_app.state
    rates, state.rates = state.rates, Rates(Settings().max_requests_per_minute)
    state.requires_keys, state.keyring = True, Keyring()
    yield client
    state.requires_keys, state.keyring, state.rates = False, Keyring(), rates


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
