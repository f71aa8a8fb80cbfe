"""API keys: they are made, shown once, used, listed and revoked, and audit records note it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.secrets import hash_secret, is_secret
from gradmedic_service.database import models
from gradmedic_service.database.engine import Database
from gradmedic_service.services import services_of

KEYS = f"{API_PATH}/api-keys"


def test_life_of_a_key(client_with_key: Any, client_without_key: TestClient, database: Database) -> None:
    """A key's secret is shown once and stored as a hash; the key works, is listed with its last use, and is revoked."""
    admin = client_with_key("admin", project=None)
    made = admin.post(KEYS, json={"project": "p", "name": "nightly", "scopes": ["read", "ingest"]})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()
    secret = key.pop("secret")
    assert is_secret(secret)
    assert secret.startswith(key["prefix"])
    assert key["scopes"] == ["ingest", "read"]
    with database.reading() as session:
        stored = session.get(models.ApiKey, UUID(key["id"]))
        assert stored is not None
        assert stored.digest == hash_secret(secret)
        assert secret not in str(vars(stored))
    (listed,) = [item for item in admin.get(KEYS).json()["items"] if item["id"] == key["id"]]
    assert listed == key
    assert listed["last_used_at"] is None

    header = {"Authorization": f"Bearer {secret}"}
    before = datetime.now(UTC)
    assert client_without_key.get(f"{API_PATH}/runs", headers=header).status_code == 200
    (listed,) = [item for item in admin.get(KEYS).json()["items"] if item["id"] == key["id"]]
    assert before <= datetime.fromisoformat(listed["last_used_at"]) <= datetime.now(UTC)

    assert admin.delete(f"{KEYS}/{key['id']}").status_code == 204
    refused = client_without_key.get(f"{API_PATH}/runs", headers=header)
    assert (refused.status_code, refused.json()["error_code"]) == (401, "api_key_revoked")
    assert "nightly" in refused.json()["detail"]
    assert admin.delete(f"{KEYS}/{key['id']}").status_code == 204
    (listed,) = [item for item in admin.get(KEYS).json()["items"] if item["id"] == key["id"]]
    assert listed["revoked_at"] is not None


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes[0]"),
        ({"scopes": ["read", "read"]}, "scopes[1]"),
        ({"scopes": ["read"], "project": " "}, "project"),
        ({"scopes": ["read"], "name": "a\r\nb"}, "name"),
        ({"scopes": ["read"], "name": "x" * 513}, "name"),
        ({"scopes": ["read"], "run_id": str(new_id())}, "run_id"),
        ({"scopes": ["admin"], "project": "p", "run_id": str(new_id())}, "scopes[0]"),
        ({"scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"scopes": ["read"], "expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ({"scopes": ["read"], "expires_at": "9999-12-31T23:59:59-23:59"}, "expires_at"),
        ({"scopes": ["read"], "expires_at": "9999-12-31T00:00:00Z"}, "expires_at"),
        ({"scopes": ["read"], "expires_at": "0001-01-01T00:00:00+23:59"}, "expires_at"),
        ({"scopes": ["read"], "secret": "mine"}, "secret"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_keys(sqlite_client: TestClient, body: dict[str, Any], path: str) -> None:
    """Missing, unknown or repeated scopes, invalid names, and scopes beyond a run for a key of one run are refused."""
    response = sqlite_client.post(KEYS, json=body)
    assert response.status_code == 422
    assert [error["path"] for error in response.json()["errors"]] == [path]


def test_last_uses_are_collected(client_with_key: Any, session_app: FastAPI, database: Database) -> None:
    """Using a key writes nothing; the periodic task writes all last uses together."""
    reader = client_with_key("read")
    for _ in range(3):
        reader.get(f"{API_PATH}/runs")
    with database.reading() as session:
        assert session.query(models.ApiKey.last_used_at).scalar() is None
    services_of(session_app).keyring.write_last_uses(database)
    with database.reading() as session:
        written = session.query(models.ApiKey.last_used_at).scalar()
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    services_of(session_app).keyring.write_last_uses(database)


def test_last_uses_are_written_at_the_end(
    session_app: FastAPI, client_without_key: TestClient, make_secret: Any, database: Database
) -> None:
    """A service that stops writes the last uses that it has collected."""
    secret = make_secret("read")
    with TestClient(session_app, base_url=str(client_without_key.base_url)) as short_lived:
        short_lived.get(f"{API_PATH}/runs", headers={"Authorization": f"Bearer {secret}"})
    with database.reading() as session:
        assert session.query(models.ApiKey.last_used_at).scalar() is not None


def test_audit_records(client_with_key: Any, create_run: Any) -> None:
    """Creating and deleting runs, and making and revoking keys, is recorded with the acting key, newest first."""
    admin = client_with_key("admin")
    path = create_run(admin, project="mine")
    run_id = path.rpartition("/")[2]
    key = admin.post(KEYS, json={"project": "mine", "scopes": ["read"]}).json()
    admin.delete(f"{KEYS}/{key['id']}")
    admin.delete(path)
    records = admin.get(f"{API_PATH}/audit-records").json()["items"]
    assert [(record["action"], record["object_id"]) for record in records[:4]] == [
        ("delete_run", run_id),
        ("revoke_api_key", key["id"]),
        ("create_api_key", key["id"]),
        ("create_run", run_id),
    ]
    assert {record["actor"] for record in records[:4]} == {"k"}
    assert records[0]["actor_key_id"] is not None
    assert (records[4]["action"], records[4]["actor"]) == ("create_api_key", "command line")


def test_lists_have_pages(client_with_key: Any) -> None:
    """Keys and audit records are listed in pages, and each list refuses the other's page token."""
    admin = client_with_key("admin")
    for number in range(5):
        admin.post(KEYS, json={"project": "mine", "name": f"key{number}", "scopes": ["read"]})
    names: list[str] = []
    query: dict[str, Any] = {"max_results": 2}
    while True:
        page = admin.get(KEYS, params=query).json()
        names += [item["name"] for item in page["items"]]
        if page["next_page_token"] is None:
            break
        query["page_token"] = page["next_page_token"]
    assert names == ["key4", "key3", "key2", "key1", "key0", "k"]
    assert admin.get(f"{API_PATH}/audit-records", params=query).status_code == 422
    assert admin.get(KEYS, params={"page_token": "x"}).status_code == 422
    assert admin.get(KEYS, params={"max_results": 0}).status_code == 422


def test_a_key_creates_its_project(client_with_key: Any) -> None:
    """A project exists as soon as a key names it."""
    admin = client_with_key("admin", project=None)
    admin.post(KEYS, json={"project": "new", "scopes": ["read"]})
    assert admin.get(f"{API_PATH}/projects/new").status_code == 200
