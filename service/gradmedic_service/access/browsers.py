"""Protection of browsers: a page of another site cannot use them against the service.

Such a page may send requests. It cannot send them under a name of its own (DNS rebinding), because the Host header is
checked. Its requests cannot change anything, because `Origin` or `Sec-Fetch-Site` name the page. It cannot read the
answers, because the service sends no CORS header.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.errors import CrossOrigin, HostNotAllowed

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
ORIGIN_HEADERS = ("origin", "sec-fetch-site")
"""Headers by which a browser names the page that sends a request. Other clients need not send them."""
OWN_SITES = ("same-origin", "none")
"""`Sec-Fetch-Site` of the service's own pages and of addresses that a person typed. Another port of the same host is
`same-site`, and is another origin."""

SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
"""Headers of every answer, where the route sets none of the same name."""
API_HEADERS: Mapping[str, str] = {**SECURITY_HEADERS, "Cache-Control": "no-store"}
"""Headers of every answer of the API: a cache that several clients share must not store what one key may read."""

_RAW_SECURITY_HEADERS, _RAW_API_HEADERS = (
    [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    for headers in (SECURITY_HEADERS, API_HEADERS)
)


class BrowserGuard:
    """ASGI middleware: refuses unknown host names, and changes by pages of other origins.

    Args:
        app: the application behind the middleware.
        allowed_hosts: names under which the service answers; None for every name.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str] | None) -> None:
        self._app = app
        self._allowed = None if allowed_hosts is None else frozenset(name.lower() for name in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Raises HostNotAllowed, CrossOrigin."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            if self._allowed is not None and without_port(host) not in self._allowed:
                raise HostNotAllowed(
                    f"This service does not answer as {host[:100]!r}, only as {', '.join(sorted(self._allowed))}; "
                    "`gradmedic serve --allowed-host NAME` adds a name."
                )
            if scope["method"] not in SAFE_METHODS:
                _refuse_other_origins(headers, host)
        await self._app(scope, receive, send)


def without_port(host: str) -> str:
    """Return the name in a Host header, in lower case.

    >>> [without_port(host) for host in ("LocalHost:8642", "[::1]:8642", "example.org")]
    ['localhost', '[::1]', 'example.org']
    """
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()


def missing_security_headers(present: Collection[bytes], path: str) -> list[tuple[bytes, bytes]]:
    """Return the security headers that an answer to a path lacks; `present` holds the names of those that it has."""
    wanted = _RAW_API_HEADERS if path.startswith(API_PATH) else _RAW_SECURITY_HEADERS
    return [header for header in wanted if header[0] not in present]


def _refuse_other_origins(headers: Headers, host: str) -> None:
    """Raise CrossOrigin if the headers name a page of another origin."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise CrossOrigin(f"A page of {origin[:100]!r} may not change anything here.")
    if site is not None and site not in OWN_SITES:
        raise CrossOrigin(f"A page of another origin (Sec-Fetch-Site: {site[:20]}) may not change anything here.")
