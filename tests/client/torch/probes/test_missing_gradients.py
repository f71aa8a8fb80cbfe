"""How many optimizer steps in a row had no gradient."""

from __future__ import annotations

import pytest
import torch
from tests.client.torch.recording import Recording
from torch import nn

from gradmedic.protocol.probes import name_metric

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")

NAME = name_metric("steps_without_gradients")


def train(steps: str) -> list[float | None]:
    """Train some steps, and return the number of each: `b` is a backward pass, `z` zeroes, `w` writes to a weight."""
    model = nn.Linear(8, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    counts = []
    with Recording(model, optimizer) as recording:
        for calls in steps.split():
            for call in calls:
                if call == "b":
                    torch.autograd.backward(model(torch.randn(4, 8)).square().mean())
                elif call == "z":
                    optimizer.zero_grad()
                elif call == "w":
                    with torch.no_grad():
                        model.weight += 0.1
            optimizer.step()
            counts.append(recording.log().probes.get(NAME))
    return counts


def test_steps_without_gradients_are_counted_in_a_row() -> None:
    """Cleared and missing gradients count alike; a step with a gradient begins anew."""
    assert train("bz - b") == [1.0, 2.0, 0.0]
    assert train("b z bz") == [None, 1.0, 2.0]


def test_a_usual_training_has_no_such_probe() -> None:
    """Nothing is sent before the first step without gradients."""
    assert train("zb zb zb") == [None, None, None]


def test_an_optimizer_of_copies_changes_the_model() -> None:
    """Gradients and updates are those of copies in float32, which are written back: the parameters have no gradient."""
    model = nn.Linear(8, 2)
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    optimizer = torch.optim.SGD([*copies, model.bias], lr=0.1)
    counts = []
    with Recording(model, optimizer) as recording:
        for _ in range(3):
            torch.autograd.backward(model(torch.randn(4, 8)).square().mean())
            for copied, parameter in zip(copies, model.parameters(), strict=True):
                copied.grad, parameter.grad = parameter.grad, None
            optimizer.step()
            with torch.no_grad():
                for copied, parameter in zip(copies, model.parameters(), strict=True):
                    parameter.copy_(copied)
            counts.append(recording.log().probes.get(NAME))
    assert counts == [None, None, None]


def test_a_write_to_a_parameter_is_a_change() -> None:
    """Something else trains the model: whether gradients are there does not matter."""
    assert train("bz bzw bz") == [1.0, 0.0, 1.0]
