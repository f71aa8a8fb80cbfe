"""Every error that the service answers with, and how it becomes an RFC 9457 problem.

    ServiceError
    ├── InvalidRequest           422 invalid_request
    ├── MalformedBody            400 malformed_body
    ├── BodyTooLarge             413 body_too_large
    ├── RequestTimeout           408 request_timeout
    ├── NotAcceptable            406 not_acceptable
    ├── UnsupportedMediaType     415 unsupported_media_type
    ├── ApiKeyInUrl              400 api_key_in_url
    ├── ApiKeyMissing            401 api_key_missing
    ├── ApiKeyUnknown            401 api_key_unknown
    ├── ApiKeyRevoked            401 api_key_revoked
    ├── ApiKeyExpired            401 api_key_expired
    ├── SessionEnded             401 session_ended
    ├── ScopeMissing             403 scope_missing
    ├── BeyondKey                403 beyond_key
    ├── HostNotAllowed           403 host_not_allowed
    ├── CrossOrigin              403 cross_origin
    ├── ApiKeyNotFound           404 api_key_not_found
    ├── RunNotFound              404 run_not_found
    ├── ProjectNotFound          404 project_not_found
    ├── RerunNotFound            404 rerun_not_found
    ├── TrialNotFound            404 trial_not_found
    ├── RerunExists              409 rerun_exists
    ├── NotRerunnable            409 not_rerunnable
    ├── TrainableUnknown         409 trainable_unknown
    ├── TrainableTaken           409 trainable_taken
    ├── StaleAttempt             409 stale_attempt
    ├── RunExists                409 run_exists
    ├── ProjectFull              409 project_full
    ├── StaleGeneration          409 stale_generation
    ├── UnknownGeneration        409 unknown_generation
    ├── TooManyStreams           503 too_many_streams
    ├── TooManyRequests          429 too_many_requests
    ├── Overloaded               503 overloaded
    ├── DatabaseBusy             503 database_busy
    ├── DatabaseUnavailable      503 database_unavailable
    ├── DatabaseNotMigrated      503 database_not_migrated
    ├── StorageFull              507 storage_full
    └── UnknownRevision          of the schema; met on the command line alone

One idea: a class carries its status and code, an instance says what happened. `documented()` turns classes into the
`responses` of a route, so that what OpenAPI promises and what is raised share one source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE, FieldError, Problem

PROBLEM_REFERENCE = "#/components/schemas/Problem"

MAX_REPORTED_FIELDS = 20
"""Bad fields named in one answer; a block of a million bad values must not make a gigabyte of text."""


MAX_PATH_LENGTH = 600
"""Characters of a path: a name in it may be as long as the body, and is echoed to the log and the answer."""


MAX_REASON_LENGTH = 500

INVALID_TOKEN: Mapping[str, str] = {"WWW-Authenticate": 'Bearer realm="gradmedic", error="invalid_token"'}
"""RFC 6750, section 3: a key was sent, and is no good."""


class ServiceError(Exception):
    """Base of every error here; `detail` is for a person, the class's `error_code` for a program."""

    status: ClassVar[int] = 500
    error_code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The service failed"
    headers: ClassVar[Mapping[str, str]] = {}
    """What the answer has beside its body."""

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.retry_after = retry_after

    @property
    def reason(self) -> str | None:
        """What the database said, in one line: for the log and the operator, not for the client."""
        return None if self.__cause__ is None else " ".join(str(self.__cause__).split())[:MAX_REASON_LENGTH]

    def problem(self, request_id: str) -> Problem:
        """Return the body of the answer."""
        return Problem(
            type=problem_type(self.error_code),
            title=self.title,
            status=self.status,
            detail=self.detail,
            error_code=self.error_code,
            request_id=request_id,
            errors=self.errors[:MAX_REPORTED_FIELDS],
        )


class InvalidRequest(ServiceError):
    """The request contradicts the schema or the run; `errors` names the fields."""

    status = 422
    error_code = "invalid_request"
    title = "The request is invalid"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{first.path}: {first.message}{more}", errors=errors)

    @classmethod
    def at(cls, path: str, message: str) -> InvalidRequest:
        """Return the error of one bad field."""
        return cls([FieldError(path=path, message=message)])


class MalformedBody(ServiceError):
    """The body is not what its headers say: not JSON, not msgpack, not gzip, or cut short."""

    status = 400
    error_code = "malformed_body"
    title = "The request body cannot be read"


class BodyTooLarge(ServiceError):
    """The body, as sent or decompressed, is over the limit."""

    status = 413
    error_code = "body_too_large"
    title = "The request body is too large"


class RequestTimeout(ServiceError):
    """The body did not arrive in time. Nothing was stored; the same request may be sent again."""

    status = 408
    error_code = "request_timeout"
    title = "The request body did not arrive"


class NotAcceptable(ServiceError):
    """The answer cannot be given in the form that `Accept` asks for."""

    status = 406
    error_code = "not_acceptable"
    title = "The answer is not available in this form"


class UnsupportedMediaType(ServiceError):
    """The Content-Type or Content-Encoding is not one that the route reads."""

    status = 415
    error_code = "unsupported_media_type"
    title = "The request body is of an unsupported type"


class ApiKeyInUrl(ServiceError):
    """The URL contains an API key, and URLs are logged and remembered in many places: revoke the key."""

    status = 400
    error_code = "api_key_in_url"
    title = "An API key does not belong in a URL"


class ApiKeyMissing(ServiceError):
    """The request has no API key, and needs one."""

    status = 401
    error_code = "api_key_missing"
    title = "An API key is needed"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="gradmedic"'}


class ApiKeyUnknown(ServiceError):
    """The API key is not one of this service's."""

    status = 401
    error_code = "api_key_unknown"
    title = "The API key is unknown"
    headers: ClassVar[Mapping[str, str]] = INVALID_TOKEN


class ApiKeyRevoked(ServiceError):
    """The API key was revoked."""

    status = 401
    error_code = "api_key_revoked"
    title = "The API key was revoked"
    headers: ClassVar[Mapping[str, str]] = INVALID_TOKEN


class ApiKeyExpired(ServiceError):
    """The API key has expired."""

    status = 401
    error_code = "api_key_expired"
    title = "The API key has expired"
    headers: ClassVar[Mapping[str, str]] = INVALID_TOKEN


class SessionEnded(ServiceError):
    """The browser's session has ended, or was never one."""

    status = 401
    error_code = "session_ended"
    title = "The session has ended"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="gradmedic"'}


class ScopeMissing(ServiceError):
    """The API key lacks the scope that the route needs."""

    status = 403
    error_code = "scope_missing"
    title = "The API key may not do this"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="gradmedic", error="insufficient_scope"'}


class BeyondKey(ServiceError):
    """The request names a project or a run beyond those that its API key is for."""

    status = 403
    error_code = "beyond_key"
    title = "The API key is not for this project or run"


class HostNotAllowed(ServiceError):
    """The request's Host is not a name under which the service answers."""

    status = 403
    error_code = "host_not_allowed"
    title = "The service does not answer under this name"


class CrossOrigin(ServiceError):
    """A page of another origin tried to change something."""

    status = 403
    error_code = "cross_origin"
    title = "Pages of other origins may not change anything"


class ApiKeyNotFound(ServiceError):
    """There is no such API key."""

    status = 404
    error_code = "api_key_not_found"
    title = "There is no such API key"


class RunNotFound(ServiceError):
    """There is no such run."""

    status = 404
    error_code = "run_not_found"
    title = "There is no such run"


class ProjectNotFound(ServiceError):
    """There is no such project: it has neither a run nor a key."""

    status = 404
    error_code = "project_not_found"
    title = "There is no such project"


class RerunNotFound(ServiceError):
    """There is no such rerun."""

    status = 404
    error_code = "rerun_not_found"
    title = "There is no such rerun"


class TrialNotFound(ServiceError):
    """There is no such trial, or it has not been attempted."""

    status = 404
    error_code = "trial_not_found"
    title = "There is no such trial"


class RerunExists(ServiceError):
    """The id belongs to a rerun of another run."""

    status = 409
    error_code = "rerun_exists"
    title = "Another rerun has this id"


class NotRerunnable(ServiceError):
    """The run cannot be rerun as it is: it names no trainable, its config does not fit, or there is nothing to try."""

    status = 409
    error_code = "not_rerunnable"
    title = "The run cannot be rerun"


class TrainableUnknown(ServiceError):
    """No worker has allowed the run's trainable to be rerun."""

    status = 409
    error_code = "trainable_unknown"
    title = "No worker offers this trainable"


class TrainableTaken(ServiceError):
    """The name belongs to the key that registered it first."""

    status = 409
    error_code = "trainable_taken"
    title = "The trainable's name is taken"


class StaleAttempt(ServiceError):
    """The attempt was given up, cancelled or has ended: nobody waits for it. Its process must end."""

    status = 409
    error_code = "stale_attempt"
    title = "The attempt is over"


class RunExists(ServiceError):
    """The id belongs to a run that the request does not describe."""

    status = 409
    error_code = "run_exists"
    title = "Another run has this id"


class ProjectFull(ServiceError):
    """The project has as many runs as it may; waiting does not help, deleting does."""

    status = 409
    error_code = "project_full"
    title = "The project is full"


class StaleGeneration(ServiceError):
    """The block was made before the run was rewound."""

    status = 409
    error_code = "stale_generation"
    title = "The block is of an older generation"


class UnknownGeneration(ServiceError):
    """The block is of a generation that the run has not reached."""

    status = 409
    error_code = "unknown_generation"
    title = "The block is of a generation that does not exist"


class TooManyStreams(ServiceError):
    """This process follows as many runs for others as it may; ask again later, or ask for the run itself."""

    status = 503
    error_code = "too_many_streams"
    title = "Too many event streams are open"


class TooManyRequests(ServiceError):
    """The key, or the address, sent more requests than it may. Come back after `Retry-After` seconds."""

    status = 429
    error_code = "too_many_requests"
    title = "Too many requests"


class Overloaded(ServiceError):
    """More requests came than can be worked on. Nothing was stored; come back after `Retry-After` seconds."""

    status = 503
    error_code = "overloaded"
    title = "The service is busy"


class DatabaseBusy(ServiceError):
    """A lock or a connection was not to be had in time. Nothing was stored; the same request may be sent again."""

    status = 503
    error_code = "database_busy"
    title = "The database is busy"


class DatabaseUnavailable(ServiceError):
    """The database cannot be reached. Nothing was acknowledged; the same request may be sent again."""

    status = 503
    error_code = "database_unavailable"
    title = "The database is unavailable"


class DatabaseNotMigrated(ServiceError):
    """The database's schema is not the one that this version of the service needs."""

    status = 503
    error_code = "database_not_migrated"
    title = "The database needs a migration"


class StorageFull(ServiceError):
    """The database's disk is full. Nothing was stored."""

    status = 507
    error_code = "storage_full"
    title = "The disk is full"


class UnknownRevision(ServiceError):
    """There is no such revision of the schema, or no way to it."""


def problem_type(error_code: str) -> str:
    """Return the URI that identifies a kind of problem."""
    return f"urn:gradmedic:error:{error_code}"


def field_path(location: Iterable[str | int]) -> str:
    """Write a location as in `layers[3].name`.

    >>> field_path(["statistics", "grad_norm", 2, 7])
    'statistics.grad_norm[2][7]'
    """
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def documented(*classes: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may raise these; classes of one status share an entry."""
    responses: dict[int | str, dict[str, Any]] = {}
    for cls in classes:
        example = Problem(
            type=problem_type(cls.error_code),
            title=cls.title,
            status=cls.status,
            detail=(cls.__doc__ or "").splitlines()[0],
            error_code=cls.error_code,
            request_id="0199b7f0c8d27a31",
        )
        content = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": PROBLEM_REFERENCE}, "examples": {}}}
        entry = responses.setdefault(cls.status, {"description": cls.title, "content": content})
        entry["content"][PROBLEM_MEDIA_TYPE]["examples"][cls.error_code] = {"value": asdict(example)}
    return responses
