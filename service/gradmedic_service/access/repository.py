"""API keys and audit records in the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Table, bindparam, exists, or_, select, update
from sqlalchemy.orm import Session

from gradmedic_service import models

Listed = TypeVar("Listed", models.ApiKey, models.AuditRecord)

_KEYS = cast("Table", models.ApiKey.__table__)
_FIND = select(
    _KEYS.c.id,
    _KEYS.c.name,
    _KEYS.c.prefix,
    _KEYS.c.digest,
    _KEYS.c.project,
    _KEYS.c.run_id,
    _KEYS.c.scopes,
    _KEYS.c.expires_at,
    _KEYS.c.revoked_at,
).where(_KEYS.c.digest == bindparam("wanted"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """What recognizing a key takes."""

    id: UUID
    name: str
    prefix: str
    digest: bytes
    project: str | None
    run_id: UUID | None
    scopes: list[str]
    expires_at: datetime | None
    revoked_at: datetime | None


def find_by_digest(session: Session, digest: bytes) -> StoredKey | None:
    """Read the key whose secret has a digest."""
    row = session.execute(_FIND, {"wanted": digest}).one_or_none()
    return None if row is None else StoredKey(**row._mapping)


def find(session: Session, key_id: UUID, *, is_locked: bool = False) -> models.ApiKey | None:
    """Read a key; locked, nobody else changes it until the transaction ends."""
    query = select(models.ApiKey).where(models.ApiKey.id == key_id)
    return session.scalars(query.with_for_update() if is_locked else query).one_or_none()


def has_usable(session: Session, now: datetime) -> bool:
    """Whether at least one key is accepted."""
    key = models.ApiKey
    usable = exists().where(key.revoked_at.is_(None), or_(key.expires_at.is_(None), key.expires_at > now))
    return bool(session.scalar(select(usable)))


def add(session: Session, row: models.ApiKey | models.AuditRecord) -> None:
    """Store a key or a record."""
    session.add(row)


def set_last_used(session: Session, used: Mapping[UUID, datetime]) -> None:
    """Note last uses; another replica may have seen a later one."""
    at = bindparam("at", type_=_KEYS.c.last_used_at.type)
    statement = (
        update(_KEYS)
        .where(_KEYS.c.id == bindparam("key_id"), or_(_KEYS.c.last_used_at.is_(None), _KEYS.c.last_used_at < at))
        .values(last_used_at=at)
    )
    session.execute(statement, [{"key_id": key_id, "at": moment} for key_id, moment in sorted(used.items())])


def page(
    session: Session, model: type[Listed], *, project: str | None, after: UUID | None, size: int
) -> Sequence[Listed]:
    """Read the newest `size` keys or records behind one, of one project or of all."""
    conditions: list[ColumnElement[bool]] = []
    if project is not None:
        conditions.append(model.project == project)
    if after is not None:
        conditions.append(model.id < after)
    return session.scalars(select(model).where(*conditions).order_by(model.id.desc()).limit(size)).all()
