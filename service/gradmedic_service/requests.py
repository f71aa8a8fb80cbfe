"""What surrounds every request: its id, its line in the log, and an answer whatever happens."""

from __future__ import annotations

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic_service.errors import ServiceError
from gradmedic_service.ids import new_id
from gradmedic_service.problems import answer_of, problem_response

REQUEST_ID_HEADER = "X-Request-ID"
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
QUIET_PATHS = ("/healthz", "/readyz")
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

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except ServiceError as refusal:  # of another middleware; those of routes are answered within
                await answer_of(refusal, request_id)(scope, receive, send_with_id)
            except Exception:
                _logger.exception("failed", method=scope["method"], path=scope["path"])
                if status is not None:
                    raise  # the answer has begun: only breaking the connection tells the client
                error = ServiceError("The service failed; its log has the reason under this request id.")
                await problem_response(error.problem(request_id))(scope, receive, send_with_id)
            finally:
                if scope["path"] not in QUIET_PATHS or status is None or status >= 400:
                    _logger.info(
                        "request",
                        method=scope["method"],
                        path=scope["path"],
                        status=None if status is None else int(status),
                        milliseconds=round((time.perf_counter() - started) * 1000, 1),
                    )
