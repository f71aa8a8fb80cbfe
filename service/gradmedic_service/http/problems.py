"""Every error becomes an RFC 9457 problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gradmedic.protocol.service import Problem
from gradmedic_service.http.errors import MAX_PATH_LENGTH, InvalidRequest, ServiceError, problem_type
from gradmedic_service.http.responses import ProblemResponse
from gradmedic_service.http.validation import to_field_error
from gradmedic_service.services import services_of

_logger = structlog.get_logger("gradmedic.request")


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer with a problem as its body."""
    return ProblemResponse(asdict(problem), status_code=problem.status, headers=headers)


def answer_with_problems(app: FastAPI) -> None:
    """Make an application answer every error with a problem."""
    app.add_exception_handler(ServiceError, _answer_service_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_exception)


def answer_to(request: Request, error: Exception) -> Response | None:
    """Return the answer to a request that failed outside FastAPI's own layers; None for an unexpected error."""
    if isinstance(error, ServiceError):
        return _answer_service_error(request, error)
    if isinstance(error, RequestValidationError):
        return _answer_validation_error(request, error)
    if isinstance(error, HTTPException):
        return answer_http_exception(request, error)
    return None


def _answer_service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    return answer_error(error, request.state.request_id)


def answer_error(error: ServiceError, request_id: str) -> Response:
    """Return the answer to a request that failed with an error of the service; log errors of status 500 and above."""
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _logger.warning("refused", error_code=error.error_code, reason=error.reason)
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return problem_response(error.problem(request_id), headers)


def _answer_validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = (to_field_error(entry, entry["loc"][1:]) for entry in error.errors())  # in front: `path`, `query`, ...
    return _answer_service_error(request, InvalidRequest(errors))


def answer_http_exception(request: Request, error: Exception) -> Response:
    """Return the answer to a request that the router refused, for example because no route has its path."""
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(services_of(request.app).route_table.methods(request.url.path)))
    problem = Problem(
        type=problem_type(status.name.lower()),
        title=status.phrase,
        status=error.status_code,
        detail=_detail_of(request, status) or f"{error.detail}.",
        error_code=status.name.lower(),
        request_id=request.state.request_id,
    )
    return problem_response(problem, headers)


def _detail_of(request: Request, status: HTTPStatus) -> str | None:
    if status == HTTPStatus.NOT_FOUND:
        return f"There is nothing at {request.url.path[:MAX_PATH_LENGTH]}; /docs lists the routes."
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.method} is not possible at {request.url.path[:MAX_PATH_LENGTH]}."
    return None
