"""A proxy in front of the real service that fails on demand.

A client sees a failing service as another answer, or as none. So a proxy between a real client and a real service makes
the failures, and the tests check what the service has stored afterwards.
"""

from __future__ import annotations

import http.client
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

from tests.support.patience import PATIENCE


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of being answered by the service.

    `lost`: the service gets the request, the client gets no answer. Otherwise `status`, `headers` and `body` are the
    answer.
    """

    path: str = ""
    """Only a request whose path contains this fails."""
    method: str = ""
    lost: bool = False
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"<html>upstream is away</html>"


@dataclass(frozen=True)
class ProxiedRequest:
    """A request that went through the proxy."""

    method: str
    path: str
    size: int
    status: int | None


class FaultyProxy:
    """Forwards requests to the service at `target`, unless a fault matches."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target).netloc
        self._faults: deque[Fault] = deque()
        self._changed = threading.Condition()
        self.requests: list[ProxiedRequest] = []
        self.permanent: Fault | None = None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                proxy._answer(self, body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def fail(self, *faults: Fault) -> None:
        """Let the next matching requests fail by these faults, one each, in order."""
        with self._changed:
            self._faults.extend(faults)

    def wait_for(self, condition: Callable[[list[ProxiedRequest]], bool], timeout: float = PATIENCE) -> None:
        """Wait until the requests so far fulfil a condition."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.requests), timeout), self.requests

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        fault = self._next_fault(handler)
        status: int | None = None
        if fault is None or fault.lost:
            try:
                status, payload, answer_headers = self._forward(handler, body)
            except (OSError, http.client.HTTPException):  # the service is away, which looks like a lost answer
                handler.close_connection = True
                return
        else:
            status, payload, answer_headers = fault.status, fault.body, fault.headers
        if fault is not None and fault.lost:
            handler.close_connection = True
        else:
            handler.send_response(status)
            for name, value in answer_headers.items():
                handler.send_header(name, value)
            if status != 204:
                handler.send_header("content-length", str(len(payload)))
            handler.end_headers()
            if status != 204:
                handler.wfile.write(payload)
        with self._changed:
            self.requests.append(ProxiedRequest(handler.command, handler.path, len(body), status))
            self._changed.notify_all()

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(self._target, timeout=PATIENCE)
        try:
            headers = {k: v for k, v in handler.headers.items() if k.lower() not in ("host", "connection")}
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            content_type = answer.getheader("content-type") or "application/json"
            return answer.status, answer.read(), {"content-type": content_type}
        finally:
            connection.close()

    def _next_fault(self, handler: BaseHTTPRequestHandler) -> Fault | None:
        def matches(fault: Fault) -> bool:
            return fault.path in handler.path and fault.method in ("", handler.command)

        with self._changed:
            if self.permanent is not None and matches(self.permanent):
                return self.permanent
            if self._faults and matches(self._faults[0]):
                return self._faults.popleft()
        return None
