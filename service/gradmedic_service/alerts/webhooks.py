"""Webhooks, as Standard Webhooks 1.0 describes them: signed JSON, https, one attempt without redirects.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import secrets
import socket
import ssl
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from importlib.metadata import version
from urllib.parse import SplitResult, urlsplit

from gradmedic.protocol.encoding import encode_json
from gradmedic_service.alerts.addresses import Address
from gradmedic_service.alerts.deadlines import Connections, call_within
from gradmedic_service.alerts.messages import DeliveryFailed, Message, is_permanent
from gradmedic_service.alerts.peers import PeerPolicy, PeerRefused

WEBHOOK_SECONDS = 10.0
"""Seconds that one attempt may take in all. Standard Webhooks recommends 15 to 30; an alert has many attempts."""
SIGNING_SECRET_BYTES = 24
"""Random bytes of a signing secret. Standard Webhooks: 24 to 64."""
SIGNING_SECRET_PREFIX = "whsec_"  # noqa: S105 (the beginning of every signing secret is public)
LONGEST_RETRY_AFTER = 86_400.0
"""Seconds that a destination may ask to wait at most. After a day an alert is old news."""


class WebhookSender:
    """Sends messages to webhooks.

    Args:
        policy: the addresses that may be reached.
        seconds: seconds that one attempt may take in all.
        ssl_context: checks certificates; by default against the authorities of this machine.
    """

    def __init__(
        self, policy: PeerPolicy, *, seconds: float = WEBHOOK_SECONDS, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy
        self._seconds = seconds
        self._ssl_context = ssl_context

    def send(self, address: Address, message: Message) -> None:
        """Send a message. Raises DeliveryFailed."""
        url, body = urlsplit(address.parts["url"]), body_of(message)
        context = self._trusted() if url.scheme == "https" else None
        headers = _headers(message, body, address.parts["signing_secret"])
        call_within(self._seconds, lambda connections: self._post(url, body, headers, context, connections))

    def _post(
        self,
        url: SplitResult,
        body: bytes,
        headers: dict[str, str],
        context: ssl.SSLContext | None,
        connections: Connections,
    ) -> None:
        try:
            peer = self._connect(url, context, connections)
            connection = HTTPConnection(url.hostname or "")
            connection.sock = peer  # the connection to the address that was checked; it makes none of its own
            connection.request("POST", _target(url), body, {"Host": _host_header(url), **headers})
            with closing(connection.getresponse()) as answer:
                _check(answer)
        except PeerRefused as error:
            raise DeliveryFailed(f"The destination is refused: {error}") from None
        except ssl.SSLCertVerificationError as error:
            raise DeliveryFailed(f"The certificate of the destination is refused: {error.verify_message}.") from None
        except TimeoutError:
            raise DeliveryFailed(f"The destination did not answer within {self._seconds:g} seconds.") from None
        except (socket.gaierror, UnicodeError):
            raise DeliveryFailed("The name of the destination's host is unknown.") from None
        except OSError as error:
            raise DeliveryFailed(
                f"The destination cannot be reached: {error.strerror or type(error).__name__}."
            ) from None
        except HTTPException as error:
            raise DeliveryFailed(f"The destination does not answer in HTTP: {type(error).__name__}.") from None

    def _connect(self, url: SplitResult, context: ssl.SSLContext | None, connections: Connections) -> socket.socket:
        """Return a connection to the first address of the host that accepts one, by TLS if there is a context."""
        is_plain = context is None
        host, port = url.hostname or "", url.port or (80 if is_plain else 443)
        addresses = self._policy.find(host, port, loopback_only=is_plain)
        last_error = OSError("the host has no address")
        for address in addresses:
            try:
                peer = socket.create_connection((str(address), port), timeout=self._seconds / len(addresses))
            except OSError as error:
                last_error = error
                continue
            peer.settimeout(self._seconds)
            connections.add(peer)
            return peer if context is None else _start_tls(peer, host, context, connections)
        raise last_error

    def _trusted(self) -> ssl.SSLContext:
        """Return the context that checks certificates. It is made before the connection, because it takes a moment."""
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        return self._ssl_context


def new_signing_secret() -> str:
    """Return a new signing secret in the form that the libraries of Standard Webhooks read."""
    return SIGNING_SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SIGNING_SECRET_BYTES)).decode()


def body_of(message: Message) -> bytes:
    """Return the body of a message: the same bytes at every attempt."""
    return encode_json(
        {
            "type": f"alert.{message.trouble}",
            "timestamp": message.created_at,
            "data": {
                "id": message.id,
                "trouble": message.trouble,
                "title": message.title,
                "sentence": message.sentence,
                "advice": message.advice,
                "url": message.url,
                "project": message.project,
                "run_ids": list(message.run_ids),
                "is_test": message.is_test,
            },
        }
    )


def _start_tls(peer: socket.socket, host: str, context: ssl.SSLContext, connections: Connections) -> socket.socket:
    secured = context.wrap_socket(peer, server_hostname=host, do_handshake_on_connect=False)
    connections.add(secured)
    secured.do_handshake()
    return secured


def _headers(message: Message, body: bytes, signing_secret: str) -> dict[str, str]:
    from standardwebhooks import Webhook  # here, because a start of the service needs no signatures

    now = datetime.now(UTC)
    return {
        "Content-Type": "application/json",
        "User-Agent": f"gradmedic/{version('gradmedic')}",
        "Accept": "*/*",
        "Connection": "close",
        "webhook-id": str(message.id),
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(signing_secret).sign(str(message.id), now, body.decode()),
    }


def _target(url: SplitResult) -> str:
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def _host_header(url: SplitResult) -> str:
    return url.netloc.rpartition("@")[2]


def _check(answer: HTTPResponse) -> None:
    """Raise DeliveryFailed unless the status is 2xx.

    The body is not read: the status is enough, and a body may be endless. Redirects are not followed: they would lead
    to an address that was not checked.
    """
    status = answer.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    end = "; redirects are not followed" if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST else ""
    raise DeliveryFailed(
        f"The destination answered {status}{end}.",
        is_permanent=is_permanent(status),
        retry_after=_retry_after(answer.getheader("Retry-After")),
    )


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, a number or a date; None if there is none that can be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        seconds = float(value[:20])
    else:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds = (aware - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
