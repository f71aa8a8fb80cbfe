"""The errors of runs."""

from __future__ import annotations

from gradmedic_service.http.errors import ServiceError


class RunNotFound(ServiceError):
    """There is no such run."""

    status = 404
    error_code = "run_not_found"
    title = "There is no such run"


class RunExists(ServiceError):
    """The id belongs to a run that the request does not describe."""

    status = 409
    error_code = "run_exists"
    title = "Another run has this id"


class TooManyTags(ServiceError):
    """A run would have more tags than it may."""

    status = 409
    error_code = "too_many_tags"
    title = "The run would have too many tags"
