"""The summary of a diagnosis."""

from __future__ import annotations

from tests.diagnosis.synthetic_run import falling, run
from tests.diagnosis.whole_run import diagnose, without_weights


def test_the_summary_of_a_healthy_run_names_what_was_measured() -> None:
    """The summary names gradients and updates only where they were sent, and a warning where one is open."""
    assert "an update changes the weights by 0.001" in diagnose(run(falling(100))).summary
    assert "update" not in diagnose(without_weights(run(falling(100)))).summary
    assert diagnose(run(falling(100), saturation=0.8)).summary.startswith("No alarm, but:")
