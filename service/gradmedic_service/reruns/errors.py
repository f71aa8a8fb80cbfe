"""The errors of reruns."""

from __future__ import annotations

from gradmedic_service.http.errors import ServiceError


class RerunNotFound(ServiceError):
    """There is no such rerun."""

    status = 404
    error_code = "rerun_not_found"
    title = "There is no such rerun"


class RerunExists(ServiceError):
    """The id belongs to a rerun of another run."""

    status = 409
    error_code = "rerun_exists"
    title = "Another rerun has this id"


class NotRerunnable(ServiceError):
    """The run cannot be rerun: it names no trainable, its config does not fit, or there is no remedy to try."""

    status = 409
    error_code = "not_rerunnable"
    title = "The run cannot be rerun"
