"""A cache of API keys and sessions, so that authenticating a request needs no query.

A cached key is used for `CACHE_SECONDS`. A revocation therefore takes effect within that time in every process, and at
once in the process that revokes. The cache also collects the last uses of keys; a periodic task stores them.
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
from anyio import CapacityLimiter

from gradmedic_service.access import repository
from gradmedic_service.access.errors import ApiKeyExpired, ApiKeyRevoked, ApiKeyUnknown, SessionEnded
from gradmedic_service.access.principal import Principal
from gradmedic_service.access.secrets import hash_secret, is_secret, prefix_of
from gradmedic_service.database.engine import Database, Session
from gradmedic_service.http.errors import ServiceError

CACHE_SECONDS = 2.0
"""Seconds that a cached key is used: the longest time that a revoked key is still accepted."""
MAX_CACHED_KEYS = 10_000
"""Cached keys of some 1 KB each, and as many cached secrets that are unknown."""
MAX_READS = 8
"""Keys that are read from the database at the same time."""
MAX_SUSPICIOUS_READS = 2
"""Keys that are read at the same time for addresses that have tried too many unknown keys. Further ones wait, so that
guessing takes neither the threads nor the connections of other requests."""
LAST_USE_SECONDS = 30.0
"""Seconds between two writes of last uses."""

_logger = structlog.get_logger("gradmedic.access")


@dataclass(frozen=True, slots=True)
class _CachedKey:
    """The key that the database held for a secret or a session's cookie."""

    key: repository.StoredKey | None
    """The key; None if the secret is unknown."""
    principal: Principal | None
    read_at: float
    """Time of the query, on the keyring's clock."""


class Keyring:
    """Finds the principals of secrets; threads may share it.

    Args:
        clock: a monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._cached: OrderedDict[bytes, _CachedKey] = OrderedDict()
        self._unknown: OrderedDict[bytes, _CachedKey] = OrderedDict()
        """Secrets that are unknown. They have a place of their own, so that they do not displace keys."""
        self._reads = CapacityLimiter(MAX_READS)
        self._suspicious_reads = CapacityLimiter(MAX_SUSPICIOUS_READS)
        self._last_uses: dict[UUID, datetime] = {}
        self._clear_count = 0
        """Number of calls of `clear`. What was read before the latest call is not cached."""

    def find_key(self, secret: str) -> Principal | None:
        """Return the principal of an API key's secret, None if the database must be read. Raises as `read_key`."""
        digest = hash_secret(secret)
        cached = self._find(digest)
        return None if cached is None else self._accept_key(cached, digest, secret)

    def read_key(self, database: Database, secret: str) -> Principal:
        """Read the principal of an API key's secret. Raises ApiKeyUnknown, ApiKeyRevoked, ApiKeyExpired."""
        if not is_secret(secret):
            raise ApiKeyUnknown("The API key does not have the form of one of gradmedic's: was it cut short?")
        digest = hash_secret(secret)
        return self._accept_key(self._read(database, digest, repository.find_by_digest), digest, secret)

    def find_session(self, cookie: str) -> Principal | None:
        """Return the principal of a session's cookie, None if the database must be read. Raises as `read_session`."""
        cached = self._find(hash_secret(cookie))
        return None if cached is None else self._accept_session(cached)

    def read_session(self, database: Database, cookie: str) -> Principal:
        """Read the principal of a session's cookie. Raises SessionEnded, ApiKeyRevoked, ApiKeyExpired."""
        return self._accept_session(self._read(database, hash_secret(cookie), repository.find_by_session))

    def places_to_read(self, *, is_suspicious: bool) -> CapacityLimiter:
        """Return the places that `read_key` and `read_session` wait for.

        Args:
            is_suspicious: whether the request's address has tried too many unknown keys.
        """
        return self._suspicious_reads if is_suspicious else self._reads

    def clear(self) -> None:
        """Empty the cache, because a key was made or revoked."""
        with self._lock:
            self._cached.clear()
            self._unknown.clear()
            self._clear_count += 1

    def latest_use(self, key_id: UUID, stored: datetime | None) -> datetime | None:
        """Return the time of a key's last use, in this process or as stored."""
        used = self._last_uses.get(key_id)
        return stored if used is None else used if stored is None else max(used, stored)

    def write_last_uses(self, database: Database) -> None:
        """Store the last uses that were collected; on an error they are kept for the next call."""
        with self._lock:
            uses, self._last_uses = self._last_uses, {}
        if not uses:
            return
        try:
            with database.writing() as session:
                repository.set_last_used(session, uses)
        except ServiceError as error:
            with self._lock:
                self._last_uses = uses | self._last_uses
            _logger.warning("last uses of API keys are written later", reason=error.reason or error.detail)

    def _find(self, digest: bytes) -> _CachedKey | None:
        """Return a cached key that is recent enough."""
        cached = self._cached.get(digest) or self._unknown.get(digest)
        return None if cached is None or self._clock() - cached.read_at >= CACHE_SECONDS else cached

    def _read(
        self, database: Database, digest: bytes, find: Callable[[Session, bytes], repository.StoredKey | None]
    ) -> _CachedKey:
        """Read a key and cache it."""
        read_at, clear_count = self._clock(), self._clear_count
        with database.reading() as session:
            key = find(session, digest)
        principal = None
        if key is not None:
            principal = Principal(
                name=key.name,
                key_id=key.id,
                project=key.project,
                run_id=key.run_id,
                session_digest=None if key.session_expires_at is None else digest,
                scopes=frozenset(key.scopes),
            )
        cached = _CachedKey(key, principal, read_at)
        with self._lock:
            if clear_count == self._clear_count:
                self._cached.pop(digest, None)
                self._unknown.pop(digest, None)
                place = self._unknown if key is None else self._cached
                place[digest] = cached
                if len(place) > MAX_CACHED_KEYS:
                    place.popitem(last=False)
        return cached

    def _accept_key(self, cached: _CachedKey, digest: bytes, secret: str) -> Principal:
        key, principal = cached.key, cached.principal
        if key is None or principal is None or not hmac.compare_digest(key.digest, digest):
            raise ApiKeyUnknown(
                f"The API key {prefix_of(secret)}... is not one of this service's; "
                "`gradmedic api-key list` shows those that are."
            )
        return self._accept(key, principal)

    def _accept_session(self, cached: _CachedKey) -> Principal:
        key, principal = cached.key, cached.principal
        if key is None or principal is None or key.session_expires_at is None:
            raise SessionEnded("The session has ended: log in again.")
        if key.session_expires_at <= datetime.now(UTC):
            raise SessionEnded(f"The session ended at {key.session_expires_at:%FT%TZ}: log in again.")
        return self._accept(key, principal)

    def _accept(self, key: repository.StoredKey, principal: Principal) -> Principal:
        """Return the principal of a key and note the use. Raises ApiKeyRevoked, ApiKeyExpired."""
        now = datetime.now(UTC)
        if key.revoked_at is not None:
            raise ApiKeyRevoked(f"The API key {key.name!r} ({key.prefix}...) was revoked at {key.revoked_at:%FT%TZ}.")
        if key.expires_at is not None and key.expires_at <= now:
            raise ApiKeyExpired(f"The API key {key.name!r} ({key.prefix}...) expired at {key.expires_at:%FT%TZ}.")
        with self._lock:
            self._last_uses[key.id] = now
        return principal
