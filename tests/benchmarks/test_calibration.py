"""The calibration of scores: which verdicts are judged, how the weights are fitted, and how scores are compared."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from benchmarks.calibration import (
    SIGNS_OF_ALARM,
    SIGNS_OF_HEALTH,
    Judged,
    LabelledRun,
    brier,
    describe,
    fit_weights,
    has_blown_up,
    judge_run,
    tabulate,
)
from tests.benchmarks.test_diagnosis import recording

from gradmedic_diagnosis import StepSeries
from gradmedic_diagnosis.calibration import (
    ALARM_WEIGHTS,
    HEALTH_WEIGHTS,
    AlarmEvidence,
    HealthEvidence,
    apply_weights,
)


def alarm(strength: float, *, is_right: bool) -> Judged:
    """Return a judged alarm of one detector."""
    return Judged(AlarmEvidence(is_exploding=True, strength=strength, detectors=1, steps=0), is_right, 1.0)


def labelled(label: str) -> LabelledRun:
    """Return a run of sixty calm steps with a label."""
    made = recording(label)
    return LabelledRun(label=label, layers=made.layers, training=made.training, block=made.block)


def test_verdicts_of_a_run_weigh_as_much_as_one() -> None:
    """The cuts of a run together weigh 1; on a healthy run, healthy verdicts are right."""
    judged = judge_run(labelled("healthy"))
    assert len(judged) > 1
    assert sum(each.weight for each in judged) == pytest.approx(1)
    assert all(each.is_right for each in judged)


def test_a_healthy_verdict_on_a_vanishing_run_is_wrong() -> None:
    """A run that vanished was never healthy; before an explosion, a healthy verdict is neither right nor wrong."""
    assert not any(each.is_right for each in judge_run(labelled("vanishing")))
    assert all(each.is_right for each in judge_run(labelled("other")))
    assert judge_run(labelled("exploding")) == []
    exploded = labelled("exploding")
    loss = exploded.block.series["loss"]
    loss = StepSeries(np.append([np.nan], loss.values[1:]), loss.present)
    exploded = dataclasses.replace(exploded, block=dataclasses.replace(exploded.block, series={"loss": loss}))
    judged = judge_run(exploded)
    assert judged
    assert not any(each.is_right for each in judged)


@pytest.mark.parametrize(
    ("loss", "expected"), [([1, 2, 9.9], False), ([1, 2, 10.1], True), ([1, np.nan], True), ([-1, 11], True)]
)
def test_a_blow_up_is_ten_times_the_first_loss(loss: list[float], expected: bool) -> None:
    """A loss has blown up when it is non-finite, or beyond ten times its first value."""
    assert has_blown_up(np.array(loss)) is expected


def test_the_fit_finds_the_share_of_right_verdicts() -> None:
    """Where strong alarms are right and weak ones right half of the time, the fitted chances are close to that."""
    judged = [alarm(0.95, is_right=True) for _ in range(400)]
    judged += [alarm(0.5, is_right=i % 2 == 0) for i in range(400)]
    weights = fit_weights(judged, SIGNS_OF_ALARM)
    strong, weak = (
        apply_weights(weights, alarm(strength, is_right=True).evidence.features()) for strength in (0.95, 0.5)
    )
    assert strong > 0.95
    assert weak == pytest.approx(0.5, abs=0.05)


def test_the_fit_is_modest_where_nothing_was_wrong() -> None:
    """Of ten verdicts that were all right, the chance stays below 1 - 1 / 20."""
    weights = fit_weights([alarm(0.9, is_right=True)] * 10, SIGNS_OF_ALARM)
    assert 0.8 < apply_weights(weights, alarm(0.9, is_right=True).evidence.features()) < 0.95


def test_weights_have_the_signs_of_the_evidence() -> None:
    """Evidence that contradicts its sign gets no weight: more evidence never lowers a score."""
    judged = [alarm(0.9, is_right=False), alarm(0.5, is_right=True)] * 50
    assert fit_weights(judged, SIGNS_OF_ALARM)[2] == 0
    for weights, signs in ((ALARM_WEIGHTS, SIGNS_OF_ALARM), (HEALTH_WEIGHTS, SIGNS_OF_HEALTH)):
        assert len(weights) == len(signs)
        assert all(weight * sign >= 0 for weight, sign in zip(weights, signs, strict=True))


def test_the_frozen_weights_have_a_feature_each() -> None:
    """Each kind of evidence has as many features as its model has weights."""
    assert len(alarm(0.9, is_right=True).evidence.features()) == len(ALARM_WEIGHTS)
    healthy = HealthEvidence(steps=100, learning="learning", has_warning=False, has_suspicion=False)
    assert len(healthy.features()) == len(HEALTH_WEIGHTS)


def test_brier_and_reliability_are_weighted() -> None:
    """Each bin has the mean score and the share of right verdicts, by weight; a score of 1 is in the last bin."""
    judged = [(0.9, True, 1.0), (0.92, False, 3.0), (1.0, True, 1.0), (0.2, False, 1.0)]
    assert brier(judged) == pytest.approx((0.01 + 3 * 0.92**2 + 0 + 0.04) / 6)
    table = tabulate(judged)
    assert [(low, high, weight) for low, high, weight, _, _ in table] == [(0, 0.5, 1), (0.9, 0.95, 4), (0.95, 1, 1)]
    assert table[1][3:] == pytest.approx((0.915, 0.25))
    assert describe(judged).startswith("Brier 0.")


def test_scores_are_those_of_the_diagnosis() -> None:
    """A judged verdict has the score that the diagnosis gives to the same evidence."""
    judged = judge_run(labelled("healthy"))[-1]
    assert judged.score > judge_run(labelled("healthy"))[0].score
    assert dataclasses.replace(judged, is_right=False).score == judged.score
