"""Clients of a service in the test's own process: one for HTTP, and the SDK's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import anyio
import httpx2
from anyio.from_thread import BlockingPortal
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Scope

import gradmedic
from gradmedic.transport.http import Request, Response

_portals: WeakKeyDictionary[ASGIApp, BlockingPortal] = WeakKeyDictionary()
"""The thread of each application that an `AppClient` runs."""


class AppClient(TestClient):
    """Starlette's test client, for many requests.

    Starlette's own changes the thread eight times for each request, which takes longer than most requests. This one
    does it once, and reads the whole answer. A client that does not run the application itself shares the thread of the
    one that does: Starlette's own would start a thread for each request.
    """

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        super().__init__(app, **options)
        self._transport = _WholeAnswers(self, options.get("raise_server_exceptions", True))

    @contextmanager
    def portal_of_app(self) -> Iterator[BlockingPortal]:
        """Return the thread that runs the application, or start one until the end of the request."""
        running = _portals.get(self.app) if self.portal is None else self.portal
        if running is not None:
            yield running
        else:
            with self._portal_factory() as started:
                yield started

    def __enter__(self) -> AppClient:
        """Run the application in a thread."""
        super().__enter__()
        assert self.portal is not None
        _portals.setdefault(self.app, self.portal)
        return self

    def __exit__(self, *error: Any) -> None:
        """End the application."""
        if _portals.get(self.app) is self.portal:
            del _portals[self.app]
        super().__exit__(*error)


class _WholeAnswers(httpx2.BaseTransport):
    """Lets an application answer a request to its end.

    Args:
        client: The client, which has the application.
        raises: Whether an exception of the application is raised in the test, or only answered with 500.
    """

    def __init__(self, client: AppClient, raises: bool) -> None:
        self._client = client
        self._raises = raises

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer of the application."""
        request.read()
        with self._client.portal_of_app() as portal:
            return portal.call(self._answer, request)

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        is_read, is_complete = False, anyio.Event()
        status, headers, body = 500, list[tuple[bytes, bytes]](), bytearray()

        async def receive() -> Message:
            nonlocal is_read
            if is_read:
                await is_complete.wait()
                return {"type": "http.disconnect"}
            is_read = True
            return {"type": "http.request", "body": request.content}

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message["headers"])
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    is_complete.set()

        try:
            await self._client.app(self._scope(request), receive, send)
        except Exception:
            if self._raises:
                raise
        content = b"" if request.method == "HEAD" else bytes(body)
        return httpx2.Response(status, headers=headers, stream=httpx2.ByteStream(content), request=request)

    def _scope(self, request: httpx2.Request) -> Scope:
        url = request.url
        return {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "path": unquote(url.path),
            "raw_path": url.raw_path.split(b"?", 1)[0],
            "root_path": "",
            "scheme": url.scheme,
            "query_string": url.query,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("testclient", 50000),
            "server": [url.host, url.port or {"http": 80, "https": 443}[url.scheme]],
            "extensions": {},
            "state": self._client.app_state.copy(),
        }


class AppTransport:
    """Sends the requests of a `gradmedic.Client` to the test client of an application."""

    def __init__(self, app_client: TestClient) -> None:
        self._app_client = app_client

    def send(self, request: Request, timeout: float) -> Response:
        """Return the answer of the application."""
        answer = self._app_client.request(
            request.method, request.url, headers=dict(request.headers), content=request.body
        )
        return Response(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.content)

    def close(self) -> None:
        """Do nothing: the test client belongs to the test."""


def client_of_app(app_client: TestClient) -> gradmedic.Client:
    """Return a client of the SDK whose service is an application in this process."""
    return gradmedic.Client("http://testserver", transport=AppTransport(app_client))
