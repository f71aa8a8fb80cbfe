"""What keeps a browser from being turned against the service by another site.

One idea: a page from elsewhere may send requests, but neither under a name of the service's own (DNS rebinding), nor
such that change something (its `Origin`, or `Sec-Fetch-Site`, gives it away), nor read the answer: no CORS header is
ever sent.
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
OWN_ORIGIN_HEADERS = ("origin", "sec-fetch-site")
"""By either a browser says which page a request is from; whoever is not a browser need not."""
OWN_SITES = ("same-origin", "none")
"""`Sec-Fetch-Site` of the service's own pages, and of what a person typed. Another port is `same-site`: not its own."""

SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
"""Of every answer that does not say otherwise."""
API_HEADERS: Mapping[str, str] = {"Cache-Control": "no-store"}
"""Of every answer below the API's path: what one key may read is not for a cache that others share."""

_OF_THE_API = {**SECURITY_HEADERS, **API_HEADERS}


class BrowserGuard:
    """ASGI middleware: refuses foreign names and foreign pages' writes.

    Args:
        app: what is guarded.
        allowed_hosts: names under which the service answers; with None, under every one.
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
                _refuse_foreign_page(headers, host)
        await self._app(scope, receive, send)


def without_port(host: str) -> str:
    """Return the name in a Host header.

    >>> [without_port(host) for host in ("LocalHost:8642", "[::1]:8642", "example.org")]
    ['localhost', '[::1]', 'example.org']
    """
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()


def missing_headers(present: Collection[str], path: str) -> Mapping[str, str]:
    """Return what an answer to a path lacks of the headers that it should have; `present` in lower case."""
    wanted = _OF_THE_API if path.startswith(API_PATH) else SECURITY_HEADERS
    return {name: value for name, value in wanted.items() if name.lower() not in present}


def _refuse_foreign_page(headers: Headers, host: str) -> None:
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise CrossOrigin(f"A page of {origin[:100]!r} may not change anything here.")
    if site is not None and site not in OWN_SITES:
        raise CrossOrigin(f"A page of another origin (Sec-Fetch-Site: {site[:20]}) may not change anything here.")
