"""Optimizer steps on which no parameter has a gradient (`missing_gradients`)."""

from __future__ import annotations

import pytest
import torch
from tests.diagnosis.probed_run import with_probes
from tests.diagnosis.recorded_training import diagnose_training
from tests.diagnosis.synthetic_run import falling, layers, run
from tests.diagnosis.whole_run import find_finding
from torch import nn

import gradmedic
from gradmedic.protocol.probes import name_metric
from gradmedic_diagnosis import Diagnostician, UpdatedDiagnosis

STEPS = 150


def train_digits(recorded: gradmedic.Run, order: str) -> None:
    """Train a perceptron, with the calls of a step in an order: its letters are zero_grad, backward and step."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    recorded.watch(model, optimizer)
    for _ in range(STEPS):
        inputs = torch.randn(16, 6)
        for call in order:
            if call == "z":
                optimizer.zero_grad()
            elif call == "s":
                optimizer.step()
            else:
                loss = nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True))
                torch.autograd.backward(loss)
        recorded.log(loss=loss)


@pytest.mark.parametrize("order", ["bzs", "zsb", "zs"])
def test_real_steps_without_gradients(order: str) -> None:
    """Gradients that are zeroed before the step, a step before the backward pass, and none at all: the cause."""

    def train(recorded: gradmedic.Run) -> None:
        if order == "zs":
            train_nothing(recorded)
        else:
            train_digits(recorded, order)

    diagnosis = diagnose_training(train)
    finding = find_finding(diagnosis, "missing_gradients")
    assert finding is not None
    assert (finding.severity, finding.first_step, diagnosis.level) == ("warning", 0, "attention")
    assert diagnosis.causes[0].cause == "missing_gradients"
    assert [advice.remedy.id for advice in diagnosis.advice[:2]] == ["call_zero_grad", "connect_parameters"]
    assert diagnosis.summary == finding.explanation
    assert ("before optimizer.step()" in finding.explanation) == (order == "bzs" or order == "zsb")
    assert finding.evidence["steps_without_gradients"] >= 3


def train_nothing(recorded: gradmedic.Run) -> None:
    """Step without any backward pass."""
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recorded.watch(model, optimizer)
    for _ in range(STEPS):
        loss = model(torch.randn(16, 6)).square().mean()
        optimizer.step()
        recorded.log(loss=loss)


@pytest.mark.parametrize("order", ["zbs", "bsz", "zbbs"])
def test_real_steps_with_gradients(order: str) -> None:
    """The usual orders of a step, and two backward passes, are no finding."""
    diagnosis = diagnose_training(lambda recorded: train_digits(recorded, order))
    assert find_finding(diagnosis, "missing_gradients") is None


def test_an_update_inside_the_backward_pass_is_none() -> None:
    """Hooks that update each parameter as soon as it has its gradient, and drop that, leave nothing for the step."""

    def train(recorded: gradmedic.Run) -> None:
        model = nn.Linear(6, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

        def update(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            with torch.no_grad():
                parameter -= 0.05 * parameter.grad
            parameter.grad = None

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(update)  # type: ignore[no-untyped-call]
        recorded.watch(model, optimizer)
        for _ in range(STEPS):
            inputs = torch.randn(16, 6)
            loss = nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True))
            torch.autograd.backward(loss)
            optimizer.step()
            recorded.log(loss=loss)

    assert find_finding(diagnose_training(train), "missing_gradients") is None


def diagnose(counts: dict[int, float]) -> UpdatedDiagnosis:
    """Diagnose a healthy run with the probe on some steps."""
    block = with_probes(run(falling(60)), {name_metric("steps_without_gradients"): counts})
    return Diagnostician(layers()).update(block)


def test_three_probes_in_a_row_open_it_and_a_gradient_closes_it() -> None:
    """A script may step once or twice before its first backward pass."""
    assert find_finding(diagnose({0: 1.0, 1: 2.0, 2: 0.0, 10: 0.0}), "missing_gradients") is None
    opened = find_finding(diagnose({0: 1.0, 1: 2.0, 2: 3.0, 10: 4.0}), "missing_gradients")
    assert opened is not None
    assert (opened.first_step, opened.last_step, opened.resolved_step) == (0, 10, None)
    resolved = find_finding(diagnose({0: 1.0, 1: 2.0, 2: 3.0, 10: 4.0, 20: 0.0}), "missing_gradients")
    assert resolved is not None
    assert resolved.resolved_step == 20
