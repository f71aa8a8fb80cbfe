"""The address of the service: it is taken before anything else is done, so that a second service changes nothing.

This module imports little, so that a start that cannot succeed fails at once.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
import ssl
import urllib.error
import urllib.request
from datetime import UTC, datetime

BACKLOG = 2048
ANSWER_SECONDS = 5.0
"""Seconds that the program at a port has to answer. A service that is starting answers when it has started."""
MOST_ANSWER_BYTES = 10_000
ANY_HOST = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 (compared, not bound to)
"""Addresses that mean every address of this machine, and how this machine itself reaches them."""


class AddressError(Exception):
    """The service cannot listen at its address; the message is for the operator."""


def take_address(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. Connections wait until the service accepts them.

    Raises AddressError. If a gradmedic service has the port, the message names its version, its start and its database.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
        )
    except OSError as error:
        place = f"cannot listen at {host} port {port}"
        if error.errno == errno.EADDRINUSE:
            raise AddressError(f"{place}. {describe_program(host, port)}") from error
        reason = (error.strerror or str(error)).partition(" (while attempting")[0]  # it repeats the address
        raise AddressError(f"{place}: {reason}") from error


def describe_program(host: str, port: int) -> str:
    """Return sentences about the program that listens at an address: what it is, and what the operator can do."""
    place = f"{ANY_HOST.get(host, f'[{host}]' if ':' in host else host)}:{port}"
    for scheme in ("http", "https"):
        answer = _ask(f"{scheme}://{place}/healthz")
        if answer is not None:
            break
    else:
        return "Another program has this port: stop it, or choose another port with --port."
    facts = [f"version {answer['version']}"] if "version" in answer else []
    facts += [f"started {_format_time(answer['started_at'])}"] if "started_at" in answer else []
    facts += [f"database {answer['database']}"] if answer.get("database") else []
    return (
        f"A gradmedic service answers at {scheme}://{place} already{': ' * bool(facts)}{', '.join(facts)}. Use it, or "
        "start another one with --port 0."
    )


def _ask(url: str) -> dict[str, str] | None:
    """Return the answer of a gradmedic service to `GET /healthz`, None if another program answers or none."""
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # no secret is sent, and the certificate has another name
    anonymous.check_hostname = False
    anonymous.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anonymous)
    )
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):  # URLError and TimeoutError are OSErrors
        with opener.open(url, timeout=ANSWER_SECONDS) as response:
            answer = json.loads(response.read(MOST_ANSWER_BYTES))
        if isinstance(answer, dict) and answer.get("status") == "ok":
            return {name: str(value) for name, value in answer.items() if value is not None}
    return None


def _format_time(text: str) -> str:
    """Return an RFC 3339 time as `2026-11-30 12:03 UTC`; a text that is no time stays as it is."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M UTC}"
    except ValueError:
        return text
