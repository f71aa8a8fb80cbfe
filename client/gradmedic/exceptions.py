"""Every error that gradmedic raises.

    GradmedicError
    ├── ConfigurationError       a wrong argument or environment variable
    ├── UsageError               a call that makes no sense now, such as log() after finish()
    ├── UnhealthyRunError        the run is vanishing or exploding, and was to stop then
    ├── RunStoppedError          the run is a trial whose budget is spent, or that was cancelled
    ├── TransportError           the service could not be reached, or answered nonsense
    └── ApiError                 the service refused (RFC 9457 problem)
        ├── NotFoundError        404
        ├── ConflictError        409
        └── InvalidRequestError  400, 413, 415, 422

A training loop never sees these from `log()`: there, a problem is logged once and the training goes on. The one
exceptions are `UnhealthyRunError`, which is asked for by `gradmedic.init(on_unhealthy="stop")`, and `RunStoppedError`,
which ends a trial.
"""

from __future__ import annotations

from gradmedic.protocol.service import Problem


class GradmedicError(Exception):
    """Base of every error here."""


class ConfigurationError(GradmedicError):
    """A wrong argument or environment variable; the message names it and what it may be."""


class UsageError(GradmedicError):
    """A call that makes no sense in the present state, such as `log()` after `finish()`."""


class UnhealthyRunError(GradmedicError):
    """The run's verdict became unhealthy, and `on_unhealthy="stop"` asked to be told by this."""

    def __init__(self, message: str, *, verdict: str, since_step: int | None) -> None:
        super().__init__(message)
        self.verdict = verdict
        """`vanishing` or `exploding`."""
        self.since_step = since_step
        """First step of the verdict."""


class RunStoppedError(GradmedicError):
    """The service asked the training to end: its run is a trial whose budget is spent, or that was cancelled."""


class TransportError(GradmedicError):
    """The service could not be reached within the retries, or its answer was not gradmedic's."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the answer; None if there was none."""
        self.retry_after = retry_after
        """Seconds after which whoever answered wants to be asked again."""


class ApiError(GradmedicError):
    """The service refused the request; `problem` says why."""

    def __init__(self, problem: Problem, *, retry_after: float | None = None) -> None:
        self.problem = problem
        self.retry_after = retry_after
        """Seconds after which the service wants to be asked again."""
        fields = "".join(f"\n  {error.path}: {error.message}" for error in problem.errors)
        super().__init__(f"{problem.detail} ({problem.status} {problem.error_code}){fields}")


class NotFoundError(ApiError):
    """There is no such object, or the key may not see it."""


class ConflictError(ApiError):
    """The object is in a state that does not allow it, for example a stale generation."""


class InvalidRequestError(ApiError):
    """The request is malformed, too large or contradicts the schema; `problem.errors` names the fields."""
