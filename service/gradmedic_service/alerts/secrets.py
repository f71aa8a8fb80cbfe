"""Encryption of the addresses of destinations under `GRADMEDIC_SECRET_KEY`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import SecretStr

from gradmedic_service.alerts.addresses import Address

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

MIN_SECRET_KEY_LENGTH = 32
"""Characters of a secret key. 32 random characters of base64 have 192 bits, too many to guess."""
HOW_TO_MAKE_A_KEY = "`openssl rand -base64 32` prints a new one"
_PURPOSE = b"gradmedic alert destinations"
"""Purpose of the derived key, so that another use of the same secret key has another one."""
_READABLE = b"{"
"""The first byte of an address that has no secret and is stored readable. No token of Fernet begins so."""


class SecretKeyMissing(Exception):
    """An address has a secret, and the service has no secret key."""


class SecretUnreadable(Exception):
    """No secret key of the service can decrypt a stored address."""


class SecretBox:
    """Encrypts and decrypts addresses.

    Args:
        secret_key: keys separated by commas. The first one encrypts, each one decrypts. None: only addresses without a
            secret can be stored.
    """

    def __init__(self, secret_key: SecretStr | None) -> None:
        self._keys = () if secret_key is None else secret_keys(secret_key)
        self._fernet: MultiFernet | None = None

    @property
    def has_key(self) -> bool:
        """Whether addresses with a secret can be stored."""
        return bool(self._keys)

    def seal(self, address: Address) -> bytes:
        """Return an address as bytes for the database, encrypted if it has a secret. Raises SecretKeyMissing."""
        fields = {
            "kind": address.kind,
            "service": address.service,
            "shown": address.shown,
            "parts": dict(address.parts),
        }
        plain = json.dumps(fields).encode()
        if not address.has_secret:
            return plain
        if not self._keys:
            raise SecretKeyMissing
        return self._cipher().encrypt(plain)

    def open(self, sealed: bytes) -> Address:
        """Return the address that `seal` turned into bytes. Raises SecretUnreadable."""
        if not sealed.startswith(_READABLE):
            if not self._keys:
                raise SecretUnreadable
            from cryptography.fernet import InvalidToken

            try:
                sealed = self._cipher().decrypt(sealed)
            except InvalidToken:
                raise SecretUnreadable from None
        return Address(**json.loads(sealed))

    def _cipher(self) -> MultiFernet:
        if self._fernet is None:  # here, because a start of the service needs no cryptography
            from cryptography.fernet import Fernet, MultiFernet

            self._fernet = MultiFernet([Fernet(_derive(key)) for key in self._keys])
        return self._fernet


def secret_keys(setting: SecretStr) -> Sequence[str]:
    """Return the keys of the setting `secret_key`, the one that encrypts first."""
    return tuple(part for part in (part.strip() for part in setting.get_secret_value().split(",")) if part)


def _derive(key: str) -> bytes:
    """Return the key of Fernet that follows from a secret key (HKDF with SHA-256, RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(key.encode())
    return base64.urlsafe_b64encode(derived)
