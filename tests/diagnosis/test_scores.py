"""The score of a verdict: it grows with the evidence, and is a chance."""

from __future__ import annotations

import numpy as np
import pytest
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import diagnose

from gradmedic.protocol.verdicts import LEARNING_STATES
from gradmedic_diagnosis import Diagnostician
from gradmedic_diagnosis.calibration import HIGHEST, LOWEST, AlarmEvidence, HealthEvidence, calibrate


def test_a_healthy_score_grows_with_the_steps() -> None:
    """A run that learns is the more surely healthy the longer it does."""
    block, diagnostician = run(falling(800, half_life=300)), Diagnostician(layers())
    scores = [diagnostician.update(block.cut(start, start + 100)).score for start in range(0, 800, 100)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1] <= HIGHEST


def test_a_run_that_goes_nowhere_is_less_surely_healthy() -> None:
    """A healthy verdict has a lower score on a stuck loss than on one that falls, and a warning lowers it more."""
    learns = diagnose(run(falling(300)))
    stuck = diagnose(run(noisy(2.3, 300)))
    warned = diagnose(run(noisy(2.3, 300), saturation=np.array([0.8, 0.1, 0.1, 0.1])))
    assert {learns.verdict, stuck.verdict, warned.verdict} == {"healthy"}
    assert learns.score > stuck.score > warned.score


def test_undetermined_has_no_score() -> None:
    """Nothing is claimed before there is a verdict."""
    assert diagnose(run(falling(10))).score == 0


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 10**9])
def test_scores_are_chances(strength: float, steps: int) -> None:
    """Every score is between its bounds, for any evidence."""
    assert LOWEST <= calibrate(AlarmEvidence(is_exploding=True, strength=strength, detectors=1, steps=steps)) <= HIGHEST
    for learning in LEARNING_STATES:
        evidence = HealthEvidence(steps=steps, learning=learning, has_warning=True, has_suspicion=strength > 0)
        assert LOWEST <= calibrate(evidence) <= HIGHEST
