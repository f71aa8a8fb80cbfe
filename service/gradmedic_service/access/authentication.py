"""Authentication: find the principal of each request by its headers, before its body is read.

Authentication itself refuses no request, because some routes are public. The middleware stores the result in the
request's scope: a principal, or the error why there is none. `principal_of()` returns the principal or raises that
error; a request without a principal cannot send a body.
"""

from __future__ import annotations

from collections.abc import Callable

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic_service.access.browsers import ORIGIN_HEADERS, SAFE_METHODS
from gradmedic_service.access.errors import (
    ApiKeyExpired,
    ApiKeyMissing,
    ApiKeyRevoked,
    ApiKeyUnknown,
    CrossOrigin,
    SessionEnded,
    TooManyRequests,
)
from gradmedic_service.access.principal import LOOPBACK, RESULT, Principal
from gradmedic_service.database.engine import Database
from gradmedic_service.database.errors import DatabaseBusy, DatabaseUnavailable
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.services import services_of

SESSION_COOKIE = "gradmedic_session"
AUTHENTICATION_ERRORS = (
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
"""Reasons why a request has no principal."""


class Authentication:
    """ASGI middleware: authenticates each request and stores the result in its scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        result: Principal | ServiceError
        try:
            result = await authenticate(scope)
        except ServiceError as error:
            result = error
        scope.setdefault("state", {})[RESULT] = result
        if isinstance(result, Principal):
            await self._app(scope, receive, send)
            return

        async def refuse_body() -> Message:
            principal_of(scope)
            raise AssertionError("unreachable: the request has no principal")

        await self._app(scope, refuse_body, send)


def is_authenticated(scope: Scope) -> bool:
    """Whether the request has a principal."""
    return isinstance(scope["state"][RESULT], Principal)


def principal_of(scope: Scope) -> Principal:
    """Return the principal of a request. Raises one of AUTHENTICATION_ERRORS if it has none."""
    result: Principal | ServiceError = scope["state"][RESULT]
    if isinstance(result, ServiceError):
        raise result
    return result


async def authenticate(scope: Scope) -> Principal:
    """Return the principal that a request's headers prove now. Raises one of AUTHENTICATION_ERRORS."""
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
        return await _identify(scope, keyring.find_key, keyring.read_key, secret)
    except ServiceError as error:
        if services.requires_keys or error.status != ApiKeyMissing.status:
            raise
        detail = f"{error.detail} This service needs no key from this machine: unset GRADMEDIC_API_KEY."
        raise type(error)(detail) from None


async def _authenticate_session(scope: Scope, headers: Headers, cookie: str) -> Principal:
    """Return the principal of a browser's session.

    A browser sends the cookie with every request, so a request that changes something must also name the page that it
    comes from. `BrowserGuard` has refused the pages of other origins before.
    """
    if scope["method"] not in SAFE_METHODS and not any(name in headers for name in ORIGIN_HEADERS):
        raise CrossOrigin("With a session, what changes something must come from a page: send `Origin`, or an API key.")
    keyring = services_of(scope["app"]).keyring
    return await _identify(scope, keyring.find_session, keyring.read_session, cookie)


async def _identify(
    scope: Scope,
    find: Callable[[str], Principal | None],
    read: Callable[[Database, str], Principal],
    secret: str,
) -> Principal:
    """Return the principal of a secret, and count the request.

    `find` looks in the keyring; otherwise `read` reads the database. Only a secret that the database does not have
    counts as a failed attempt, so that failed attempts never keep a valid key out.
    """
    services = services_of(scope["app"])
    principal = find(secret)
    if principal is None:
        address = (scope.get("client") or ("",))[0]
        places = services.keyring.places_to_read(is_suspicious=services.rate_limits.has_failed_too_often(address))
        try:
            principal = await to_thread.run_sync(read, services.database, secret, limiter=places)
        except (ApiKeyUnknown, SessionEnded):
            services.rate_limits.count_failed_attempt(address)
            raise
    services.rate_limits.count_request(str(principal.key_id), principal.name)
    return principal
