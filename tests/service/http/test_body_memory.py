"""What one hostile body takes in memory is a stated multiple of its size: measured on a service of its own process."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from tests.support.patience import PATIENCE
from tests.support.services import Serve

from gradmedic.protocol.service import API_PATH, JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from gradmedic_service.http.bodies import MEMORY_CONSTANT, MEMORY_MULTIPLE

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

SIZE = 3 * 2**20
LAYERS = b'{"project": "p", "layers": ['
STATISTIC = b'{"steps": [0], "statistics": {"grad_norm": ['
RUNS, STEPS, PACKED = "runs", "steps", "packed steps"


@dataclass(frozen=True, slots=True)
class Hostile:
    """A body that is short when it is compressed, and would take much memory."""

    name: str
    route: str
    make: Callable[[], bytes]
    status: int = 422


def repeat(start: bytes, unit: bytes, end: bytes, size: int = SIZE) -> Callable[[], bytes]:
    """Return a function that makes a body of about a size: `unit` is repeated between its start and its end."""
    return lambda: start + unit * (size // len(unit)) + end


def repeat_items(start: bytes, item: str, end: bytes, count: int) -> Callable[[], bytes]:
    """Return a function that makes a body with items that differ: `item` has a place for their number."""
    return lambda: start + ",".join(item % number for number in range(count)).encode() + end


def packed(name: bytes, header: bytes, unit: bytes, size: int = SIZE) -> Callable[[], bytes]:
    """Return a function that makes a block in msgpack whose field `name` is a long list of one unit."""

    def make() -> bytes:
        count = size // len(unit)
        field = bytes([0xA0 + len(name)]) + name
        return b"\x82\xa5steps\x91\x00" + field + header + b"\xdd" + count.to_bytes(4, "big") + unit * count

    return make


BODIES = [
    Hostile("wrong layers", RUNS, repeat(LAYERS, b"0,", b"0]}")),
    Hostile("wrong layers, as many as may be counted", RUNS, repeat(LAYERS, b"{},", b"0]}", 1_200_000)),
    Hostile("valid layers", RUNS, repeat_items(LAYERS, '{"name": "%d"}', b"]}", 250_000)),
    Hostile("a layer of unknown fields", RUNS, repeat_items(LAYERS + b"{", '"%x": 0', b"}]}", 65_000)),
    Hostile("a long shape", RUNS, repeat(LAYERS + b'{"name": "a", "shape": [', b'"",', b"0]}]}", 1_200_000)),
    Hostile("tags", RUNS, repeat(b'{"project": "p", "layers": [], "tags": [', b'"ab",', b"0]}")),
    Hostile("unknown fields", RUNS, repeat_items(b"{", '"%x": 0', b"}", 65_000)),
    Hostile(
        "a config of lists",
        RUNS,
        repeat(b'{"project": "p", "layers": [], "config": {"a": [', b"[],", b"0]}}", 1_200_000),
    ),
    Hostile(
        "a config of objects",
        RUNS,
        repeat_items(b'{"project": "p", "layers": [], "config": {"a": [', '{"%x":0}', b"]}}", 200_000),
    ),
    Hostile("a long wide text", RUNS, repeat('{"layers": [], "project": "\U0001f600'.encode(), b"x", b'"}')),
    Hostile("digits", RUNS, repeat(b'{"project": "p", "layers": [], "config": {"a": ', b"1", b"}}"), 400),
    Hostile("nesting", RUNS, repeat(b"", b"[", b"")),
    Hostile("rows", STEPS, repeat(STATISTIC, b"[],", b"[]]}}")),
    Hostile("rows, as many as may be counted", STEPS, repeat(STATISTIC, b"[],", b"[]]}}", 1_500_000)),
    Hostile("values, as many as may be counted", STEPS, repeat(STATISTIC + b"[", b"0,", b"0]]}}", 2_000_000)),
    Hostile("wrong steps", STEPS, repeat(b'{"steps": [', b'"",', b"0]}", 1_500_000)),
    Hostile("metrics", STEPS, repeat_items(b'{"steps": [0], "metrics": {', '"%x":{}', b"}}", 300_000)),
    Hostile("packed lists", PACKED, packed(b"loss", b"", b"\x90")),
    Hostile("packed maps of a metric", PACKED, packed(b"metrics", b"\x81\xa1a", b"\x80")),
    Hostile("packed texts in a step", PACKED, packed(b"sampled", b"", b"\xa2ab")),
    Hostile("packed lists in an unknown field", PACKED, packed(b"los", b"", b"\x90")),
]


@pytest.mark.slow
def test_the_memory_of_a_body_is_bounded(serve: Serve, database_url: str) -> None:
    """Each hostile body is refused, and the service's memory grows by no more than the stated multiple of its size."""
    with serve(database_url) as service, httpx2.Client(base_url=service.url, timeout=PATIENCE) as client:
        created = client.post(f"{API_PATH}/runs", json={"project": "p", "layers": [{"name": "a"}]}).json()
        routes = {
            RUNS: (f"{API_PATH}/runs", JSON_MEDIA_TYPE),
            STEPS: (f"{API_PATH}/runs/{created['id']}/steps", JSON_MEDIA_TYPE),
            PACKED: (f"{API_PATH}/runs/{created['id']}/steps", MSGPACK_MEDIA_TYPE),
        }
        for hostile in BODIES:
            body = hostile.make()
            path, media_type = routes[hostile.route]
            process = Path(f"/proc/{service.process.pid}")
            (process / "clear_refs").write_text("5")  # begin a new maximum
            before = memory(process, "VmRSS")
            compressed = zlib.compress(body, level=1, wbits=31)
            headers = {"Content-Type": media_type, "Content-Encoding": "gzip"}
            response = client.post(path, content=compressed, headers=headers)
            assert response.status_code == hostile.status, (hostile.name, response.text[:200])
            assert len(json.loads(response.content)["errors"]) <= 20
            grown = memory(process, "VmHWM") - before
            assert grown < MEMORY_MULTIPLE * len(body) + MEMORY_CONSTANT, (hostile.name, grown // 2**20)


def memory(process: Path, name: str) -> int:
    """Return a number of a process's status, in bytes."""
    line = next(line for line in (process / "status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
