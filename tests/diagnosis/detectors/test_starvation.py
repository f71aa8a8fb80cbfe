"""Updates that no longer move the weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.diagnosis.synthetic_run import falling, noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, list_alarms


def test_a_low_learning_rate_is_no_alarm() -> None:
    """Updates a billion times smaller than the weights are found as starvation and are no alarm."""
    diagnosis = diagnose(run(noisy(2.3, STEPS), update=1e-8, learning_rate=1e-8))
    assert not list_alarms(diagnosis)
    finding = find_finding(diagnosis, "starvation")
    assert finding is not None
    assert finding.evidence["update_to_weight"] == pytest.approx(1e-9, rel=1e-3)


def test_an_update_of_exactly_zero_is_starvation() -> None:
    """A learning rate too small to change any weight in float32 is starvation, too."""
    assert find_finding(diagnose(run(noisy(2.3, STEPS), update=0.0, learning_rate=1e-12)), "starvation") is not None


def test_weights_that_never_moved_are_a_fault() -> None:
    """At a rate of almost zero the weights stay those of the start: attention, whatever the loss seems to do."""
    diagnosis = diagnose(run(falling(200), update=1e-8, learning_rate=1e-9))
    assert (finding := find_finding(diagnosis, "starvation")) is not None
    assert (finding.severity, diagnosis.level) == ("warning", "attention")
    assert "still those of the start" in finding.explanation
    assert "a learning rate of 1e-09" in finding.explanation


def test_weights_that_once_moved_are_no_fault() -> None:
    """A rate that a schedule brings to zero after the run has learned asks for no attention."""
    update = np.where(np.arange(300)[:, None] < 100, 0.01, 0.0)
    assert diagnose(run(falling(300), update=update)).level == "ok"


def test_weights_that_never_moved_are_found_at_a_thin_sampling() -> None:
    """With twenty sampled steps and then every tenth, fifty steps are enough all the same."""
    block = run(falling(200), update=1e-8, learning_rate=1e-9)
    sampled = (np.arange(200) < 20) | (np.arange(200) % 10 == 0)
    thin = dataclasses.replace(block, sampled=sampled, values=block.values[sampled], present=block.present[sampled])
    diagnosis = diagnose(thin)
    assert diagnosis.level == "attention"
    assert next(change.step for change in diagnosis.changes if change.level == "attention") == 50
