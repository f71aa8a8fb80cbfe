"""Which events become alerts, and when. Pure functions: they get rows and return decisions.

A run is told once per trouble. It is told again only after it was told as resolved and a cooldown has passed. A trouble
that has passed before its alert is made is not told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

LEVEL, STATUS, RERUN = "level", "status", "rerun"
"""Subjects of events: what has changed of a run. Troubles of one subject replace each other."""

LASTING_SECONDS = 600.0
"""Seconds that `attention` and `resolved` must last. Both pass often by themselves: a loss that is stuck for some
minutes, a level that is better for some minutes."""
COOLDOWN_SECONDS = 3600.0
"""Seconds between two alerts about one trouble of a run. A run that gets worse and better all the time is told about
once in an hour."""
GATHERING_SECONDS = 20.0
"""Seconds after the first event of a project's trouble for which more runs are gathered into one alert: the runs of a
sweep fail within seconds of each other, and a person needs longer than that to react."""
MAX_GATHERING_SECONDS = 600.0
"""Longest time for which runs are gathered."""
RECENT_SECONDS = 3600.0
"""Each alert about the same trouble of the project in this time doubles the seconds for which runs are gathered. So a
project whose runs fail one after the other makes at most some ten alerts in an hour."""

_DELAYS: Mapping[str, float] = {"attention": LASTING_SECONDS, "resolved": LASTING_SECONDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a run."""

    id: UUID
    run_id: UUID
    revision: int
    subject: str
    trouble: str
    rerun_id: UUID | None
    details: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTrouble:
    """The events of one run, one subject and one trouble."""

    last_revision: int
    """Revision of the latest event."""
    told_revision: int | None = None
    """Revision of the latest event that became an alert; None if none did."""
    told_at: datetime | None = None
    """Time of that event."""


RunPast = Mapping[tuple[str, str], PastTrouble]
"""What happened to a run so far, waiting events included, by subject and trouble."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of an event."""

    action: Literal["tell", "drop", "wait"]
    reason: str
    until: datetime | None = None
    """Time at which a waiting event is decided again."""


def due_after(trouble: str) -> float:
    """Return the seconds after which an event may become an alert: 0 unless the trouble must last."""
    return _DELAYS.get(trouble, 0.0)


def decide(event: Event, past: RunPast, now: datetime) -> Decision:
    """Return what becomes of an event that is due.

    Args:
        event: the event.
        past: what happened to its run.
        now: the time of the decision.
    """
    if event.subject == RERUN:
        return Decision("tell", "each rerun concludes once")
    of_subject = {trouble: found for (subject, trouble), found in past.items() if subject == event.subject}
    if any(found.last_revision > event.revision for found in of_subject.values()):
        return Decision("drop", "the run has changed since")
    resolved = of_subject.get("resolved")
    resolved_revision = -1 if resolved is None or resolved.told_revision is None else resolved.told_revision
    open_troubles = {
        trouble
        for trouble, found in of_subject.items()
        if trouble != "resolved" and found.told_revision is not None and found.told_revision > resolved_revision
    }
    if event.trouble == "resolved":
        return Decision("tell", "an alert was made") if open_troubles else Decision("drop", "no alert was made")
    if event.trouble in open_troubles:
        return Decision("drop", "an alert was made already")
    if event.trouble == "attention" and "critical" in open_troubles:
        return Decision("drop", "an alert about something worse was made already")
    told = of_subject.get(event.trouble)
    if told is not None and told.told_at is not None:
        again_at = told.told_at + timedelta(seconds=COOLDOWN_SECONDS)
        if now < again_at:
            return Decision("wait", "the last alert was made a short time ago", again_at)
    return Decision("tell", "no alert was made yet")


def gathering_seconds(recent_alerts: int) -> float:
    """Return the seconds for which events are gathered after the first one.

    Args:
        recent_alerts: number of alerts about the same trouble of the project in the last `RECENT_SECONDS`.

    >>> [gathering_seconds(count) for count in (0, 1, 2, 10)]
    [20.0, 40.0, 80.0, 600.0]
    """
    return float(min(MAX_GATHERING_SECONDS, GATHERING_SECONDS * 2 ** min(recent_alerts, 10)))
