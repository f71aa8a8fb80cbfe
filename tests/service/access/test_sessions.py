"""Browser sessions: a cookie in exchange for a key, with the same reach."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient
from tests.support.app_client import AppClient
from tests.support.service_app import ReplaceServices

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.authentication import SESSION_COOKIE
from gradmedic_service.access.keyring import Keyring
from gradmedic_service.access.rate_limits import FAILED_ATTEMPTS_PER_MINUTE, RateLimits
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import BrowserSession

SESSION = f"{API_PATH}/session"
RUNS = f"{API_PATH}/runs"
RUN = {"project": "mine", "layers": []}
FROM_A_PAGE = {"Origin": "http://testserver"}


@pytest.fixture
def browser(client_without_key: TestClient, make_secret: Any) -> Iterator[TestClient]:
    """A browser with a session of a key for its project."""
    client = AppClient(client_without_key.app, raise_server_exceptions=False)
    headers = {"Authorization": f"Bearer {make_secret('read', 'ingest', name='mine')}", **FROM_A_PAGE}
    assert client.post(SESSION, headers=headers).status_code == 201
    yield client
    client.close()


def test_the_cookie(client_without_key: TestClient, make_secret: Any, database: Database) -> None:
    """No script reads the cookie, no other site sends it, and the database stores neither the cookie nor the key."""
    secret = make_secret("read")
    response = client_without_key.post(SESSION, headers={"Authorization": f"Bearer {secret}"})
    cookie = response.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie  # this connection is not encrypted
    assert secret not in cookie
    value = cookie.partition("=")[2].partition(";")[0]
    with database.reading() as session:
        (digest,) = session.scalars(select(BrowserSession.digest)).all()
    assert value.encode() not in digest
    client_without_key.cookies.clear()


def test_the_cookie_is_secure_behind_tls(client_without_key: TestClient, make_secret: Any) -> None:
    """Over HTTPS the cookie is marked Secure."""
    client = AppClient(client_without_key.app, base_url="https://testserver")
    response = client.post(SESSION, headers={"Authorization": f"Bearer {make_secret('read')}"})
    assert "Secure" in response.headers["set-cookie"]


def test_a_session_reaches_what_its_key_reaches(browser: TestClient, client_with_key: Any, create_run: Any) -> None:
    """With the cookie alone a browser reads and writes the key's project, and other projects do not exist for it."""
    theirs = create_run(client_with_key("admin", project="theirs"), project="theirs")
    assert browser.get(SESSION).json() | {"key_id": None} == {
        "name": "mine", "key_id": None, "project": "mine", "run_id": None, "scopes": ["ingest", "read"],
    }  # fmt: skip
    assert browser.post(RUNS, json=RUN, headers=FROM_A_PAGE).status_code == 201
    assert len(browser.get(RUNS).json()["items"]) == 1
    assert browser.get(theirs).status_code == 404
    assert browser.get(f"{API_PATH}/api-keys").json()["error_code"] == "scope_missing"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        (FROM_A_PAGE, 201),
    ],
    ids=str,
)
def test_writes_must_come_from_own_pages(browser: TestClient, headers: dict[str, str], status: int) -> None:
    """With a cookie, a change is refused unless the browser names one of the service's own pages (CSRF)."""
    response = browser.post(RUNS, json=RUN, headers=headers)
    assert response.status_code == status
    assert status == 201 or response.json()["error_code"] == "cross_origin"


def test_revoking_the_key_ends_its_sessions(browser: TestClient, client_with_key: Any) -> None:
    """A session whose key was revoked is refused at once, with that reason."""
    key_id = browser.get(SESSION).json()["key_id"]
    assert client_with_key("admin").delete(f"{API_PATH}/api-keys/{key_id}").status_code == 204
    response = browser.get(RUNS)
    assert (response.status_code, response.json()["error_code"]) == (401, "api_key_revoked")


def test_logging_out_ends_the_session_and_not_the_key(browser: TestClient, make_secret: Any) -> None:
    """After logging out the cookie is refused, and a new session of the same key works."""
    cookie = browser.cookies[SESSION_COOKIE]
    assert browser.delete(SESSION, headers=FROM_A_PAGE).status_code == 204
    assert SESSION_COOKIE not in browser.cookies
    browser.cookies.set(SESSION_COOKIE, cookie)
    response = browser.get(RUNS)
    assert (response.status_code, response.json()["error_code"]) == (401, "session_ended")


def test_an_expired_session(browser: TestClient, database: Database, replace_services: ReplaceServices) -> None:
    """An expired session is refused."""
    assert browser.get(RUNS).status_code == 200
    with database.writing() as session:
        session.execute(update(BrowserSession).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    replace_services(keyring=Keyring())  # of a process that has not seen the session yet
    assert browser.get(RUNS).json()["error_code"] == "session_ended"


@pytest.mark.parametrize("cookie", ["", "x", "A" * 43, "gradmedic_" + "A" * 43, "é".encode().decode("latin-1")])
def test_unknown_cookies(client_without_key: TestClient, cookie: str) -> None:
    """A cookie of no session is refused like a session that has ended."""
    response = client_without_key.get(RUNS, headers={b"Cookie": f"{SESSION_COOKIE}={cookie}".encode("latin-1")})
    assert (response.status_code, response.json()["error_code"]) == (401, "session_ended")


def test_a_key_is_no_cookie_and_a_cookie_no_key(
    browser: TestClient, client_without_key: TestClient, make_secret: Any
) -> None:
    """A cookie is not accepted as an API key, nor a key as a cookie, even after both were used correctly."""
    secret = make_secret("read")
    assert client_without_key.get(RUNS, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert browser.get(RUNS).status_code == 200
    assert (
        client_without_key.get(RUNS, headers={"Cookie": f"{SESSION_COOKIE}={secret}"}).json()["error_code"]
        == "session_ended"
    )
    as_key = {"Authorization": f"Bearer {browser.cookies[SESSION_COOKIE]}"}
    assert client_without_key.get(RUNS, headers=as_key).json()["error_code"] == "api_key_unknown"


def test_a_session_opens_no_session(browser: TestClient) -> None:
    """Only a key opens a session; a session does not."""
    response = browser.post(SESSION, headers=FROM_A_PAGE)
    assert (response.status_code, response.json()["error_code"]) == (401, "api_key_missing")


def test_no_sessions_without_keys(client: TestClient) -> None:
    """Where no key is required there are no sessions, and a cookie of another service is ignored."""
    client.cookies.set(SESSION_COOKIE, "left by another port")
    assert client.get(SESSION).json()["name"] == "loopback"
    assert client.post(SESSION).json()["error_code"] == "api_key_missing"
    client.cookies.clear()


def test_sessions_count_as_requests_of_their_key(
    client_without_key: TestClient, browser: TestClient, replace_services: ReplaceServices, stopped_clock: None
) -> None:
    """The requests of a session count for the rate limit of its key."""
    replace_services(rate_limits=RateLimits(3))
    answers = [browser.get(SESSION) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) > 0


def test_guessing_cookies(client_without_key: TestClient, browser: TestClient, stopped_clock: None) -> None:
    """An address that tries too many unknown cookies gets 429; a known session from that address still works."""
    assert browser.get(RUNS).status_code == 200
    tried = [
        client_without_key.get(RUNS, headers={"Cookie": f"{SESSION_COOKIE}={index}"}).status_code
        for index in range(FAILED_ATTEMPTS_PER_MINUTE + 1)
    ]
    assert tried == [401] * FAILED_ATTEMPTS_PER_MINUTE + [429]
    assert browser.get(RUNS).status_code == 200
