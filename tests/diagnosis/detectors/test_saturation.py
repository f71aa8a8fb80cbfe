"""Units in the flat part of their activation."""

from __future__ import annotations

from tests.diagnosis.synthetic_run import falling, noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, list_alarms


def test_saturation_is_found_where_it_is_watched() -> None:
    """Mostly saturated activations are a warning in a run that learns, and a verdict in one that is stuck."""
    learning = diagnose(run(falling(STEPS), saturation=0.8))
    finding = find_finding(learning, "saturation")
    assert finding is not None
    assert finding.severity == "warning"
    assert not list_alarms(learning)
    assert diagnose(run(noisy(2.3, STEPS), saturation=0.8)).verdict == "vanishing"
