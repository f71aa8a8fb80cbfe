"""The errors of authentication, authorization and rate limits."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import ClassVar

from gradmedic_service.http.errors import ServiceError

RETRY_AFTER_SECONDS = (2, 6)
"""Bounds of the seconds after which a client tries again. The number is random, so that clients that were refused
together do not return together."""
KEY_REQUIRED: Mapping[str, str] = {"WWW-Authenticate": 'Bearer realm="gradmedic"'}
"""RFC 6750, section 3: the request has no key."""
INVALID_TOKEN: Mapping[str, str] = {"WWW-Authenticate": 'Bearer realm="gradmedic", error="invalid_token"'}
"""RFC 6750, section 3.1: the request has a key that is not accepted."""
INSUFFICIENT_SCOPE: Mapping[str, str] = {"WWW-Authenticate": 'Bearer realm="gradmedic", error="insufficient_scope"'}
"""RFC 6750, section 3.1: the key is accepted, but not for this."""

_random = random.Random()


class ApiKeyInUrl(ServiceError):
    """The URL contains an API key. URLs are stored in logs and histories: revoke the key."""

    status = 400
    error_code = "api_key_in_url"
    title = "An API key does not belong in a URL"


class ApiKeyMissing(ServiceError):
    """The route needs an API key, and the request has none."""

    status = 401
    error_code = "api_key_missing"
    title = "An API key is needed"
    headers: ClassVar[Mapping[str, str]] = KEY_REQUIRED


class ApiKeyUnknown(ServiceError):
    """The service has no such API key."""

    status = 401
    error_code = "api_key_unknown"
    title = "The API key is unknown"
    headers: ClassVar[Mapping[str, str]] = INVALID_TOKEN


class ApiKeyRevoked(ServiceError):
    """The API key was revoked."""

    status = 401
    error_code = "api_key_revoked"
    title = "The API key was revoked"
    headers: ClassVar[Mapping[str, str]] = INVALID_TOKEN


class ApiKeyExpired(ServiceError):
    """The API key has expired."""

    status = 401
    error_code = "api_key_expired"
    title = "The API key has expired"
    headers: ClassVar[Mapping[str, str]] = INVALID_TOKEN


class SessionEnded(ServiceError):
    """The browser's session has ended, or the cookie never belonged to a session."""

    status = 401
    error_code = "session_ended"
    title = "The session has ended"
    headers: ClassVar[Mapping[str, str]] = KEY_REQUIRED


class ScopeMissing(ServiceError):
    """The API key lacks the scope that the route needs."""

    status = 403
    error_code = "scope_missing"
    title = "The API key may not do this"
    headers: ClassVar[Mapping[str, str]] = INSUFFICIENT_SCOPE


class BeyondKey(ServiceError):
    """The request names a project or a run that the API key does not reach."""

    status = 403
    error_code = "beyond_key"
    title = "The API key is not for this project or run"


class HostNotAllowed(ServiceError):
    """The service does not answer under the name in the request's Host header."""

    status = 403
    error_code = "host_not_allowed"
    title = "The service does not answer under this name"


class CrossOrigin(ServiceError):
    """A page of another origin tried to change something."""

    status = 403
    error_code = "cross_origin"
    title = "Pages of other origins may not change anything"


class ApiKeyNotFound(ServiceError):
    """There is no such API key."""

    status = 404
    error_code = "api_key_not_found"
    title = "There is no such API key"


class TooManyRequests(ServiceError):
    """The key or the address sent more requests than allowed. Try again after `Retry-After` seconds."""

    status = 429
    error_code = "too_many_requests"
    title = "Too many requests"


class Overloaded(ServiceError):
    """The service has too many requests to serve. Nothing was stored; try again after `Retry-After` seconds."""

    status = 503
    error_code = "overloaded"
    title = "The service is busy"


def overloaded(reason: str) -> Overloaded:
    """Return the error of a request that is not served now."""
    return Overloaded(
        f"The service is busy. {reason} Nothing was stored.", retry_after=_random.randint(*RETRY_AFTER_SECONDS)
    )
