"""Admission: the service refuses requests that it cannot serve soon, with a time to try again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from starlette.types import Message, Scope
from tests.support.patience import PATIENCE

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.admission import Admission
from gradmedic_service.access.errors import RETRY_AFTER_SECONDS, Overloaded
from gradmedic_service.access.places import Places
from gradmedic_service.access.principal import LOOPBACK, RESULT, Principal
from gradmedic_service.http.arrival import ArrivingBodies
from gradmedic_service.http.errors import BodyTooLarge, RequestTimeout

RUNS = f"{API_PATH}/runs"


class Gate:
    """An application that answers when it is opened, and counts the requests that it serves.

    Args:
        content_type: the Content-Type of the answers.
        is_streamed: whether the first part of an answer is sent at once.
    """

    def __init__(self, content_type: bytes = b"application/json", *, is_streamed: bool = False) -> None:
        self._is_streamed = is_streamed
        self.opened = asyncio.Event()
        self.serving = self.most_serving = 0
        self.served: list[Principal] = []
        self._content_type = content_type

    async def __call__(self, scope: Scope, _receive: Any, send: Any) -> None:
        """Answer a request once the gate is open."""
        self.serving += 1
        self.most_serving = max(self.most_serving, self.serving)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", self._content_type)]})
        if self._is_streamed:
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self.opened.wait()
        self.served.append(scope["state"][RESULT])
        self.serving -= 1


def admission_to(
    gate: Gate, *, places: int, waiting: int, seconds: float = PATIENCE, max_bytes: int = 100
) -> Admission:
    """Return an admission with few places, for bodies of at most ten bytes."""
    return Admission(gate, Places(places, waiting), ArrivingBodies(10, max_bytes, places + waiting, seconds))


def a_key() -> Principal:
    """Return the holder of another API key."""
    return Principal(name="a key", key_id=uuid4())


async def send_request(
    admission: Admission, path: str = RUNS, sender: Principal = LOOPBACK, body: AsyncIterator[bytes] | None = None
) -> str:
    """Send a request and return what happened to it. Without a body, `receive` may be called once."""
    parts = single() if body is None else body

    async def receive() -> Message:
        part = await anext(parts, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    async def send(_message: Message) -> None:
        pass

    scope: Scope = {"type": "http", "path": path, "headers": [], "state": {RESULT: sender}}
    try:
        await admission(scope, receive, send)
    except Overloaded as error:
        return (
            "refused"
            if error.retry_after in range(RETRY_AFTER_SECONDS[0], RETRY_AFTER_SECONDS[1] + 1)
            else "refused without a time"
        )
    except RequestTimeout:
        return "too slow"
    except BodyTooLarge:
        return "too large"
    return "served"


async def single() -> AsyncIterator[bytes]:
    """The parts of an empty body."""
    return
    yield b""


async def endless(arrived: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """The parts of a body whose second part never arrives."""
    yield b"{"
    if arrived is not None:
        arrived.set()
    await asyncio.Event().wait()


async def finished(*requests: asyncio.Task[str]) -> list[str]:
    """Let requests go as far as they can, and return what happened to those that are finished."""
    for _ in range(20):
        await asyncio.sleep(0)
    return [request.result() for request in requests if request.done()]


def test_admission() -> None:
    """Two requests are served, three wait, the others are refused at once; a waiting request follows a served one."""

    async def scenario() -> None:
        gate = Gate()
        admission = admission_to(gate, places=2, waiting=3)
        requests = [asyncio.create_task(send_request(admission)) for _ in range(10)]
        assert await finished(*requests) == ["refused"] * 5
        health = asyncio.create_task(send_request(admission, "/healthz"))
        await finished()
        assert gate.serving == 3
        gate.opened.set()
        assert sorted(await asyncio.gather(*requests)) == ["refused"] * 5 + ["served"] * 5
        assert await health == "served"
        assert gate.most_serving == 3
        assert await send_request(admission) == "served"

    asyncio.run(scenario())


def test_waiting_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that has waited too long is refused, and occupies no slot."""
    monkeypatch.setattr("gradmedic_service.access.admission.MAX_WAIT_SECONDS", 0.01)

    async def scenario() -> None:
        gate = Gate()
        admission = admission_to(gate, places=1, waiting=5)
        first = asyncio.create_task(send_request(admission))
        await finished()
        assert await send_request(admission) == "refused"
        gate.opened.set()
        assert await first == "served"
        assert await send_request(admission) == "served"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("content_type", "is_streamed"), [(b"text/event-stream; charset=utf-8", False), (b"text/csv", True)]
)
def test_streams_occupy_no_slot(content_type: bytes, is_streamed: bool) -> None:
    """An event stream that has begun, and an export with a slow reader, occupy no slot."""

    async def scenario() -> None:
        gate = Gate(content_type, is_streamed=is_streamed)
        admission = admission_to(gate, places=1, waiting=0)
        streams = [asyncio.create_task(send_request(admission)) for _ in range(3)]
        for stream in streams:
            assert await finished(stream) == []
        assert gate.serving == 3
        gate.opened.set()
        assert await asyncio.gather(*streams) == ["served"] * 3

    asyncio.run(scenario())


def test_a_body_that_does_not_arrive_holds_no_place() -> None:
    """Bodies that arrive slowly or never, more of them than there are places, keep no other request from its place."""

    async def scenario() -> None:
        gate = Gate()
        gate.opened.set()
        admission = admission_to(gate, places=2, waiting=8)
        slow = [asyncio.create_task(send_request(admission, sender=a_key(), body=endless())) for _ in range(8)]
        assert await finished(*slow) == []
        assert await send_request(admission) == "served"
        assert gate.most_serving == 1
        for request in slow:
            request.cancel()

    asyncio.run(scenario())


def test_a_body_has_a_deadline() -> None:
    """A body of which a part arrives now and then is refused at the deadline of the whole, and its bytes are free."""

    async def dripping() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b""
            await asyncio.sleep(0.005)
        yield b"{"
        await asyncio.Event().wait()

    async def scenario() -> None:
        gate = Gate()
        gate.opened.set()
        admission = admission_to(gate, places=1, waiting=1, seconds=0.02, max_bytes=20)
        for _ in range(30):
            assert await send_request(admission, sender=a_key(), body=dripping()) == "too slow"
        assert await send_request(admission) == "served"

    asyncio.run(scenario())


def test_bodies_that_have_arrived_are_bounded() -> None:
    """What one key holds in unfinished bodies, and their number, is bounded; another key is served."""

    async def scenario() -> None:
        gate = Gate()
        gate.opened.set()
        admission = admission_to(gate, places=2, waiting=20, max_bytes=20)
        greedy = a_key()

        async def nine_bytes() -> AsyncIterator[bytes]:
            yield b"123456789"
            await asyncio.Event().wait()

        first = asyncio.create_task(send_request(admission, sender=greedy, body=nine_bytes()))
        assert await finished(first) == []
        assert await send_request(admission, sender=greedy, body=nine_bytes()) == "refused"
        assert await send_request(admission, sender=a_key()) == "served"
        first.cancel()
        await asyncio.wait([first])
        many = [asyncio.create_task(send_request(admission, sender=greedy, body=endless())) for _ in range(30)]
        assert await finished(*many) == ["refused"] * 20
        assert await send_request(admission, sender=a_key()) == "served"
        for request in many:
            request.cancel()

    asyncio.run(scenario())


def test_a_body_over_the_limit_is_refused_while_it_arrives() -> None:
    """A body without a declared length is refused with the part that exceeds the limit."""

    async def eleven_bytes() -> AsyncIterator[bytes]:
        yield b"12345678901"
        raise AssertionError("read on")

    assert asyncio.run(send_request(admission_to(Gate(), places=1, waiting=0), body=eleven_bytes())) == "too large"


def test_one_key_leaves_places_to_others() -> None:
    """One key holds at most three quarters of the places, however many requests it sends; without keys one has all."""

    async def scenario() -> None:
        for sender, most in ((a_key(), 6), (LOOPBACK, 8)):
            gate = Gate()
            admission = admission_to(gate, places=8, waiting=100)
            many = [asyncio.create_task(send_request(admission, sender=sender)) for _ in range(20)]
            assert await finished(*many) == []
            assert gate.serving == most
            gate.opened.set()
            assert await asyncio.gather(*many) == ["served"] * 20

    asyncio.run(scenario())


def test_a_free_place_goes_to_the_client_that_holds_fewest() -> None:
    """A request of another key overtakes the waiting requests of a key with many, also where all may wait no longer."""

    async def scenario() -> None:
        gate = Gate()
        admission = admission_to(gate, places=1, waiting=10)
        greedy, other = a_key(), a_key()
        many = [asyncio.create_task(send_request(admission, sender=greedy)) for _ in range(11)]
        assert await finished(*many) == []
        late = asyncio.create_task(send_request(admission, sender=other))
        assert await finished(*many, late) == ["refused"]
        gate.served.clear()
        gate.opened.set()
        assert await late == "served"
        assert gate.served.index(other) <= 2
        assert sorted(await asyncio.gather(*many)) == ["refused"] + ["served"] * 10

    asyncio.run(scenario())
