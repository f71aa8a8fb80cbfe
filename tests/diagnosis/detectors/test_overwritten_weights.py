"""An explosion that the loss does not show."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, keep_verdicts, list_alarms

from gradmedic_diagnosis import Block, Diagnostician


def overwritten(loss: NDArray[np.float64]) -> Block:
    """A run whose second update is thirty times its weights, most in the third layer."""
    weight, update = np.full((len(loss), 4), 10.0), np.full((len(loss), 4), 0.01)
    update[1] = weight[2:] = [300.0, 300.0, 600.0, 300.0]
    return run(loss, weight=weight, update=update)


def test_an_explosion_that_saturation_hides_is_found() -> None:
    """Weights that were overwritten and a noisy loss that never fell are an explosion, wherever the steps are cut."""
    block = overwritten(noisy(1.5, STEPS, noise=0.3))
    diagnosis = diagnose(block)
    assert diagnosis.verdict == "exploding"
    finding = find_finding(diagnosis, "overwritten_weights")
    assert finding is not None
    assert finding.layers[0] == "2.weight"
    assert finding.first_step == 2
    assert finding.evidence["weight_growth"] == pytest.approx(np.sqrt(3 * 30**2 + 60**2) / 2)
    for size in (1, 7, 64):
        diagnostician = Diagnostician(layers(4))
        cuts = [diagnostician.update(block.cut(start, start + size)) for start in range(0, STEPS, size)]
        assert [change for cut in cuts for change in cut.changes] == list(diagnosis.changes)


def test_overwritten_weights_that_learn_are_healthy() -> None:
    """A loss that falls after such an update, at once or later, is a recovery, which withdraws the verdict."""
    assert not list_alarms(diagnose(overwritten(falling(STEPS))))
    late = np.concatenate([noisy(2.3, 100, noise=0.2), falling(500)])
    changes = keep_verdicts(diagnose(overwritten(late)).changes)
    assert [change.verdict for change in changes] == ["healthy", "exploding", "healthy"]


def test_overwritten_weights_need_a_loss_that_did_not_blow_up() -> None:
    """A loss that blew up with the weights and came back may start learning again without an alarm."""
    loss = noisy(0.7, STEPS)
    loss[2] = 10.0
    loss[120:] = falling(STEPS - 120, start=0.7)
    assert find_finding(diagnose(overwritten(loss)), "overwritten_weights") is None


def test_weights_that_grow_slowly_are_not_overwritten() -> None:
    """Weights that became thirty times as large by small steps are no explosion, though the loss is flat."""
    weight = 10 * 30 ** (np.arange(STEPS) / STEPS)
    assert find_finding(diagnose(run(noisy(1.5, STEPS), weight=weight[:, None])), "overwritten_weights") is None
