"""One-time tickets: how a process on a Ray node shows that it is the one that was submitted.

One idea: a ticket is never sent to the node. Supervisor and nodes hold the cluster's token already, and both compute
the ticket of an attempt from it; the supervisor tells the service, over its own connection, and the node presents it.
So nothing that Ray stores, shows or logs of a job is worth anything to whoever reads it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from gradmedic.exceptions import ConfigurationError

PREFIX = "gradmedic_"
"""Of every secret of the service, so that its logs know one when they see it."""
PURPOSE = b"gradmedic ticket "
SHORTEST_TOKEN = 16
"""Characters: with fewer, tickets could be guessed from the token's side."""


def ticket_of(token: str, attempt: str) -> str:
    """Return the ticket of an attempt: HMAC-SHA256 under the cluster's token, in the form of an API key.

    >>> ticket = ticket_of("the cluster's own token", "0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52-1")
    >>> len(ticket), ticket == ticket_of("the cluster's own token", "0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f52-2")
    (53, False)
    """
    digest = hmac.new(token.encode(), PURPOSE + attempt.encode(), hashlib.sha256).digest()
    return PREFIX + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def read_token(environment: Mapping[str, str], file: Path | None = None) -> str:
    """Return the token of a Ray cluster, from a file or from where Ray itself looks.

    Raises:
        ConfigurationError: there is none, or it is too short to be one.
    """
    token = "" if file is not None else environment.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        named = environment.get("RAY_AUTH_TOKEN_PATH")
        place = file or (Path(named) if named else Path(environment.get("HOME", "/")) / ".ray" / "auth_token")
        try:
            token = place.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"the token of the Ray cluster cannot be read from {place}: {error}; set ray.token_file, "
                "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN. A cluster without token authentication is not used."
            ) from None
    if len(token) < SHORTEST_TOKEN:
        raise ConfigurationError(f"the token of the Ray cluster has {len(token)} characters, fewer than any of Ray's")
    return token
