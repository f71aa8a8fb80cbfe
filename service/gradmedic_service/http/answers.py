"""Answers: they leave in pieces as their readers take them, and the memory that they take is bounded.

uvicorn keeps all of an answer that the application gives it at once, also for a reader that reads nothing. So large
bodies are cut into pieces, and each piece waits until the one before has been sent. What a large answer is made of is
counted before it is built, for all requests together and for each client; a request that does not fit gets 503.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from fastapi.responses import StreamingResponse
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic_service.access.errors import overloaded
from gradmedic_service.access.shares import Client, Shares, client_of

PIECE_BYTES = 64 * 2**10
"""Bytes that are given to the connection at once."""
WHOLE_BYTES = 2**20
"""Largest answer that is built as a whole: its length is known, and it needs one thread."""
PART_BYTES = 256 * 2**10
"""Smallest part of a streamed answer. Each part is built on a thread, which takes longer than a small part."""
CLIENT_PART = 2
"""The part of all memory for answers that one client may hold is 1 / CLIENT_PART."""
ALWAYS_ANSWERED = ("/healthz", "/readyz")
"""Paths that are always answered: after a refusal, an orchestrator would restart the service."""
MEMORY = "answer_memory"
"""Key of the request's `AnswerMemory` in its state."""


class AnswerMemory:
    """The memory for the answer to one request; threads may share it."""

    def __init__(self, shares: Shares, client: Client) -> None:
        self._shares = shares
        self._client = client
        self._reserved = 0

    @property
    def largest(self) -> int:
        """Most bytes that may ever be reserved for the request's client."""
        return self._shares.largest(self._client)

    def reserve(self, size: int) -> None:
        """Reserve bytes until the answer has been sent. Raises Overloaded if other answers take too many."""
        if not self._shares.take(self._client, size):
            raise overloaded("Other large answers are being sent.")
        self._reserved += size

    def add(self, size: int) -> None:
        """Count bytes that exist already, until they are subtracted."""
        self._shares.take_anyway(self._client, size)

    def subtract(self, size: int) -> None:
        """Count bytes no longer."""
        self._shares.give_back(self._client, size)

    def release(self) -> None:
        """Give the reserved bytes back."""
        self._shares.give_back(self._client, self._reserved)
        self._reserved = 0


class BoundedAnswers:
    """ASGI middleware: cuts large bodies into pieces, and counts the memory of answers.

    Args:
        app: the application behind the middleware.
        max_bytes: memory of all answers that are being built or sent.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._shares = Shares(max_bytes, max_bytes // CLIENT_PART)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Raises Overloaded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = client_of(scope)
        if not self._shares.fits(client) and scope["path"] not in ALWAYS_ANSWERED:
            raise overloaded("Other answers have not been read yet.")
        memory = AnswerMemory(self._shares, client)
        scope["state"][MEMORY] = memory
        try:
            await self._app(scope, receive, _sending_pieces(memory, send))
        finally:
            memory.release()


def respond_in_parts(parts: Iterator[bytes], media_type: str, headers: Mapping[str, str]) -> Response:
    """Return the response whose body are these parts: as a whole if it is small, else part by part as it is read."""
    first: list[bytes] = []
    size = 0
    for part in parts:
        first.append(part)
        size += len(part)
        if size > WHOLE_BYTES:
            content = chain([b"".join(first)], _join_small(parts))
            return StreamingResponse(content, media_type=media_type, headers=headers)
    return Response(b"".join(first), media_type=media_type, headers=dict(headers))


def _join_small(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in parts of at least PART_BYTES."""
    joined = bytearray()
    for part in parts:
        joined += part
        if len(joined) >= PART_BYTES:
            yield bytes(joined)
            joined.clear()
    yield bytes(joined)


def _sending_pieces(memory: AnswerMemory, send: Send) -> Send:
    """Return a `send` that cuts a large body; it returns when nearly all of it has left."""

    async def send_pieces(message: Message) -> None:
        body = message.get("body", b"") if message["type"] == "http.response.body" else b""
        if len(body) <= PIECE_BYTES:
            await send(message)
            return
        memory.add(len(body))
        try:
            for start in range(0, len(body), PIECE_BYTES):
                await send({**message, "body": body[start : start + PIECE_BYTES], "more_body": True})
            await send({**message, "body": b""})  # waits, as each piece does, until little is left to be sent
        finally:
            memory.subtract(len(body))

    return send_pieces
