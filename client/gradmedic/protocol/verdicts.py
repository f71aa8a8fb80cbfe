"""The verdicts on a run."""

from __future__ import annotations

from typing import Annotated

from gradmedic.protocol.schema import OneOf

VERDICTS = ("undetermined", "healthy", "vanishing", "exploding")


Verdict = Annotated[str, OneOf(*VERDICTS)]
