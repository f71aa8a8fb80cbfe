"""Access: what making, listing and revoking a key means, and what is put on record."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from gradmedic.protocol.access import SCOPES, ApiKey, ApiKeyList, AuditRecord, AuditRecordList
from gradmedic.protocol.ids import new_id
from gradmedic_service.access import repository
from gradmedic_service.access.keyring import Keyring
from gradmedic_service.access.principal import OPERATOR, TICKET, Principal
from gradmedic_service.access.secrets import digest_of, new_secret, new_session_token, recognizable_part
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.errors import ApiKeyMissing, ApiKeyNotFound, InvalidRequest
from gradmedic_service.http.paging import cut_page, position_of
from gradmedic_service.projects import repository as projects

KEYS = "api keys"
RECORDS = "audit records"
SESSION_SECONDS = 7 * 24 * 3600
"""A week: long enough not to paste a key every morning."""


def create_key(
    session: Session,
    *,
    project: str | None,
    name: str | None,
    scopes: Iterable[str],
    run_id: UUID | None = None,
    expires_at: datetime | None = None,
    secret: str | None = None,
    by: Principal = OPERATOR,
) -> tuple[models.ApiKey, str]:
    """Store a new key and return it with its secret, which is nowhere else.

    Args:
        session: of the transaction that makes the key usable when it commits.
        project: the one that the key reaches; None for every project.
        name: who or what uses it; without one it is named for its id.
        scopes: some of `SCOPES`, or `TICKET`.
        run_id: the only run that it reaches; that run need not be there yet.
        expires_at: when it stops being accepted.
        secret: if it was chosen elsewhere.
        by: who makes it, for the record.
    """
    key_id, now = new_id(), datetime.now(UTC)
    secret = secret or new_secret()
    key = models.ApiKey(
        id=key_id,
        name=name or f"key-{key_id.hex[-8:]}",
        prefix=recognizable_part(secret),
        digest=digest_of(secret),
        project=project,
        run_id=run_id,
        scopes=[scope for scope in (*SCOPES, TICKET) if scope in set(scopes)],
        created_at=now,
        expires_at=expires_at,
        revoked_at=None,
        last_used_at=None,
    )
    repository.add(session, key)
    if project is not None:
        projects.add_missing(session, project, now)
    record(session, by, "create_api_key", key_id, project)
    return key, secret


def is_secret_of(session: Session, key_id: UUID | None, secret: str) -> bool:
    """Whether a key, if there is one, has this secret."""
    key = None if key_id is None else repository.find(session, key_id)
    return key is not None and hmac.compare_digest(key.digest, digest_of(secret))


def is_taken(session: Session, secret: str) -> bool:
    """Whether any key, dead ones included, has this secret."""
    return repository.find_by_digest(session, digest_of(secret)) is not None


def has_usable_key(session: Session) -> bool:
    """Whether anybody could get in where keys are needed."""
    return repository.has_usable(session, datetime.now(UTC))


def revoke_key(session: Session, by: Principal, key_id: UUID) -> models.ApiKey:
    """Let a key be accepted no more; once is enough. Raises ApiKeyNotFound."""
    key = repository.find(session, key_id, is_locked=True)
    if key is None or not by.reaches_project(key.project):
        raise ApiKeyNotFound(f"There is no API key {key_id}.")
    if key.revoked_at is None:
        key.revoked_at = datetime.now(UTC)
        record(session, by, "revoke_api_key", key_id, key.project)
    return key


def open_session(session: Session, by: Principal) -> tuple[str, datetime]:
    """Exchange the key of a principal for a session; return its cookie's value and when it ends."""
    if by.key_id is None:
        raise ApiKeyMissing("A session is opened with an API key: send `Authorization: Bearer <api key>`.")
    now = datetime.now(UTC)
    key = repository.find(session, by.key_id)
    expires_at = now + timedelta(seconds=SESSION_SECONDS)
    if key is not None and key.expires_at is not None:
        expires_at = min(expires_at, key.expires_at)
    token = new_session_token()
    row = models.BrowserSession(digest=digest_of(token), key_id=by.key_id, created_at=now, expires_at=expires_at)
    repository.add_session(session, row)
    record(session, by, "open_session", by.key_id, by.project)
    return token, expires_at


def close_session(session: Session, by: Principal, token: str) -> None:
    """End a session of a principal; once is enough."""
    if by.key_id is not None:
        repository.remove_session(session, by.key_id, digest_of(token))


def list_keys(
    session: Session, principal: Principal, keyring: Keyring, page_token: str | None, max_results: int
) -> ApiKeyList:
    """Return a page of the keys of a principal's project, or of all. Raises InvalidRequest for a foreign token."""
    found = repository.page(
        session, models.ApiKey, project=principal.project, after=_after(page_token, KEYS), size=max_results + 1
    )
    page, token = cut_page(found, max_results, KEYS, lambda key: [key.id.hex])
    return ApiKeyList(items=[on_the_wire(key, keyring) for key in page], next_page_token=token)


def list_records(session: Session, principal: Principal, page_token: str | None, max_results: int) -> AuditRecordList:
    """Return a page of what happened in a principal's project, or in all. Raises InvalidRequest for a foreign token."""
    found = repository.page(
        session, models.AuditRecord, project=principal.project, after=_after(page_token, RECORDS), size=max_results + 1
    )
    page, token = cut_page(found, max_results, RECORDS, lambda record: [record.id.hex])
    return AuditRecordList(
        items=[
            AuditRecord(
                id=one.id,
                at=one.at,
                actor=one.actor,
                actor_key_id=one.actor_key_id,
                action=one.action,
                project=one.project,
                object_id=one.object_id,
            )
            for one in page
        ],
        next_page_token=token,
    )


def record(session: Session, by: Principal, action: str, object_id: UUID, project: str | None) -> None:
    """Put on record who did what, in the transaction that does it."""
    repository.add(
        session,
        models.AuditRecord(
            id=new_id(),
            at=datetime.now(UTC),
            actor=by.name,
            actor_key_id=by.key_id,
            action=action,
            project=project,
            object_id=object_id,
        ),
    )


def on_the_wire(key: models.ApiKey, keyring: Keyring | None = None) -> ApiKey:
    """Return a key as it is shown: without its secret."""
    return ApiKey(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        project=key.project,
        run_id=key.run_id,
        scopes=list(key.scopes),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at if keyring is None else keyring.last_used(key.id, key.last_used_at),
    )


def _after(page_token: str | None, query: str) -> UUID | None:
    if page_token is None:
        return None
    try:
        return UUID(hex=position_of(page_token, query, 1)[0])
    except ValueError:
        raise InvalidRequest.at("page_token", "is not a token of this list") from None
