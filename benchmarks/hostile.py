"""Attacks on a service, by one client with a key of its own, for the benchmark of load.

- `bombs`: some hundred compressed bytes that unpack to a run of two million wrong layers, again and again.
- `unread`: twenty requests for 60 MiB each, whose answers are not read.
- `slow`: as many bodies as the service has places, a byte every fifteen seconds.
- `silent`: 1,100 connections that send nothing.

What the service closes is opened again a second later.

    python -m benchmarks.hostile ADDRESS SECRET ATTACK...      # prints "ready", then attacks until it is killed
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

import zstandard

from gradmedic.protocol.service import API_PATH, JSON_MEDIA_TYPE

WRONG_LAYERS: Final = 2_000_000
LARGE_LAYERS: Final = 2_000
LARGE_STEPS: Final = 500
BLOCK: Final = 50
UNREAD_CLIENTS: Final = 20
SLOW_CLIENTS: Final = 20
SILENT_CLIENTS: Final = 1_100
DRIP_SECONDS: Final = 15.0
AGAIN_SECONDS: Final = 1.0
RECEIVE_BYTES: Final = 4096
"""Bytes that an unread connection takes from its socket before it stops."""


class Attacker:
    """A client with a valid key that means harm."""

    def __init__(self, address: str, secret: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._secret = secret
        self._large_run = ""
        body = b'{"project": "bench", "layers": [' + b",".join([b"1"] * WRONG_LAYERS) + b"]}"
        self._bomb = zstandard.compress(body, 19)

    def prepare(self) -> None:
        """Store a run whose series are a million points."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=60)
        headers = {"Authorization": f"Bearer {self._secret}", "Content-Type": JSON_MEDIA_TYPE}

        def post(path: str, content: object) -> dict[str, object]:
            connection.request("POST", path, json.dumps(content), headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status not in (200, 201):
                raise RuntimeError(f"{response.status}: {answer[:300]!r}")
            return dict(json.loads(answer))

        layers = [{"name": f"layer{index}"} for index in range(LARGE_LAYERS)]
        self._large_run = f"{API_PATH}/runs/{post(f'{API_PATH}/runs', {'project': 'bench', 'layers': layers})['id']}"
        for first in range(0, LARGE_STEPS, BLOCK):
            rows = [[1 / (3 + step + layer) for layer in range(LARGE_LAYERS)] for step in range(first, first + BLOCK)]
            steps = [*range(first, first + BLOCK)]
            post(f"{self._large_run}/steps", {"steps": steps, "statistics": {"grad_norm": rows}})
        connection.close()

    async def attack(self, names: list[str]) -> None:
        """Attack until cancelled."""
        attacks: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "bombs": (1, self._throw_bomb),
            "unread": (UNREAD_CLIENTS, self._leave_unread),
            "slow": (SLOW_CLIENTS, self._send_slowly),
            "silent": (SILENT_CLIENTS, self._say_nothing),
        }
        await asyncio.gather(
            *(_repeat(attacks[name][1]) for name in names for _ in range(attacks[name][0])),
        )

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port, limit=RECEIVE_BYTES)

    def _head(self, method: str, path: str, *fields: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {self._secret}", *fields]
        return "\r\n".join([*lines, "", ""]).encode()

    async def _throw_bomb(self) -> None:
        fields = (f"Content-Type: {JSON_MEDIA_TYPE}", "Content-Encoding: zstd", f"Content-Length: {len(self._bomb)}")
        reader, writer = await self._connect()
        writer.write(self._head("POST", f"{API_PATH}/runs", *fields, "Connection: close") + self._bomb)
        while await reader.read(RECEIVE_BYTES):
            pass
        writer.close()

    async def _leave_unread(self) -> None:
        reader, writer = await self._connect()
        writer.write(self._head("GET", f"{self._large_run}/steps?statistic=grad_norm&max_points={LARGE_STEPS}"))
        await reader.read(1)  # the stream stops to read after some kilobytes
        while not reader.at_eof() and reader.exception() is None and not writer.is_closing():
            await asyncio.sleep(AGAIN_SECONDS)
            writer.write(b"\r\n")  # fails where the service has closed the connection
        writer.close()

    async def _send_slowly(self) -> None:
        reader, writer = await self._connect()
        writer.write(
            self._head("POST", f"{API_PATH}/runs", f"Content-Type: {JSON_MEDIA_TYPE}", "Content-Length: 100000")
        )
        while True:
            writer.write(b"{")
            try:
                async with asyncio.timeout(DRIP_SECONDS):
                    if not await reader.read(RECEIVE_BYTES):
                        break
            except TimeoutError:
                pass
        writer.close()

    async def _say_nothing(self) -> None:
        reader, writer = await self._connect()
        await reader.read(1)
        writer.close()


async def _repeat(attack: Callable[[], Awaitable[None]]) -> None:
    while True:
        with contextlib.suppress(OSError):
            await attack()
        await asyncio.sleep(AGAIN_SECONDS)


def main() -> int:
    """Prepare, print "ready", and attack until the process is killed."""
    address, secret, *names = sys.argv[1:]
    attacker = Attacker(address, secret)
    attacker.prepare()
    print("ready", flush=True)
    asyncio.run(attacker.attack(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
