"""One-time tickets: with one, a process on a Ray node proves that it runs the attempt that the worker has submitted.

A ticket is never sent to the node. Worker and nodes both hold the cluster's token, and both compute the ticket of an
attempt from it. The worker registers the ticket with the service, and the node redeems it there. So nothing that Ray
stores, shows or logs of a job helps an attacker.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.access import SECRET_PREFIX

TICKET_PURPOSE = b"gradmedic ticket "
SHORTEST_TOKEN = 16
"""Characters. Tickets of a shorter token could be guessed."""


def compute_ticket(token: str, attempt: str) -> str:
    """Return the ticket of an attempt: HMAC-SHA256 under the cluster's token, in the form of an API key.

    >>> ticket = compute_ticket("the cluster's own token", "0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52-1")
    >>> len(ticket), ticket == compute_ticket("the cluster's own token", "0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52-2")
    (53, False)
    """
    digest = hmac.new(token.encode(), TICKET_PURPOSE + attempt.encode(), hashlib.sha256).digest()
    return SECRET_PREFIX + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def read_cluster_token(environment: Mapping[str, str], file: Path | None = None) -> str:
    """Return the token of a Ray cluster, from a file or from where Ray itself reads it.

    Raises:
        ConfigurationError: There is no token, or it is too short.
    """
    token = "" if file is not None else environment.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        named = environment.get("RAY_AUTH_TOKEN_PATH")
        path = file or (Path(named) if named else Path(environment.get("HOME", "/")) / ".ray" / "auth_token")
        try:
            token = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"the token of the Ray cluster cannot be read from {path}: {error}; set ray.token_file, "
                "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN. A cluster without token authentication is not used."
            ) from None
    if len(token) < SHORTEST_TOKEN:
        raise ConfigurationError(
            f"the token of the Ray cluster has {len(token)} characters; Ray's tokens have at least {SHORTEST_TOKEN}"
        )
    return token
