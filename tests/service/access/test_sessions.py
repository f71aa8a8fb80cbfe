"""Sessions of browsers: a key for a cookie, which reaches what the key reaches and ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient
from tests.service.conftest import ReplaceServices

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
def browser(guarded: TestClient, make_secret: Any) -> Iterator[TestClient]:
    """A browser that has logged in with a key for its project."""
    client = TestClient(guarded.app, raise_server_exceptions=False)
    headers = {"Authorization": f"Bearer {make_secret('read', 'ingest', name='mine')}", **FROM_A_PAGE}
    assert client.post(SESSION, headers=headers).status_code == 201
    yield client
    client.close()


def test_the_cookie_is_the_browsers_alone(guarded: TestClient, make_secret: Any, database: Database) -> None:
    """No script reads the cookie, no other site sends it, and the database holds neither it nor the key."""
    secret = make_secret("read")
    response = guarded.post(SESSION, headers={"Authorization": f"Bearer {secret}"})
    cookie = response.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie  # this connection is not encrypted
    assert secret not in cookie
    value = cookie.partition("=")[2].partition(";")[0]
    with database.reading() as session:
        (digest,) = session.scalars(select(BrowserSession.digest)).all()
    assert value.encode() not in digest
    guarded.cookies.clear()


def test_the_cookie_is_secure_behind_tls(guarded: TestClient, make_secret: Any) -> None:
    """Over HTTPS the cookie is never sent without it."""
    client = TestClient(guarded.app, base_url="https://testserver")
    response = client.post(SESSION, headers={"Authorization": f"Bearer {make_secret('read')}"})
    assert "Secure" in response.headers["set-cookie"]


def test_a_session_reaches_what_its_key_reaches(browser: TestClient, bearing: Any, create_run: Any) -> None:
    """With the cookie alone a browser reads and writes its project, and another project's run does not exist."""
    theirs = create_run(bearing("admin", project="theirs"), project="theirs")
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
def test_writes_must_come_from_a_page_of_ours(browser: TestClient, headers: dict[str, str], status: int) -> None:
    """With a cookie, what changes something is refused unless the browser says that a page of ours asks (CSRF)."""
    response = browser.post(RUNS, json=RUN, headers=headers)
    assert response.status_code == status
    assert status == 201 or response.json()["error_code"] == "cross_origin"


def test_revoking_the_key_ends_its_sessions(browser: TestClient, bearing: Any) -> None:
    """A session whose key was revoked is refused at once, and says why."""
    key_id = browser.get(SESSION).json()["key_id"]
    assert bearing("admin").delete(f"{API_PATH}/api-keys/{key_id}").status_code == 204
    response = browser.get(RUNS)
    assert (response.status_code, response.json()["error_code"]) == (401, "api_key_revoked")


def test_logging_out_ends_the_session_and_not_the_key(browser: TestClient, make_secret: Any) -> None:
    """After logging out the old cookie is worth nothing, and another session of the project goes on."""
    cookie = browser.cookies[SESSION_COOKIE]
    assert browser.delete(SESSION, headers=FROM_A_PAGE).status_code == 204
    assert SESSION_COOKIE not in browser.cookies
    browser.cookies.set(SESSION_COOKIE, cookie)
    response = browser.get(RUNS)
    assert (response.status_code, response.json()["error_code"]) == (401, "session_ended")


def test_a_session_ends_after_its_time(
    browser: TestClient, database: Database, replace_services: ReplaceServices
) -> None:
    """A session that is over is refused as one."""
    assert browser.get(RUNS).status_code == 200
    with database.writing() as session:
        session.execute(update(BrowserSession).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    replace_services(keyring=Keyring())  # of a process that has not seen the session yet
    assert browser.get(RUNS).json()["error_code"] == "session_ended"


@pytest.mark.parametrize("cookie", ["", "x", "A" * 43, "gradmedic_" + "A" * 43, "é".encode().decode("latin-1")])
def test_cookies_that_are_no_session_are_refused(guarded: TestClient, cookie: str) -> None:
    """What is not a session's cookie is refused like one that has ended."""
    response = guarded.get(RUNS, headers={b"Cookie": f"{SESSION_COOKIE}={cookie}".encode("latin-1")})
    assert (response.status_code, response.json()["error_code"]) == (401, "session_ended")


def test_a_key_is_no_cookie_and_a_cookie_no_key(browser: TestClient, guarded: TestClient, make_secret: Any) -> None:
    """Neither a session's cookie as an API key nor an API key as a cookie is accepted, also once they are known."""
    secret = make_secret("read")
    assert guarded.get(RUNS, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert browser.get(RUNS).status_code == 200
    assert guarded.get(RUNS, headers={"Cookie": f"{SESSION_COOKIE}={secret}"}).json()["error_code"] == "session_ended"
    as_key = {"Authorization": f"Bearer {browser.cookies[SESSION_COOKIE]}"}
    assert guarded.get(RUNS, headers=as_key).json()["error_code"] == "api_key_unknown"


def test_a_session_does_not_prolong_itself(browser: TestClient) -> None:
    """A session is opened with a key alone, not by another session."""
    response = browser.post(SESSION, headers=FROM_A_PAGE)
    assert (response.status_code, response.json()["error_code"]) == (401, "api_key_missing")


def test_without_keys_there_are_no_sessions(client: TestClient) -> None:
    """On loopback nobody logs in: who asks is whoever sits here, whatever cookie another service has left."""
    client.cookies.set(SESSION_COOKIE, "left by another port")
    assert client.get(SESSION).json()["name"] == "loopback"
    assert client.post(SESSION).json()["error_code"] == "api_key_missing"
    client.cookies.clear()


def test_sessions_count_as_requests_of_their_key(
    guarded: TestClient, browser: TestClient, replace_services: ReplaceServices, within_a_minute: None
) -> None:
    """A session has no more requests a minute than its key, and gets 429 beyond them."""
    replace_services(rate_limits=RateLimits(3))
    answers = [browser.get(SESSION) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) > 0


def test_cookies_are_not_guessed_at_will(guarded: TestClient, browser: TestClient, within_a_minute: None) -> None:
    """An address may try so many unknown cookies a minute; the session of somebody there goes on."""
    assert browser.get(RUNS).status_code == 200
    tried = [
        guarded.get(RUNS, headers={"Cookie": f"{SESSION_COOKIE}={index}"}).status_code
        for index in range(FAILED_ATTEMPTS_PER_MINUTE + 1)
    ]
    assert tried == [401] * FAILED_ATTEMPTS_PER_MINUTE + [429]
    assert browser.get(RUNS).status_code == 200
