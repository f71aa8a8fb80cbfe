"""A loss that no weight can change."""

from __future__ import annotations

import numpy as np
import pytest
from tests.diagnosis.synthetic_run import layers, noisy, run
from tests.diagnosis.whole_run import STEPS, find_finding, list_alarms

from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Diagnostician
from gradmedic_diagnosis.state import pack_state, unpack_state

BIASED = (*layers(4), Layer(name="4.bias", numel=1, role="bias"))
"""Weight matrices and an output bias."""


@pytest.mark.parametrize("fall", [0.0, 0.6])
def test_a_bias_does_not_make_the_loss_sensitive(fall: float) -> None:
    """An insensitive loss is found although an output bias learns and lowers the loss."""
    loss = noisy(2.3, STEPS, noise=0.1) * (1 - fall * (1 - 0.5 ** (np.arange(STEPS) / 10)))
    still = run(loss, gradient=[1e-5, 1e-5, 1e-5, 1e-5, 1.0], count=5)
    diagnosis = Diagnostician(BIASED).update(still)
    assert diagnosis.verdict == "vanishing"
    finding = find_finding(diagnosis, "insensitive_loss")
    assert finding is not None
    assert finding.evidence["grip"] < 1e-3
    assert ("never moved" in finding.explanation) == (fall == 0)
    assert not list_alarms(Diagnostician(BIASED).update(run(loss, gradient=1.0, count=5)))


def test_a_loss_that_became_insensitive_has_converged() -> None:
    """A loss that fell while it was sensitive to the weights, and is flat since it is not, is no failure."""
    loss = noisy(2.3, STEPS) * (0.4 + 0.6 * 0.5 ** (np.arange(STEPS) / 10))
    gradient = np.where(np.arange(STEPS) < 40, 1.0, 1e-5)[:, None]
    assert not list_alarms(Diagnostician(BIASED).update(run(loss, gradient=gradient, count=5)))


def test_a_state_without_the_first_sensitivity_raises_no_alarm() -> None:
    """A converged run stays healthy if its state lacks whether the loss was ever sensitive to the weights."""
    loss = noisy(2.3, STEPS) * (0.4 + 0.6 * 0.5 ** (np.arange(STEPS) / 10))
    block = run(loss, gradient=np.where(np.arange(STEPS) < 40, 1.0, 1e-5)[:, None])
    diagnostician = Diagnostician(layers(4))
    diagnostician.update(block.cut(0, 100))
    state = unpack_state(diagnostician.to_bytes())
    del state["detectors"]["insensitive_loss"]["never_had_grip"]
    restored = Diagnostician.from_bytes(pack_state(state), layers(4))
    assert restored.update(block.cut(100, STEPS)).verdict == "healthy"
