"""Request bodies: their size is bounded while they are decompressed, and while they are decoded.

No route receives more than `max_body_bytes`, however small the compressed body was. `http.arrival` bounds what is sent.
The endpoint of a body decompresses and decodes it, on a thread. That takes at most `MEMORY_MULTIPLE` times its
decompressed size and `MEMORY_CONSTANT` bytes. Large bodies take turns.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import zstandard
from fastapi import Request
from starlette.requests import ClientDisconnect

from gradmedic_service.http.errors import BodyTooLarge, MalformedBody, UnsupportedMediaType

MAX_ZSTD_WINDOW_BYTES = 8 * 2**20
"""The window that RFC 8878, section 3.1.1.1.2, recommends every decoder to support; a frame may declare 2 GiB."""
GZIP_WBITS = 31
GZIP_PIECE_BYTES = 2**16
"""Bytes that a gzip member is given at a time. zlib copies what is left of them at the end of each member."""
MAX_GZIP_MEMBERS = 1_000
"""Gzip members of a body. Each costs time even if it is empty; `bgzip` makes one of 64 KiB."""
MEMORY_MULTIPLE = 12
"""Bytes of memory per byte of a decompressed body: one character of four bytes makes Python store each character of its
text in four bytes, and such a text exists three times for a moment: in the body, as a value and in an error."""
MEMORY_CONSTANT = 128 * 2**20
"""Further bytes that decoding a body takes. The bounds of the number of values keep it: a value that takes two bytes in
a body takes up to 80 in memory."""
LARGE_BODY_BYTES = 2**19
"""Bodies above this size are decoded one after the other. Together they would take more memory and no less time,
because Python runs one thread at a time."""
JSON_TURN = threading.Lock()
PACKED_TURN = threading.Lock()
"""The turns of large bodies. Those of msgpack, large blocks of large models, take milliseconds and wait for no JSON."""
NAME_MARKS = b":"
VALUE_MARKS = b",:[{"
ZSTD_UNKNOWN_SIZE = zstandard.CONTENTSIZE_UNKNOWN


@dataclass(frozen=True, slots=True)
class SentBody:
    """A body as it was sent."""

    data: bytes
    encoding: str
    """The Content-Encoding in lower case: one of `DECOMPRESSORS`, `identity`, or empty."""


async def read_body(request: Request) -> SentBody:
    """Read the body of a request, however small the pieces are in which it arrives.

    Raises UnsupportedMediaType, BodyTooLarge, RequestTimeout, MalformedBody.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", *DECOMPRESSORS):
        raise UnsupportedMediaType(f"Content-Encoding is {encoding}; send {' or '.join(DECOMPRESSORS)}.")
    try:
        pieces = [piece async for piece in request.stream()]
    except ClientDisconnect:
        raise MalformedBody("The connection ended before the body.") from None
    # Its last piece is empty. A body of one other piece is not copied.
    return SentBody(b"".join(piece for piece in pieces if piece), encoding)


@contextmanager
def decompressed(body: SentBody, limit: int, turn: threading.Lock) -> Iterator[bytes]:
    """Yield a body of at most `limit` decompressed bytes, for decoding. A large body waits for its turn.

    Raises MalformedBody, BodyTooLarge.
    """
    decompress = DECOMPRESSORS.get(body.encoding, _check_size)
    data: bytes | None = None
    with suppress(BodyTooLarge):
        data = decompress(body.data, min(limit, LARGE_BODY_BYTES))
    if data is not None:
        yield data
    elif limit <= LARGE_BODY_BYTES:
        raise BodyTooLarge.over(limit)
    else:
        with turn:
            yield decompress(body.data, limit)


def has_more(json: bytes, marks: bytes, most: int) -> bool:
    """Whether a text has more than `most` of some characters.

    JSON has one of `VALUE_MARKS` for each value and name but the outermost, and one of `NAME_MARKS` for each name.
    Marks within strings count too, and the text needs not be valid.

    >>> has_more(b'{"loss": [1, 2]}', VALUE_MARKS, 3), has_more(b'{"loss": [1, 2]}', NAME_MARKS, 1)
    (True, False)
    """
    if len(json) <= most:
        return False
    characters = np.frombuffer(json, dtype=np.uint8)
    return sum(int(np.count_nonzero(characters == mark)) for mark in marks) > most


def decompress_gzip(data: bytes, limit: int) -> bytes:
    """Return at most `limit` decompressed bytes. Raises MalformedBody, BodyTooLarge."""
    parts: list[bytes] = []
    remaining = limit
    position = members = 0
    rest = memoryview(data)
    while position < len(data) or not members:
        members += 1
        if members > MAX_GZIP_MEMBERS:
            raise MalformedBody(f"The body has more than {MAX_GZIP_MEMBERS} gzip members.")
        stream = zlib.decompressobj(wbits=GZIP_WBITS)
        while not stream.eof:
            piece = rest[position : position + GZIP_PIECE_BYTES]
            if not piece:
                raise MalformedBody("The gzip body is cut short.")
            try:
                part = stream.decompress(piece, remaining + 1)
            except zlib.error as error:
                raise MalformedBody(f"The body is not gzip: {error}.") from None
            if len(part) > remaining:
                raise BodyTooLarge.over(limit)
            parts.append(part)
            remaining -= len(part)
            position += len(piece) - len(stream.unused_data)
    return b"".join(parts)


def decompress_zstd(data: bytes, limit: int) -> bytes:
    """Return at most `limit` decompressed bytes. Raises MalformedBody, BodyTooLarge."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size != ZSTD_UNKNOWN_SIZE and size > limit:
            raise BodyTooLarge.over(limit)
        return decompressor.decompress(data, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        if _exceeds_limit(decompressor, data, limit):
            raise BodyTooLarge.over(limit) from None
        raise MalformedBody(f"The body is not zstd: {error}.") from None


def _check_size(data: bytes, limit: int) -> bytes:
    """Return a body that is not compressed. Raises BodyTooLarge."""
    if len(data) > limit:
        raise BodyTooLarge.over(limit)
    return data


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


DECOMPRESSORS: dict[str, Callable[[bytes, int], bytes]] = {"gzip": decompress_gzip, "zstd": decompress_zstd}
