"""Request bodies: their size is bounded while they arrive, and while they are decompressed.

No route receives more than `max_body_bytes`, whatever the headers declare and however small the compressed body was.
The body is read when the application reads it, not before.
"""

from __future__ import annotations

import zlib
from asyncio import timeout
from collections.abc import Callable

import zstandard
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic_service.http.errors import BodyTooLarge, MalformedBody, RequestTimeout, UnsupportedMediaType

MAX_ZSTD_WINDOW_BYTES = 8 * 2**20
"""The window that RFC 8878, section 3.1.1.1.2, recommends every decoder to support; a frame may declare 2 GiB."""
BODY_SECONDS = 20.0
"""Seconds that the next part of a body may take: a slow request occupies a slot that others wait for."""
INLINE_BYTES = 2**15
"""Largest compressed body that is decompressed on the event loop: handing it to a thread would take longer."""
GZIP_WBITS = 31
ZSTD_UNKNOWN_SIZE = zstandard.CONTENTSIZE_UNKNOWN


class BoundedBodies:
    """ASGI middleware: bounds the bodies of requests, and decompresses gzip and zstd."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "").strip().lower()
        declared = headers.get("content-length", "")
        body = _Body(receive, encoding, int(declared) if declared.isdecimal() else None, self._limit)
        await self._app(scope, body.receive, send)


class _Body:
    """The body of one request."""

    def __init__(self, receive: Receive, encoding: str, declared: int | None, limit: int) -> None:
        self._receive = receive
        self._encoding = encoding
        self._declared = declared
        self._limit = limit
        self._received = 0
        self._is_decompressed = False
        self._is_complete = False

    async def receive(self) -> Message:
        """Return the next message; a compressed body is returned as one message, decompressed."""
        if self._encoding in ("", "identity") or self._is_decompressed:
            return await self._receive_bounded()
        decompress = DECOMPRESSORS.get(self._encoding)
        if decompress is None:
            raise UnsupportedMediaType(f"Content-Encoding is {self._encoding}; send {' or '.join(DECOMPRESSORS)}.")
        compressed = bytearray()
        while True:
            message = await self._receive_bounded()
            if message["type"] != "http.request":
                return message
            compressed += message.get("body", b"")
            if not message.get("more_body", False):
                break
        self._is_decompressed = True
        data = bytes(compressed)
        if len(data) <= INLINE_BYTES:
            body = decompress(data, self._limit)
        else:
            body = await to_thread.run_sync(decompress, data, self._limit)
        return {"type": "http.request", "body": body, "more_body": False}

    async def _receive_bounded(self) -> Message:
        if self._declared is not None and self._declared > self._limit:
            raise _too_large(self._limit)
        if self._is_complete:  # the next message is the end of the connection, which may come much later
            return await self._receive()
        try:
            async with timeout(BODY_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout(f"Nothing of the body arrived for {BODY_SECONDS:g} s.") from None
        if message["type"] == "http.request":
            self._is_complete = not message.get("more_body", False)
            self._received += len(message.get("body", b""))
            if self._received > self._limit:
                raise _too_large(self._limit)
        return message


def decompress_gzip(data: bytes, limit: int) -> bytes:
    """Return at most `limit` decompressed bytes. Raises MalformedBody, BodyTooLarge."""
    parts: list[bytes] = []
    remaining = limit
    while data or not parts:
        stream = zlib.decompressobj(wbits=GZIP_WBITS)
        try:
            part = stream.decompress(data, remaining + 1)
        except zlib.error as error:
            raise MalformedBody(f"The body is not gzip: {error}.") from None
        if len(part) > remaining:
            raise _too_large(limit)
        if not stream.eof:
            raise MalformedBody("The gzip body is cut short.")
        parts.append(part)
        remaining -= len(part)
        data = stream.unused_data
    return b"".join(parts)


def decompress_zstd(data: bytes, limit: int) -> bytes:
    """Return at most `limit` decompressed bytes. Raises MalformedBody, BodyTooLarge."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size != ZSTD_UNKNOWN_SIZE and size > limit:
            raise _too_large(limit)
        return decompressor.decompress(data, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        if _exceeds_limit(decompressor, data, limit):
            raise _too_large(limit) from None
        raise MalformedBody(f"The body is not zstd: {error}.") from None


def _exceeds_limit(decompressor: zstandard.ZstdDecompressor, data: bytes, limit: int) -> bool:
    """Whether a frame of unknown size holds more than `limit` bytes. The error of `decompress` lacks that reason."""
    read = 0
    with decompressor.stream_reader(data) as reader:
        try:
            while read <= limit:
                part = reader.read(min(2**20, limit + 1 - read))
                if not part:
                    break
                read += len(part)
        except zstandard.ZstdError:
            return False
    return read > limit


def _too_large(limit: int) -> BodyTooLarge:
    """Return the error of a body over the limit."""
    return BodyTooLarge(f"The body is over {limit} bytes; `GET /api/v1/limits` has the limits.")


DECOMPRESSORS: dict[str, Callable[[bytes, int], bytes]] = {"gzip": decompress_gzip, "zstd": decompress_zstd}
