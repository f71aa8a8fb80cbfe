"""Bodies are bounded, as sent and after decompression, and malformed ones are refused."""

from __future__ import annotations

import gzip
import random
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.testclient import TestClient

from gradmedic_service.app import create_app
from gradmedic_service.database import schema
from gradmedic_service.http.bodies import (
    DECOMPRESSORS,
    GZIP_PIECE_BYTES,
    LARGE_BODY_BYTES,
    MAX_GZIP_MEMBERS,
    SentBody,
    decompressed,
)
from gradmedic_service.http.errors import BodyTooLarge, MalformedBody
from gradmedic_service.settings import Settings

LIMIT = 100_000
JSON = {"Content-Type": "application/json"}


def zstd_of_unknown_size(data: bytes) -> bytes:
    """Return a zstd frame that does not declare the size of its content, as a streaming client sends it."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


COMPRESSORS = [("gzip", gzip.compress), ("zstd", zstandard.compress), ("zstd", zstd_of_unknown_size)]


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSORS)
@given(data=st.binary(max_size=3000))
def test_round_trip(encoding: str, compress: Any, data: bytes) -> None:
    """A compressed body is decompressed to the same bytes."""
    assert DECOMPRESSORS[encoding](compress(data), LIMIT) == data


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSORS)
def test_the_bound_is_exact(encoding: str, compress: Any) -> None:
    """A body of exactly the limit is accepted; one more byte is refused."""
    assert len(DECOMPRESSORS[encoding](compress(bytes(LIMIT)), LIMIT)) == LIMIT
    with pytest.raises(BodyTooLarge):
        DECOMPRESSORS[encoding](compress(bytes(LIMIT + 1)), LIMIT)


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSORS)
def test_bombs_take_no_memory(encoding: str, compress: Any) -> None:
    """A few kilobytes that decompress to 50 MB are refused with little more memory than the limit."""
    bomb = compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            DECOMPRESSORS[encoding](bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSORS)
@given(fraction=st.floats(0, 0.999))
def test_truncated_bodies(encoding: str, compress: Any, fraction: float) -> None:
    """A compressed body that is cut short is refused as malformed."""
    compressed = compress(random.Random(0).randbytes(500))
    with pytest.raises(MalformedBody):
        DECOMPRESSORS[encoding](compressed[: int(len(compressed) * fraction)], LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@given(data=st.binary(max_size=200))
def test_any_bytes(encoding: str, data: bytes) -> None:
    """Any bytes are decompressed within the limit, or refused with an error of the service."""
    with suppress(MalformedBody, BodyTooLarge):
        assert len(DECOMPRESSORS[encoding](data, LIMIT)) <= LIMIT


def test_gzip_members() -> None:
    """Several gzip members in a row are one body, with one limit."""
    assert DECOMPRESSORS["gzip"](gzip.compress(b"ab") + gzip.compress(b"cd"), 4) == b"abcd"
    with pytest.raises(BodyTooLarge):
        DECOMPRESSORS["gzip"](gzip.compress(b"ab") + gzip.compress(b"cd"), 3)


def test_gzip_members_are_bounded() -> None:
    """A body of many empty gzip members is refused, however short it is."""
    member = gzip.compress(b"", mtime=0)
    assert DECOMPRESSORS["gzip"](member * MAX_GZIP_MEMBERS, LIMIT) == b""
    with pytest.raises(MalformedBody, match="more than 1000 gzip members"):
        DECOMPRESSORS["gzip"](member * 100_000, LIMIT)


def test_what_follows_a_gzip_member_is_copied_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of each member zlib copies what is left of its input: at most one piece, not the rest of the body."""
    copied: list[int] = []

    class Counting:
        """A decompressor that counts the bytes that it leaves."""

        def __init__(self, wbits: int) -> None:
            self._stream = make(wbits=wbits)

        def decompress(self, data: bytes, limit: int) -> bytes:
            """Decompress, and count what is left."""
            part = self._stream.decompress(data, limit)
            copied.append(len(self._stream.unused_data))
            return part

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    make = zlib.decompressobj
    monkeypatch.setattr("gradmedic_service.http.bodies.zlib.decompressobj", Counting)
    members = gzip.compress(b"a", mtime=0) * 900 + gzip.compress(random.Random(0).randbytes(2_000_000), mtime=0)
    assert len(DECOMPRESSORS["gzip"](members, 3_000_000)) == 2_000_900
    assert max(copied) <= GZIP_PIECE_BYTES


@pytest.mark.parametrize(
    "extra", [zstandard.compress(b""), b"\x50\x2a\x4d\x18\x00\x00\x00\x00"], ids=["empty", "skippable"]
)
def test_a_zstd_body_is_one_frame(extra: bytes) -> None:
    """Further frames are refused, also those without content: many of them would cost time."""
    with pytest.raises(MalformedBody):
        DECOMPRESSORS["zstd"](zstandard.compress(b"a") + extra * 100_000, LIMIT)


def test_large_bodies_take_turns() -> None:
    """While a large body is decoded, small ones are decoded as well, and another large one waits."""
    large = SentBody(gzip.compress(bytes(LARGE_BODY_BYTES + 1)), "gzip")
    limit = LARGE_BODY_BYTES * 2
    turn = threading.Lock()
    second_is_decoded = threading.Event()

    def decode_second() -> None:
        with decompressed(large, limit, turn):
            second_is_decoded.set()

    second = threading.Thread(target=decode_second)
    with decompressed(large, limit, turn) as first:
        assert len(first) == LARGE_BODY_BYTES + 1
        second.start()
        with decompressed(SentBody(bytes(LARGE_BODY_BYTES), ""), limit, turn) as small:
            assert len(small) == LARGE_BODY_BYTES
        assert not second_is_decoded.is_set()
    second.join()
    assert second_is_decoded.is_set()


def test_zstd_windows_are_bounded() -> None:
    """A frame that declares a window of 128 MB is refused before the memory is allocated."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    compressed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = compressed.compress(random.Random(0).randbytes(1000)) + compressed.flush()
    with pytest.raises(MalformedBody):
        DECOMPRESSORS["zstd"](frame, LIMIT)


@pytest.fixture(scope="module")
def small_client(_allow_test_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a service whose limit of bodies is small."""
    url = f"sqlite:///{tmp_path_factory.mktemp('bodies')}/service.db"
    schema.upgrade(url)
    with TestClient(create_app(Settings(database_url=SecretStr(url), max_body_bytes=LIMIT))) as client:
        yield client


def padded_body(length: int) -> bytes:
    """Return a valid body of this length."""
    body = b'{"project": "p", "layers": []'
    return body + b" " * (length - len(body) - 1) + b"}"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_body_limit_over_http(small_client: TestClient, is_streamed: bool) -> None:
    """With or without Content-Length, a body over the limit gets 413, and a body at the limit is accepted."""

    def send(length: int) -> Any:
        body = padded_body(length)
        pieces = (body[start : start + 1000] for start in range(0, length, 1000))
        return small_client.post("/api/v1/runs", content=pieces if is_streamed else body, headers=JSON)

    assert send(LIMIT).status_code == 201
    response = send(LIMIT + 1)
    assert (response.status_code, response.json()["error_code"]) == (413, "body_too_large")


@pytest.mark.parametrize("length", [200, LIMIT - 1000])
def test_compressed_bodies(small_client: TestClient, length: int) -> None:
    """A gzip body creates a run."""
    compressed = zlib.compress(padded_body(length), level=0, wbits=31)
    response = small_client.post("/api/v1/runs", content=compressed, headers={**JSON, "Content-Encoding": "gzip"})
    assert response.status_code == 201


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code"),
    [
        ("gzip", b"{}", 400, "malformed_body"),
        ("zstd", b"{}", 400, "malformed_body"),
        ("br", b"{}", 415, "unsupported_media_type"),
        ("gzip, zstd", b"{}", 415, "unsupported_media_type"),
        ("gzip", gzip.compress(bytes(LIMIT + 1), mtime=0), 413, "body_too_large"),
        ("GZIP", gzip.compress(b"{", mtime=0), 400, "malformed_body"),
    ],
)
@pytest.mark.parametrize("route", ["/api/v1/runs", "/api/v1/runs/0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50/steps"])
def test_invalid_encodings(
    small_client: TestClient, route: str, encoding: str, body: bytes, status: int, code: str
) -> None:
    """A body that cannot be decompressed is refused with the right reason, on every route with a body."""
    response = small_client.post(route, content=body, headers={**JSON, "Content-Encoding": encoding})
    assert (response.status_code, response.json()["error_code"]) == (status, code)
