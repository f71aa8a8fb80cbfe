"""A network cable that can be cut: forwards TCP connections, until it lets no byte through.

After a cut, connections stay open and new ones are accepted, but no byte arrives. That is how a lost route or a
firewall behaves; a refused connection would be noticed at once.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Final, Self

CHUNK: Final = 65_536


class Cable:
    """Leads from a port of its own to another port of this machine."""

    def __init__(self, to: int) -> None:
        self._to = to
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
        """Let nothing through from now on."""
        self._is_whole.clear()

    def mend(self) -> None:
        """Let everything through again; connections that were cut are gone, as if their peers had given up."""
        for one in list(self._sockets - {self._listener}):
            self._drop(one)
        self._is_whole.set()

    def close(self) -> None:
        """Take it away."""
        self._is_closed = True
        self._is_whole.set()
        for one in list(self._sockets):
            self._drop(one)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(near)
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        self._is_whole.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            self._drop(near)
            return
        self._sockets.add(far)
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError, ValueError):
            selector.register(near, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    content = key.fileobj.recv(CHUNK)
                    if not content:
                        raise ConnectionResetError
                    self._is_whole.wait()
                    key.data.sendall(content)
        for one in (near, far):
            self._drop(one)

    def _drop(self, one: socket.socket) -> None:
        self._sockets.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
