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


UNREGISTERED = name_metric("unregistered_gradient_share")


class Hidden(nn.Module):
    """A model with a layer in a list, which it does not register."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 8)]
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `[batch, 1]`."""
        outputs: torch.Tensor = self.head(self.layers[0](inputs))
        return outputs


def probe_unregistered(model: Hidden, optimizer: torch.optim.Optimizer, *, changes: bool = False) -> list[float | None]:
    """Train three steps, and return the share of each. `changes` writes to the hidden layer in between."""
    shares = []
    with Recording(model, optimizer) as recording:
        for _ in range(3):
            optimizer.zero_grad()
            torch.autograd.backward(model(torch.randn(4, 8)).square().mean())
            optimizer.step()
            if changes:
                with torch.no_grad():
                    model.layers[0].weight.add_(0.1)
                    model.layers[0].bias.add_(0.1)
            shares.append(recording.log().probes.get(UNREGISTERED))
    return shares


def test_layers_in_a_list_are_counted() -> None:
    """72 of 81 elements have gradients, and belong to no module."""
    model = Hidden()
    shares = probe_unregistered(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert shares == [pytest.approx(72 / 81)] * 3


def test_unregistered_layers_that_something_trains_are_not_counted() -> None:
    """The script gives them to the optimizer itself, or changes them by another one that is not watched."""
    model = Hidden()
    optimizer = torch.optim.SGD([*model.parameters(), *model.layers[0].parameters()], lr=0.1)
    assert probe_unregistered(model, optimizer) == [None] * 3
    model = Hidden()
    shares = probe_unregistered(model, torch.optim.SGD(model.parameters(), lr=0.1), changes=True)
    assert shares[1:] == [0.0, 0.0]


def test_what_lies_behind_the_inputs_is_not_counted() -> None:
    """The graph of a discriminator's output goes on to the generator, which another optimizer trains."""
    generator, critic = nn.Linear(2, 8), nn.Linear(8, 1)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    with Recording(critic, optimizer) as recording:
        torch.autograd.backward(critic(generator(torch.randn(4, 2))).square().mean())
        optimizer.step()
        assert recording.log().probes.get(UNREGISTERED) is None
