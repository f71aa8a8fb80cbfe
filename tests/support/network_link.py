"""A network link that can be cut: it forwards TCP connections, until it forwards no byte.

While the link is cut, connections stay open and new ones are accepted, but nothing arrives. A lost route or a firewall
has the same effect. A refused connection would be noticed at once.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Final, Self

CHUNK: Final = 65_536
"""Bytes that are forwarded at once."""


class NetworkLink:
    """Forwards connections from a port of its own to the port `target` of this machine."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._is_whole = threading.Event()
        self._is_whole.set()
        self._is_closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: set[socket.socket] = {self._listener}
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def cut(self) -> None:
        """Forward nothing from now on."""
        self._is_whole.clear()

    def mend(self) -> None:
        """Forward everything again. Connections from the time before are closed, as if their peers had given up."""
        for connection in list(self._sockets - {self._listener}):
            self._close(connection)
        self._is_whole.set()

    def close(self) -> None:
        """Close the port and all connections."""
        self._is_closed = True
        self._is_whole.set()
        for connection in list(self._sockets):
            self._close(connection)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                source, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(source)
            threading.Thread(target=self._forward, args=(source,), daemon=True).start()

    def _forward(self, source: socket.socket) -> None:
        self._is_whole.wait()
        try:
            target = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            self._close(source)
            return
        self._sockets.add(target)
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError, ValueError):
            selector.register(source, selectors.EVENT_READ, target)
            selector.register(target, selectors.EVENT_READ, source)
            while True:
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    content = key.fileobj.recv(CHUNK)
                    if not content:
                        raise ConnectionResetError
                    self._is_whole.wait()
                    key.data.sendall(content)
        for connection in (source, target):
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._sockets.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
