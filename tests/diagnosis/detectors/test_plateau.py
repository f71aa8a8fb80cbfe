"""A loss that stopped falling."""

from __future__ import annotations

from tests.diagnosis.synthetic_run import noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, list_alarms


def test_a_plateau_without_a_gap_is_a_note() -> None:
    """A flat loss with even gradients is noted as a plateau and is no alarm."""
    diagnosis = diagnose(run(noisy(2.3, STEPS)))
    assert not list_alarms(diagnosis)
    finding = find_finding(diagnosis, "plateau")
    assert finding is not None
    assert finding.severity == "note"
