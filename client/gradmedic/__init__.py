"""Diagnoses the gradients of any training job: what is wrong, why, and what fixes it.

>>> import gradmedic
>>> run = gradmedic.init(project="char-lm", config={"lr": 3e-3}, mode="disabled")
>>> run.log(loss=2.3)
>>> run.finish()
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradmedic.version import __version__

if TYPE_CHECKING:
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
        TrialEnded,
        UnhealthyRunError,
        UsageError,
    )
    from gradmedic.initialize import init
    from gradmedic.recording.events import VerdictEvent
    from gradmedic.run import Run
else:
    _MODULES = {
        "Client": "gradmedic.api",
        "Run": "gradmedic.run",
        "VerdictEvent": "gradmedic.recording.events",
        "init": "gradmedic.initialize",
    }
    """The modules of the public names; every other one is an exception."""

    def __getattr__(name: str) -> Any:
        """Load a public name at its first use: a training needs no `Client`, and a command no `Run`."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES.get(name, "gradmedic.exceptions")), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Return the names of the module, also those that are not loaded yet."""
        return sorted({*globals(), *__all__})


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
