"""A receiver of webhooks on this machine, which keeps requests and answers them as a test wants."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from types import TracebackType

from tests.support.patience import PATIENCE

Answer = Callable[[socket.socket], None]
"""Writes the answer to a request into its connection."""


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request."""

    line: str
    headers: dict[str, str]
    """Headers by their names in lower case."""
    body: bytes


def answering(status: int, *, headers: str = "", body: bytes = b"") -> Answer:
    """Return the answer with a status, further header lines and a body."""
    head = f"HTTP/1.1 {status} Status\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n"
    return lambda connection: connection.sendall(head.encode() + body)


class Receiver:
    """Serves requests one after the other, each on its own connection, until it is closed.

    Args:
        answer: the answer to every request.
        ssl_context: the certificate of the receiver; None for plain HTTP.
        host: the address to listen at.
    """

    def __init__(
        self, answer: Answer | None = None, *, ssl_context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.answer = answer or answering(204)
        self.requests: Queue[ReceivedRequest] = Queue()
        """The requests that arrived."""
        self.ended: Queue[str] = Queue()
        """How each connection ended: the name of the error, or `ok`."""
        self._ssl_context = ssl_context
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]
        self._thread = Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def take(self) -> ReceivedRequest:
        """Return the next request."""
        return self.requests.get(timeout=PATIENCE)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            try:
                connection.settimeout(PATIENCE)
                if self._ssl_context is not None:
                    connection = self._ssl_context.wrap_socket(connection, server_side=True)
                with closing(connection):
                    self.requests.put(_read_request(connection))
                    self.answer(connection)
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                self.ended.put("ok")
            except (OSError, ValueError) as error:
                connection.close()
                self.ended.put(type(error).__name__)


def _read_request(connection: socket.socket) -> ReceivedRequest:
    with connection.makefile("rb") as lines:
        line = lines.readline().decode().rstrip()
        headers: dict[str, str] = {}
        while header := lines.readline().decode().rstrip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        return ReceivedRequest(line, headers, lines.read(int(headers["content-length"])))
