"""Gradients that grow on their way to the input."""

from __future__ import annotations

import numpy as np
from tests.diagnosis.synthetic_run import falling, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, list_alarms


def test_growth_towards_the_input_is_a_warning() -> None:
    """Input-side gradients four decades above the output side are a warning, no verdict."""
    diagnosis = diagnose(run(falling(STEPS), gradient=10.0 ** np.array([4, 2, 0, 0])))
    finding = find_finding(diagnosis, "depth_growth")
    assert finding is not None
    assert finding.layers[0] == "0.weight"
    assert not list_alarms(diagnosis)
