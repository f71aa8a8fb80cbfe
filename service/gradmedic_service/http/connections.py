"""The connections of a process: their number is bounded, and those that are late are closed.

uvicorn waits for ever for the headers of a request, for its body, and for a reader of its answer, and it accepts
connections until the process has no file left. `GuardedProtocol` is uvicorn's protocol with what `Connections` needs to
know about each connection. `Connections` looks at all of them once a second and aborts those that are overdue.

Where there is no room for a new connection, an older one is closed, of the address that has most: first those that have
sent nothing, then those that were never authenticated, then those that are idle. So silent connections push out
themselves. A connection whose authenticated request is being served is never closed.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gradmedic_service.access.principal import RESULT, Principal

SWEEP_SECONDS = 1.0
"""Longest time between two looks at all connections. It is shorter where a deadline is."""
YOUNG_SECONDS = 2.0
"""Seconds in which the first request of an honest client arrives, also at a busy service."""
CLOSED_TOGETHER = 32
"""Connections that are closed at a time where there is no room: finding them means looking at all."""
LOG_SECONDS = 10.0
"""Seconds between two reports of closed connections: an attack must not fill the disk with lines."""
MAX_LINES = 5
"""Addresses of one report, those with most closed connections."""
MAX_HEADER_BYTES = 256 * 2**10
"""Bytes of a request line and headers that are not complete. A URL may name a thousand layers."""
WRITE_BUFFER_BYTES = 64 * 2**10
"""Unsent bytes of an answer from which on its sender waits, with and without TLS."""
BYTES_PER_SECOND = 1024
"""Slowest reader of an answer."""
GRACE_SECONDS = 5.0
"""Seconds after a request's deadline in which it can be answered with 408, before the connection is closed."""

SILENT, STRANGER, IDLE, YOUNG = range(4)
"""Kinds of connections that may be closed to make room: nothing was sent; no request was authenticated; no request is
served; nothing was sent, but there was hardly time to. Those of the first kinds are closed first."""

_logger = structlog.get_logger("gradmedic.connections")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionBounds:
    """The deadlines of connections, in seconds, and bounds of their number."""

    header_seconds: float
    request_seconds: float
    write_seconds: float
    max_connections: int
    max_per_address: int
    """Connections of one address that were never authenticated."""
    is_proxy: Callable[[str], bool]
    """Whether an address is that of a trusted proxy, for which `max_per_address` does not hold."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection, with its address and what it waits for."""

    def __init__(self, connections: Connections, address: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.address = address
        self.is_authenticated = False
        """Whether one of its requests was authenticated."""
        self.opening: asyncio.Task[None] | None = None
        """The task of the TLS handshake."""
        self._all = connections
        self._since: float | None = self.loop.time()
        """When the request began that has not arrived completely; None between requests."""
        self._has_headers = False
        self._header_bytes = 0
        self._unread: tuple[float, int] | None = None
        """A moment, and the number of unsent bytes at that moment, since which too few bytes were sent."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Start to wait for the first request."""
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._since = self.loop.time()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another connection."""
        self._all.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes of a request. The deadline of a request begins with its first byte."""
        if self._since is None:
            self._begin_request()
        super().data_received(data)
        if self._since is not None and not self._has_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self._all.count_closed(self, "its headers are too long")
                self.transport.abort()

    def on_message_begin(self) -> None:
        """Begin a request, which may follow another one in the same bytes."""
        if self._since is None or self._has_headers:
            self._begin_request()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header; a field after the body is dropped, because nothing bounds their number."""
        if not self._has_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Serve the request."""
        self._has_headers = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the deadline of the request."""
        self._since = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Remember whether the connection's requests are authenticated."""
        self._learn_sender()
        super().on_response_complete()

    def resume_writing(self) -> None:
        """Note that the reader of the answer takes it."""
        self._unread = None
        super().resume_writing()

    def _begin_request(self) -> None:
        self._since = self.loop.time()
        self._has_headers = False
        self._header_bytes = 0

    def _learn_sender(self) -> None:
        if not self.is_authenticated and isinstance(self.cycle.scope["state"].get(RESULT), Principal):
            self.is_authenticated = True
            self._all.note_authenticated(self)

    def kind(self, now: float) -> int | None:
        """Return which of SILENT, STRANGER, IDLE and YOUNG the connection is; None if it must stay."""
        if self.cycle is None:
            return SILENT if self._since is None or now - self._since > YOUNG_SECONDS else YOUNG
        self._learn_sender()
        if not self.is_authenticated:
            return STRANGER
        return IDLE if self.cycle.response_complete else None

    def overdue(self, now: float, bounds: ConnectionBounds) -> str | None:
        """Return why the connection must be closed, or None."""
        if self.transport is None:  # the handshake has its own deadline
            return None
        if self._is_unread(now, bounds.write_seconds):
            return "its answer is not read"
        if self._since is None or self.transport.is_closing():
            return None
        if self.flow.read_paused:  # the request is complete as far as the service lets it come
            self._since = now
        elif not self._has_headers and now - self._since > bounds.header_seconds:
            return "no headers of a request arrived"
        elif now - self._since > bounds.request_seconds + GRACE_SECONDS:
            return "its request did not arrive"
        return None

    def _is_unread(self, now: float, seconds: float) -> bool:
        """Whether the reader took less than BYTES_PER_SECOND of an answer that is waiting to be sent."""
        size = self.transport.get_write_buffer_size()
        if size == 0:
            self._unread = None
        elif self._unread is None or size <= self._unread[1] - seconds * BYTES_PER_SECOND:
            self._unread = now, size
        else:
            return now - self._unread[0] > seconds
        return False

    def abort(self) -> None:
        """Close the connection at once, and drop what was not sent."""
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()


class Connections:
    """The open connections of a process. Belongs to one event loop."""

    def __init__(self, bounds: ConnectionBounds) -> None:
        self._bounds = bounds
        self._by_address: defaultdict[str, dict[GuardedProtocol, None]] = defaultdict(dict)
        self._strangers: Counter[str] = Counter()
        """Connections of each address that were never authenticated."""
        self._count = 0
        self._closed: Counter[tuple[str, str]] = Counter()
        """Number of closed connections by address and reason, since the last report."""
        self._reported_at = -LOG_SECONDS
        shortest = min(bounds.header_seconds, bounds.request_seconds, bounds.write_seconds)
        self._sweep_seconds = min(SWEEP_SECONDS, shortest / 4)
        self._sweeping: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._count

    def start(self) -> None:
        """Begin to look at all connections again and again."""
        loop = asyncio.get_running_loop()
        self._sweep(loop)

    def stop(self) -> None:
        """End looking at the connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()

    def add(self, connection: GuardedProtocol) -> bool:
        """Add a connection, and close others if there is no room; return False if there is none even then."""
        address = connection.address
        if self._strangers[address] >= self._bounds.max_per_address and not self._bounds.is_proxy(address):
            self._close_some(address, "too many connections of its address", (SILENT, STRANGER, YOUNG))
        if self._count >= self._bounds.max_connections:
            self.make_room()
        self._by_address[address][connection] = None
        self._strangers[address] += 1
        self._count += 1
        if self._count <= self._bounds.max_connections:
            return True
        self.count_closed(connection, "too many connections in all")
        self.remove(connection)
        return False

    def remove(self, connection: GuardedProtocol) -> None:
        """Remove a connection that is closed. Does nothing if it was removed before."""
        of_address = self._by_address.get(connection.address, {})
        if connection not in of_address:
            return
        del of_address[connection]
        self._count -= 1
        if not connection.is_authenticated:
            self._forget_stranger(connection.address)
        if not of_address:
            del self._by_address[connection.address]

    def note_authenticated(self, connection: GuardedProtocol) -> None:
        """Note that a connection is no stranger any more."""
        if connection in self._by_address.get(connection.address, {}):
            self._forget_stranger(connection.address)

    def make_room(self) -> None:
        """Close some connections of the address that has most of those that may be closed."""
        now = asyncio.get_running_loop().time()
        counts = {
            address: sum(connection.kind(now) is not None for connection in connections)
            for address, connections in self._by_address.items()
        }
        if counts:
            crowded = max(counts, key=counts.__getitem__)
            self._close_some(crowded, "too many connections in all", (SILENT, STRANGER, IDLE, YOUNG))

    def count_closed(self, connection: GuardedProtocol, reason: str) -> None:
        """Count a closed connection for the next report."""
        self._closed[connection.address, reason] += 1

    def abort_all_opening(self) -> None:
        """Close the connections whose TLS handshake is not complete."""
        for connection in self._all_connections():
            if connection.transport is None:
                connection.abort()

    def _forget_stranger(self, address: str) -> None:
        self._strangers[address] -= 1
        if self._strangers[address] == 0:
            del self._strangers[address]

    def _all_connections(self) -> list[GuardedProtocol]:
        return [connection for connections in self._by_address.values() for connection in connections]

    def _close_some(self, address: str, reason: str, kinds: tuple[int, ...]) -> None:
        """Close up to CLOSED_TOGETHER connections of an address, by their kinds, the oldest first."""
        now = asyncio.get_running_loop().time()
        by_kind: defaultdict[int, list[GuardedProtocol]] = defaultdict(list)
        for connection in self._by_address[address]:  # in the order of their age
            kind = connection.kind(now)
            if kind in kinds:
                by_kind[kind].append(connection)
        # Of the last two kinds, the one with more connections goes first: a few honest clients are the other one.
        order = sorted(by_kind, key=lambda kind: (kind, 0) if kind < IDLE else (IDLE, -len(by_kind[kind])))
        ranked = [connection for kind in order for connection in by_kind[kind]]
        for connection in ranked[: min(CLOSED_TOGETHER, max(1, len(ranked) // 2))]:
            self._close(connection, reason)

    def _close(self, connection: GuardedProtocol, reason: str) -> None:
        self.count_closed(connection, reason)
        self.remove(connection)  # its end is noted later, but its place is free now
        connection.abort()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections that are overdue, report closed ones, and come again."""
        now = loop.time()
        self._sweeping = loop.call_later(self._sweep_seconds, self._sweep, loop)
        for connection in self._all_connections():
            reason = connection.overdue(now, self._bounds)
            if reason is not None:
                self._close(connection, reason)
        if self._closed and now - self._reported_at >= LOG_SECONDS:
            self._reported_at = now
            for (address, reason), count in self._closed.most_common(MAX_LINES):
                still_open = len(self._by_address.get(address, ()))
                _logger.warning(
                    "connections closed", address=address, reason=reason, count=count, open=still_open, all=self._count
                )
            self._closed.clear()
