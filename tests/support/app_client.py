"""The SDK's client of a service in the test's own process."""

from __future__ import annotations

from starlette.testclient import TestClient

import gradmedic
from gradmedic.transport.http import Request, Response


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
