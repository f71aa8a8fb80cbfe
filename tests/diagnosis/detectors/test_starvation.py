"""Updates that no longer move the weights."""

from __future__ import annotations

import pytest
from tests.diagnosis.synthetic_run import noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, list_alarms


def test_a_low_learning_rate_is_a_note() -> None:
    """Updates a billion times smaller than the weights are noted as starvation and are no alarm."""
    diagnosis = diagnose(run(noisy(2.3, STEPS), update=1e-8, learning_rate=1e-8))
    assert not list_alarms(diagnosis)
    finding = find_finding(diagnosis, "starvation")
    assert finding is not None
    assert finding.evidence["update_to_weight"] == pytest.approx(1e-9, rel=1e-3)


def test_an_update_of_exactly_zero_is_starvation() -> None:
    """A learning rate too small to change any weight in float32 is starvation, too."""
    assert find_finding(diagnose(run(noisy(2.3, STEPS), update=0.0, learning_rate=1e-12)), "starvation") is not None
