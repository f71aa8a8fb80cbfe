"""A loss far above its running quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from tests.diagnosis.condition_runs import change, diagnose_in_pieces, find_condition, with_turns
from tests.diagnosis.synthetic_run import falling, noisy, run

from gradmedic.protocol.runs import Loss, Training

STEPS, BEGIN = 500, 200


def spiked(length: int, times: float = 3.0) -> np.ndarray:
    """Return a slowly falling loss with a spike that decays back."""
    loss = falling(STEPS, half_life=400)
    loss[BEGIN : BEGIN + length] *= times
    return loss


def test_a_spike_is_a_note_with_its_recovery() -> None:
    """The loss trebles for ten steps: a note with the level before, the peak, and the losses until it was back."""
    finding = find_condition(run(spiked(10)), "loss_spike")
    assert finding is not None
    assert (finding.first_step, finding.severity) == (BEGIN, "note")
    assert finding.resolved_step == BEGIN + 12
    assert finding.evidence["losses_to_recover"] == 10
    assert finding.evidence["peak"] == pytest.approx(3 * finding.evidence["loss_before"], rel=0.2)
    assert diagnose_in_pieces(run(spiked(10))).level == "ok"


def test_a_spike_that_does_not_come_back_is_a_warning() -> None:
    """After 128 losses the note becomes a warning; before, it is a note."""
    assert find_condition(run(spiked(STEPS)).cut(0, BEGIN + 100), "loss_spike").severity == "note"  # type: ignore[union-attr]
    finding = find_condition(run(spiked(STEPS)), "loss_spike")
    assert finding is not None
    assert (finding.severity, finding.resolved_step) == ("warning", None)
    assert "has not come back" in finding.explanation


@pytest.mark.parametrize("kind", ["gauss", "exponential", "pareto", "odd batches", "quiet", "falling"])
def test_noise_is_no_spike(kind: str) -> None:
    """Noise, also with a heavy tail, single odd batches, and a loss that is almost constant are silent."""
    rng = np.random.default_rng(3)
    odd = noisy(1.0, 3000)
    odd[400::97] = 8.0
    losses = {
        "gauss": noisy(1.0, 3000, noise=0.2),
        "exponential": rng.exponential(size=3000),
        "pareto": 0.1 + rng.pareto(1.5, size=3000),
        "odd batches": odd,
        "quiet": noisy(1.0, 3000, noise=1e-6) + np.where(np.arange(3000) > 1500, 0.01, 0.0),
        "falling": falling(3000, half_life=100),
    }
    assert find_condition(run(losses[kind]), "loss_spike") is None


def test_losses_that_measure_no_progress_have_no_spikes() -> None:
    """The loss of a policy gradient, and losses that take turns, go up and down."""
    surrogate = Training(loss=Loss(kind="other", surrogate=True))
    assert find_condition(run(spiked(10)), "loss_spike", surrogate) is None
    assert find_condition(with_turns(run(spiked(10))), "loss_spike") is None


def test_a_loss_that_is_not_finite_is_left_to_others() -> None:
    """NaN losses are no spike, and do not enter the quantiles."""
    block = run(np.where(np.arange(STEPS) % 50 == 7, np.nan, falling(STEPS, half_life=400)))
    assert find_condition(change(block), "loss_spike") is None
