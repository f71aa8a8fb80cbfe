"""The verdicts on a run, what its objective does, and the level that a person reads."""

from __future__ import annotations

from typing import Annotated

from gradmedic.protocol.schema import OneOf

VERDICTS = ("undetermined", "healthy", "vanishing", "exploding")

UNHEALTHY_VERDICTS = ("vanishing", "exploding")
"""The verdicts that mean a failing training."""

LEARNING_STATES = ("unknown", "learning", "converged", "stuck", "worsening")

LEVELS = ("unknown", "ok", "attention", "critical")


Verdict = Annotated[str, OneOf(*VERDICTS)]


Learning = Annotated[str, OneOf(*LEARNING_STATES)]


Level = Annotated[str, OneOf(*LEVELS)]
