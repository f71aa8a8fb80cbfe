"""Connections that send any bytes, for tests of what a server does with a client that does not keep to HTTP."""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from tests.support.patience import PATIENCE


def connect(
    url: str, trusting: ssl.SSLContext | None = None, receive_buffer: int | None = None, source: str = "127.0.0.1"
) -> socket.socket:
    """Connect to the server of a URL.

    Args:
        url: the address; its path is ignored.
        trusting: the context of TLS. Without it nothing is encrypted, whatever the URL is.
        receive_buffer: bytes of the socket's buffer, so that the server notices early that nothing is read.
        source: the loopback address to connect from.
    """
    parts = urlsplit(url)
    plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    plain.settimeout(PATIENCE)
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.bind((source, 0))
    plain.connect((parts.hostname or "", parts.port or 0))
    return plain if trusting is None else trusting.wrap_socket(plain, server_hostname=parts.hostname)


def request_head(method: str, path: str, headers: dict[str, Any] | None = None) -> bytes:
    """Return the head of a request."""
    fields = [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]).encode()


def read_to_end(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes or resets the connection."""
    received = bytearray()
    try:
        while part := connection.recv(65536):
            received += part
    except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
        pass
    return bytes(received)


def read_status(connection: socket.socket) -> int:
    """Read an answer that has a Content-Length, and return its status; 0 if the server closed the connection."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        part = connection.recv(65536)
        if not part:
            return 0
        received += part
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    remaining = int(fields[b"content-length"]) - len(body)
    while remaining:
        remaining -= len(connection.recv(remaining))
    return int(head.split(b" ")[1])
