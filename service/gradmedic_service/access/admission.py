"""How many requests are worked on at once.

One idea: more work at once than the machine has hands makes every request late and none quicker. A few are worked on,
some wait for a moment, and the others are told at once when to come back, before their bodies are read. Nothing that is
refused has been stored.
"""

from __future__ import annotations

import asyncio
import random

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.authentication import is_recognized
from gradmedic_service.access.errors import Overloaded

LONGEST_WAIT = 1.0
"""Seconds that a request waits for its turn."""
RETRY_AFTER = (2, 6)
"""Seconds after which to come back, drawn anew each time: who was refused together should not return together."""
EVENT_STREAM = b"text/event-stream"

_random = random.Random()


class Admission:
    """ASGI middleware: bounds the requests of the API that are worked on and that wait.

    An answer that comes in parts, as an export or a stream of events, gives its place back once it has begun: it waits
    for its reader most of the time, and may last for days.
    """

    def __init__(self, app: ASGIApp, max_concurrent: int, max_waiting: int) -> None:
        self._app = app
        self._max_waiting = max_waiting
        self._waiting = 0
        self._places = asyncio.Semaphore(max_concurrent)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Raises Overloaded."""
        if scope["type"] != "http" or not scope["path"].startswith(API_PATH) or not is_recognized(scope):
            await self._app(scope, receive, send)
            return
        await self._take_place()
        place = _Place(self._places)
        try:
            await self._app(scope, receive, _giving_back(place, send))
        finally:
            place.give_back()

    async def _take_place(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        if self._waiting >= self._max_waiting:
            raise _overloaded(f"{self._waiting} requests are waiting already.")
        self._waiting += 1
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                await self._places.acquire()
        except TimeoutError:
            raise _overloaded(f"The request waited for {LONGEST_WAIT:g} s.") from None
        finally:
            self._waiting -= 1


class _Place:
    """The right to be worked on, given back once."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places: asyncio.Semaphore | None = places

    def give_back(self) -> None:
        """Let another one work."""
        if self._places is not None:
            self._places.release()
            self._places = None


def _giving_back(place: _Place, send: Send) -> Send:
    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            if any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in message["headers"]):
                place.give_back()
        elif message.get("more_body"):
            place.give_back()
        await send(message)

    return watched


def _overloaded(what: str) -> Overloaded:
    return Overloaded(f"The service is busy. {what} Nothing was stored.", retry_after=_random.randint(*RETRY_AFTER))
