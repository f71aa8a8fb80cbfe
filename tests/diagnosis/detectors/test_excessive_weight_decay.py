"""Weight decay that takes the weights away sooner than the loss can shape them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.diagnosis.condition_runs import change, diagnose_in_pieces, find_condition, with_rate, with_turns
from tests.diagnosis.recorded_training import diagnose_training
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import STEPS, find_finding, without_weights
from torch import Tensor, nn

import gradmedic
from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.runs import Loss, Objective, Optimizer, Training
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis
from gradmedic_diagnosis.detectors.excessive_weight_decay import PATIENCE

ID = "excessive_weight_decay"
STRONG = Optimizer(name="AdamW", learning_rate=0.003, momentum=0.9, weight_decay=5.0)
"""Its horizon is 1 / (0.003 x 5) = 67 steps."""
SHRINKING = np.maximum(10 * np.exp(-np.arange(STEPS) / 67), 4.0)[:, None]
"""Norms of weights that decay shrinks from 10 to 4, where updates hold them."""


def shrinking(loss: Any = None, *, weight: Any = SHRINKING, learning_rate: float = 0.003) -> Block:
    """Return a run whose weights shrink; by default, its loss is flat."""
    return run(noisy(2.3, STEPS) if loss is None else loss, weight=weight, update=0.05, learning_rate=learning_rate)


def find(block: Block, optimizer: Optimizer = STRONG, **facts: Any) -> Finding | None:
    """Return the finding of a run, which is the same however the run is cut."""
    return find_condition(block, ID, Training(optimizers=[optimizer], **facts))


def test_a_decay_that_takes_the_weights_is_found() -> None:
    """After two horizons it is a warning with its numbers, one cause, and the first advice is to reduce the decay."""
    diagnosis = diagnose_in_pieces(shrinking(), Training(optimizers=[STRONG]))
    assert (finding := find_finding(diagnosis, ID)) is not None
    assert (finding.first_step, finding.severity, finding.resolved_step) == (0, "warning", None)
    assert finding.evidence == {
        "learning_rate": 0.003,
        "weight_decay": 5.0,
        "horizon_steps": pytest.approx(1 / 0.015),
        "share_of_weights_left": pytest.approx(0.4),
        "loss_fallen": pytest.approx(0.0, abs=0.05),
    }
    assert "takes 1.5% of the weights with each step" in finding.explanation
    assert [cause.cause for cause in diagnosis.causes] == [ID]
    assert diagnosis.causes[0].evidence == finding.evidence
    assert diagnosis.advice[0].remedy.id == "reduce_weight_decay"


def test_it_needs_two_horizons_and_a_hundred_losses() -> None:
    """Two horizons of 67 steps are 134 steps; a horizon of 10 steps waits for a hundred losses."""
    block, decay = shrinking(), Training(optimizers=[STRONG])
    assert find_finding(Diagnostician(layers(), decay).update(block.cut(0, 133)), ID) is None
    assert find_finding(Diagnostician(layers(), decay).update(block.cut(0, 134)), ID) is not None
    stronger = Training(optimizers=[replace(STRONG, weight_decay=33.0)])
    assert find_finding(Diagnostician(layers(), stronger).update(block.cut(0, PATIENCE - 1)), ID) is None
    assert find_finding(Diagnostician(layers(), stronger).update(block.cut(0, PATIENCE)), ID) is not None


def test_a_loss_that_falls_by_little_leaves_it_open_and_asks_for_attention() -> None:
    """The loss falls to 80 % of what a constant output gets: the run learns, and its level is `attention`."""
    loss = np.maximum(falling(STEPS, start=4.0, half_life=30.0), 0.8) * noisy(1.0, STEPS)
    training = Training(optimizers=[STRONG], loss=Loss(kind="squared_error", constant_level=1.0))
    diagnosis = diagnose_in_pieces(shrinking(loss), training)
    assert (finding := find_finding(diagnosis, ID)) is not None
    assert finding.evidence["constant_level"] == 1.0
    assert finding.evidence["loss_fallen"] == pytest.approx(0.2, abs=0.03)
    assert "below what a constant output gets" in finding.explanation
    assert (diagnosis.verdict, diagnosis.level) == ("healthy", "attention")
    usual = Training(optimizers=[replace(STRONG, weight_decay=0.01)], loss=training.loss)
    assert diagnose_in_pieces(shrinking(loss), usual).level == "ok"


@pytest.mark.parametrize(
    "optimizer",
    [
        replace(STRONG, weight_decay=0.1),
        replace(STRONG, weight_decay=3.3),
        replace(STRONG, weight_decay=0.0),
        replace(STRONG, weight_decay=None),
        replace(STRONG, name="Adam"),
        replace(STRONG, name="RMSprop"),
        replace(STRONG, name="Unheard"),
        Optimizer(name="SGD", weight_decay=0.3, momentum=0.9),
    ],
    ids=lambda optimizer: f"{optimizer.name} {optimizer.weight_decay}",
)
def test_a_usual_or_an_unknown_decay_is_not_found(optimizer: Optimizer) -> None:
    """Horizons of 100 steps and more, no decay, L2 terms that Adam divides, and unknown optimizers are no finding."""
    assert find(shrinking(), optimizer) is None


@pytest.mark.parametrize(
    ("optimizer", "horizon"),
    [
        (Optimizer(name="Lion", weight_decay=10.0, momentum=0.9), 100 / 3),
        (Optimizer(name="SGD", weight_decay=10.0), 100 / 3),
        (Optimizer(name="SGD", weight_decay=1.0, momentum=0.9), 100 / 3),
    ],
)
def test_the_horizon_of_other_optimizers(optimizer: Optimizer, horizon: float) -> None:
    """The L2 term of SGD is a decay of the weights, and momentum repeats it ten times where it is 0.9."""
    finding = find(shrinking(), optimizer)
    assert finding is not None
    assert finding.evidence["horizon_steps"] == pytest.approx(horizon)
    assert ("momentum" in finding.evidence) == (optimizer == Optimizer(name="SGD", weight_decay=1.0, momentum=0.9))


def test_what_learns_or_keeps_its_weights_is_not_found() -> None:
    """A loss that has halved, as in a network whose weights have no scale, or weights that stay are no finding."""
    assert find(shrinking(falling(STEPS))) is None
    assert find(shrinking(weight=10.0)) is None
    assert find(shrinking(weight=np.maximum(SHRINKING, 5.5))) is None
    assert find(without_weights(shrinking())) is None


def test_weights_that_doubled_before_they_shrank_are_no_fault_of_the_decay() -> None:
    """A rate of 5 makes a usual decay strong too, but its updates blow the weights up first."""
    first = np.full((1, 1), 10.0)
    for times, is_found in ((1.5, True), (3.0, False)):
        grown = np.concatenate([first, times * SHRINKING[1:]]) * np.where(np.arange(STEPS) > 100, 1 / times, 1)[:, None]
        assert (find(shrinking(weight=grown)) is not None) == is_found
    late = np.where(np.arange(STEPS) < 100, 10.0 + np.arange(STEPS) / 5, SHRINKING[:, 0])[:, None]
    rates = np.where(np.arange(STEPS) < 99, 1e-4, 0.003)
    assert find(with_rate(shrinking(weight=late), rates)) is not None, "what they grew before does not count"


def test_small_matrices_without_decay_do_not_hide_it() -> None:
    """The middle matrix counts, and not the norm of the whole network."""
    weight = np.repeat(SHRINKING, 4, axis=1)
    weight[:, 0] = 1000.0
    assert find(shrinking(weight=weight)) is not None
    weight[:, 1:3] = 10.0
    assert find(shrinking(weight=weight)) is None, "three of four matrices keep their size"


def test_a_rate_that_is_low_most_of_the_time_is_not_found() -> None:
    """A short peak of the rate, and warm restarts, take the weights for less than two horizons at a time."""
    steps = np.arange(STEPS)
    assert find(with_rate(shrinking(), np.where(steps < 100, 0.003, 0.0003))) is None
    assert find(with_rate(shrinking(), np.where(steps % 120 < 100, 0.003, 0.0003))) is None
    assert find(with_rate(shrinking(), np.nan)) is None
    again = find(with_rate(shrinking(), np.where((steps >= 130) & (steps < 140), 0.0003, 0.003)))
    assert again is not None
    assert again.first_step == 140, "the steps before the low rate do not count"
    warm = find(with_rate(shrinking(), 0.003 * np.minimum(1, (1 + steps) / 100)))
    assert warm is not None
    assert warm.first_step == 66, "from the step on at which the rate is two thirds of its peak"


def test_a_rate_that_falls_later_does_not_end_it() -> None:
    """The numbers are those of the last step with a short horizon, and the loss shows that nothing is mended."""
    steps = np.arange(STEPS)
    finding = find(with_rate(shrinking(), np.where(steps < 200, 0.003, 1e-5)))
    assert finding is not None
    assert (finding.last_step, finding.resolved_step) == (199, None)
    assert finding.evidence["learning_rate"] == 0.003


@pytest.mark.parametrize("way", ["loss", "weights"])
def test_it_ends_when_the_loss_has_halved_or_the_weights_are_back(way: str) -> None:
    """Either shows that the updates have won. A loss that rises again begins a new patience."""
    steps = np.arange(STEPS)
    loss = noisy(2.3, STEPS) * np.where((way == "loss") & (steps >= 200) & (steps < 250), 0.3, 1.0)
    weight = np.where((way == "weights") & (steps >= 200), 8.0, SHRINKING[:, 0])[:, None]
    finding = find(shrinking(loss, weight=weight))
    assert finding is not None
    assert finding.resolved_step == (204 if way == "loss" else 200), "the current loss is the median of nine"


def test_without_one_objective_there_is_no_finding() -> None:
    """Nothing is known to be missed without a loss that measures progress, or of several optimizers."""
    assert find(shrinking(), objective=Objective(kind="none")) is None
    assert find(shrinking(), loss=Loss(surrogate=True)) is None
    assert find(change(shrinking(), series={"learning_rate": shrinking().series["learning_rate"]})) is None
    assert find_condition(shrinking(), ID, Training(optimizers=[STRONG, STRONG])) is None
    assert find(with_turns(shrinking())) is None


def test_a_declared_metric_decides_in_place_of_the_loss() -> None:
    """A metric that halves is progress although the loss is flat. A flat one is none although the loss falls."""
    objective = Objective(kind="metric", metric="error", direction="minimize")
    for metric, loss, is_found in (
        (falling(STEPS), noisy(2.3, STEPS), False),
        (noisy(2.3, STEPS), falling(STEPS), True),
    ):
        block = shrinking(loss)
        block = change(block, metrics={"error": replace(block.series["loss"], values=metric)})
        assert (find(block, objective=objective) is not None) == is_found


def diagnose(decay: float, target: Callable[[Tensor], Tensor], *, is_normalized: bool) -> UpdatedDiagnosis:
    """Fit a function of eight numbers by a small network and AdamW, and diagnose the training."""

    def train(recorded: gradmedic.Run) -> None:
        norm = nn.LayerNorm(48) if is_normalized else nn.Identity()
        model = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 48), norm, nn.Tanh(), nn.Linear(48, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay)
        recorded.watch(model, optimizer)
        for _ in range(250):
            inputs = torch.randn(64, 8)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), target(inputs))
            torch.autograd.backward(loss)
            optimizer.step()
            recorded.log(loss=loss)

    return diagnose_training(train)


def multiply(inputs: Tensor) -> Tensor:
    """Return the product of two inputs, which a linear function cannot fit."""
    return inputs[:, :1] * inputs[:, 1:2]


def test_a_real_training_with_a_strong_decay() -> None:
    """The decay is the only cause of a run whose gradients are healthy and whose loss hardly falls."""
    diagnosis = diagnose(5.0, multiply, is_normalized=True)
    assert (diagnosis.verdict, diagnosis.level) == ("healthy", "attention")
    assert [cause.cause for cause in diagnosis.causes] == [ID]
    assert diagnosis.advice[0].remedy.id == "reduce_weight_decay"


def test_a_real_training_whose_gradients_vanish_with_its_weights() -> None:
    """Without normalization the verdict is vanishing as before, and the decay is its first cause, once."""
    diagnosis = diagnose(5.0, multiply, is_normalized=False)
    assert diagnosis.verdict == "vanishing"
    assert [cause.cause for cause in diagnosis.causes].count(ID) == 1
    assert diagnosis.causes[0].cause == ID
    assert "horizon_steps" in diagnosis.causes[0].evidence


def test_real_trainings_that_learn_all_the_same() -> None:
    """A usual decay, and the same strong decay on a target that the network learns under it, are no finding."""
    for decay, target in ((0.01, multiply), (5.0, lambda inputs: torch.sin(1.5 * inputs[:, :1]))):
        diagnosis = diagnose(decay, target, is_normalized=True)
        assert find_finding(diagnosis, ID) is None
        assert diagnosis.level == "ok"
