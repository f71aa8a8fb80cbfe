"""The benchmark of the diagnosis: how verdicts are compared with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from benchmarks.comparison import Outcome
from benchmarks.corpus.recording import STATISTICS, to_block
from benchmarks.diagnosis import (
    Reading,
    Recording,
    Score,
    conclude,
    describe_course,
    describe_scores,
    diagnose,
    judge,
    score,
)

from gradmedic.protocol.runs import Layer, Training


def recording(
    label: str, *, causes: tuple[str, ...] = (), first_nonfinite: int | None = None, build_up: int | None = None
) -> Recording:
    """Make a labelled recording of one layer and sixty calm steps."""
    arrays: dict[str, Any] = {name: np.full((60, 1), 0.1) for name in STATISTICS}
    arrays["nonfinite_count"] = np.zeros((60, 1))
    arrays["loss"] = np.linspace(2, 1, 60)
    arrays["learning_rate"] = np.full(60, 0.1)
    arrays["skipped"] = np.zeros(60, dtype=bool)
    return Recording(
        id="made-by-hand",
        label=label,
        causes=causes,
        first_nonfinite=first_nonfinite,
        build_up=build_up,
        layers=(Layer(name="w", shape=[2, 2], numel=4),),
        training=Training(),
        block=to_block(arrays),
        arrays=arrays,
    )


def reading(final: str, causes: tuple[str, ...] = (), **first_alarms: int) -> Reading:
    """Make a reading."""
    return Reading(final=final, first_alarms=first_alarms, causes=causes, score=1.0)


def test_perfect_answers_score_one() -> None:
    """Right verdicts on every class give a macro-F1 of 1 and a Brier score of 0."""
    recordings = [recording("healthy"), recording("vanishing"), recording("exploding"), recording("other")]
    readings = [
        reading("healthy"),
        reading("vanishing", vanishing=3),
        reading("exploding", exploding=4),
        reading("undetermined"),
    ]
    result = score("it", recordings, readings)
    assert result.macro_f1 == 1
    assert result.brier == 0
    assert (result.healthy_alarmed, result.other_alarmed) == (0, 0)


def test_an_alarm_that_was_withdrawn_still_counts_on_a_healthy_run() -> None:
    """A healthy run that was ever alarmed is wrong, whatever the last verdict was."""
    result = score("it", [recording("healthy")], [reading("healthy", vanishing=10)])
    assert result.healthy_alarmed == 1
    assert result.recall["healthy"] == 0
    assert result.precision["vanishing"] == 0


def test_undetermined_at_the_end_is_a_miss() -> None:
    """A run that ends undetermined counts against recall."""
    result = score("it", [recording("healthy"), recording("healthy")], [reading("healthy"), reading("undetermined")])
    assert result.recall["healthy"] == 0.5


def test_an_alarm_on_other_is_an_error_and_silence_is_not_scored() -> None:
    """An alarm on a run of the class `other` lowers that verdict's precision; a healthy verdict changes nothing."""
    pairs = [recording("exploding"), recording("other"), recording("other")]
    result = score(
        "it", pairs, [reading("exploding", exploding=1), reading("exploding", exploding=5), reading("healthy")]
    )
    assert result.precision["exploding"] == 0.5
    assert result.other_alarmed == 1
    assert np.isnan(result.precision["healthy"])


def test_leads_are_of_explosions_that_build_up() -> None:
    """Only explosions that take more than five steps count, from their first alarm on."""
    recordings = [recording("exploding", first_nonfinite=20, build_up=b) for b in (6, 6, 5, 9)]
    readings = [reading("exploding", exploding=step) for step in (12, 20, 0)]
    readings.append(reading("healthy"))
    assert score("it", recordings, readings).leads == [8, 0, -1]


def test_a_cause_counts_among_the_first_two_of_a_right_verdict() -> None:
    """The third cause is too late, and a wrong verdict has no right cause."""
    recordings = [recording("exploding", causes=("a", "b"))] * 3
    readings = [reading("exploding", ("x", "b"), exploding=1), reading("exploding", ("x", "y", "a"), exploding=1),
                reading("healthy", ("a",))]  # fmt: skip
    result = score("it", recordings, readings)
    assert (result.cause_hits, result.cause_total) == (1, 3)


def test_a_recording_is_streamed_to_its_end() -> None:
    """The diagnostician sees every step of a calm run and raises no alarm."""
    reading = diagnose(recording("healthy"))
    assert reading.first_alarms == {}
    assert reading.final in ("healthy", "undetermined")


def test_flips_are_counted_beyond_a_healthy_verdict() -> None:
    """Every change from one unhealthy verdict to the other is a flip, also with a healthy one between them."""
    verdicts = ("healthy", "vanishing", "healthy", "exploding", "vanishing", "healthy", "vanishing")
    flipping = Reading(final="vanishing", first_alarms={}, verdicts=verdicts)
    calm = Reading(final="healthy", first_alarms={}, verdicts=("healthy",))
    assert (flipping.flips, calm.flips) == (2, 0)
    text = describe_course([recording("vanishing"), recording("healthy")], [flipping, calm])
    assert text.startswith("verdict changes: 3.00 a run, at most 6;")
    assert text.endswith("exploding: 2 (made-by-hand)")


def test_the_scores_of_a_corpus_are_compared_with_its_labels() -> None:
    """A score of 1 on a wrong verdict costs 1; `other` runs are rightly called healthy."""
    recordings = [recording("healthy"), recording("other"), recording("exploding"), recording("vanishing")]
    readings = [reading("healthy"), reading("healthy"), reading("exploding", exploding=1), reading("healthy")]
    assert describe_scores(recordings, readings).startswith("scores at the end: Brier 0.250; 0.95-1: 4 runs")


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"macro_f1": 0.97}, ["macro-F1 0.970 on fit"]),
        ({"healthy_alarmed": 1}, ["1 healthy alarmed on fit"]),
        ({"leads": [1] * 30}, ["announced five steps before 0%"]),
        ({"leads": [9] * 8 + [0] * 2}, ["announced 80%"]),
        ({"cause_hits": 8}, ["cause 8/10 on fit"]),
    ],
)
def test_every_target_can_be_missed(change: dict[str, Any], missed: list[str]) -> None:
    """Each missed target is named; a good result misses none."""
    sound: dict[str, Any] = {
        "system": "it", "macro_f1": 0.99, "healthy": 9, "leads": [9] * 30, "cause_hits": 9, "cause_total": 10
    }  # fmt: skip
    assert judge({"fit": Score(**{**sound, **change})}, 1000) == missed
    assert judge({"fit": Score(**sound)}, 50_000) == ["50000 bytes of state"]


@pytest.mark.parametrize(
    ("missed", "is_same", "cost", "outcome"),
    [
        ([], True, Outcome.MET, Outcome.MET),
        ([], False, Outcome.MET, Outcome.MET),
        ([], True, Outcome.CANNOT_TELL, Outcome.CANNOT_TELL),
        ([], True, Outcome.MISSED, Outcome.MISSED),
        (["macro-F1"], True, Outcome.CANNOT_TELL, Outcome.MISSED),
        (["macro-F1"], False, Outcome.MET, Outcome.CANNOT_TELL),
        (["macro-F1"], False, Outcome.MISSED, Outcome.MISSED),
    ],
)
def test_a_miss_on_other_recordings_tells_nothing(
    missed: list[str], is_same: bool, cost: Outcome, outcome: Outcome
) -> None:
    """A missed score fails only on the recordings of the published figures; a missed cost fails on all."""
    assert conclude(missed, is_same=is_same, cost=cost) is outcome
