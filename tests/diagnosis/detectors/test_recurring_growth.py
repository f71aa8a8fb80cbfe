"""Gradients that burst again and again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import STEPS, find_finding

from gradmedic_diagnosis import Diagnostician


def find_severity(loss: NDArray[np.float64]) -> str | None:
    """Return the severity of the finding of a run whose gradients rise to 50 times their size every 30 steps."""
    bursts = np.where(np.arange(STEPS) % 30 > 26, 50.0, 1.0)[:, None]
    finding = find_finding(Diagnostician(layers()).update(run(loss, gradient=bursts)), "recurring_growth")
    return None if finding is None else finding.severity


def test_bursts_of_a_loss_that_falls_are_a_note() -> None:
    """A training that learns in spite of the bursts is not unstable; one whose loss stays where it was is."""
    assert find_severity(noisy(2.3, STEPS)) == "warning"
    assert find_severity(falling(STEPS)) == "note"
