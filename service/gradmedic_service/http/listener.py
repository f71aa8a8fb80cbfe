"""The listener: accepts connections and counts them before anything else, so that their number is bounded with TLS too.

asyncio's own servers show a connection to its protocol only after the TLS handshake, and stop accepting for a second
where the process has no file left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import ssl
from typing import Any

import structlog

from gradmedic_service.http.addresses import sender_of
from gradmedic_service.http.connections import ConnectionBounds, Connections, GuardedProtocol

ACCEPTED_TOGETHER = 64
"""Connections that are accepted before the event loop does something else: requests are read in between."""
RESERVED_FILES = 256
"""Files that a process needs beside its connections: for databases, logs, and the worker beside it."""
FULL_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of `accept` that mean that the process or the machine has no room."""
PAUSE_SECONDS = 0.2
"""Seconds without accepting after one of FULL_ERRORS."""

_logger = structlog.get_logger("gradmedic.connections")


class Listener:
    """Accepts connections of a socket, from `start()` to `stop()`. Belongs to one event loop.

    Args:
        listening: a socket that listens.
        connections: the connections of the process.
        arguments: further arguments of each `GuardedProtocol`.
        context: the context of TLS; None for plain HTTP.
        bounds: the deadlines and bounds of connections.
    """

    def __init__(
        self,
        listening: socket.socket,
        connections: Connections,
        arguments: dict[str, Any],
        context: ssl.SSLContext | None,
        bounds: ConnectionBounds,
    ) -> None:
        self._socket = listening
        self._connections = connections
        self._arguments = arguments
        self._bounds = bounds
        self._tls: dict[str, Any] = {}
        if context is not None:
            self._tls = {
                "ssl": context,
                "ssl_handshake_timeout": bounds.header_seconds,
                "ssl_shutdown_timeout": bounds.write_seconds,
            }
        self._loop = asyncio.get_running_loop()
        self._resuming: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept connections."""
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._accept)

    def stop(self) -> None:
        """Accept no more connections."""
        self._loop.remove_reader(self._socket)
        if self._resuming is not None:
            self._resuming.cancel()
        self._connections.abort_all_opening()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_TOGETHER):
            try:
                accepted, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in FULL_ERRORS:
                    raise
                _logger.error("no connection can be accepted", reason=error.strerror, open=len(self._connections))
                self._connections.make_room()
                self._loop.remove_reader(self._socket)
                self._resuming = self._loop.call_later(PAUSE_SECONDS, self._loop.add_reader, self._socket, self._accept)
                return
            accepted.setblocking(False)
            sender = peer[0] if self._bounds.is_proxy(peer[0]) else sender_of(peer[0])
            connection = GuardedProtocol(self._connections, sender, **self._arguments)
            if self._connections.add(connection):
                self._open(accepted, connection)
            else:
                accepted.close()

    def _open(self, accepted: socket.socket, connection: GuardedProtocol) -> None:
        """Connect a socket with its protocol, after the TLS handshake if there is one."""

        def note_end(opening: asyncio.Task[Any]) -> None:
            if opening.cancelled() or opening.exception() is not None:  # no TLS, another version, or the peer has gone
                self._connections.remove(connection)
                accepted.close()

        opening = self._loop.create_task(self._connect(accepted, connection))
        opening.add_done_callback(note_end)
        connection.opening = opening

    async def _connect(self, accepted: socket.socket, connection: GuardedProtocol) -> None:
        await self._loop.connect_accepted_socket(lambda: connection, accepted, **self._tls)


def bound_by_files(wanted: int) -> int:
    """Raise the process's limit of open files as far as `wanted` connections need; return how many fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit than the one that it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    fitting = max(soft // 2, soft - RESERVED_FILES)
    _logger.warning("fewer connections than max_connections: raise the limit of open files", connections=fitting)
    return fitting
