"""Many runs that report seldom, each over a connection of its own, in one thread.

The blocks of 2,000 runs are sent at their times; a refused block is sent again after `Retry-After` seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from benchmarks.recorded_values import BLOCK_STEPS
from gradmedic.protocol.service import API_PATH, JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE

AT_ONCE: Final = 8
"""Runs that are created, or checked, at the same time."""


class QuietRun:
    """A run that reports seldom, over one connection that stays open."""

    def __init__(self, address: str, secret: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._head = f"Host: {parts.netloc}\r\nAuthorization: Bearer {secret}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._path = ""
        self.acknowledged = 0
        """Number of acknowledged blocks."""
        self.statuses: list[int] = []
        """Status of every answer to a block; 0 if none came."""
        self.latencies: list[float] = []
        """Seconds from a block's due moment to its acknowledgement."""

    async def request(
        self, method: str, path: str, body: bytes = b"", media_type: str = ""
    ) -> tuple[int, float, bytes]:
        """Send a request; return status, `Retry-After` and body. The status is 0 if the connection broke."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            fields = f"Content-Type: {media_type}\r\n" if media_type else ""
            head = f"{method} {path} HTTP/1.1\r\n{self._head}{fields}Content-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in answer[1:] if line)
            content = await reader.readexactly(int(headers["content-length"]))
            return int(answer[0].split(" ")[1]), float(headers.get("retry-after", 1)), content
        except (OSError, asyncio.IncompleteReadError):
            if self._streams is not None:
                self._streams[1].close()
            self._streams = None
            return 0, 1.0, b""

    async def register(self, body: bytes) -> None:
        """Create the run."""
        status, _, answer = await self.request("POST", f"{API_PATH}/runs", body, JSON_MEDIA_TYPE)
        if status != 201:
            raise RuntimeError(f"{status}: {answer[:500]!r}")
        self._path = f"{API_PATH}/runs/{json.loads(answer)['id']}"

    async def report(self, bodies: Sequence[bytes], first: float, period: float) -> None:
        """Send each block when it is due, from the moment `first` on, until each is acknowledged."""
        due = first
        for number, body in enumerate(bodies):
            due = max(due, first + number * period)
            while self.acknowledged == number:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                status, retry_after, _ = await self.request("POST", f"{self._path}/steps", body, MSGPACK_MEDIA_TYPE)
                self.statuses.append(status)
                if status == 200:
                    self.acknowledged += 1
                    self.latencies.append(time.monotonic() - due)
                else:
                    due = time.monotonic() + retry_after

    async def missing_steps(self) -> int:
        """Count the acknowledged steps that the service does not have."""
        status, body = 0, b""
        while status != 200:
            status, _, body = await self.request("GET", f"{self._path}/steps?statistic=loss&max_points=10000")
        stored: int = sum(json.loads(body)["series"][0]["count"])
        return max(0, self.acknowledged * BLOCK_STEPS - stored)


async def report_seldom(
    address: str, secret: str, run_body: bytes, bodies: Sequence[bytes], count: int, period: float
) -> tuple[list[QuietRun], int]:
    """Create runs, let each send the bodies, one a period, and return the runs and the number of lost steps."""
    runs = [QuietRun(address, secret) for _ in range(count)]
    turn = asyncio.Semaphore(AT_ONCE)

    async def register(run: QuietRun) -> None:
        async with turn:
            await run.register(run_body)

    async def check(run: QuietRun) -> int:
        async with turn:
            return await run.missing_steps()

    await asyncio.gather(*map(register, runs))
    start = time.monotonic()
    await asyncio.gather(
        *(run.report(bodies, start + index / count * period, period) for index, run in enumerate(runs))
    )
    return runs, sum(await asyncio.gather(*map(check, runs)))
