"""The errors of appending, rewinding and reading steps."""

from __future__ import annotations

from gradmedic_service.http.errors import ServiceError


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


class NotAcceptable(ServiceError):
    """The route has no answer in a form that the request's `Accept` names."""

    status = 406
    error_code = "not_acceptable"
    title = "The answer is not available in this form"
