"""The keys that were seen last, so that recognizing one costs no query.

One idea: what the database said about a key holds for `VERIFIED_SECONDS`, and so a revocation takes effect everywhere
within that time; in the process that revokes, at once. Last uses are collected here and written now and then.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog

from gradmedic_service.access import repository
from gradmedic_service.access.errors import ApiKeyExpired, ApiKeyRevoked, ApiKeyUnknown, SessionEnded
from gradmedic_service.access.principal import Principal
from gradmedic_service.access.secrets import digest_of, is_secret, recognizable_part
from gradmedic_service.database.engine import Database, Session
from gradmedic_service.http.errors import ServiceError

VERIFIED_SECONDS = 5.0
"""How long a process believes what it read about a key: the longest that a revoked key is still accepted."""
KNOWN_KEYS = 10_000
"""Keys kept, some 1 KB each, unknown ones included."""
LAST_USE_SECONDS = 30.0
"""Seconds between writings of last uses."""

_logger = structlog.get_logger("gradmedic.access")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database said about a secret or a session's cookie, and when."""

    key: repository.StoredKey | None
    principal: Principal | None
    read_at: float


class Keyring:
    """Recognizes secrets; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._last_used: dict[UUID, datetime] = {}
        self._forgotten = 0
        """How often everything was forgotten: what was read before that is not kept."""

    def recall(self, secret: str) -> Principal | None:
        """Return whose secret it is, None where the database must be asked. Raises as `look_up` does."""
        digest = digest_of(secret)
        known = self._known.get(digest)
        if known is None or self._clock() - known.read_at >= VERIFIED_SECONDS:
            return None
        return self._accept(known, digest, secret)

    def knows(self, secret: str) -> bool:
        """Whether the secret, or a session's cookie, was somebody's when it was last looked up."""
        known = self._known.get(digest_of(secret))
        return known is not None and known.key is not None

    def recall_session(self, cookie: str) -> Principal | None:
        """Return whose session it is, None where the database must be asked. Raises as `look_up_session` does."""
        known = self._known.get(digest_of(cookie))
        if known is None or self._clock() - known.read_at >= VERIFIED_SECONDS:
            return None
        return self._accept_session(known)

    def look_up_session(self, database: Database, cookie: str) -> Principal:
        """Ask the database whose session it is. Raises SessionEnded, ApiKeyRevoked, ApiKeyExpired."""
        return self._accept_session(self._read(database, digest_of(cookie), repository.find_by_session))

    def look_up(self, database: Database, secret: str) -> Principal:
        """Ask the database whose secret it is. Raises ApiKeyUnknown, ApiKeyRevoked, ApiKeyExpired."""
        if not is_secret(secret):
            raise ApiKeyUnknown("The API key does not have the form of one of gradmedic's: was it cut short?")
        digest = digest_of(secret)
        return self._accept(self._read(database, digest, repository.find_by_digest), digest, secret)

    def _read(
        self, database: Database, digest: bytes, find: Callable[[Session, bytes], repository.StoredKey | None]
    ) -> _Known:
        read_at, forgotten = self._clock(), self._forgotten
        with database.reading() as session:
            key = find(session, digest)
        principal = None
        if key is not None:
            principal = Principal(
                name=key.name, key_id=key.id, project=key.project, run_id=key.run_id, scopes=frozenset(key.scopes)
            )
        known = _Known(key, principal, read_at)
        with self._lock:
            if forgotten == self._forgotten:
                self._known[digest] = known
                self._known.move_to_end(digest)
            while len(self._known) > KNOWN_KEYS:
                self._known.popitem(last=False)
        return known

    def forget(self) -> None:
        """Believe nothing that was read before: a key was made or revoked."""
        with self._lock:
            self._known.clear()
            self._forgotten += 1

    def last_used(self, key_id: UUID, stored: datetime | None) -> datetime | None:
        """Return when a key was last used, here or as stored."""
        used = self._last_used.get(key_id)
        return stored if used is None else used if stored is None else max(used, stored)

    def write_last_uses(self, database: Database) -> None:
        """Store the last uses since the last time; those that cannot be stored now are kept."""
        with self._lock:
            used, self._last_used = self._last_used, {}
        if not used:
            return
        try:
            with database.writing() as session:
                repository.set_last_used(session, used)
        except ServiceError as error:
            with self._lock:
                self._last_used = used | self._last_used
            _logger.warning("last uses of API keys are written later", reason=error.reason or error.detail)

    def _accept(self, known: _Known, digest: bytes, secret: str) -> Principal:
        key, principal = known.key, known.principal
        if key is None or principal is None or not hmac.compare_digest(key.digest, digest):
            raise ApiKeyUnknown(
                f"The API key {recognizable_part(secret)}... is not one of this service's; "
                "`gradmedic api-key list` shows those that are."
            )
        return self._accept_key(key, principal)

    def _accept_session(self, known: _Known) -> Principal:
        key, principal = known.key, known.principal
        if key is None or principal is None or key.session_expires_at is None:
            raise SessionEnded("The session has ended: log in again.")
        if key.session_expires_at <= datetime.now(UTC):
            raise SessionEnded(f"The session ended at {key.session_expires_at:%FT%TZ}: log in again.")
        return self._accept_key(key, principal)

    def _accept_key(self, key: repository.StoredKey, principal: Principal) -> Principal:
        now = datetime.now(UTC)
        if key.revoked_at is not None:
            raise ApiKeyRevoked(f"The API key {key.name!r} ({key.prefix}...) was revoked at {key.revoked_at:%FT%TZ}.")
        if key.expires_at is not None and key.expires_at <= now:
            raise ApiKeyExpired(f"The API key {key.name!r} ({key.prefix}...) expired at {key.expires_at:%FT%TZ}.")
        with self._lock:
            self._last_used[key.id] = now
        return principal
