"""Rate limits: too many requests, or too many unknown keys, get 429 with a time to try again."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.support.service_app import ReplaceServices

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.errors import TooManyRequests
from gradmedic_service.access.rate_limits import FAILED_ATTEMPTS_PER_MINUTE, RateLimits

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
