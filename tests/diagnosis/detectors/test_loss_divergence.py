"""A loss that blows up."""

from __future__ import annotations

import numpy as np
from tests.diagnosis.synthetic_run import falling, noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding, list_alarms

from gradmedic_diagnosis import Block


def test_one_bad_batch_is_no_verdict() -> None:
    """A loss that is a thousand times too high for one step, with a small update, is no verdict."""
    loss, gradient = falling(STEPS), np.ones((STEPS, 1))
    loss[150] *= 1000
    gradient[150] = 1000
    assert not list_alarms(diagnose(run(loss, gradient=gradient)))


def test_a_blow_up_that_ends_the_training_is_exploding() -> None:
    """After one blow-up that rewrote a tenth of the weights, a loss that never falls again is an explosion."""
    loss, update = noisy(2.3, STEPS), np.full((STEPS, 1), 0.01)
    loss[5], update[4] = 80, 3.0
    diagnosis = diagnose(run(loss, update=update))
    assert diagnosis.verdict == "exploding"
    finding = find_finding(diagnosis, "loss_divergence")
    assert finding is not None
    assert finding.first_step == 5


def test_slow_divergence_is_exploding() -> None:
    """A loss that climbs tenfold over hundreds of steps while the weights double is exploding, with tiny updates."""
    growth = np.exp(np.arange(900) / 250)
    block = run(2.0 * growth, gradient=growth[:, None], weight=(10 * np.sqrt(growth))[:, None], update=0.02)
    assert diagnose(block).verdict == "exploding"


def test_losses_alone_can_explode() -> None:
    """A loss that climbs by a third every step is exploding without any statistics."""
    block = run([2.0 * 1.3**step for step in range(60)])
    empty = np.zeros((0, 4, len(block.statistics)), dtype=np.float32)
    fields = {name: getattr(block, name) for name in Block.__dataclass_fields__}
    none = np.zeros(60, dtype=np.bool_)
    alone = Block(**{**fields, "sampled": none, "values": empty, "present": np.zeros((0, 4), dtype=np.bool_)})
    assert diagnose(alone).verdict == "exploding"


def test_an_objective_without_a_floor_diverges_downwards() -> None:
    """A negative loss that diverges to minus infinity, with growing updates, is exploding before it is infinite."""
    steps = 160
    growth = np.maximum(0, np.arange(steps) - 100)
    loss = np.where(growth == 0, 1.0 - np.arange(steps) / 100, -(1.8 ** growth.astype(float)))
    scale = (2.0**growth)[:, None]
    diagnosis = diagnose(run(loss, gradient=scale, update=0.01 * scale))
    assert diagnosis.verdict == "exploding"
    assert list_alarms(diagnosis)[0][0] < 125
