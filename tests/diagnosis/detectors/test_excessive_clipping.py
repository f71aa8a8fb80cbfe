"""Clipping so tight that the weights no longer move."""

from __future__ import annotations

import pytest
from tests.diagnosis.synthetic_run import layers, noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding

from gradmedic.protocol.runs import Optimizer, Training
from gradmedic_diagnosis import Diagnostician


def test_excessive_clipping_is_vanishing() -> None:
    """An update a million times below learning rate times gradient, with a stuck loss, is excessive clipping."""
    diagnosis = diagnose(run(noisy(2.3, STEPS), update=1e-8, learning_rate=0.01))
    assert diagnosis.verdict == "vanishing"
    assert diagnosis.causes[0].cause == "excessive_clipping"
    assert diagnosis.advice[0].remedy.id == "relax_clipping"
    finding = find_finding(diagnosis, "excessive_clipping")
    assert finding is not None
    assert finding.evidence["share_of_gradient_left"] == pytest.approx(1e-6, rel=1e-3)


def test_small_updates_of_adam_are_no_clipping() -> None:
    """Adam divides by the gradient's size: what is left of the gradient cannot be seen in its updates."""
    adam = Diagnostician(layers(), Training(optimizers=[Optimizer(name="AdamW")]))
    diagnosis = adam.update(run(noisy(2.3, STEPS), update=1e-8, learning_rate=0.01))
    assert find_finding(diagnosis, "excessive_clipping") is None
