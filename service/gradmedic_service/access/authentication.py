"""Who asks: found out from the headers of each request, before anything of its body is read.

One idea: finding out never refuses by itself, since some routes are public. What was found, a principal or the reason
why there is none, waits in the request's scope; who needs a principal asks `authenticated`, and whoever has none can
send no body.
"""

from __future__ import annotations

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic_service.access.keyring import Keyring
from gradmedic_service.access.principal import LOOPBACK, Principal
from gradmedic_service.errors import (
    ApiKeyExpired,
    ApiKeyMissing,
    ApiKeyRevoked,
    ApiKeyUnknown,
    DatabaseBusy,
    DatabaseUnavailable,
    ServiceError,
    TooManyRequests,
)

REFUSALS = (
    ApiKeyMissing,
    ApiKeyUnknown,
    ApiKeyRevoked,
    ApiKeyExpired,
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
            found: Principal | ServiceError = await _authenticate(scope)
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


async def _authenticate(scope: Scope) -> Principal:
    state = scope["app"].state
    header = Headers(scope=scope).get("authorization")
    if header is None:
        if not state.requires_keys:
            return LOOPBACK
        raise ApiKeyMissing(
            "The request has no `Authorization: Bearer <api key>`. The client takes the key from GRADMEDIC_API_KEY; "
            "`gradmedic api-key create` makes one."
        )
    scheme, _, secret = header.partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise ApiKeyMissing("`Authorization` must be `Bearer <api key>`.")
    keyring: Keyring = state.keyring
    try:
        known = keyring.recall(secret)
        if known is None:
            known = await _look_up(scope, keyring, secret)
        state.rates.count_request(str(known.key_id), known.name)
        return known
    except ServiceError as error:
        if state.requires_keys or error.status != ApiKeyMissing.status:
            raise
        detail = f"{error.detail} This service needs no key from this machine: unset GRADMEDIC_API_KEY."
        raise type(error)(detail) from None


async def _look_up(scope: Scope, keyring: Keyring, secret: str) -> Principal:
    """Ask the database, unless an address has had it asked for unknown keys too often."""
    state = scope["app"].state
    address = (scope.get("client") or ("",))[0]
    if not keyring.knows(secret):
        state.rates.check_attempts(address)
    try:
        return await to_thread.run_sync(keyring.look_up, state.database, secret)
    except ApiKeyUnknown:
        state.rates.count_failure(address)
        raise
