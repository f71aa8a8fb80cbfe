"""A loss that swings from step to step."""

from __future__ import annotations

from tests.diagnosis.synthetic_run import run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding


def test_overshooting_is_a_note() -> None:
    """A loss that alternates around its level is noted as oscillation."""
    swing = [2.3 * (1 + 0.4 * (-1) ** step) for step in range(STEPS)]
    finding = find_finding(diagnose(run(swing)), "oscillation")
    assert finding is not None
    assert finding.severity == "note"
