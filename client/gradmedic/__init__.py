"""Reads the gradients of any training job and says what is wrong, why, and what fixes it.

>>> import gradmedic
>>> run = gradmedic.init(project="char-lm", config={"lr": 3e-3}, mode="disabled")
>>> run.log(loss=2.3)
>>> run.finish()
True
"""

from __future__ import annotations

from gradmedic.api import Client
from gradmedic.exceptions import (
    ApiError,
    ConfigurationError,
    ConflictError,
    GradmedicError,
    InvalidRequestError,
    NotFoundError,
    RunStoppedError,
    TransportError,
    UnhealthyRunError,
    UsageError,
)
from gradmedic.run import Run, VerdictEvent, init
from gradmedic.trial import TrialEnded

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

__version__ = "0.1.0"
