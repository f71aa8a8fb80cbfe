"""The secrets of API keys: what they look like, and what is kept of them.

One idea: a secret is 256 random bits behind a word that people and secret scanners recognize. So much randomness needs
no salt and no slow hash: SHA-256 is what is stored and looked up.
"""

from __future__ import annotations

import hashlib
import re
import secrets

SECRET_PREFIX = "gradmedic_"  # noqa: S105 (how every secret begins is none)
RANDOM_BYTES = 32
SECRET_PATTERN = re.compile(SECRET_PREFIX + r"[A-Za-z0-9_-]{43}")
"""43 characters of URL-safe base64 hold 32 bytes."""
RECOGNIZABLE_LENGTH = len(SECRET_PREFIX) + 6
"""What lists show: 36 of the 256 bits."""


def new_secret() -> str:
    """Return a new secret."""
    return SECRET_PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def is_secret(text: str) -> bool:
    """Whether a text has the form of a secret.

    >>> is_secret(new_secret()), is_secret("gradmedic_short")
    (True, False)
    """
    return SECRET_PATTERN.fullmatch(text) is not None


def without_secrets(text: str) -> str:
    """Return a text in which every secret is cut to what lists show of it.

    >>> without_secrets("GET /gradmedic_" + 43 * "A")
    'GET /gradmedic_AAAAAA...'
    """
    if SECRET_PREFIX not in text:
        return text
    return SECRET_PATTERN.sub(lambda found: f"{recognizable_part(found.group())}...", text)


def new_session_token() -> str:
    """Return the value of a new session's cookie."""
    return secrets.token_urlsafe(RANDOM_BYTES)


def digest_of(secret: str) -> bytes:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def recognizable_part(secret: str) -> str:
    """Return how a secret begins."""
    return secret[:RECOGNIZABLE_LENGTH]
