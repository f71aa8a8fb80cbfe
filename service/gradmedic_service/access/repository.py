"""API keys and audit records in the database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Table, bindparam, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from gradmedic_service.database import models

Listed = TypeVar("Listed", models.ApiKey, models.AuditRecord)

_KEYS = cast("Table", models.ApiKey.__table__)
_SESSIONS = cast("Table", models.BrowserSession.__table__)
_KEY_COLUMNS = (
    _KEYS.c.id,
    _KEYS.c.name,
    _KEYS.c.prefix,
    _KEYS.c.digest,
    _KEYS.c.project,
    _KEYS.c.run_id,
    _KEYS.c.scopes,
    _KEYS.c.expires_at,
    _KEYS.c.revoked_at,
)
_SELECT_BY_DIGEST = select(*_KEY_COLUMNS).where(_KEYS.c.digest == bindparam("digest_to_find"))
_SELECT_BY_SESSION = (
    select(*_KEY_COLUMNS, _SESSIONS.c.expires_at.label("session_expires_at"))
    .join(_SESSIONS, _SESSIONS.c.key_id == _KEYS.c.id)
    .where(_SESSIONS.c.digest == bindparam("digest_to_find"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """The columns of a key that authentication needs."""

    id: UUID
    name: str
    prefix: str
    digest: bytes
    project: str | None
    run_id: UUID | None
    scopes: list[str]
    expires_at: datetime | None
    revoked_at: datetime | None
    session_expires_at: datetime | None = None
    """End of the session by which the key was found; None if it was found by its secret."""


def find_by_digest(session: Session, digest: bytes) -> StoredKey | None:
    """Return the key whose secret has this digest."""
    row = session.execute(_SELECT_BY_DIGEST, {"digest_to_find": digest}).one_or_none()
    return None if row is None else StoredKey(**row._mapping)


def find_by_session(session: Session, digest: bytes) -> StoredKey | None:
    """Return the key of the session whose cookie has this digest."""
    row = session.execute(_SELECT_BY_SESSION, {"digest_to_find": digest}).one_or_none()
    return None if row is None else StoredKey(**row._mapping)


def add_session(session: Session, row: models.BrowserSession) -> None:
    """Store a session, and delete the sessions that have ended."""
    session.execute(delete(models.BrowserSession).where(models.BrowserSession.expires_at <= row.created_at))
    session.add(row)


def delete_session(session: Session, key_id: UUID, digest: bytes) -> None:
    """Delete a session of a key, if it exists."""
    row = models.BrowserSession
    session.execute(delete(row).where(row.digest == digest, row.key_id == key_id))


def list_usable_keys(session: Session, key_ids: Collection[UUID], now: datetime) -> set[UUID]:
    """Return those of some keys that are neither revoked nor expired."""
    key = models.ApiKey
    return set(session.scalars(select(key.id).where(key.id.in_(key_ids), _is_usable(now))))


def list_open_sessions(session: Session, digests: Collection[bytes], now: datetime) -> set[bytes]:
    """Return those of some digests of cookies whose sessions have not ended."""
    row = models.BrowserSession
    return set(session.scalars(select(row.digest).where(row.digest.in_(digests), row.expires_at > now)))


def find(session: Session, key_id: UUID, *, is_locked: bool = False) -> models.ApiKey | None:
    """Return a key; with `is_locked`, no other transaction can change it until this one ends."""
    query = select(models.ApiKey).where(models.ApiKey.id == key_id)
    return session.scalars(query.with_for_update() if is_locked else query).one_or_none()


def has_usable(session: Session, now: datetime) -> bool:
    """Whether at least one key is neither revoked nor expired."""
    return bool(session.scalar(select(exists(models.ApiKey.id).where(_is_usable(now)))))


def add(session: Session, row: models.ApiKey | models.AuditRecord) -> None:
    """Store a key or an audit record."""
    session.add(row)


def set_last_used(session: Session, last_uses: Mapping[UUID, datetime]) -> None:
    """Store the times of last uses, where another process has not stored a later one."""
    at = bindparam("at", type_=_KEYS.c.last_used_at.type)
    statement = (
        update(_KEYS)
        .where(_KEYS.c.id == bindparam("key_id"), or_(_KEYS.c.last_used_at.is_(None), _KEYS.c.last_used_at < at))
        .values(last_used_at=at)
    )
    session.execute(statement, [{"key_id": key_id, "at": moment} for key_id, moment in sorted(last_uses.items())])


def list_newest(
    session: Session, model: type[Listed], *, project: str | None, after: UUID | None, size: int
) -> Sequence[Listed]:
    """Return the newest `size` keys or audit records that are older than `after`, of one project or of all."""
    conditions: list[ColumnElement[bool]] = []
    if project is not None:
        conditions.append(model.project == project)
    if after is not None:
        conditions.append(model.id < after)
    return session.scalars(select(model).where(*conditions).order_by(model.id.desc()).limit(size)).all()


def _is_usable(now: datetime) -> ColumnElement[bool]:
    key = models.ApiKey
    return key.revoked_at.is_(None) & or_(key.expires_at.is_(None), key.expires_at > now)
