"""Admission: a bound on the number of requests that are served at the same time.

More concurrent requests than the machine has cores make every request slow and none faster. So a few requests are
served, some wait for a moment, and the others get 503 with a time to try again, before their bodies are read. A refused
request stores nothing.
"""

from __future__ import annotations

import asyncio
import random

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.authentication import is_authenticated
from gradmedic_service.access.errors import Overloaded

MAX_WAIT_SECONDS = 1.0
"""Seconds that a request waits for its turn."""
RETRY_AFTER_SECONDS = (2, 6)
"""Bounds of the seconds after which a client tries again. The number is random, so that clients that were refused
together do not return together."""
EVENT_STREAM = b"text/event-stream"

_random = random.Random()


class Admission:
    """ASGI middleware: bounds the API requests that are served and that wait.

    A streamed answer, an export or an event stream, frees its slot once it has begun: it mostly waits for its reader,
    and may last for days.

    Args:
        app: the application behind the middleware.
        max_concurrent: requests that are served at the same time.
        max_waiting: requests that wait for a slot.
    """

    def __init__(self, app: ASGIApp, max_concurrent: int, max_waiting: int) -> None:
        self._app = app
        self._max_waiting = max_waiting
        self._waiting = 0
        self._slots = asyncio.Semaphore(max_concurrent)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Raises Overloaded."""
        if scope["type"] != "http" or not scope["path"].startswith(API_PATH) or not is_authenticated(scope):
            await self._app(scope, receive, send)
            return
        await self._acquire_slot()
        slot = _Slot(self._slots)
        try:
            await self._app(scope, receive, _releasing_when_streaming(slot, send))
        finally:
            slot.release()

    async def _acquire_slot(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            return
        if self._waiting >= self._max_waiting:
            raise _overloaded(f"{self._waiting} requests are waiting already.")
        self._waiting += 1
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise _overloaded(f"The request waited for {MAX_WAIT_SECONDS:g} s.") from None
        finally:
            self._waiting -= 1


class _Slot:
    """The right of one request to be served; it is released once."""

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots: asyncio.Semaphore | None = slots

    def release(self) -> None:
        """Free the slot for another request. Further calls do nothing."""
        if self._slots is not None:
            self._slots.release()
            self._slots = None


def _releasing_when_streaming(slot: _Slot, send: Send) -> Send:
    """Return a `send` that releases the slot when an event stream begins, or a part of an answer that has more."""

    async def send_and_release(message: Message) -> None:
        if message["type"] == "http.response.start":
            if any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in message["headers"]):
                slot.release()
        elif message.get("more_body"):
            slot.release()
        await send(message)

    return send_and_release


def _overloaded(reason: str) -> Overloaded:
    return Overloaded(
        f"The service is busy. {reason} Nothing was stored.", retry_after=_random.randint(*RETRY_AFTER_SECONDS)
    )
