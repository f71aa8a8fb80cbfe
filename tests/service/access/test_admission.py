"""Admission: the service refuses requests that it cannot serve soon, with a time to try again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Scope

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.admission import RETRY_AFTER_SECONDS, Admission
from gradmedic_service.access.authentication import RESULT
from gradmedic_service.access.errors import Overloaded
from gradmedic_service.access.principal import LOOPBACK

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
        self._content_type = content_type

    async def __call__(self, _scope: Scope, _receive: Any, send: Any) -> None:
        """Answer a request once the gate is open."""
        self.serving += 1
        self.most_serving = max(self.most_serving, self.serving)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", self._content_type)]})
        if self._is_streamed:
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self.opened.wait()
        self.serving -= 1


async def send_request(admission: Admission, path: str = RUNS) -> str:
    """Send a request and return what happened to it."""

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
            else "refused without a time"
        )
    return "served"


async def finished(*requests: asyncio.Task[str]) -> list[str]:
    """Let requests go as far as they can, and return what happened to those that are finished."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [request.result() for request in requests if request.done()]


def test_admission() -> None:
    """Two requests are served, three wait, the others are refused at once; a waiting request follows a served one."""

    async def scenario() -> None:
        gate = Gate()
        admission = Admission(gate, max_concurrent=2, max_waiting=3)
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
        admission = Admission(gate, max_concurrent=1, max_waiting=5)
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
        admission = Admission(gate, max_concurrent=1, max_waiting=0)
        streams = [asyncio.create_task(send_request(admission)) for _ in range(3)]
        for stream in streams:
            assert await finished(stream) == []
        assert gate.serving == 3
        gate.opened.set()
        assert await asyncio.gather(*streams) == ["served"] * 3

    asyncio.run(scenario())
