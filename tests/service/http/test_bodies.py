"""Bodies are bounded, as sent and after decompression, and broken ones are refused."""

from __future__ import annotations

import gzip
import random
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
from gradmedic_service.http.bodies import DECOMPRESSORS, INLINE_BYTES
from gradmedic_service.http.errors import BodyTooLarge, MalformedBody
from gradmedic_service.settings import Settings

LIMIT = 100_000
JSON = {"Content-Type": "application/json"}


def zstd_of_unknown_size(data: bytes) -> bytes:
    """A frame that does not say how long its content is, as a streaming client sends it."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


PACKERS = [("gzip", gzip.compress), ("zstd", zstandard.compress), ("zstd", zstd_of_unknown_size)]


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
@given(data=st.binary(max_size=3000))
def test_round_trip(encoding: str, pack: Any, data: bytes) -> None:
    """What was compressed is unpacked."""
    assert DECOMPRESSORS[encoding](pack(data), LIMIT) == data


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
def test_the_bound_is_exact(encoding: str, pack: Any) -> None:
    """A body of exactly the limit passes; a byte more does not."""
    assert len(DECOMPRESSORS[encoding](pack(bytes(LIMIT)), LIMIT)) == LIMIT
    with pytest.raises(BodyTooLarge):
        DECOMPRESSORS[encoding](pack(bytes(LIMIT + 1)), LIMIT)


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
def test_bombs_take_no_memory(encoding: str, pack: Any) -> None:
    """A few kilobytes that unpack to 50 MB are refused within memory in the order of the limit."""
    bomb = pack(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            DECOMPRESSORS[encoding](bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
@given(fraction=st.floats(0, 0.999))
def test_cut_short_is_malformed(encoding: str, pack: Any, fraction: float) -> None:
    """A compressed body that ends too early is refused, not taken as far as it goes."""
    packed = pack(random.Random(0).randbytes(500))
    with pytest.raises(MalformedBody):
        DECOMPRESSORS[encoding](packed[: int(len(packed) * fraction)], LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@given(data=st.binary(max_size=200))
def test_any_bytes_unpack_or_are_refused(encoding: str, data: bytes) -> None:
    """Whatever bytes come, the answer is a body or one of the service's errors."""
    with suppress(MalformedBody, BodyTooLarge):
        assert len(DECOMPRESSORS[encoding](data, LIMIT)) <= LIMIT


def test_gzip_members_join() -> None:
    """Several gzip members one after the other are one body, and are bounded together."""
    assert DECOMPRESSORS["gzip"](gzip.compress(b"ab") + gzip.compress(b"cd"), 4) == b"abcd"
    with pytest.raises(BodyTooLarge):
        DECOMPRESSORS["gzip"](gzip.compress(b"ab") + gzip.compress(b"cd"), 3)


def test_zstd_windows_are_bounded() -> None:
    """A frame that asks for a window of 128 MB is refused before the memory is taken."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = packed.compress(random.Random(0).randbytes(1000)) + packed.flush()
    with pytest.raises(MalformedBody):
        DECOMPRESSORS["zstd"](frame, LIMIT)


@pytest.fixture(scope="module")
def small_client(_answer_the_test_client: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service that takes bodies up to the limit of this module."""
    url = f"sqlite:///{tmp_path_factory.mktemp('bodies')}/service.db"
    schema.upgrade(url)
    with TestClient(create_app(Settings(database_url=SecretStr(url), max_body_bytes=LIMIT))) as client:
        yield client


def padded(length: int) -> bytes:
    """A valid body of so many bytes."""
    body = b'{"project": "p", "layers": []'
    return body + b" " * (length - len(body) - 1) + b"}"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_body_limit_over_http(small_client: TestClient, is_streamed: bool) -> None:
    """With or without a Content-Length, a body over the limit gets 413 and one at the limit is taken."""

    def send(length: int) -> Any:
        body = padded(length)
        pieces = (body[start : start + 1000] for start in range(0, length, 1000))
        return small_client.post("/api/v1/runs", content=pieces if is_streamed else body, headers=JSON)

    assert send(LIMIT).status_code == 201
    response = send(LIMIT + 1)
    assert (response.status_code, response.json()["error_code"]) == (413, "body_too_large")


@pytest.mark.parametrize("length", [200, INLINE_BYTES * 3])
def test_every_route_takes_compressed_bodies(small_client: TestClient, length: int) -> None:
    """Creating a run with a gzip body works like a plain one, inline and on a thread."""
    packed = zlib.compress(padded(length), level=0, wbits=31)
    response = small_client.post("/api/v1/runs", content=packed, headers={**JSON, "Content-Encoding": "gzip"})
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
def test_bad_encodings(
    small_client: TestClient, route: str, encoding: str, body: bytes, status: int, code: str
) -> None:
    """What cannot be unpacked is refused for the reason that holds, on every route with a body."""
    response = small_client.post(route, content=body, headers={**JSON, "Content-Encoding": encoding})
    assert (response.status_code, response.json()["error_code"]) == (status, code)
