"""Diagnoses the gradients of any training job: what is wrong, why, and what fixes it.

>>> import gradmedic
>>> run = gradmedic.init(project="char-lm", config={"lr": 3e-3}, mode="disabled")
>>> run.log(loss=2.3)
>>> run.finish()
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradmedic.exceptions import (
    ApiError,
    ConfigurationError,
    ConflictError,
    GradmedicError,
    InvalidRequestError,
    NotFoundError,
    RunStoppedError,
    TransportError,
    TrialEnded,
    UnhealthyRunError,
    UsageError,
)
from gradmedic.initialize import init
from gradmedic.recording.events import VerdictEvent
from gradmedic.run import Run
from gradmedic.version import __version__

if TYPE_CHECKING:
    from gradmedic.api import Client
else:

    def __getattr__(name: str) -> Any:
        """Load `Client` at its first use: a training does not need it and should not wait for its import."""
        if name == "Client":
            from gradmedic.api import Client

            return Client
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ApiError",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "GradmedicError",
    "InvalidRequestError",
    "NotFoundError",
    "Run",
    "RunStoppedError",
    "TransportError",
    "TrialEnded",
    "UnhealthyRunError",
    "UsageError",
    "VerdictEvent",
    "__version__",
    "init",
]
