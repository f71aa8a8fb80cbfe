"""More than the service can take is refused with when to come back, before it costs anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Scope
from tests.service.conftest import ReplaceServices

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.admission import RETRY_AFTER_SECONDS, Admission
from gradmedic_service.access.authentication import RESULT
from gradmedic_service.access.errors import Overloaded, TooManyRequests
from gradmedic_service.access.principal import LOOPBACK
from gradmedic_service.access.rate_limits import FAILED_ATTEMPTS_PER_MINUTE, RateLimits
from gradmedic_service.http.bodies import BoundedBodies
from gradmedic_service.http.errors import RequestTimeout
from gradmedic_service.settings import Settings

RUNS = f"{API_PATH}/runs"


def limit(replace_services: ReplaceServices, **changes: Any) -> None:
    """Serve with these limits until the end of the test."""
    settings = Settings(**changes)
    replace_services(limits=settings.limits(), rate_limits=RateLimits(settings.max_requests_per_minute))


def test_requests_of_a_key(bearing: Any, replace_services: ReplaceServices, within_a_minute: None) -> None:
    """A key that asks too often gets 429 with when to come back; another key, and what is public, do not notice."""
    busy, other = bearing("read"), bearing("read")
    limit(replace_services, max_requests_per_minute=5)
    answers = [busy.get(RUNS) for _ in range(6)]
    assert [one.status_code for one in answers] == [200] * 5 + [429]
    assert answers[-1].json()["error_code"] == "too_many_requests"
    assert "5 requests a minute" in answers[-1].json()["detail"]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 120
    assert other.get(RUNS).status_code == 200
    assert busy.get("/healthz").status_code == 200


def test_without_keys_nobody_is_counted(sqlite_client: TestClient, replace_services: ReplaceServices) -> None:
    """On loopback there is no rate: nobody is told apart there."""
    limit(replace_services, max_requests_per_minute=1)
    assert [sqlite_client.get(RUNS).status_code for _ in range(5)] == [200] * 5


def test_guessing_is_slowed_down(guarded: TestClient, bearing: Any, within_a_minute: None) -> None:
    """An address that tries many unknown keys is refused before the database is asked; known keys go on there."""
    known = bearing("read")
    assert known.get(RUNS).status_code == 200
    codes = [
        guarded.get(RUNS, headers={"Authorization": f"Bearer gradmedic_{number:043d}"}).json()["error_code"]
        for number in range(FAILED_ATTEMPTS_PER_MINUTE + 2)
    ]
    assert codes == ["api_key_unknown"] * FAILED_ATTEMPTS_PER_MINUTE + ["too_many_requests"] * 2
    assert known.get(RUNS).status_code == 200


def test_rates_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked two minutes ago counts no more."""
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


def test_runs_of_a_project(client: TestClient, replace_services: ReplaceServices, create_run: Any) -> None:
    """A full project refuses another run, and stores none, until one is deleted; other projects have room."""
    limit(replace_services, max_runs_per_project=2)
    paths = [create_run(client, project="full") for _ in range(2)]
    body = {"project": "full", "layers": []}
    refused = client.post(RUNS, json=body)
    assert (refused.status_code, refused.json()["error_code"]) == (409, "project_full")
    assert len(client.get(RUNS).json()["items"]) == 2
    assert client.post(RUNS, json=body | {"project": "other"}).status_code == 201
    client.delete(paths[0])
    assert client.post(RUNS, json=body).status_code == 201


def test_limits_publish_all(sqlite_client: TestClient) -> None:
    """Every bound of the settings that a client can meet is published."""
    published = sqlite_client.get(f"{API_PATH}/limits").json()
    bounds = {name for name in Settings.model_fields if name.startswith("max_")}
    assert bounds - published.keys() == {"max_concurrent_requests", "max_waiting_requests", "max_streams"}


class Gate:
    """An application that answers when it is told to, and counts how many requests it works on.

    Args:
        content_type: of the answer.
        parts: whether the first part of it leaves at once.
    """

    def __init__(self, content_type: bytes = b"application/json", *, parts: bool = False) -> None:
        self._parts = parts
        self.opened = asyncio.Event()
        self.inside = self.most = 0
        self._content_type = content_type

    async def __call__(self, _scope: Scope, _receive: Any, send: Any) -> None:
        """Answer once the gate is open."""
        self.inside += 1
        self.most = max(self.most, self.inside)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", self._content_type)]})
        if self._parts:
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self.opened.wait()
        self.inside -= 1


async def ask(admission: Admission, path: str = RUNS) -> str:
    """Return how a request fared."""

    async def receive() -> Message:
        raise AssertionError("the body of a request that is not admitted is not read")

    async def send(_message: Message) -> None:
        pass

    scope = {"type": "http", "path": path, "state": {RESULT: LOOPBACK}}
    try:
        await admission(scope, receive, send)
    except Overloaded as error:
        return (
            "refused"
            if error.retry_after in range(RETRY_AFTER_SECONDS[0], RETRY_AFTER_SECONDS[1] + 1)
            else "told no time"
        )
    return "served"


async def settled(*requests: asyncio.Task[str]) -> list[str]:
    """Let requests go as far as they can and return how those fared that are over."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [request.result() for request in requests if request.done()]


def test_admission() -> None:
    """So many are worked on, so many wait, the rest is refused at once; when one is served, one that waits follows."""

    async def scenario() -> None:
        gate = Gate()
        admission = Admission(gate, max_concurrent=2, max_waiting=3)
        requests = [asyncio.create_task(ask(admission)) for _ in range(10)]
        assert await settled(*requests) == ["refused"] * 5
        health = asyncio.create_task(ask(admission, "/healthz"))
        await settled()
        assert gate.inside == 3
        gate.opened.set()
        assert sorted(await asyncio.gather(*requests)) == ["refused"] * 5 + ["served"] * 5
        assert await health == "served"
        assert gate.most == 3
        assert await ask(admission) == "served"

    asyncio.run(scenario())


def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for longer than a moment is refused, and takes no place."""
    monkeypatch.setattr("gradmedic_service.access.admission.MAX_WAIT_SECONDS", 0.01)

    async def scenario() -> None:
        gate = Gate()
        admission = Admission(gate, max_concurrent=1, max_waiting=5)
        first = asyncio.create_task(ask(admission))
        await settled()
        assert await ask(admission) == "refused"
        gate.opened.set()
        assert await first == "served"
        assert await ask(admission) == "served"

    asyncio.run(scenario())


@pytest.mark.parametrize(("content_type", "parts"), [(b"text/event-stream; charset=utf-8", False), (b"text/csv", True)])
def test_streams_take_no_place(content_type: bytes, parts: bool) -> None:
    """A stream of events that has begun, and an export whose reader takes its time, let others work."""

    async def scenario() -> None:
        gate = Gate(content_type, parts=parts)
        admission = Admission(gate, max_concurrent=1, max_waiting=0)
        streams = [asyncio.create_task(ask(admission)) for _ in range(3)]
        for stream in streams:
            assert await settled(stream) == []
        assert gate.inside == 3
        gate.opened.set()
        assert await asyncio.gather(*streams) == ["served"] * 3

    asyncio.run(scenario())


def test_slow_bodies_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body whose next piece does not come is refused, so that it holds no place; after the body nothing is due."""
    monkeypatch.setattr("gradmedic_service.http.bodies.BODY_SECONDS", 0.01)

    async def scenario(pieces: list[Message], reads: int) -> None:
        async def receive() -> Message:
            if pieces:
                return pieces.pop(0)
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        async def application(_scope: Scope, receive: Callable[[], Any], _send: Any) -> None:
            for _ in range(reads):
                await receive()

        await BoundedBodies(application, 100)({"type": "http", "headers": []}, receive, lambda _message: None)  # type: ignore[arg-type,return-value]

    with pytest.raises(RequestTimeout):
        asyncio.run(scenario([{"type": "http.request", "body": b"{", "more_body": True}], 2))
    asyncio.run(scenario([{"type": "http.request", "body": b"{}", "more_body": False}], 2))


@pytest.mark.parametrize("query", ["?nonsense=1", "?Project=p", "?project=p&x", "?verdict%00=1", "?max_results[]=3"])
def test_unknown_query_parameters_are_refused(sqlite_client: TestClient, query: str) -> None:
    """A parameter that the route does not know is named, and so are those that it knows."""
    response = sqlite_client.get(f"{RUNS}{query}")
    assert (response.status_code, response.json()["error_code"]) == (422, "invalid_request")
    assert "max_results, page_token, parent_id, project" in response.json()["detail"]
    assert sqlite_client.get(f"{API_PATH}/limits?x=1").status_code == 422


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(RUNS, "GET, POST"), (f"{RUNS}/x", "DELETE, GET, PATCH"), (f"{RUNS}/x/steps", "GET, POST"), ("/healthz", "GET")],
)
def test_405_names_every_method(sqlite_client: TestClient, path: str, allowed: str) -> None:
    """`Allow` has every method of the path, whichever route takes it."""
    for method in ("PUT", "OPTIONS"):
        response = sqlite_client.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)


def test_a_deletion_has_no_content(sqlite_client: TestClient, create_run: Any) -> None:
    """204 has neither a body nor a type of it."""
    response = sqlite_client.delete(create_run(sqlite_client))
    assert (response.status_code, response.content) == (204, b"")
    assert "content-type" not in response.headers
