"""The base class of the service's errors, and the errors that any route may answer.

An error class carries the status, the code and the title of its answer; an instance carries what happened. Each domain
defines the errors that it raises in its own `errors` module. `documented()` turns classes into the `responses` of a
route, so that OpenAPI promises what the code raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, ClassVar

from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE, FieldError, Problem

PROBLEM_REFERENCE = "#/components/schemas/Problem"
MAX_REPORTED_FIELDS = 20
"""Bad fields that one answer names."""
MAX_FOUND_ERRORS = 100
"""Bad fields that are looked for: a body of a million bad values must not cost a minute."""
MAX_MESSAGE_LENGTH = 1_000
"""Characters of the message about one field: it may quote a value that is as long as the request's body."""
MAX_PATH_LENGTH = 600
"""Characters of a path in the log and in an answer: a name within it may be as long as the request's body."""
MAX_REASON_LENGTH = 500
"""Characters of a database error in the log."""


class ServiceError(Exception):
    """Base of the service's errors: people read `detail`, programs read the class's `error_code`."""

    status: ClassVar[int] = 500
    error_code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The service failed"
    headers: ClassVar[Mapping[str, str]] = {}
    """Headers that the answer carries beside its body."""

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.retry_after = retry_after

    @property
    def reason(self) -> str | None:
        """The database's own message in one line: for the log and the operator, not for the client."""
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
            errors=[
                FieldError(path=error.path, message=error.message[:MAX_MESSAGE_LENGTH])
                for error in self.errors[:MAX_REPORTED_FIELDS]
            ],
        )


class InvalidRequest(ServiceError):
    """The request contradicts the schema or the run; `errors` names the fields."""

    status = 422
    error_code = "invalid_request"
    title = "The request is invalid"

    def __init__(self, errors: Iterable[FieldError]) -> None:
        found = list(islice(errors, MAX_FOUND_ERRORS))
        first = found[0]
        end = f"; the check stopped at {len(found)} errors" if len(found) == MAX_FOUND_ERRORS else ""
        more = f" (and {len(found) - 1} more{end})" if len(found) > 1 else ""
        super().__init__(f"{first.path}: {first.message[:MAX_MESSAGE_LENGTH]}{more}", errors=found)

    @classmethod
    def at(cls, path: str, message: str) -> InvalidRequest:
        """Return the error of one bad field."""
        return cls([FieldError(path=path, message=message)])

    @classmethod
    def raise_if_any(cls, errors: Iterable[FieldError]) -> None:
        """Raise the error if there is a bad field. The iteration ends with the hundredth."""
        found = list(islice(errors, MAX_FOUND_ERRORS))
        if found:
            raise cls(found)


class MalformedBody(ServiceError):
    """The body is not what its headers declare: not JSON, not msgpack, not gzip, or cut short."""

    status = 400
    error_code = "malformed_body"
    title = "The request body cannot be read"


class BodyTooLarge(ServiceError):
    """The body exceeds the limit, as sent or after decompression."""

    status = 413
    error_code = "body_too_large"
    title = "The request body is too large"

    @classmethod
    def over(cls, limit: int) -> BodyTooLarge:
        """Return the error of a body over the limit."""
        return cls(f"The body is over {limit} bytes; `GET /api/v1/limits` has the limits.")


class RequestTimeout(ServiceError):
    """The body did not arrive in time. Nothing was stored; the same request may be sent again."""

    status = 408
    error_code = "request_timeout"
    title = "The request body did not arrive"


class UnsupportedMediaType(ServiceError):
    """The route does not read bodies of this Content-Type or Content-Encoding."""

    status = 415
    error_code = "unsupported_media_type"
    title = "The request body is of an unsupported type"


BODY_ERRORS = (MalformedBody, BodyTooLarge, UnsupportedMediaType, InvalidRequest)
"""The errors of every route that takes a body of JSON."""


def problem_type(error_code: str) -> str:
    """Return the URI that identifies a kind of problem."""
    return f"urn:gradmedic:error:{error_code}"


def field_path(location: Iterable[str | int]) -> str:
    """Return a field's location as text.

    >>> field_path(["statistics", "grad_norm", 2, 7])
    'statistics.grad_norm[2][7]'
    """
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def documented(*classes: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may raise these errors; classes of one status share an entry."""
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
