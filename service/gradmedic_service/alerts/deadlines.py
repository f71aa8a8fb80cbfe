"""A network call that ends in time, whatever the other side does."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, Thread
from typing import Protocol

from gradmedic_service.alerts.messages import DeliveryFailed

ATTEMPT_THREAD = "alert attempt"
"""Name of the threads on which messages are sent."""


class Connections:
    """The open connections of one call. They are cut when its time is over."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._is_cut = False
        self._lock = Lock()

    def add(self, connection: socket.socket) -> None:
        """Register a connection. If the time is over, close it and raise TimeoutError."""
        with self._lock:
            if self._is_cut:
                connection.close()
                raise TimeoutError
            self._sockets.append(connection)

    def cut(self) -> None:
        """Shut every connection down, so that the thread which waits for one ends."""
        with self._lock:
            self._is_cut = True
            for connection in self._sockets:
                with suppress(OSError):
                    # The method of the base class: that of an SSL socket changes state that the waiting thread uses.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for connection in self._sockets:
                connection.close()


class Call(Protocol):
    """A function that sends something, and registers its connections."""

    def __call__(self, connections: Connections) -> None:
        """Send. Raises DeliveryFailed."""


def call_within(seconds: float, call: Call) -> None:
    """Run a call on a thread of its own and wait for it.

    A time limit of a socket counts from byte to byte, and looking up a name has none. So the limit is here. After it,
    the thread ends with its connections, or when the lookup returns.

    Raises DeliveryFailed if the call raises it, or takes longer.
    """
    connections = Connections()
    failures: list[BaseException] = []
    thread = Thread(target=_keep_failure, args=(call, connections, failures), name=ATTEMPT_THREAD, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        connections.cut()
        raise DeliveryFailed(f"The destination did not answer within {seconds:g} seconds.")
    if failures:
        raise failures[0]


def _keep_failure(call: Callable[[Connections], None], connections: Connections, failures: list[BaseException]) -> None:
    try:
        call(connections)
    except BaseException as error:  # raised again where it is waited for
        failures.append(error)
    finally:
        connections.close()
