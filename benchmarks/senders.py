"""A client that costs little: it sends prepared bodies over one connection."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from gradmedic.protocol.service import JSON_MEDIA_TYPE

NO_HEADERS: Final[Mapping[str, str]] = {}
IDLE_SECONDS: Final = 2.0
"""A connection that was silent for longer is opened again: while others have their turns, a server may close it."""


class Sender:
    """One connection to a service."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc)
        self._used_at = time.monotonic()

    def post(self, path: str, body: bytes, media_type: str = JSON_MEDIA_TYPE) -> Any:
        """Send a body and return the answer's JSON. Raises RuntimeError for an error."""
        return json.loads(self._exchange("POST", path, body, {"Content-Type": media_type}) or b"null")

    def get(self, path: str, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
        """Return the body of an answer, as it was sent. Raises RuntimeError for an error."""
        return self._exchange("GET", path, None, headers)

    def time_get(self, path: str, headers: Mapping[str, str] = NO_HEADERS) -> float:
        """Return the milliseconds from a request to the last byte of its answer. Raises RuntimeError for an error."""
        started = time.perf_counter()
        self.get(path, headers)
        return (time.perf_counter() - started) * 1e3

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _exchange(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            self._connection.close()  # the request opens a new one
        self._connection.request(method, path, body, dict(headers))
        response = self._connection.getresponse()
        content = response.read()
        self._used_at = time.monotonic()
        if response.status >= http.HTTPStatus.MULTIPLE_CHOICES:
            raise RuntimeError(f"{method} {path}: {response.status}: {content[:500]!r}")
        return content
