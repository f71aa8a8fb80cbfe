"""A learning rate that is too low, or that a schedule takes to nothing before the run has learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from tests.diagnosis.condition_runs import with_probe, with_rate
from tests.diagnosis.recorded_training import diagnose_training
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from torch import nn

import gradmedic
from gradmedic.protocol.runs import Optimizer, Training
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis

CAUSE = "learning_rate_too_low"
STEPS = 300
SGD = Training(optimizers=[Optimizer(name="SGD")])


def diagnose(block: Block, training: Training = SGD) -> UpdatedDiagnosis:
    """Diagnose a whole run."""
    return Diagnostician(layers(), training).update(block)


def advice_of(diagnosis: UpdatedDiagnosis) -> dict[str, Any]:
    """Return the parameters of the advice, by remedy, the first ones first."""
    return {advice.remedy.id: advice.remedy.parameters for advice in diagnosis.advice}


def stuck(rates: ArrayLike, **columns: ArrayLike) -> Block:
    """Return a run whose loss never moves, with these learning rates."""
    block = run(noisy(2.3, STEPS), **columns)  # type: ignore[arg-type]  # learning_rate is not among the columns
    return with_rate(block, np.broadcast_to(np.asarray(rates, dtype=np.float64), STEPS))


@pytest.mark.parametrize(("rate", "factor"), [(1e-4, 600), (1e-6, 6e4), (1e-9, 1e6)])
def test_a_rate_at_which_no_weight_moves_is_raised(rate: float, factor: float) -> None:
    """The factor takes the updates to three thousandths of the weights, by a factor of a million at most."""
    diagnosis = diagnose(stuck(rate, update=0.5 * rate))
    assert (diagnosis.verdict, diagnosis.learning, diagnosis.level) == ("healthy", "stuck", "attention")
    assert diagnosis.causes[0].cause == CAUSE
    assert diagnosis.causes[0].evidence["learning_rate"] == pytest.approx(rate)
    assert "too low" in diagnosis.causes[0].explanation
    advice = advice_of(diagnosis)
    assert next(iter(advice)) == "scale_learning_rate"
    assert advice["scale_learning_rate"]["factor"] == pytest.approx(factor)
    assert "extend_schedule" not in advice


@pytest.mark.parametrize("end", [0.0, 1e-5])
def test_a_schedule_that_ends_first_is_made_longer(end: float) -> None:
    """No factor of the rate, and no other optimizer, helps where the schedule has ended: its steps are wrong."""
    moves = np.arange(STEPS) < 20
    diagnosis = diagnose(stuck(np.where(moves, 0.1, end), update=np.where(moves, 0.01, 0.1 * end)[:, None]))
    assert diagnosis.causes[0].cause == CAUSE
    assert diagnosis.causes[0].evidence["largest_learning_rate"] == pytest.approx(0.1)
    assert "The schedule has taken the learning rate from 0.1 to" in diagnosis.causes[0].explanation
    assert list(advice_of(diagnosis)) == ["extend_schedule"]


def test_what_explains_small_updates_is_the_cause_itself() -> None:
    """Under a condition, tight clipping, or gradients that vanish, the rate is not blamed."""
    for small in (stuck(0.1, update=1e-8), stuck(0.1, update=1e-8, gradient=1e-7)):
        assert all(cause.cause != CAUSE for cause in diagnose(small).causes)
    steps = dict.fromkeys(range(0, STEPS, 5), 5.0)
    silent = with_probe(stuck(2e-8, update=1e-8), "steps_without_gradients", steps)
    assert [cause.cause for cause in diagnose(silent).causes] == ["missing_gradients"]


def test_a_low_rate_that_is_meant_is_left_alone() -> None:
    """A run that has learned before its schedule ends, and a warm-up that goes on, have no such cause."""
    update = np.where(np.arange(STEPS)[:, None] < 100, 0.01, 0.0)
    learned = with_rate(run(falling(STEPS), update=update), np.where(np.arange(STEPS) < 100, 0.1, 0.0))
    assert diagnose(learned).causes == []
    warming = np.linspace(1e-9, 1e-6, STEPS)
    assert all(cause.cause != CAUSE for cause in diagnose(stuck(warming, update=warming[:, None])).causes)
    over = np.minimum(warming, warming[::-1])  # a warm-up that is over will make no update larger
    assert diagnose(stuck(over, update=over[:, None])).causes[0].cause == CAUSE


@pytest.mark.parametrize(("rate", "ends_at", "first"), [(1e-7, 0, "scale_learning_rate"), (1e-3, 5, "extend_schedule")])
def test_real_trainings(rate: float, ends_at: int, first: str) -> None:
    """A rate of a ten-millionth, and a linear schedule that ends after five steps, through the SDK."""

    def train(recorded: gradmedic.Run) -> None:
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        recorded.watch(model, optimizer)
        for step in range(200):
            if ends_at:
                optimizer.param_groups[0]["lr"] = rate * max(0.0, 1 - step / ends_at)
            inputs = torch.randn(64, 6)
            loss = nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            recorded.log(loss=loss)

    diagnosis = diagnose_training(train)
    assert [cause.cause for cause in diagnosis.causes] == [CAUSE]
    assert diagnosis.advice[0].remedy.id == first


def test_a_rate_of_zero_is_not_scaled() -> None:
    """Any factor of it is 0: it needs another rate."""
    diagnosis = diagnose(stuck(0.0, update=0.0))
    assert diagnosis.causes[0].cause == CAUSE
    assert "The learning rate, 0, is too low" in diagnosis.causes[0].explanation
    assert list(advice_of(diagnosis)) == ["switch_optimizer"]
