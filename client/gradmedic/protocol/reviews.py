"""Reviews: a user's answer to the question whether the verdict on a run is right."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar

from gradmedic.protocol.schema import SCHEMA, OneOf, StrictInt, Text
from gradmedic.protocol.verdicts import LEVELS, VERDICTS, Level, Verdict

REVIEW_ANSWERS = ("right", "wrong")

NO_REVIEW = "none"
"""The value of the filter `review` for runs without a review."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewWrite:
    """Body of `PUT /runs/{id}/review`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    answer: Annotated[Text, OneOf(*REVIEW_ANSWERS)]
    """`right` or `wrong`."""
    verdict: Annotated[Text, OneOf(*VERDICTS)] | None = None
    """The true verdict, for the answer `wrong`. Null if the user does not know it."""
    level: Annotated[Text, OneOf(*LEVELS)] | None = None
    """The true level, for the answer `wrong`. Null if the user does not know it."""
    note: Text | None = None
    """Reason for the answer, as free text."""
    step: StrictInt | None = None
    """Step of the diagnosis that the user saw. Null means the run's last step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A user's answer to the question whether the verdict on a run is right."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    answer: Annotated[str, OneOf(*REVIEW_ANSWERS)]
    """`right` or `wrong`."""
    verdict: Verdict | None
    """The true verdict. Null if the answer is `right` or the user does not know it."""
    level: Level | None
    """The true level. Null if the answer is `right` or the user does not know it."""
    note: str | None
    """Reason for the answer, as free text."""
    step: int | None
    """Step of the diagnosis that was reviewed. Null if the run had no step."""
    judged_verdict: Verdict
    """The verdict that was reviewed: the verdict of the service at that step."""
    judged_level: Level
    """The level that was reviewed: the level of the service at that step."""
    diagnosis_version: str
    """Version of gradmedic that answered the request."""
    reviewed_at: datetime
    """Time of the review."""
