"""The evaluation of a trial's models in `eval()`: what it returns, and that it changes nothing."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy as imported_before_the_watch

import gradmedic
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.trial_report import TrialEvaluation, TrialReport
from gradmedic.torch.trial_evaluation import KEPT_STEPS, TrialEvaluator
from gradmedic.trial import TrialInstructions

Loss = Callable[[Any, Tensor], Tensor]


def normalized_model() -> nn.Module:
    """Return a classifier whose batch normalization has moments that lag far behind: its `eval()` is bad."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16, momentum=0.001), nn.ReLU(), nn.Linear(16, 3))
    assert isinstance(model[0].weight, Tensor)
    with torch.no_grad():
        model[0].weight.mul_(20.0)
    return model


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and classes that a linear model can tell apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 4, generator=generator)
    return x, x[:, :3].argmax(1)


def train(
    model: nn.Module,
    loss_of: Loss,
    *,
    steps: int = 8,
    evaluator: TrialEvaluator | None = None,
    targets: Callable[[Tensor, Tensor], Tensor] = lambda _x, y: y,
    factor: float = 1.0,
) -> None:
    """Train a model; the loss that is logged is `factor` times that of `loss_of`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if evaluator is not None:
        evaluator.keep_batches([model])
    model.train()
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = factor * loss_of(model(x), targets(x, y))
        torch.autograd.backward(loss)
        optimizer.step()
        if evaluator is not None:
            evaluator.finish_step(loss)


def cross_entropy(output: Any, y: Tensor) -> Tensor:
    """Return the cross-entropy, by torch's function as it is at the time of the call."""
    return functional.cross_entropy(output, y)


def evaluate_by_hand(model: nn.Module, loss_of: Loss, last: range, *, is_training: bool) -> float:
    """Return the mean loss on some batches, computed on a copy of the model."""
    model = copy.deepcopy(model)
    model.train(is_training)
    with torch.no_grad():
        return sum(float(loss_of(model(batch(step)[0]), batch(step)[1])) for step in last) / len(last)


@pytest.mark.parametrize(
    "loss_of",
    [
        cross_entropy,
        imported_before_the_watch,
        lambda output, y: functional.nll_loss(functional.log_softmax(output, dim=1), y),
        lambda output, y: functional.nll_loss(torch.log(output.softmax(-1)), y),
        lambda output, y: functional.binary_cross_entropy_with_logits(output[:, 0], (y == 0).float()),
        lambda output, y: functional.mse_loss(output.flatten(), functional.one_hot(y, 3).float().flatten()),
        lambda output, y: functional.mse_loss(functional.one_hot(y, 3).float(), output),
        lambda output, y: functional.l1_loss(output[:, -1].double(), y.double()),
        lambda output, y: functional.cross_entropy(output, y) + functional.mse_loss(output, torch.zeros(32, 3)),
    ],
    ids=["plain", "imported", "log_softmax", "log", "column", "flattened", "arguments exchanged", "cast", "two losses"],
)
def test_the_losses_are_those_of_a_loop_by_hand(loss_of: Loss) -> None:
    """Both losses are the means over the last batches with the weights of the end, also if the output is changed."""
    model, evaluator = normalized_model(), TrialEvaluator()
    train(model, loss_of, evaluator=evaluator)
    last = range(8 - KEPT_STEPS, 8)
    expected = [evaluate_by_hand(model, loss_of, last, is_training=mode) for mode in (True, False)]
    found = evaluator.evaluate()
    assert found is not None
    assert (found.batches, found.output_difference) == (KEPT_STEPS, None)
    assert [found.training_loss, found.loss] == pytest.approx(expected, rel=1e-5)
    assert abs(expected[0] - expected[1]) > 0.01 * expected[0]


def test_losses_are_in_the_units_of_the_log() -> None:
    """A loss that the script multiplies before it logs it is multiplied here, too."""
    evaluations = []
    for factor in (1.0, 0.25):
        model, evaluator = normalized_model(), TrialEvaluator()
        train(model, cross_entropy, steps=1, evaluator=evaluator, factor=factor)
        evaluations.append((evaluate_by_hand(model, cross_entropy, range(1), is_training=False), evaluator))
    (plain, first), (quarter, second) = evaluations
    found = first.evaluate(), second.evaluate()
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].loss == pytest.approx(plain)
    assert found[1].loss == pytest.approx(quarter / 4)


def test_a_loss_inside_of_the_model_is_computed_again() -> None:
    """A model that takes targets and returns its loss is called with them again."""

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = normalized_model()

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            output = self.inner(x)
            return output, functional.cross_entropy(output, y)

    model, evaluator = WithLoss(), TrialEvaluator()
    evaluator.keep_batches([model])
    for step in range(3):
        loss = model(*batch(step))[1]
        torch.autograd.backward(loss)
        evaluator.finish_step(loss)
    found = evaluator.evaluate()
    assert found is not None
    expected = evaluate_by_hand(model.inner, cross_entropy, range(3), is_training=False)
    assert found.batches == 3
    assert found.loss == pytest.approx(expected)


def test_accumulated_gradients_are_one_step() -> None:
    """Several calls of the model between two logs are one step: the logged sum is compared with all of them."""
    model, evaluator = normalized_model(), TrialEvaluator()
    evaluator.keep_batches([model])
    for step in range(2):
        total = torch.zeros(())
        for part in range(2):
            x, y = batch(10 * step + part)
            loss = functional.cross_entropy(model(x), y)
            torch.autograd.backward(loss)
            total += loss.detach()
        evaluator.finish_step(total)
    found = evaluator.evaluate()
    assert found is not None
    by_hand = [evaluate_by_hand(model, cross_entropy, range(k, k + 2), is_training=False) for k in (0, 10)]
    assert found.batches == 2
    assert found.loss == pytest.approx(2 * sum(by_hand) / 2)


def by_own_formula(output: Tensor, y: Tensor) -> Tensor:
    """Return a loss without a function of torch."""
    return (output - functional.one_hot(y, 3)).pow(2).mean()


def test_another_loss_is_judged_by_the_outputs() -> None:
    """Where the loss is a formula of the script, both modes' outputs are compared; good moments make them equal."""
    differences = []
    for momentum in (0.001, 1.0):
        model, evaluator = normalized_model(), TrialEvaluator()
        assert isinstance(model, nn.Sequential)
        model[1] = nn.BatchNorm1d(16, momentum=momentum)
        train(model, by_own_formula, evaluator=evaluator)
        found = evaluator.evaluate()
        assert found is not None
        assert (found.loss, found.training_loss) == (None, None)
        differences.append(found.output_difference or 0.0)
    assert differences[0] > 0.5 > 0.1 > differences[1] > 0.0


def test_dropout_is_averaged() -> None:
    """The noise of dropout is no difference between the modes: it is averaged over several passes."""
    torch.manual_seed(0)
    model, evaluator = nn.Sequential(nn.Linear(4, 256), nn.Dropout(0.5), nn.Linear(256, 3)), TrialEvaluator()
    train(model, by_own_formula, evaluator=evaluator)
    x, _ = batch(7)
    with torch.no_grad():
        noisy, clear = model.train()(x), model.eval()(x)
    single = float((noisy - clear).square().sum().sqrt() / (noisy - noisy.mean(0)).square().sum().sqrt())
    found = evaluator.evaluate()
    assert found is not None
    assert found.output_difference is not None
    assert found.output_difference < 0.7 * single


def test_of_several_models_only_outputs_are_compared() -> None:
    """A loss of one model depends on the others, so that the largest difference of their outputs is returned."""
    first, second, evaluator = normalized_model(), nn.Linear(3, 3), TrialEvaluator()
    evaluator.keep_batches([first, second])
    for step in range(3):
        x, y = batch(step)
        loss = functional.cross_entropy(second(first(x)), y)
        torch.autograd.backward(loss)
        evaluator.finish_step(loss)
    found = evaluator.evaluate()
    assert found is not None
    assert found.loss is None
    assert (found.output_difference or 0.0) > 0.5


def test_a_batch_that_was_overwritten_is_left_out() -> None:
    """A script that writes each batch into the same tensors has only its last batch evaluated."""
    model, evaluator = normalized_model(), TrialEvaluator()
    evaluator.keep_batches([model])
    x, y = torch.empty(32, 4), torch.empty(32, dtype=torch.long)
    for step in range(3):
        new_x, new_y = batch(step)
        x.copy_(new_x)
        y.copy_(new_y)
        loss = functional.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        evaluator.finish_step(loss)
    found = evaluator.evaluate()
    assert found is not None
    expected = evaluate_by_hand(model, cross_entropy, range(2, 3), is_training=False)
    assert found.batches == 1
    assert found.loss == pytest.approx(expected)


def test_the_scripts_own_evaluation_is_no_batch() -> None:
    """Calls in `eval()`, with or without gradients, are not kept."""
    model, evaluator = normalized_model(), TrialEvaluator()
    evaluator.keep_batches([model])
    for step in range(2):
        x, y = batch(step)
        loss = functional.cross_entropy(model.train()(x), y)
        torch.autograd.backward(loss)
        functional.cross_entropy(model.eval()(100 * x), y)
        with torch.no_grad():
            functional.cross_entropy(model(100 * x), y)
        evaluator.finish_step(loss)
    expected = evaluate_by_hand(model, cross_entropy, range(2), is_training=False)
    found = evaluator.evaluate()
    assert found is not None
    assert found.batches == 2
    assert found.loss == pytest.approx(expected)


def test_an_evaluation_changes_nothing() -> None:
    """Modes of all modules, buffers, weights, gradients and every random generator are as they were."""
    model, evaluator = normalized_model(), TrialEvaluator()
    assert isinstance(model, nn.Sequential)
    model.append(nn.Dropout(0.5))
    train(model, cross_entropy, evaluator=evaluator)
    model[1].eval()
    model[2].eval()

    def state() -> list[Any]:
        tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
        return [
            [module.training for module in model.modules()],
            [tensor.detach().clone().tolist() for tensor in tensors],
            torch.get_rng_state().tolist(),
            random.getstate(),
            [str(part) for part in np.random.get_state()],
        ]

    before = state()
    found = evaluator.evaluate()
    assert found is not None
    assert state() == before
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not hasattr(functional.cross_entropy, "__wrapped__")


def test_modules_that_were_in_eval_in_training_stay_so() -> None:
    """What a script froze in `eval()` is in `eval()` in both passes, also if the script ends in `eval()`."""
    model, evaluator = normalized_model(), TrialEvaluator()
    assert isinstance(model, nn.Sequential)
    evaluator.keep_batches([model])
    model.train()
    model[1].eval()
    loss = functional.cross_entropy(model(batch(0)[0]), batch(0)[1])
    torch.autograd.backward(loss)
    evaluator.finish_step(loss)
    model.eval()
    found = evaluator.evaluate()
    assert found is not None
    assert found.loss == found.training_loss == pytest.approx(loss.item())
    assert not any(module.training for module in model.modules())


def test_an_error_ends_the_evaluation_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A model that fails in `eval()` is reported in the log, and the script goes on."""

    class TrainsOnly(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("no evaluation here")
            return super().forward(x)

    model, evaluator = TrainsOnly(4, 3), TrialEvaluator()
    train(model, cross_entropy, evaluator=evaluator)
    assert evaluator.evaluate() is None
    assert "no evaluation here" in caplog.text
    assert model.training


def test_nothing_is_evaluated_without_a_batch() -> None:
    """A model that was never called in training has no evaluation."""
    evaluator = TrialEvaluator()
    evaluator.keep_batches([nn.Linear(1, 1)])
    assert evaluator.evaluate() is None


def test_a_loss_in_eval_that_is_not_finite_is_reported() -> None:
    """Moments that are NaN show as a loss that is NaN, and survive the report's JSON."""
    model, evaluator = normalized_model(), TrialEvaluator()
    assert isinstance(model, nn.Sequential)
    train(model, cross_entropy, evaluator=evaluator)
    assert isinstance(model[1].running_mean, Tensor)
    model[1].running_mean.fill_(math.nan)
    found = evaluator.evaluate()
    assert found is not None
    assert math.isnan(found.loss or 0.0)
    read = TrialReport.from_fields(json.loads(json.dumps(TrialReport(evaluation=found).to_fields()))).evaluation
    assert read is not None
    assert math.isnan(read.loss or 0.0)
    assert (read.batches, read.training_loss) == (found.batches, found.training_loss)
    assert TrialEvaluation(batches=1) == TrialEvaluation(batches=1, loss=None)


@pytest.fixture
def as_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service_url: str) -> Callable[..., Path]:
    """Return a function that makes this process a trial and returns the path of its report."""

    def begin(*remedies: Remedy, steps: int) -> Path:
        report = tmp_path / "report.json"
        variables = {
            "GRADMEDIC_BASE_URL": service_url,
            "GRADMEDIC_RUN_ID": str(new_id()),
            "GRADMEDIC_PROJECT": "trials",
            "GRADMEDIC_SEED": "7",
            "GRADMEDIC_REPORT": str(report),
            "GRADMEDIC_TRIAL": to_json(TrialInstructions(remedies=list(remedies), steps=steps)).decode(),
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return report

    return begin


def run_script(run: gradmedic.Run, model: nn.Module, steps: int, scale: float = 1.0) -> list[float]:
    """Train as a script would, with random numbers; return the losses. Inputs are multiplied by `scale`."""
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run.watch(model, optimizer)
    losses = []
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(scale * x), y) + 0.0 * torch.rand(())
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
        run.log(loss=loss)
    return losses


def test_a_trial_trains_as_a_script_without_an_evaluation(as_trial: Callable[..., Path]) -> None:
    """Losses, weights, buffers and random numbers of a trial are, to the bit, those of the script by itself."""
    plain = normalized_model()
    losses = run_script(gradmedic.init(mode="disabled"), plain, 6)
    after_plain = torch.rand(1)
    report = as_trial(steps=6)
    trial = normalized_model()
    run = gradmedic.init()
    with pytest.raises(gradmedic.TrialEnded):
        run_script(run, trial, 6)
    assert torch.equal(after_plain, torch.rand(1))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, trial.state_dict()[name]), name
    assert len(losses) == 6
    evaluation = json.loads(report.read_text())["evaluation"]
    assert evaluation["loss"] != evaluation["training_loss"]


def test_remedies_act_in_the_evaluation(as_trial: Callable[..., Path]) -> None:
    """Inputs are standardized once, and the moments of an inserted normalization are used in `eval()` and are kept."""
    report = as_trial(
        Remedy(id="standardize_inputs"), Remedy(id="insert_normalization", parameters={"kind": "BatchNorm"}), steps=40
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(gradmedic.TrialEnded):
        run_script(gradmedic.init(), model, 40, scale=500.0)
    found = json.loads(report.read_text())
    assert found["applied"]
    evaluation = found["evaluation"]
    with torch.no_grad():  # the model of the end still has its remedies
        losses = [
            float(functional.cross_entropy(model.eval()(500.0 * batch(k)[0]), batch(k)[1])) for k in range(36, 40)
        ]
    assert evaluation["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_a_run_that_is_no_trial_is_not_evaluated(service_url: str) -> None:
    """Outside of trials nothing of a batch is kept."""
    run = gradmedic.init(project="p", base_url=service_url)
    model = normalized_model()
    run_script(run, model, 2)
    assert run._trial._evaluator is None
    assert run.finish()
