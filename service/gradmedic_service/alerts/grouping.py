"""What an alert about one or many runs shows. Pure functions: they get events and names and return text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode
from uuid import UUID

from gradmedic_service.alerts.policy import Event

MAX_NAMED_RUNS = 3
"""Largest number of runs that an alert names one by one; more are counted."""
MAX_RUN_IDS = 20
"""Largest number of runs whose ids an alert holds."""
MAX_SENTENCE = 2_000
"""Characters of the sentence of an alert. Chats cut longer messages."""

_PREDICATES = {
    "critical": ("is critical", "are critical"),
    "attention": ("needs attention", "need attention"),
    "stalled": ("has stalled", "have stalled"),
    "failed": ("has failed", "have failed"),
    "verified": ("has a verified remedy", "have verified remedies"),
    "resolved": ("has recovered", "have recovered"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRun:
    """What an alert shows of a run."""

    id: UUID
    name: str
    group: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldEvent:
    """An event that becomes an alert, with its run."""

    event: Event
    run: NamedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertText:
    """What an alert shows."""

    title: str
    sentence: str
    advice: str | None
    path: str
    """Path of the page to open."""
    run_ids: list[UUID]
    """The first runs, at most `MAX_RUN_IDS`."""
    run_count: int


def common_group(told: Sequence[ToldEvent]) -> str | None:
    """Return the group of all these runs; None if they have none or several."""
    groups = {entry.run.group for entry in told}
    return next(iter(groups)) if len(groups) == 1 else None


def compose(project: str, trouble: str, told: Sequence[ToldEvent], total: int) -> AlertText:
    """Return what an alert shows.

    Args:
        project: the project of the runs.
        trouble: the trouble of all events.
        told: the events, at least one, the oldest first.
        total: number of runs of the group that all runs have in common, else of running runs of the project.
    """
    latest = {entry.run.id: entry for entry in told}  # of several reruns of one run, the latest
    entries = list(latest.values())
    group = common_group(entries)
    predicate = _predicate(trouble, entries)
    return AlertText(
        title=f"{_subject(project, group, entries, total)} {predicate}",
        sentence=_sentence(entries),
        advice=_most_frequent_advice(entries),
        path=_path(project, group, trouble, entries),
        run_ids=[entry.run.id for entry in entries[:MAX_RUN_IDS]],
        run_count=len(entries),
    )


def _subject(project: str, group: str | None, entries: Sequence[ToldEvent], total: int) -> str:
    names = [entry.run.name for entry in entries]
    if len(names) == 1:
        return names[0]
    if len(names) <= MAX_NAMED_RUNS:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{len(names)} of {max(total, len(names))} runs of {project if group is None else group}"


def _predicate(trouble: str, entries: Sequence[ToldEvent]) -> str:
    verdicts = {entry.event.details.get("verdict") for entry in entries}
    if trouble == "critical" and len(verdicts) == 1 and None not in verdicts:
        return f"{'is' if len(entries) == 1 else 'are'} {next(iter(verdicts))}"
    singular, plural = _PREDICATES[trouble]
    return singular if len(entries) == 1 else plural


def _sentence(entries: Sequence[ToldEvent]) -> str:
    if len(entries) == 1:
        text = _describe(entries[0].event)
    elif len(entries) <= MAX_NAMED_RUNS:
        text = "\n".join(f"{entry.run.name}: {_describe(entry.event)}" for entry in entries)
    else:
        text = f"The first is {entries[0].run.name}: {_describe(entries[0].event)}"
    return text if len(text) <= MAX_SENTENCE else text[: MAX_SENTENCE - 1] + "…"


def _describe(event: Event) -> str:
    """Return one sentence about what happened to a run."""
    details, at = event.details, f"{event.created_at:%Y-%m-%d %H:%M} UTC"
    if event.trouble == "stalled":
        return f"It has sent no step for longer than its usual pauses; it was marked at {at}."
    if event.trouble == "failed":
        cause = "it has been silent for a day" if details.get("before") == "stalled" else "its training reported it"
        return f"It failed at {at}: {cause}."
    if event.trouble == "verified":
        return f"{details.get('remedies')}: {details.get('reason')}."
    if event.trouble == "resolved" and event.subject == "status":
        return f"It is running again since {at}."
    return str(details.get("summary") or f"Its level changed at {at}.")


def _most_frequent_advice(entries: Sequence[ToldEvent]) -> str | None:
    advice = Counter(str(found) for entry in entries if (found := entry.event.details.get("advice")))
    return advice.most_common(1)[0][0] if advice else None


def _path(project: str, group: str | None, trouble: str, entries: Sequence[ToldEvent]) -> str:
    if len(entries) == 1:
        event = entries[0].event
        return f"/runs/{event.run_id}" if event.rerun_id is None else f"/reruns/{event.rerun_id}"
    filters = {"project": project}
    if group is not None:
        filters["group"] = group
    if trouble in ("critical", "attention"):
        filters["level"] = trouble
    elif trouble in ("stalled", "failed"):
        filters["status"] = trouble
    return f"/?{urlencode(filters)}"
