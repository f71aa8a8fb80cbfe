"""How much of a model has gradients that no optimizer uses."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.client.torch.recording import Recording
from torch import nn

from gradmedic.protocol.probes import name_metric

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")

NAME = name_metric("unused_gradient_share")


def probe(model: nn.Module, optimizer: torch.optim.Optimizer) -> float | None:
    """Train one step, and return the share."""
    with Recording(model, optimizer) as recording:
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        return recording.log().probes.get(NAME)


def test_a_head_that_is_in_no_optimizer_is_counted() -> None:
    """A head that replaced another one after the optimizer was made has gradients in vain: 9 of 81 elements."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1] = nn.Linear(8, 1)
    assert probe(model, optimizer) == pytest.approx(9 / 81)


def test_what_gets_no_gradient_is_not_counted() -> None:
    """Frozen layers, and a target network that runs under `no_grad`, have no probe."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    assert probe(model, torch.optim.SGD(model[1].parameters(), lr=0.1)) is None

    class WithTarget(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.online = nn.Linear(8, 1)
            self.target = copy.deepcopy(self.online)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                goal = self.target(inputs)
            outputs: torch.Tensor = self.online(inputs) - 2 * goal
            return outputs

    both = WithTarget()
    assert probe(both, torch.optim.SGD(both.online.parameters(), lr=0.1)) is None
