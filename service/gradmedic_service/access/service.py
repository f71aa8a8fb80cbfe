"""API keys, browser sessions and audit records: making, listing and ending them."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from gradmedic.protocol.access import SCOPES, ApiKey, ApiKeyList, AuditRecord, AuditRecordList
from gradmedic.protocol.ids import new_id
from gradmedic_service.access import repository
from gradmedic_service.access.errors import ApiKeyMissing, ApiKeyNotFound, BeyondKey
from gradmedic_service.access.keyring import Keyring
from gradmedic_service.access.principal import OPERATOR, TICKET, Principal
from gradmedic_service.access.secrets import hash_secret, new_secret, new_session_token, prefix_of
from gradmedic_service.database import models
from gradmedic_service.database.engine import Session
from gradmedic_service.http.paging import cut_page, position_id, position_of
from gradmedic_service.projects import service as projects
from gradmedic_service.runs import repository as runs
from gradmedic_service.trials import repository as trials

KEY_LIST = "api keys"
"""Name of the list of keys in page tokens."""
RECORD_LIST = "audit records"
"""Name of the list of audit records in page tokens."""
SESSION_SECONDS = 7 * 24 * 3600
"""Longest duration of a session: a week, so that people need not paste their key every morning."""


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
    """Store a new key and return it with its secret, of which only a hash is stored.

    Args:
        session: a writing session; the key can be used after its commit.
        project: the project that the key reaches; None for every project.
        name: the key's name; by default it is made from the key's id.
        scopes: some of `SCOPES`, or `TICKET`.
        run_id: the only run that the key reaches; the run need not exist yet.
        expires_at: the time from which the key is refused.
        secret: the secret; by default a new one.
        by: the principal that makes the key, for the audit record.
    """
    key_id, now = new_id(), datetime.now(UTC)
    secret = secret or new_secret()
    key = models.ApiKey(
        id=key_id,
        name=name or f"key-{key_id.hex[-8:]}",
        prefix=prefix_of(secret),
        digest=hash_secret(secret),
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
        projects.create_missing(session, project, now)
    record(session, by, "create_api_key", key_id, project)
    return key, secret


def check_run_of_key(session: Session, project: str | None, run_id: UUID) -> None:
    """Raise BeyondKey if a run exists, or is promised to a trial's attempt, in another project than that of its key."""
    run = runs.read_revisions(session, [run_id]).get(run_id) or trials.find_run_of_attempt(session, run_id)
    if run is not None and run.project != project:
        raise BeyondKey(f"The run {run_id} is not one of project {project!r}.")


def is_secret_of(session: Session, key_id: UUID | None, secret: str) -> bool:
    """Whether a key exists and has this secret."""
    key = None if key_id is None else repository.find(session, key_id)
    return key is not None and hmac.compare_digest(key.digest, hash_secret(secret))


def is_secret_taken(session: Session, secret: str) -> bool:
    """Whether any key has this secret, revoked and expired keys included."""
    return repository.find_by_digest(session, hash_secret(secret)) is not None


def has_usable_key(session: Session) -> bool:
    """Whether at least one key is neither revoked nor expired."""
    return repository.has_usable(session, datetime.now(UTC))


def revoke_key(session: Session, by: Principal, key_id: UUID) -> models.ApiKey:
    """Revoke a key; revoking it again changes nothing. Raises ApiKeyNotFound."""
    key = repository.find(session, key_id, is_locked=True)
    if key is None or not by.reaches_project(key.project):
        raise ApiKeyNotFound(f"There is no API key {key_id}.")
    if key.revoked_at is None:
        key.revoked_at = datetime.now(UTC)
        record(session, by, "revoke_api_key", key_id, key.project)
    return key


def open_session(session: Session, by: Principal) -> tuple[str, datetime]:
    """Open a session of a principal's key; return the cookie's value and the session's end. Raises ApiKeyMissing."""
    if by.key_id is None:
        raise ApiKeyMissing("A session is opened with an API key: send `Authorization: Bearer <api key>`.")
    now = datetime.now(UTC)
    key = repository.find(session, by.key_id)
    expires_at = now + timedelta(seconds=SESSION_SECONDS)
    if key is not None and key.expires_at is not None:
        expires_at = min(expires_at, key.expires_at)
    token = new_session_token()
    row = models.BrowserSession(digest=hash_secret(token), key_id=by.key_id, created_at=now, expires_at=expires_at)
    repository.add_session(session, row)
    record(session, by, "open_session", by.key_id, by.project)
    return token, expires_at


def close_session(session: Session, key_id: UUID, token: str) -> None:
    """End a session of a key, if it exists."""
    repository.delete_session(session, key_id, hash_secret(token))


def list_keys(
    session: Session, principal: Principal, keyring: Keyring, page_token: str | None, max_results: int
) -> ApiKeyList:
    """Return a page of the keys that a principal reaches. Raises InvalidRequest for another list's token."""
    rows = repository.list_newest(
        session, models.ApiKey, project=principal.project, after=_after(page_token, KEY_LIST), size=max_results + 1
    )
    page, token = cut_page(rows, max_results, KEY_LIST, lambda key: [key.id.hex])
    return ApiKeyList(items=[to_api_key(key, keyring) for key in page], next_page_token=token)


def list_records(session: Session, principal: Principal, page_token: str | None, max_results: int) -> AuditRecordList:
    """Return a page of the audit records that a principal reaches. Raises InvalidRequest for another list's token."""
    rows = repository.list_newest(
        session,
        models.AuditRecord,
        project=principal.project,
        after=_after(page_token, RECORD_LIST),
        size=max_results + 1,
    )
    page, token = cut_page(rows, max_results, RECORD_LIST, lambda row: [row.id.hex])
    return AuditRecordList(
        items=[
            AuditRecord(
                id=row.id,
                at=row.at,
                actor=row.actor,
                actor_key_id=row.actor_key_id,
                action=row.action,
                project=row.project,
                object_id=row.object_id,
            )
            for row in page
        ],
        next_page_token=token,
    )


def record(session: Session, by: Principal, action: str, object_id: UUID, project: str | None) -> None:
    """Store an audit record of an action, in the transaction of the action."""
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


def to_api_key(key: models.ApiKey, keyring: Keyring | None = None) -> ApiKey:
    """Return a key as the API shows it: without its secret, with the last use that the keyring has collected."""
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
        last_used_at=key.last_used_at if keyring is None else keyring.latest_use(key.id, key.last_used_at),
    )


def _after(page_token: str | None, query: str) -> UUID | None:
    """Return the id of the last item of the page before, None for the first page."""
    return None if page_token is None else position_id(position_of(page_token, query, 1)[0])
