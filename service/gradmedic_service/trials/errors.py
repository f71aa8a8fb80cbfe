"""The errors of trials."""

from __future__ import annotations

from gradmedic_service.http.errors import ServiceError


class TrialNotFound(ServiceError):
    """There is no such trial, or no attempt at it has been made."""

    status = 404
    error_code = "trial_not_found"
    title = "There is no such trial"


class StaleAttempt(ServiceError):
    """The attempt was given up, was cancelled or has ended. Its process must end."""

    status = 409
    error_code = "stale_attempt"
    title = "The attempt is over"
