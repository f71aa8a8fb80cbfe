"""What an alert shows of one run, of a few, and of many."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from gradmedic.protocol.ids import new_id
from gradmedic_service.alerts.grouping import MAX_RUN_IDS, MAX_SENTENCE, NamedRun, ToldEvent, compose
from gradmedic_service.alerts.policy import Event

AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
EXPLODING = {"verdict": "exploding", "summary": "Gradients grow 1.9x per step.", "advice": "clip_grad_norm(1.0): why"}


def told(
    name: str,
    trouble: str = "critical",
    details: Mapping[str, Any] = EXPLODING,
    *,
    group: str | None = None,
    subject: str = "level",
    rerun_id: UUID | None = None,
) -> ToldEvent:
    """Return an event of a run of this name."""
    run = NamedRun(id=new_id(), name=name, group=group)
    event = Event(
        id=new_id(), run_id=run.id, revision=1, subject=subject, trouble=trouble, rerun_id=rerun_id, details=details,
        created_at=AT,
    )  # fmt: skip
    return ToldEvent(event=event, run=run)


def test_one_run_is_told_with_its_sentence_and_advice() -> None:
    """An alert about one run has the summary of its diagnosis, the first advice, and the page of the run."""
    entry = told("lstm-3")
    text = compose("p", "critical", [entry], total=1)
    assert (text.title, text.sentence, text.advice) == (
        "lstm-3 is exploding", "Gradients grow 1.9x per step.", "clip_grad_norm(1.0): why",
    )  # fmt: skip
    assert (text.path, text.run_ids, text.run_count) == (f"/runs/{entry.run.id}", [entry.run.id], 1)


def test_three_runs_are_named() -> None:
    """Up to three runs are named, each with its sentence."""
    text = compose("p", "critical", [told("a"), told("b"), told("c", details=EXPLODING | {"summary": "Other."})], 9)
    assert text.title == "a, b and c are exploding"
    assert text.sentence.splitlines() == [
        "a: Gradients grow 1.9x per step.", "b: Gradients grow 1.9x per step.", "c: Other.",
    ]  # fmt: skip


def test_many_runs_are_counted() -> None:
    """More runs are counted, with the group that they have in common, and the most frequent advice is kept."""
    rare = told("first", group="sweep", details=EXPLODING | {"advice": "rare"})
    text = compose("p", "critical", [rare, *(told(f"r{index}", group="sweep") for index in range(24))], 40)
    assert text.title == "25 of 40 runs of sweep are exploding"
    assert text.sentence == "The first is first: Gradients grow 1.9x per step."
    assert text.advice == "clip_grad_norm(1.0): why"
    assert (text.path, len(text.run_ids), text.run_count) == (
        "/?project=p&group=sweep&level=critical", MAX_RUN_IDS, 25,
    )  # fmt: skip


def test_runs_of_several_groups_are_counted_for_the_project() -> None:
    """Runs without a common group are those of the project; mixed verdicts are critical."""
    entries = [told(f"r{index}", group=str(index)) for index in range(4)]
    vanishing = told("v", details={"verdict": "vanishing", "summary": "s"})
    assert compose("p & q", "critical", entries, 3).title == "4 of 4 runs of p & q are exploding"
    text = compose("p & q", "critical", [*entries, vanishing], 7)
    assert (text.title, text.path) == ("5 of 7 runs of p & q are critical", "/?project=p+%26+q&level=critical")


@pytest.mark.parametrize(
    ("trouble", "subject", "details", "title", "sentence"),
    [
        ("attention", "level", {"summary": "The loss is stuck."}, "r needs attention", "The loss is stuck."),
        ("stalled", "status", {}, "r has stalled", "It has sent no step for longer than its usual pauses"),
        ("failed", "status", {"before": "stalled"}, "r has failed", "It failed at 2026-01-02 03:04 UTC: it has been"),
        ("failed", "status", {"before": "running"}, "r has failed", "its training reported it"),
        ("verified", "rerun", {"remedies": "x(1)", "reason": "healthy"}, "r has a verified remedy", "x(1): healthy."),
        ("resolved", "level", {"summary": "Healthy."}, "r has recovered", "Healthy."),
        ("resolved", "status", {}, "r has recovered", "It is running again since 2026-01-02 03:04 UTC."),
        ("critical", "level", {}, "r is critical", "Its level changed at 2026-01-02 03:04 UTC."),
    ],
)
def test_each_trouble_has_its_words(
    trouble: str, subject: str, details: Mapping[str, Any], title: str, sentence: str
) -> None:
    """Each trouble has a title and a sentence, also where an earlier version has left out details."""
    text = compose("p", trouble, [told("r", trouble, details, subject=subject)], 1)
    assert text.title == title
    assert sentence in text.sentence


def test_several_reruns_of_a_run_are_one_run() -> None:
    """A run of which two reruns verified a remedy counts once; the alert leads to the later rerun."""
    first = told("r", "verified", {"remedies": "a", "reason": "b"}, subject="rerun", rerun_id=new_id())
    second = ToldEvent(
        event=Event(
            id=new_id(), run_id=first.run.id, revision=2, subject="rerun", trouble="verified", rerun_id=new_id(),
            details={"remedies": "c", "reason": "d"}, created_at=AT,
        ),
        run=first.run,
    )  # fmt: skip
    text = compose("p", "verified", [first, second], 1)
    assert (text.run_count, text.sentence, text.path) == (1, "c: d.", f"/reruns/{second.event.rerun_id}")


def test_long_sentences_are_cut() -> None:
    """A sentence has a limited length, whatever the summaries are."""
    text = compose("p", "critical", [told("r", details={"summary": "x" * 10_000})], 1)
    assert len(text.sentence) == MAX_SENTENCE
