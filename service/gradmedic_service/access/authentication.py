"""Who asks: found out from the headers of each request, before anything of its body is read.

One idea: finding out never refuses by itself, since some routes are public. What was found, a principal or the reason
why there is none, waits in the request's scope; who needs a principal asks `authenticated`, and whoever has none can
send no body.
"""

from __future__ import annotations

from collections.abc import Callable

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic_service.access.browsers import OWN_ORIGIN_HEADERS, SAFE_METHODS
from gradmedic_service.access.errors import (
    ApiKeyExpired,
    ApiKeyMissing,
    ApiKeyRevoked,
    ApiKeyUnknown,
    CrossOrigin,
    SessionEnded,
    TooManyRequests,
)
from gradmedic_service.access.principal import LOOPBACK, Principal
from gradmedic_service.database.engine import Database
from gradmedic_service.database.errors import DatabaseBusy, DatabaseUnavailable
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.services import services_of

SESSION_COOKIE = "gradmedic_session"
REFUSALS = (
    ApiKeyMissing,
    ApiKeyUnknown,
    ApiKeyRevoked,
    ApiKeyExpired,
    SessionEnded,
    CrossOrigin,
    TooManyRequests,
    DatabaseBusy,
    DatabaseUnavailable,
)
"""Why nobody may have been recognized."""


class Authentication:
    """ASGI middleware: notes who asks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            found: Principal | ServiceError = await authenticate(scope)
        except ServiceError as error:
            found = error
        scope.setdefault("state", {})["authenticated"] = found
        if isinstance(found, Principal):
            await self._app(scope, receive, send)
            return

        async def receive_nothing() -> Message:
            authenticated(scope)
            raise AssertionError("unreachable: nobody was recognized")

        await self._app(scope, receive_nothing, send)


def is_recognized(scope: Scope) -> bool:
    """Whether it is known who asks."""
    return isinstance(scope["state"]["authenticated"], Principal)


def authenticated(scope: Scope) -> Principal:
    """Return who asks. Raises one of REFUSALS where nobody was recognized."""
    found: Principal | ServiceError = scope["state"]["authenticated"]
    if isinstance(found, ServiceError):
        raise found
    return found


async def authenticate(scope: Scope) -> Principal:
    """Find out who asks, now. Raises one of REFUSALS."""
    services = services_of(scope["app"])
    headers = Headers(scope=scope)
    header = headers.get("authorization")
    if header is None:
        if not services.requires_keys:
            return LOOPBACK
        cookie = cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE)
        if cookie is not None:
            return await _authenticate_session(scope, headers, cookie)
        raise ApiKeyMissing(
            "The request has no `Authorization: Bearer <api key>`. The client takes the key from GRADMEDIC_API_KEY; "
            "`gradmedic api-key create` makes one."
        )
    scheme, _, secret = header.partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise ApiKeyMissing("`Authorization` must be `Bearer <api key>`.")
    keyring = services.keyring
    try:
        return await _recognize(scope, keyring.recall, keyring.look_up, secret)
    except ServiceError as error:
        if services.requires_keys or error.status != ApiKeyMissing.status:
            raise
        detail = f"{error.detail} This service needs no key from this machine: unset GRADMEDIC_API_KEY."
        raise type(error)(detail) from None


async def _authenticate_session(scope: Scope, headers: Headers, cookie: str) -> Principal:
    """Recognize a browser, which sends its cookie by itself: what changes something must say which page asks.

    `BrowserGuard` has refused it already where that page is another site's.
    """
    if scope["method"] not in SAFE_METHODS and not any(name in headers for name in OWN_ORIGIN_HEADERS):
        raise CrossOrigin("With a session, what changes something must come from a page: send `Origin`, or an API key.")
    keyring = services_of(scope["app"]).keyring
    return await _recognize(scope, keyring.recall_session, keyring.look_up_session, cookie)


async def _recognize(
    scope: Scope,
    recall: Callable[[str], Principal | None],
    look_up: Callable[[Database, str], Principal],
    secret: str,
) -> Principal:
    """Find out whose secret it is, and count the request.

    The database is asked where nobody here knows, unless an address has had it asked for unknown secrets too often.
    """
    services = services_of(scope["app"])
    known = recall(secret)
    if known is None:
        address = (scope.get("client") or ("",))[0]
        if not services.keyring.knows(secret):
            services.rate_limits.check_attempts(address)
        try:
            known = await to_thread.run_sync(look_up, services.database, secret)
        except (ApiKeyUnknown, SessionEnded):
            services.rate_limits.count_failure(address)
            raise
    services.rate_limits.count_request(str(known.key_id), known.name)
    return known
