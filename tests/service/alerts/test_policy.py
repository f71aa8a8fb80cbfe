"""Which events of a run become alerts, decided from rows alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmedic.protocol.ids import new_id
from gradmedic_service.alerts.policy import (
    COOLDOWN_SECONDS,
    LASTING_SECONDS,
    LEVEL,
    MAX_GATHERING_SECONDS,
    RECENT_SECONDS,
    RERUN,
    STATUS,
    Event,
    PastTrouble,
    decide,
    due_after,
    gathering_seconds,
)

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


class RunStory:
    """The events of one run, as they are stored and told one after the other."""

    def __init__(self) -> None:
        self.now = NOW
        self.events: list[tuple[Event, datetime]] = []
        """Events that wait, and the times at which they are due."""
        self.past: dict[tuple[str, str], PastTrouble] = {}
        self.told: list[str] = []
        self._revision = 0

    def happen(self, trouble: str, subject: str = LEVEL) -> None:
        """Store an event."""
        self._revision += 1
        event = Event(
            id=new_id(), run_id=new_id(), revision=self._revision, subject=subject, trouble=trouble, rerun_id=None,
            details={}, created_at=self.now,
        )  # fmt: skip
        self.events.append((event, self.now + timedelta(seconds=due_after(trouble))))
        told = self.past.get((subject, trouble))
        self.past[subject, trouble] = PastTrouble(
            last_revision=self._revision,
            told_revision=None if told is None else told.told_revision,
            told_at=None if told is None else told.told_at,
        )

    def wait(self, seconds: float = 0.0) -> None:
        """Let time pass, then decide on what is due."""
        self.now += timedelta(seconds=seconds)
        waiting, self.events = self.events, []
        for event, due_at in waiting:
            if due_at > self.now:
                self.events.append((event, due_at))
                continue
            decision = decide(event, self.past, self.now)
            if decision.action == "wait":
                assert decision.until is not None
                assert decision.until > self.now
                self.events.append((event, decision.until))
            elif decision.action == "tell":
                self.told.append(event.trouble)
                latest = self.past[event.subject, event.trouble].last_revision
                self.past[event.subject, event.trouble] = PastTrouble(
                    last_revision=latest, told_revision=event.revision, told_at=self.now
                )


def test_critical_is_told_at_once_and_once() -> None:
    """A run that becomes critical is told at the next decision, and not again while it stays so."""
    story = RunStory()
    story.happen("critical")
    story.wait()
    story.wait(10 * COOLDOWN_SECONDS)
    assert story.told == ["critical"]


def test_attention_that_lasts_is_told() -> None:
    """A run that needs attention is told once that has lasted."""
    story = RunStory()
    story.happen("attention")
    story.wait(LASTING_SECONDS - 1)
    assert story.told == []
    story.wait(1)
    assert story.told == ["attention"]


def test_attention_that_passes_is_not_told() -> None:
    """Attention that passes before its time, again and again, is never told, and neither is its end."""
    story = RunStory()
    for _ in range(5):
        story.happen("attention")
        story.wait(LASTING_SECONDS - 1)
        story.happen("resolved")
        story.wait(LASTING_SECONDS + 1)
    assert story.told == []


def test_attention_that_turns_critical_is_told_as_critical() -> None:
    """What is worse replaces what waits, and follows what was told."""
    story = RunStory()
    story.happen("attention")
    story.wait(1)
    story.happen("critical")
    story.wait(2 * LASTING_SECONDS)
    assert story.told == ["critical"]
    story = RunStory()
    story.happen("attention")
    story.wait(LASTING_SECONDS)
    story.happen("critical")
    story.wait()
    assert story.told == ["attention", "critical"]


def test_attention_after_critical_is_not_told() -> None:
    """A critical run that becomes a little better is told when it has recovered, not before."""
    story = RunStory()
    story.happen("critical")
    story.wait()
    story.happen("attention")
    story.wait(2 * LASTING_SECONDS)
    story.happen("resolved")
    story.wait(LASTING_SECONDS)
    assert story.told == ["critical", "resolved"]


def test_critical_that_a_guard_repairs_at_once_is_not_told() -> None:
    """A trouble that has passed before its alert is made is told neither then nor later."""
    story = RunStory()
    story.happen("critical")
    story.happen("resolved")
    story.wait(2 * LASTING_SECONDS)
    assert story.told == []


def test_resolved_is_told_only_after_an_alert() -> None:
    """A run that is well again is told once if it was alerted, and never otherwise."""
    story = RunStory()
    story.happen("resolved")
    story.wait(LASTING_SECONDS)
    assert story.told == []
    story.happen("critical")
    story.wait()
    story.happen("resolved")
    story.wait(LASTING_SECONDS)
    story.happen("resolved")
    story.wait(LASTING_SECONDS)
    assert story.told == ["critical", "resolved"]


def test_the_cooldown_delays_the_next_alert() -> None:
    """A run that is critical again soon after it was well is told when the cooldown has passed, if it still is so."""
    story = RunStory()
    story.happen("critical")
    story.wait()
    story.happen("resolved")
    story.wait(LASTING_SECONDS)
    story.happen("critical")
    story.wait()
    assert story.told == ["critical", "resolved"]
    story.wait(COOLDOWN_SECONDS - LASTING_SECONDS)
    assert story.told == ["critical", "resolved", "critical"]


def test_a_relapse_before_the_recovery_was_told_is_not_told() -> None:
    """Without the message that it is well, a relapse is the same trouble, whatever the time."""
    story = RunStory()
    story.happen("critical")
    story.wait()
    story.happen("resolved")
    story.wait(LASTING_SECONDS / 2)
    story.happen("critical")
    story.wait(2 * COOLDOWN_SECONDS)
    assert story.told == ["critical"]


def test_status_and_level_are_told_apart() -> None:
    """A stalled run is told although it is critical, and its end of the stall does not resolve the level."""
    story = RunStory()
    story.happen("critical")
    story.happen("stalled", STATUS)
    story.wait()
    story.happen("resolved", STATUS)
    story.wait(LASTING_SECONDS)
    story.happen("attention")
    story.wait(LASTING_SECONDS)
    assert story.told == ["critical", "stalled", "resolved"]


def test_every_rerun_that_verifies_is_told() -> None:
    """Each rerun concludes once, so that each is told."""
    story = RunStory()
    for _ in range(2):
        story.happen("verified", RERUN)
        story.wait()
    assert story.told == ["verified", "verified"]


@given(st.lists(st.tuples(st.sampled_from(["critical", "attention", "resolved"]), st.floats(0, 7200)), max_size=30))
def test_whatever_happens_no_trouble_is_told_twice_without_its_end(changes: list[tuple[str, float]]) -> None:
    """Between two alerts about one trouble of a run there is always one that it is resolved."""
    story = RunStory()
    for trouble, seconds in changes:
        story.happen(trouble)
        story.wait(seconds)
    story.wait(10 * COOLDOWN_SECONDS)
    for trouble in ("critical", "attention"):
        kept = [told for told in story.told if told in (trouble, "resolved")]
        assert (trouble, trouble) not in pairwise(kept)
    assert story.told[:1] != ["resolved"]
    assert changes[-1:] == [] or changes[-1][0] != "critical" or "critical" in story.told
    assert story.events == []


@pytest.mark.parametrize("seconds_between", [0.1, 1.0, 30.0])
def test_failures_one_after_the_other_make_few_alerts(seconds_between: float) -> None:
    """A thousand runs of a project that fail at any pace make at most a dozen alerts in each hour."""
    alerts: list[float] = []
    first: float | None = None
    clock = 0.0
    for _ in range(1_000):
        clock += seconds_between
        first = clock if first is None else first
        recent = sum(clock - made < RECENT_SECONDS for made in alerts)
        if clock - first >= gathering_seconds(recent):
            alerts.append(clock)
            first = None
    hours = max(1.0, clock / RECENT_SECONDS)
    assert len(alerts) <= 12 * hours


def test_no_event_waits_longer_than_the_limit() -> None:
    """However many alerts were made, runs are gathered for a limited time."""
    assert max(gathering_seconds(count) for count in range(10_000)) == MAX_GATHERING_SECONDS
