"""What surrounds every request: its id, its line in the log, and an answer whatever happens."""

from __future__ import annotations

import re
import time
from urllib.parse import unquote

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic.protocol.ids import new_id
from gradmedic_service.access.browsers import missing_headers
from gradmedic_service.access.errors import ApiKeyInUrl
from gradmedic_service.access.principal import Principal
from gradmedic_service.access.secrets import without_secrets
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.http.metrics import NO_ROUTE
from gradmedic_service.http.problems import answer_of, problem_response
from gradmedic_service.services import services_of

REQUEST_ID_HEADER = "X-Request-ID"
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
QUIET_PATHS = ("/healthz", "/readyz", "/metrics")
"""Asked every few seconds by supervisors; logged only when they fail."""

_logger = structlog.get_logger("gradmedic.request")


class RequestContext:
    """ASGI middleware: the outermost one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if SANE_REQUEST_ID.fullmatch(given) else new_id().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status: int | None = None
        path = without_secrets(scope["path"])

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                for name, value in missing_headers(headers.keys(), scope["path"]).items():
                    headers.append(name, value)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                _refuse_secrets(scope)
                await self._app(scope, receive, send_with_id)
            except ServiceError as refusal:  # of another middleware; those of routes are answered within
                await answer_of(refusal, request_id)(scope, receive, send_with_id)
            except Exception:
                _logger.exception("failed", method=scope["method"], path=path)
                if status is not None:
                    raise  # the answer has begun: only breaking the connection tells the client
                error = ServiceError("The service failed; its log has the reason under this request id.")
                await problem_response(error.problem(request_id))(scope, receive, send_with_id)
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
                        key=_key_of(scope),
                        milliseconds=round(seconds * 1000, 1),
                    )


def _key_of(scope: Scope) -> str | None:
    """Name the key of a request."""
    found = scope["state"].get("authenticated")
    return found.name if isinstance(found, Principal) else None


def _refuse_secrets(scope: Scope) -> None:
    """Raise ApiKeyInUrl if there is a key in the URL, however it is written."""
    url = f"{scope['path']}?{unquote(scope['query_string'].decode('latin-1'))}"
    if without_secrets(url) != url:
        raise ApiKeyInUrl(
            "The URL contains an API key. URLs end up in logs and histories: revoke that key, and send its successor "
            "as `Authorization: Bearer <api key>`."
        )
