"""The routes of API keys, browser sessions and audit records."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Request, Response, status

from gradmedic.protocol.access import SCOPES, ApiKeyCreate, ApiKeyCreated, ApiKeyList, AuditRecordList, BrowserSession
from gradmedic_service.access import service
from gradmedic_service.access.authentication import SESSION_COOKIE
from gradmedic_service.access.authorization import AnyKey, MayAdminister
from gradmedic_service.access.errors import ApiKeyMissing, ApiKeyNotFound
from gradmedic_service.access.principal import Principal
from gradmedic_service.access.secrets import hash_secret
from gradmedic_service.access.validation import check_new_key
from gradmedic_service.http.dependencies import (
    DatabaseDependency,
    KeyringDependency,
    LimitsDependency,
    LiveRunsDependency,
    MaxResults,
    PageToken,
    check_max_results,
)
from gradmedic_service.http.errors import BODY_ERRORS, InvalidRequest, documented
from gradmedic_service.http.json_bodies import json_body
from gradmedic_service.http.routers import api_router

router = api_router(tags=["access"])

KeyId = Annotated[UUID, Path(description="The id of the API key.", examples=["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])]

CREATE_EXAMPLES: dict[str, Any] = {
    "job": {
        "summary": "A key for a training job",
        "value": {"project": "char-lm", "name": "nightly", "scopes": ["ingest"]},
    },
    "person": {
        "summary": "A key for a person, with an expiry",
        "value": {"project": "char-lm", "scopes": ["read", "rerun"], "expires_at": "2099-12-31T00:00:00Z"},
    },
}


@router.post(
    "/api-keys",
    operation_id="api_keys.create",
    status_code=status.HTTP_201_CREATED,
    response_model=ApiKeyCreated,
    responses=documented(*BODY_ERRORS),
)
def create_api_key(
    principal: MayAdminister,
    body: Annotated[ApiKeyCreate, json_body(ApiKeyCreate, CREATE_EXAMPLES)],
    database: DatabaseDependency,
    limits: LimitsDependency,
    keyring: KeyringDependency,
    response: Response,
) -> ApiKeyCreated:
    """Make an API key. Only this answer contains its secret.

    To make a key for every project (`project` null), send a key that is for every project itself.
    """
    check_new_key(body, limits)
    principal.check_reach(body.project)
    with database.writing() as session:
        if body.run_id is not None:
            service.check_run_of_key(session, body.project, body.run_id)
        key, secret = service.create_key(
            session,
            project=body.project,
            name=body.name,
            scopes=body.scopes,
            run_id=body.run_id,
            expires_at=body.expires_at,
            by=principal,
        )
        public = service.to_api_key(key)
    keyring.clear()
    response.headers["Cache-Control"] = "no-store"
    return ApiKeyCreated(secret=secret, **{field.name: getattr(public, field.name) for field in fields(public)})


@router.get("/api-keys", operation_id="api_keys.list", response_model=ApiKeyList, responses=documented(InvalidRequest))
def list_api_keys(
    principal: MayAdminister,
    database: DatabaseDependency,
    limits: LimitsDependency,
    keyring: KeyringDependency,
    max_results: MaxResults = 100,
    page_token: PageToken = None,
) -> ApiKeyList:
    """List API keys with their last use, newest first. The list includes revoked and expired keys."""
    check_max_results(max_results, limits)
    with database.reading() as session:
        return service.list_keys(session, principal, keyring, page_token, max_results)


@router.delete(
    "/api-keys/{key_id}",
    operation_id="api_keys.revoke",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=documented(ApiKeyNotFound, InvalidRequest),
)
def revoke_api_key(
    key_id: KeyId,
    principal: MayAdminister,
    database: DatabaseDependency,
    keyring: KeyringDependency,
    live: LiveRunsDependency,
) -> None:
    """Revoke an API key, and end its event streams: at once in this process, within two seconds in other processes.

    The key stays in the list.
    """
    with database.writing() as session:
        service.revoke_key(session, principal, key_id)
    keyring.clear()
    live.end_streams(key_id)


@router.post(
    "/session",
    operation_id="session.open",
    status_code=status.HTTP_201_CREATED,
    response_model=BrowserSession,
    responses=documented(ApiKeyMissing),
)
def open_session(
    principal: AnyKey,
    request: Request,
    database: DatabaseDependency,
    response: Response,
) -> BrowserSession:
    """Open a browser session: exchange the request's API key for a cookie that scripts cannot read.

    The session reaches what the key reaches. It ends with the key, after a week, or when it is closed.
    """
    with database.writing() as session:
        # A session must not open another session, which would outlive it.
        opener = principal if "authorization" in request.headers else replace(principal, key_id=None)
        token, expires_at = service.open_session(session, opener)
    response.set_cookie(
        SESSION_COOKIE,
        token,
        expires=expires_at,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return _session_of(principal)


@router.get("/session", operation_id="session.get", response_model=BrowserSession)
def read_session(principal: AnyKey) -> BrowserSession:
    """Return the name, the reach and the scopes of the API key or session that sends this request."""
    return _session_of(principal)


@router.delete("/session", operation_id="session.close", status_code=status.HTTP_204_NO_CONTENT)
def close_session(
    principal: AnyKey,
    request: Request,
    database: DatabaseDependency,
    keyring: KeyringDependency,
    live: LiveRunsDependency,
    response: Response,
) -> None:
    """End the session of this browser, and its event streams. Its API key stays valid."""
    token = request.cookies.get(SESSION_COOKIE)
    if token is not None and principal.key_id is not None:
        with database.writing() as session:
            service.close_session(session, principal.key_id, token)
        keyring.clear()
        live.end_streams(principal.key_id, hash_secret(token))
    response.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")


def _session_of(principal: Principal) -> BrowserSession:
    return BrowserSession(
        name=principal.name,
        key_id=principal.key_id,
        project=principal.project,
        run_id=principal.run_id,
        scopes=[scope for scope in SCOPES if scope in principal.scopes],
    )


@router.get(
    "/audit-records",
    operation_id="audit_records.list",
    response_model=AuditRecordList,
    responses=documented(InvalidRequest),
)
def list_audit_records(
    principal: MayAdminister,
    database: DatabaseDependency,
    limits: LimitsDependency,
    max_results: MaxResults = 100,
    page_token: PageToken = None,
) -> AuditRecordList:
    """List audit records, newest first: actions on runs, reruns, API keys and sessions, with the key that did them."""
    check_max_results(max_results, limits)
    with database.reading() as session:
        return service.list_records(session, principal, page_token, max_results)
