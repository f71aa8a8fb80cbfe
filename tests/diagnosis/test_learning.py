"""Learning is judged from the loss alone, and the level from verdict, learning and open warnings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose

from gradmedic.protocol.runs import Optimizer, Training
from gradmedic.protocol.verdicts import LEARNING_STATES
from gradmedic_diagnosis import Block, Diagnostician, StepSeries


def with_learning_rates(block: Block, rates: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Block:
    """Return the block with other learning rates."""
    fields = {name: getattr(block, name) for name in Block.__dataclass_fields__}
    every = np.ones(len(block), dtype=np.bool_)
    return Block(**{**fields, "series": {**block.series, "learning_rate": StepSeries(rates, every)}})


def test_a_falling_loss_learns() -> None:
    """A loss that falls is `learning`, and the level is ok."""
    diagnosis = diagnose(run(falling(STEPS)))
    assert (diagnosis.verdict, diagnosis.learning, diagnosis.level) == ("healthy", "learning", "ok")


def test_a_flat_loss_is_stuck() -> None:
    """A loss that never fell is `stuck`: the run needs attention although its gradients are sound."""
    diagnosis = diagnose(run(noisy(np.log(10), STEPS)))
    assert (diagnosis.verdict, diagnosis.learning, diagnosis.level) == ("healthy", "stuck", "attention")
    assert diagnosis.summary.startswith("The loss does not fall: it is 2.3")


@pytest.mark.parametrize(
    ("optimizers", "idle", "learning"),
    [(1, (3,), "stuck"), (2, (3,), "unknown"), (1, (2, 3), "unknown")],
    ids=["an idle expert", "two optimizers", "heads that take turns"],
)
def test_one_optimizer_with_idle_layers_has_one_loss(optimizers: int, idle: tuple[int, ...], learning: str) -> None:
    """Steps on which some layers are idle belong to one loss; those of other layers, or optimizers, may not."""
    block = run(noisy(2.3, STEPS))
    present = block.present.copy()
    for turn, layer in enumerate(idle):
        present[turn::2, layer] = False
    block = dataclasses.replace(block, present=present)
    training = Training(optimizers=[Optimizer(name="SGD")] * optimizers)
    assert Diagnostician(layers(), training).update(block).learning == learning


def test_a_fall_that_leads_nowhere_is_stuck() -> None:
    """A loss without noise that loses a thousandth in the whole run is stuck; one that loses a hundredth is not."""
    assert diagnose(run(2.3 * np.linspace(1, 0.999, STEPS))).learning == "stuck"
    assert diagnose(run(2.3 * np.linspace(1, 0.98, STEPS))).learning != "stuck"


def test_a_loss_that_fell_and_is_flat_has_converged() -> None:
    """A loss that fell to a third and stays there has converged, which is fine."""
    loss = np.concatenate([falling(100), noisy(0.7, 500)])
    diagnosis = diagnose(run(loss))
    assert (diagnosis.learning, diagnosis.level) == ("converged", "ok")


@pytest.mark.parametrize("level", [1.5, 2.3, 5.0])
def test_a_loss_that_loses_what_it_gained_gets_worse(level: float) -> None:
    """A loss that stays far above its best is `worsening`, whether or not it is above its start."""
    loss = np.concatenate([falling(200), noisy(level, 100)])
    diagnosis = diagnose(run(loss))
    assert (diagnosis.verdict, diagnosis.learning, diagnosis.level) == ("healthy", "worsening", "attention")
    assert "The loss gets worse" in diagnosis.summary
    change = next(change for change in diagnosis.changes if change.learning == "worsening")
    assert 200 < change.step < 250


def test_a_spike_does_not_hide_what_follows() -> None:
    """A loss that jumps to a thousand times its level and then stays at its start gets worse, and not healthy."""
    loss = np.concatenate([falling(200), [500.0, 2000.0, 800.0], noisy(2.3, 100)])
    diagnosis = diagnose(run(loss))
    assert (diagnosis.learning, diagnosis.level) == ("worsening", "attention")


def test_a_learning_rate_that_jumped_is_named() -> None:
    """The summary of a run that gets worse names a learning rate that has risen since the best loss."""
    loss = np.concatenate([falling(200), noisy(2.0, 100)])
    rates = np.where(np.arange(300) < 199, 1e-3, 6e-2)  # the update of step 199 shows in the loss of step 200
    assert "The learning rate is 60 times what it was then." in diagnose(with_learning_rates(run(loss), rates)).summary
    assert "learning rate" not in diagnose(run(loss)).summary


def test_the_summary_names_what_else_is_known() -> None:
    """The summary of a run that gets worse has its open finding, and calls no gradients sound that are zero."""
    loss = np.concatenate([falling(200), noisy(1.0, 100)])
    gradient = np.where(np.arange(300)[:, None] < 200, 1.0, 0.0)
    summary = diagnose(run(loss, gradient=gradient)).summary
    assert "The loss gets worse" in summary
    assert "exactly zero" in summary
    assert "No trouble is known" not in summary
    assert "No trouble is known" in diagnose(run(loss)).summary


def test_a_short_excursion_is_no_worsening() -> None:
    """A loss that rises for fifteen steps and comes back never needs attention."""
    loss = falling(300)
    loss[150:165] = 2.0
    assert "attention" not in {change.level for change in diagnose(run(loss)).changes}


def test_noise_does_not_change_learning_back_and_forth() -> None:
    """Over many noisy runs that learn, at most two of a hundred ever need attention, and learning rarely changes."""
    alarmed, changes = 0, 0
    for seed in range(100):
        noise = 1 + 0.3 * np.random.default_rng(seed).normal(size=STEPS)
        diagnosis = diagnose(run(np.abs(falling(STEPS) * noise)))
        alarmed += any(change.level == "attention" for change in diagnosis.changes)
        changes += len(diagnosis.changes)
    assert alarmed <= 2
    assert changes <= 300


def test_a_loss_about_zero_is_no_measure_of_progress() -> None:
    """The loss of a policy gradient goes back and forth about zero: nothing is said of learning."""
    loss = np.random.default_rng(0).normal(0.1, 0.3, STEPS)
    assert diagnose(run(loss)).learning == "unknown"


def test_losses_that_take_turns_are_no_measure_of_progress() -> None:
    """With optimizers that take turns, as in a GAN, nothing is said of learning, whatever the losses do."""
    block = run(noisy(2.3, STEPS))
    turns = np.arange(STEPS)[:, None] % 2 == np.array([0, 0, 1, 1])
    fields = {name: getattr(block, name) for name in Block.__dataclass_fields__}
    assert diagnose(Block(**{**fields, "present": turns})).learning == "unknown"


def test_learning_does_not_depend_on_the_cuts() -> None:
    """Cut into blocks of any size, and through bytes after each, a run has the same changes at the same steps."""
    loss = np.concatenate([falling(200), noisy(2.0, 100)])
    block = run(loss)
    expected = list(diagnose(block).changes)
    for size in (1, 7, 64):
        diagnostician = Diagnostician(layers())
        changes = []
        for start in range(0, len(block), size):
            changes += diagnostician.update(block.cut(start, min(len(block), start + size))).changes
            diagnostician = Diagnostician.from_bytes(diagnostician.to_bytes(), layers())
        assert changes == expected


@pytest.mark.parametrize("extreme", [1e308, -1e308, 5e-324])
def test_losses_at_the_edge_of_floats_are_judged(extreme: float) -> None:
    """Losses near the largest and the smallest number are read like others: nothing overflows with an error."""
    loss = falling(STEPS)
    loss[::7] = extreme
    assert diagnose(run(loss)).learning in LEARNING_STATES
