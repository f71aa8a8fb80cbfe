"""The verdicts on a run."""

from __future__ import annotations

from typing import Annotated

from gradmedic.protocol.schema import OneOf

VERDICTS = ("undetermined", "healthy", "vanishing", "exploding")

UNHEALTHY_VERDICTS = ("vanishing", "exploding")
"""The verdicts that mean a failing training."""


Verdict = Annotated[str, OneOf(*VERDICTS)]
