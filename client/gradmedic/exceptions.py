"""Every error that gradmedic raises.

    GradmedicError
    ├── ConfigurationError       a wrong argument or environment variable
    ├── UsageError               a call that makes no sense now, such as log() after finish()
    ├── TransportError           the service could not be reached, or answered nonsense
    └── ApiError                 the service refused (RFC 9457 problem)
        ├── NotFoundError        404
        ├── ConflictError        409
        └── InvalidRequestError  400, 413, 415, 422

A training loop never sees these from `log()`: there, a problem is logged once and the training goes on.
"""

from __future__ import annotations

from gradmedic.wire import Problem


class GradmedicError(Exception):
    """Base of every error here."""


class ConfigurationError(GradmedicError):
    """A wrong argument or environment variable; the message names it and what it may be."""


class UsageError(GradmedicError):
    """A call that makes no sense in the present state, such as `log()` after `finish()`."""


class TransportError(GradmedicError):
    """The service could not be reached within the retries, or its answer was not gradmedic's."""


class ApiError(GradmedicError):
    """The service refused the request; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        fields = "".join(f"\n  {error.path}: {error.message}" for error in problem.errors)
        super().__init__(f"{problem.detail} ({problem.status} {problem.error_code}){fields}")


class NotFoundError(ApiError):
    """There is no such object, or the key may not see it."""


class ConflictError(ApiError):
    """The object is in a state that does not allow it, for example a stale generation."""


class InvalidRequestError(ApiError):
    """The request is malformed, too large or contradicts the schema; `problem.errors` names the fields."""
