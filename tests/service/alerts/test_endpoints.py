"""Alert destinations over HTTP."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook
from starlette.testclient import TestClient
from tests.support.alerts import add_alerts
from tests.support.receivers import Receiver, answering
from tests.support.service_app import ReplaceServices

from gradmedic_service.alerts.sending import build_sender
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import AlertDestination
from gradmedic_service.settings import Settings

DESTINATIONS = "/api/v1/alerts/destinations"
HISTORY = "/api/v1/alerts/history"
SECRET = "token-1234"  # noqa: S105 (no real token)
HOOK = f"https://hooks.example.com/{SECRET}"


def add(client: TestClient, **fields: Any) -> dict[str, Any]:
    """Add a destination and return it."""
    answer = client.post(DESTINATIONS, json={"project": "p", "address": HOOK, **fields})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def error_of(client: TestClient, **fields: Any) -> tuple[str, str]:
    """Return the path and the message of the error of a new destination."""
    answer = client.post(DESTINATIONS, json={"project": "p", "address": HOOK, **fields})
    assert answer.status_code == 422, answer.text
    error = answer.json()["errors"][0]
    return error["path"], error["message"]


def test_a_destination_is_added_read_changed_and_removed(client: TestClient, database: Database) -> None:
    """A destination has its address without secrets, defaults, and what a change sets; then it is gone."""
    created = add(client)
    assert (created["name"], created["address"]) == ("https://hooks.example.com/...", "https://hooks.example.com/...")
    assert (created["kind"], created["troubles"], created["muted_until"]) == ("webhook", None, None)
    path = f"{DESTINATIONS}/{created['id']}"
    public = {name: value for name, value in created.items() if name != "signing_secret"}
    assert client.get(path).json() == public
    assert client.get(DESTINATIONS, params={"project": "p"}).json()["items"] == [public]
    assert client.get(DESTINATIONS, params={"project": "other"}).json()["items"] == []
    changed = client.patch(path, json={"name": "on call", "troubles": ["critical"]}).json()
    assert changed == {**public, "name": "on call", "troubles": ["critical"]}
    assert client.patch(path, json={}).json() == changed
    with database.reading() as session:
        stored = session.get_one(AlertDestination, UUID(created["id"]))
        assert SECRET.encode() not in stored.secret
        assert SECRET not in stored.shown
    assert client.delete(path).status_code == 204
    missing = client.get(path)
    assert (missing.status_code, missing.json()["error_code"]) == (404, "alert_destination_not_found")
    assert client.get("/api/v1/projects/p").status_code == 200


def test_no_answer_has_the_secret(sqlite_client: TestClient) -> None:
    """Only the answer to the creation has the signing secret, and none has the address's own secret."""
    created = add(sqlite_client)
    answers = [
        sqlite_client.get(DESTINATIONS),
        sqlite_client.get(f"{DESTINATIONS}/{created['id']}"),
        sqlite_client.patch(f"{DESTINATIONS}/{created['id']}", json={"name": "n"}),
        sqlite_client.get("/api/v1/audit-records"),
    ]
    assert created["signing_secret"].startswith("whsec_")
    for answer in answers:
        assert answer.status_code == 200
        assert created["signing_secret"] not in answer.text
        assert SECRET not in answer.text
    assert SECRET not in json.dumps(created)
    actions = {record["action"] for record in answers[-1].json()["items"]}
    assert {"create_alert_destination", "update_alert_destination"} <= actions


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"address": "ftp://x"}, "address", "begins with ftp:"),
        ({"address": "http://169.254.169.254\n"}, "address", "no spaces"),
        ({"address": f"slack://{SECRET}"}, "address", "must be slack://TOKEN_A/TOKEN_B/TOKEN_C"),
        ({"address": "mailto:ml@example.com"}, "address", "GRADMEDIC_SMTP_URL"),
        ({"name": " "}, "name", "must not be empty"),
        ({"name": "x" * 600}, "name", "at most 512"),
        ({"project": ""}, "project", "must not be empty"),
        ({"troubles": []}, "troubles", "names none of critical, attention"),
        ({"troubles": ["critical", "bad"]}, "troubles[1]", "'bad' is not one of critical"),
        ({"troubles": ["failed", "failed"]}, "troubles[1]", "repeats 'failed'"),
        ({"verify": False}, "verify", "there is no such field"),
    ],
)
def test_bad_fields(sqlite_client: TestClient, fields: dict[str, Any], path: str, message: str) -> None:
    """An error names the field and what it may be, without a secret."""
    found_path, found = error_of(sqlite_client, **fields)
    assert found_path == path
    assert message in found
    assert SECRET not in found


def test_plain_http_depends_on_the_service(sqlite_client: TestClient, replace_services: ReplaceServices) -> None:
    """`http://` is accepted where no key is required, and refused where other machines connect."""
    add(sqlite_client, address="http://localhost:9999/hook")
    replace_services(sender=build_sender(Settings(require_auth=True)))
    assert error_of(sqlite_client, address="http://localhost:9999/hook") == ("address", "must begin with https://")


def test_without_a_secret_key(sqlite_client: TestClient, replace_services: ReplaceServices) -> None:
    """Without a secret key, an address with a secret is refused with how to make a key; a mailbox is not."""
    settings = Settings(
        secret_key=None, smtp_url=SecretStr("smtp://mail.example.com"), mail_from="gradmedic@example.com"
    )
    replace_services(sender=build_sender(settings))
    path, message = error_of(sqlite_client)
    assert path == "address"
    assert "GRADMEDIC_SECRET_KEY" in message
    assert "openssl rand -base64 32" in message
    created = add(sqlite_client, address="mailto:ml@example.com")
    assert (created["kind"], created["signing_secret"]) == ("mail", None)


def test_a_project_has_a_limit(client: TestClient, replace_services: ReplaceServices) -> None:
    """A project takes as many destinations as allowed; another project has its own."""
    replace_services(limits=Settings(max_alert_destinations=2).limits())
    add(client)
    add(client)
    full = client.post(DESTINATIONS, json={"project": "p", "address": HOOK})
    assert (full.status_code, full.json()["error_code"]) == (409, "alert_destinations_full")
    assert "has 2 alert destinations" in full.json()["detail"]
    add(client, project="other")


def test_muting(client: TestClient) -> None:
    """A destination is muted until a time, at most a year from now."""
    path = f"{DESTINATIONS}/{add(client)['id']}"
    until = (datetime.now(UTC) + timedelta(days=365)).replace(microsecond=0)
    muted = client.patch(path, json={"muted_until": until.isoformat()}).json()["muted_until"]
    assert datetime.fromisoformat(muted) == until
    too_long = client.patch(path, json={"muted_until": (until + timedelta(days=2)).isoformat()})
    assert too_long.json()["errors"] == [{"path": "muted_until", "message": "must be at most 366 days from now"}]


def test_pages_cover_every_destination_once(client: TestClient) -> None:
    """The pages of the list contain every destination once, oldest first; a token of another project is refused."""
    names = [f"d{number}" for number in range(5)]
    for name in names:
        add(client, name=name)
    found: list[str] = []
    query: dict[str, Any] = {"project": "p", "max_results": 2}
    while True:
        page = client.get(DESTINATIONS, params=query).json()
        found += [destination["name"] for destination in page["items"]]
        if page["next_page_token"] is None:
            break
        query["page_token"] = page["next_page_token"]
    assert found == names
    refused = client.get(DESTINATIONS, params={**query, "project": "other"})
    assert refused.json()["errors"][0]["path"] == "page_token"


def test_a_test_message_is_delivered(client: TestClient) -> None:
    """A test sends a signed message now, marked as a test, and clears the last error."""
    with Receiver(answering(503)) as receiver:
        created = add(client, address=f"http://127.0.0.1:{receiver.port}/hook", name="on call")
        path = f"{DESTINATIONS}/{created['id']}"
        failed = client.post(f"{path}/test").json()
        assert failed == {"is_delivered": False, "error": "The destination answered 503."}
        receiver.take()
        assert client.get(path).json()["last_error"] == "The destination answered 503."
        receiver.answer = answering(204)
        assert client.post(f"{path}/test").json() == {"is_delivered": True, "error": None}
        request = receiver.take()
    verified = Webhook(created["signing_secret"]).verify(request.body, request.headers)
    assert verified["data"]["is_test"]
    assert "on call" in verified["data"]["sentence"]
    after = client.get(path).json()
    assert after["last_error"] is None
    assert after["last_delivered_at"] is not None


def test_a_lost_key_is_shown_at_the_destination(sqlite_client: TestClient, replace_services: ReplaceServices) -> None:
    """After the secret key has changed, a test fails with what to do, and the list has the reason."""
    created = add(sqlite_client)
    replace_services(sender=build_sender(Settings(secret_key=SecretStr("x" * 40))))
    result = sqlite_client.post(f"{DESTINATIONS}/{created['id']}/test").json()
    assert not result["is_delivered"]
    assert "GRADMEDIC_SECRET_KEY has changed" in result["error"]
    assert sqlite_client.get(DESTINATIONS).json()["items"][0]["last_error"] == result["error"]


def test_the_history(client: TestClient, database: Database) -> None:
    """The history is a list with pages and filters, newest first."""
    add_alerts(database, "p", count=3)
    add_alerts(database, "other", count=1)
    first = client.get(HISTORY, params={"project": "p", "max_results": 2}).json()
    assert [alert["title"] for alert in first["items"]] == ["run 2 is exploding", "run 1 is exploding"]
    token = first["next_page_token"]
    rest = client.get(HISTORY, params={"project": "p", "max_results": 2, "page_token": token}).json()
    assert [alert["title"] for alert in rest["items"]] == ["run 0 is exploding"]
    assert client.get(HISTORY, params={"trouble": "failed"}).json()["items"] == []
    assert client.get(HISTORY, params={"trouble": "bad"}).json()["errors"][0]["path"] == "trouble"
