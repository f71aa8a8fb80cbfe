"""HTTP to the service: one request, one attempt, and whether another attempt may help.

The caller decides how often to try: the `Uploader` again and again, a `Client` a few times. An answer that is not
gradmedic's is a `TransportError` that names the URL, because then the URL is probably wrong.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from gradmedic.configuration import Connection
from gradmedic.exceptions import (
    ApiError,
    ConflictError,
    GradmedicError,
    InvalidRequestError,
    NotFoundError,
    TransportError,
)
from gradmedic.protocol.encoding import from_json
from gradmedic.protocol.service import API_PATH, JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE, PROBLEM_MEDIA_TYPE, Problem

if TYPE_CHECKING:
    import urllib3

T = TypeVar("T")

FIRST_DELAY = 0.5
"""Seconds before the second attempt; doubled for each further one."""
LONGEST_DELAY = 30.0
"""Seconds before an attempt, unless the service asks for more."""
LONGEST_RETRY_AFTER = 300.0
"""Seconds after which a further attempt is made even if the service asks for more."""

_RETRYABLE_STATUSES = frozenset({408, 429})
_INVALID_STATUSES = frozenset({400, 413, 415, 422})
_EXCERPT_LENGTH = 80

_jitter = random.Random()  # not the global generator: training may depend on that one


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Sends requests to the service. Replace it to change how bytes travel, or to send none in a test."""

    def send(self, request: Request, timeout: float) -> Response:
        """Return the answer, with any status; raise TransportError if there is none within `timeout` seconds."""

    def close(self) -> None:
        """Close the connections."""


class Urllib3Transport:
    """The default transport: pooled connections that stay open, and the environment's proxy for other hosts."""

    def __init__(self) -> None:
        self._pools: dict[str, urllib3.PoolManager] = {}

    def send(self, request: Request, timeout: float) -> Response:
        """Send `request` once, without following redirects."""
        import urllib3  # here, because importing it takes longer than all the rest of `import gradmedic`

        try:
            answer = self._pool_for(request.url).request(
                request.method,
                request.url,
                headers=dict(request.headers),
                body=request.body,
                timeout=urllib3.Timeout(total=timeout),
                retries=False,
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransportError(f"{request.method} {request.url} failed: {error}") from error
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Response(answer.status, headers, answer.data)

    def close(self) -> None:
        """Close the pooled connections."""
        for pool in self._pools.values():
            pool.clear()

    def _pool_for(self, url: str) -> urllib3.PoolManager:
        import urllib3

        proxy = _find_proxy(url)
        key = proxy or ""
        if key not in self._pools:
            self._pools[key] = urllib3.ProxyManager(proxy) if proxy else urllib3.PoolManager()
        return self._pools[key]


class Service:
    """Sends requests to the service at one address, with one key."""

    def __init__(self, connection: Connection, transport: Transport | None = None) -> None:
        self._connection = connection
        self._transport = transport or Urllib3Transport()

    @property
    def base_url(self) -> str:
        """Address of the service, without a slash at its end."""
        return self._connection.base_url

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        content_type: str = JSON_MEDIA_TYPE,
        content_encoding: str | None = None,
        accept: str = JSON_MEDIA_TYPE,
        timeout: float | None = None,
    ) -> bytes:
        """Make one attempt and return the body of a 2xx answer.

        Args:
            method: HTTP method.
            path: below `/api/v1`, with a leading slash.
            query: parameters; None values are left out, sequences are repeated.
            body: encoded already.
            content_type: media type of `body`.
            content_encoding: encoding of `body`, such as gzip.
            accept: media type of the answer.
            timeout: seconds, if other than the connection's.

        Raises:
            ApiError: the service refused; the subclass is that of the status.
            TransportError: no answer, or not one of gradmedic's.
        """
        from email.utils import formatdate  # here, because `import gradmedic` needs it not; urllib3 imports it too

        url = f"{self._connection.base_url}{API_PATH}{path}"
        parameters = [(k, v) for k, v in (query or {}).items() if v is not None]
        if parameters:
            url += "?" + urlencode(parameters, doseq=True)
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
            headers["Date"] = formatdate(usegmt=True)  # the service compares it with the times of the steps
            if content_encoding is not None:
                headers["Content-Encoding"] = content_encoding
        if self._connection.api_key is not None:
            headers["Authorization"] = f"Bearer {self._connection.api_key}"
        request = Request(method, url, headers, body)
        response = self._transport.send(request, timeout or self._connection.timeout)
        if 200 <= response.status < 300 and (response.status == 204 or _has_type(response, accept)):
            return response.body
        raise _make_error(request, response)

    def request_as(self, answer: type[T], method: str, path: str, **request: Any) -> T:
        """Make one attempt, as `request` does, and decode the answer, JSON or msgpack, into a dataclass.

        Raises:
            ApiError: the service refused.
            TransportError: no answer, or not one that this version of gradmedic reads.
        """
        body = self.request(method, path, **request)
        try:
            is_msgpack = request.get("accept") == MSGPACK_MEDIA_TYPE
            return msgspec.msgpack.decode(body, type=answer) if is_msgpack else from_json(body, answer)
        except msgspec.MsgspecError as error:
            raise TransportError(
                f"{method} {self.base_url}{API_PATH}{path} has an answer that this version cannot read: {error}",
                status=200,
            ) from error

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def is_retryable(error: GradmedicError) -> bool:
    """Return whether the same request may succeed later: after 408, 429, 5xx, and failures of the network."""
    if isinstance(error, ApiError):
        status: int | None = error.problem.status
    elif isinstance(error, TransportError):
        status = error.status
    else:
        return False
    return status is None or status in _RETRYABLE_STATUSES or status >= 500


def retry_delay(error: GradmedicError, attempt: int) -> float:
    """Return the seconds to wait after failure number `attempt`, counted from 0.

    The delay is exponential, and not shorter than the service asks for. The jitter ("equal jitter": between half and
    all of the exponential delay) keeps many jobs from coming back at once.
    """
    exponential = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempt, 16))
    delay = exponential * _jitter.uniform(0.5, 1.0)
    asked = getattr(error, "retry_after", None)
    return delay if asked is None else max(delay, min(asked, LONGEST_RETRY_AFTER))


def _has_type(response: Response, *media_types: str) -> bool:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower() in media_types


def _make_error(request: Request, response: Response) -> GradmedicError:
    retry_after = _read_retry_after(response)
    try:
        problem = (
            from_json(response.body, Problem) if _has_type(response, JSON_MEDIA_TYPE, PROBLEM_MEDIA_TYPE) else None
        )
    except msgspec.MsgspecError:
        problem = None
    if problem is None:
        excerpt = response.body[:_EXCERPT_LENGTH].decode("utf-8", "replace").strip()
        location = response.headers.get("location")
        return TransportError(
            f"{request.method} {request.url} answered {response.status} "
            + (f"and points to {location}" if location else f"with {excerpt!r}")
            + ", which is not gradmedic's: check the base URL",
            status=response.status,
            retry_after=retry_after,
        )
    kind = ApiError
    if problem.status == 404:
        kind = NotFoundError
    elif problem.status == 409:
        kind = ConflictError
    elif problem.status in _INVALID_STATUSES:
        kind = InvalidRequestError
    return kind(problem, retry_after=retry_after)


def _read_retry_after(response: Response) -> float | None:
    """Return `Retry-After` in seconds; it is a number of seconds or a date (RFC 9110, section 10.2.3)."""
    text = response.headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime  # here, because few services ever make it necessary

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _find_proxy(url: str) -> str | None:
    """Return the environment's proxy for `url`; loopback addresses never have one."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    host = parts.hostname or ""
    if host == "localhost" or proxy_bypass(host):
        return None
    try:
        if ipaddress.ip_address(host).is_loopback:
            return None
    except ValueError:
        pass
    return getproxies().get(parts.scheme)
