"""The secrets of API keys, and what is stored of them.

A secret is 256 random bits behind a prefix that people and secret scanners recognize. So much randomness needs neither
a salt nor a slow hash: the database stores the SHA-256 and looks keys up by it.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from gradmedic.protocol.access import SECRET_PREFIX

RANDOM_BYTES = 32
SECRET_PATTERN = re.compile(SECRET_PREFIX + r"[A-Za-z0-9_-]{43}")
"""The form of a secret; 43 characters of URL-safe base64 hold 32 bytes."""
VISIBLE_LENGTH = len(SECRET_PREFIX) + 6
"""Characters of a secret that lists show; they reveal 36 of its 256 bits."""


def new_secret() -> str:
    """Return a new secret of an API key."""
    return SECRET_PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def new_session_token() -> str:
    """Return a new value of a session's cookie."""
    return secrets.token_urlsafe(RANDOM_BYTES)


def is_secret(text: str) -> bool:
    """Whether a text has the form of a secret.

    >>> is_secret(new_secret()), is_secret("gradmedic_short")
    (True, False)
    """
    return SECRET_PATTERN.fullmatch(text) is not None


def hash_secret(secret: str) -> bytes:
    """Return the digest by which a secret or a session's cookie is stored."""
    return hashlib.sha256(secret.encode()).digest()


def prefix_of(secret: str) -> str:
    """Return the beginning of a secret that lists show."""
    return secret[:VISIBLE_LENGTH]


def redact_secrets(text: str) -> str:
    """Return a text with every secret in it cut to its prefix.

    >>> redact_secrets("GET /gradmedic_" + 43 * "A")
    'GET /gradmedic_AAAAAA...'
    """
    if SECRET_PREFIX not in text:
        return text
    return SECRET_PATTERN.sub(lambda match: f"{prefix_of(match.group())}...", text)
