"""Rate limits: too many requests, or too many unknown keys, get 429 with a time to try again."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from starlette.testclient import TestClient
from tests.support.locks import count_waiting_transactions
from tests.support.patience import PATIENCE
from tests.support.service_app import ReplaceServices

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access import service as access
from gradmedic_service.access.errors import TooManyRequests
from gradmedic_service.access.keyring import MAX_SUSPICIOUS_READS
from gradmedic_service.access.rate_limits import FAILED_ATTEMPTS_PER_MINUTE, RateLimits
from gradmedic_service.access.secrets import new_secret
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings

RUNS = f"{API_PATH}/runs"


def test_requests_of_a_key(client_with_key: Any, replace_services: ReplaceServices, stopped_clock: None) -> None:
    """A key that sends too many requests gets 429 with Retry-After; other keys and public routes are not limited."""
    busy, other = client_with_key("read"), client_with_key("read")
    replace_services(rate_limits=RateLimits(5))
    answers = [busy.get(RUNS) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[-1].json()["error_code"] == "too_many_requests"
    assert "5 requests a minute" in answers[-1].json()["detail"]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 120
    assert other.get(RUNS).status_code == 200
    assert busy.get("/healthz").status_code == 200


def test_no_rate_limit_without_keys(sqlite_client: TestClient, replace_services: ReplaceServices) -> None:
    """Where no key is required, there is no rate limit."""
    replace_services(rate_limits=RateLimits(1))
    assert [sqlite_client.get(RUNS).status_code for _ in range(5)] == [200] * 5


def test_guessing_keys(client_without_key: TestClient, client_with_key: Any, stopped_clock: None) -> None:
    """An address that tries too many unknown keys gets 429; a known key from that address still works."""
    known = client_with_key("read")
    assert known.get(RUNS).status_code == 200
    codes = [
        client_without_key.get(RUNS, headers={"Authorization": f"Bearer gradmedic_{number:043d}"}).json()["error_code"]
        for number in range(FAILED_ATTEMPTS_PER_MINUTE + 2)
    ]
    assert codes == ["api_key_unknown"] * FAILED_ATTEMPTS_PER_MINUTE + ["too_many_requests"] * 2
    assert known.get(RUNS).status_code == 200


def test_guessing_keeps_no_valid_key_out(
    client_without_key: TestClient, client_with_key: Any, stopped_clock: None
) -> None:
    """Valid keys get in from an address that guesses: used ones, also after a key was made, and ones never used."""
    used, new, admin = client_with_key("read"), client_with_key("read"), client_with_key("admin")
    assert used.get(RUNS).status_code == 200

    def guess(count: int) -> list[int]:
        headers = [{"Authorization": f"Bearer {new_secret()}"} for _ in range(count)]
        return [client_without_key.get(RUNS, headers=each).status_code for each in headers]

    assert guess(FAILED_ATTEMPTS_PER_MINUTE + 1)[-1] == 429
    assert new.get(RUNS).status_code == 200
    assert admin.post(f"{API_PATH}/api-keys", json={"project": "mine", "scopes": ["read"]}).status_code == 201
    assert guess(2) == [429, 429]
    assert [client.get(RUNS).status_code for client in (used, new, client_with_key("read"))] == [200, 200, 200]


@pytest.mark.slow
def test_guessing_takes_few_connections(serve: Any, postgres_url: str, wait_until: Any) -> None:
    """While an address guesses, few of its keys are looked up at once; keys of other addresses do not wait for them."""
    with contextlib.closing(Database(Settings(database_url=SecretStr(postgres_url)))) as database:
        with database.writing() as session:
            _, secret = access.create_key(session, project=None, name="k", scopes=["read"])

        def ask(client: httpx2.Client, key: str) -> int:
            return client.get(RUNS, headers={"Authorization": f"Bearer {key}"}).status_code

        with (
            serve(postgres_url, "--require-auth", GRADMEDIC_DATABASE_TIMEOUT=str(PATIENCE)) as served,
            httpx2.Client(base_url=served.url) as honest,
            httpx2.Client(base_url=served.url, transport=httpx2.HTTPTransport(local_address="127.0.0.2")) as guesser,
            ThreadPoolExecutor(20) as threads,
        ):
            wait_until(lambda: time.time() % 60 < 30)  # a new minute allows more guesses
            assert [ask(guesser, new_secret()) for _ in range(FAILED_ATTEMPTS_PER_MINUTE + 1)][-1] == 429
            with database.writing() as session:
                session.execute(text("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"))
                guesses = [threads.submit(ask, guesser, new_secret()) for _ in range(10)]
                wait_until(lambda: count_waiting_transactions(database) == MAX_SUSPICIOUS_READS)
                asked = threads.submit(ask, honest, secret)
                wait_until(lambda: count_waiting_transactions(database) == MAX_SUSPICIOUS_READS + 1)
            assert asked.result() == 200
            assert {guess.result() for guess in guesses} == {429}


def test_the_limit_concerns_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of two minutes ago no longer count."""
    now = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    limits = RateLimits(2)
    for _ in range(2):
        limits.count_request("key", "k")
    with pytest.raises(TooManyRequests) as refused:
        limits.count_request("key", "k")
    assert refused.value.retry_after is not None
    now[0] += 120
    limits.count_request("key", "k")
