"""Bodies of requests while they arrive: complete before a request gets a place, within a deadline and within memory.

A body that arrives slowly or never holds no place that others wait for. What has arrived is counted, for all requests
together and for each client.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from gradmedic_service.access.errors import overloaded
from gradmedic_service.access.shares import Client, Shares
from gradmedic_service.http.errors import BodyTooLarge, RequestTimeout

CLIENT_PART = 2
"""The part of all bytes that one client may hold is 1 / CLIENT_PART."""


class ArrivingBodies:
    """Receives bodies of requests, as they were sent. Belongs to one event loop.

    Args:
        max_body_bytes: largest body.
        max_bytes: bytes of all bodies that have arrived and whose requests are not answered.
        max_requests: requests of one client whose bodies arrive at the same time.
        seconds: time in which a body must arrive.
    """

    def __init__(self, max_body_bytes: int, max_bytes: int, max_requests: int, seconds: float) -> None:
        self._limit = max_body_bytes
        self._bytes = Shares(max_bytes, max(max_body_bytes, max_bytes // CLIENT_PART))
        self._max_requests = max_requests
        self._requests = Shares(2**31, max_requests)
        self._seconds = seconds

    async def receive_body(self, client: Client, scope: Scope, receive: Receive) -> ArrivedBody:
        """Return the body of a request; its bytes are counted until it is released.

        Raises BodyTooLarge, RequestTimeout, Overloaded.
        """
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit:
            raise BodyTooLarge.over(self._limit)
        if not self._requests.take(client):
            raise overloaded(f"The bodies of {self._max_requests} requests are arriving already.")
        body = ArrivedBody(self._bytes, client, receive)
        try:
            async with asyncio.timeout(self._seconds):
                while await body.receive_part(self._limit):
                    pass
        except TimeoutError:
            body.release()
            raise RequestTimeout(f"The body did not arrive within {self._seconds:g} s.") from None
        except BaseException:
            body.release()
            raise
        finally:
            self._requests.give_back(client)
        return body


class ArrivedBody:
    """The body of one request, and what its client sends afterwards."""

    def __init__(self, shares: Shares, client: Client, receive: Receive) -> None:
        self._shares = shares
        self._client = client
        self._receive = receive
        self._messages: list[Message] = []
        self.size = 0
        """Bytes that have arrived."""

    async def receive_part(self, limit: int) -> bool:
        """Wait for the next part, and return whether there is a further one. Raises BodyTooLarge, Overloaded."""
        message = await self._receive()
        size = len(message.get("body", b""))
        if self.size + size > limit:
            raise BodyTooLarge.over(limit)
        if not self._shares.take(self._client, size):
            raise overloaded("The bodies of other requests take all the memory for them.")
        self.size += size
        self._messages.append(message)
        return message["type"] == "http.request" and bool(message.get("more_body", False))

    async def receive(self) -> Message:
        """Return the next message: first those that have arrived."""
        return self._messages.pop(0) if self._messages else await self._receive()

    def release(self) -> None:
        """Note that the body is no longer in memory."""
        self._shares.give_back(self._client, self.size)
        self.size = 0
