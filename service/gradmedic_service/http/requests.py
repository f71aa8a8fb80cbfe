"""The outermost middleware: each request gets an id, a line in the log, a count in the metrics, and an answer."""

from __future__ import annotations

import os
import re
import time
from urllib.parse import unquote

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic_service.access.browsers import missing_security_headers
from gradmedic_service.access.errors import ApiKeyInUrl
from gradmedic_service.access.principal import RESULT, Principal
from gradmedic_service.access.secrets import redact_secrets
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.http.metrics import NO_ROUTE
from gradmedic_service.http.problems import answer_to, problem_response
from gradmedic_service.services import services_of

REQUEST_ID_HEADER = "x-request-id"
ACCEPTED_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
QUIET_PATHS = ("/healthz", "/readyz", "/metrics")
"""Paths that are read every few seconds. Such a request is logged only if it fails."""

_logger = structlog.get_logger("gradmedic.request")


class RequestContext:
    """ASGI middleware: identifies, logs and counts each request, and answers unexpected errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if ACCEPTED_REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status: int | None = None
        path = _printable(redact_secrets(scope["path"]))

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.get("headers", ())
                missing = missing_security_headers({name for name, _ in headers}, scope["path"])
                message["headers"] = [*headers, *missing, (REQUEST_ID_HEADER.encode(), request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                _refuse_secrets(scope)
                await self._app(scope, receive, send_with_id)
            except Exception as error:  # of a middleware or a direct route; those of other routes are answered before
                answer = None if status is not None else answer_to(Request(scope), error)
                if answer is None:
                    _logger.exception("failed", method=scope["method"], path=path)
                    if status is not None:
                        raise  # the answer has begun: only a broken connection shows the client that it is incomplete
                    failure = ServiceError("The service failed; its log has the reason under this request id.")
                    answer = problem_response(failure.problem(request_id))
                await answer(scope, receive, send_with_id)
            finally:
                seconds = time.perf_counter() - started
                services = services_of(scope["app"])
                services.metrics.count_request(
                    scope["method"], services.route_table.template(scope) or NO_ROUTE, int(status or 500), seconds
                )
                if scope["path"] not in QUIET_PATHS or status is None or status >= 400:
                    _logger.info(
                        "request",
                        method=scope["method"],
                        path=path,
                        status=None if status is None else int(status),
                        client=(scope.get("client") or ("",))[0],
                        key=_key_name(scope),
                        milliseconds=round(seconds * 1000, 1),
                    )


def _printable(path: str) -> str:
    """Return a path with its control characters escaped, because a terminal that shows the log would obey them."""
    return path if path.isprintable() else repr(path)[1:-1]


def _key_name(scope: Scope) -> str | None:
    """Return the name of the principal of a request; None if it has none or was refused before authentication."""
    result = scope["state"].get(RESULT)
    return result.name if isinstance(result, Principal) else None


def _refuse_secrets(scope: Scope) -> None:
    """Raise ApiKeyInUrl if the URL contains an API key, percent-encoded or not."""
    url = f"{scope['path']}?{unquote(scope['query_string'].decode('latin-1'))}"
    if redact_secrets(url) != url:
        raise ApiKeyInUrl(
            "The URL contains an API key. URLs are stored in logs and histories: revoke the key, and send a new one as "
            "`Authorization: Bearer <api key>`."
        )
