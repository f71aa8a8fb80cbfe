"""Every exception that gradmedic raises.

    SystemExit
    └── TrialEnded               the run is a trial, and it is over

    GradmedicError
    ├── ConfigurationError       a wrong argument or environment variable
    ├── UsageError               a call that is not possible now, such as watch() after finish()
    ├── UnhealthyRunError        the run is vanishing or exploding, or has a NaN, and the script asked to stop then
    ├── RunStoppedError          the run is a trial whose budget is spent, or that was cancelled
    ├── TransportError           the service could not be reached, or its answer is not gradmedic's
    └── ApiError                 the service refused (RFC 9457 problem)
        ├── NotFoundError        404
        ├── ConflictError        409
        └── InvalidRequestError  400, 413, 415, 422

`log()` raises `UnhealthyRunError` if `on_unhealthy="stop"` or `on_nonfinite="stop"` asked for it, `RunStoppedError`,
and `TrialEnded`. Any other problem is logged once there, and the training goes on.
"""

from __future__ import annotations

from gradmedic.protocol.service import Problem


class TrialEnded(SystemExit):
    """The trial is over: its steps are done, it was stopped, or its remedies do not apply. Ends the script with 0."""

    def __init__(self, reason: str) -> None:
        super().__init__(0)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class GradmedicError(Exception):
    """Base of every error of gradmedic."""


class ConfigurationError(GradmedicError):
    """A wrong argument or environment variable; the message names it and what it may be."""


class UsageError(GradmedicError):
    """A call that is not possible in the present state, such as `watch()` after `finish()`."""


class UnhealthyRunError(GradmedicError):
    """The verdict is unhealthy with `on_unhealthy="stop"`, or a gradient is not finite with `on_nonfinite="stop"`."""

    def __init__(self, message: str, *, verdict: str, since_step: int | None) -> None:
        super().__init__(message)
        self.verdict = verdict
        """`vanishing` or `exploding`."""
        self.since_step = since_step
        """First step of the verdict."""


class RunStoppedError(GradmedicError):
    """The service asked the training to end: its run is a trial whose budget is spent, or that was cancelled."""


class TransportError(GradmedicError):
    """The service could not be reached or its answer is not gradmedic's."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the answer; None if there was none."""
        self.retry_after = retry_after
        """Seconds to wait before the next attempt, as the answer asks; None if it does not ask."""


class ApiError(GradmedicError):
    """The service refused the request; `problem` contains the reason."""

    def __init__(self, problem: Problem, *, retry_after: float | None = None) -> None:
        self.problem = problem
        self.retry_after = retry_after
        """Seconds to wait before the next attempt, as the service asks; None if it does not ask."""
        others = [error for error in problem.errors if not problem.detail.startswith(f"{error.path}: {error.message}")]
        fields = "".join(f"\n  {error.path}: {error.message}" for error in others)
        super().__init__(f"{problem.detail} ({problem.status} {problem.error_code}){fields}")


class NotFoundError(ApiError):
    """There is no such object, or the key has no access to it."""


class ConflictError(ApiError):
    """The state of the object does not allow the request, for example because its generation is stale."""


class InvalidRequestError(ApiError):
    """The request is malformed, too large or contradicts the schema; `problem.errors` names the fields."""
