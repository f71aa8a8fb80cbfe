"""A service that requires API keys, and clients with keys: fixtures for tests under tests/service."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient
from tests.support.app_client import AppClient
from tests.support.service_app import ReplaceServices

from gradmedic_service.access import service
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings


class MakeSecret(Protocol):
    """Makes a key and returns its secret."""

    def __call__(self, *scopes: str, project: str | None = "mine", run_id: UUID | None = None, name: str = "k") -> str:
        """Store the key."""


class ClientWithKey(Protocol):
    """Returns a client that sends a new API key."""

    def __call__(self, *scopes: str, project: str | None = "mine", run_id: UUID | None = None) -> TestClient:
        """Make the key and the client."""


@pytest.fixture
def make_secret(database: Database) -> MakeSecret:
    """Make API keys in the test's database."""

    def make(*scopes: str, project: str | None = "mine", run_id: UUID | None = None, name: str = "k") -> str:
        with database.writing() as session:
            _, secret = service.create_key(session, project=project, name=name, scopes=scopes, run_id=run_id)
        return secret

    return make


@pytest.fixture
def client_without_key(client: TestClient, replace_services: ReplaceServices) -> TestClient:
    """A client without a key, of a service that requires keys, on each database in turn."""
    replace_services(requires_keys=True)
    return client


@pytest.fixture
def client_with_key(client_without_key: TestClient, make_secret: MakeSecret) -> ClientWithKey:
    """Make clients that send a key of their own."""

    def make_client(*scopes: str, project: str | None = "mine", run_id: UUID | None = None) -> TestClient:
        secret = make_secret(*scopes, project=project, run_id=run_id)
        headers = {"Authorization": f"Bearer {secret}"}
        return AppClient(
            client_without_key.app,
            raise_server_exceptions=False,
            headers=headers,
            base_url=str(client_without_key.base_url),
        )

    return make_client


def create_secret(database_url: str, *scopes: str, project: str = "tests") -> str:
    """Store an API key in a migrated database, and return its secret."""
    database = Database(Settings(database_url=SecretStr(database_url)))
    try:
        with database.writing() as session:
            _, secret = service.create_key(session, project=project, name="key", scopes=scopes, run_id=None)
    finally:
        database.close()
    return secret
