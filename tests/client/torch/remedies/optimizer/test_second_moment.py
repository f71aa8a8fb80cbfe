"""Another epsilon, another second beta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.remedies import AppliedRemedies, NotApplicable

pytestmark = pytest.mark.usefixtures("one_thread")

EPSILON = remedy("optimizer_epsilon", epsilon=1e-3)
BETA2 = remedy("beta2", beta2=0.9)
Make = Callable[..., Optimizer]


def squared(model: nn.Module) -> Tensor:
    """Return a loss."""
    value: Tensor = model(batch()).square().mean()
    return value


def train(make: Make, *remedies: Remedy, **settings: Any) -> list[Tensor]:
    """Train for some steps; return the weights. The script must always see its own settings."""
    model = perceptron()
    optimizer = make(model.parameters(), lr=0.01, **settings)
    if remedies:
        apply(model, optimizer, *remedies)
    before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    for _ in range(6):
        step(model, optimizer, squared)
        assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == before
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop])
def test_another_epsilon_is_that_of_the_optimizer(make: Make) -> None:
    """With the remedy the weights are, to the bit, those of a script that sets the epsilon itself."""
    for one, other in zip(train(make, EPSILON), train(make, eps=1e-3), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam])
def test_another_beta_is_that_of_the_optimizer(make: Make) -> None:
    """With the remedy the weights are, to the bit, those of a script that sets the second beta itself."""
    for one, other in zip(train(make, BETA2), train(make, betas=(0.9, 0.9)), strict=True):
        assert torch.equal(one, other)
    smoothed = train(torch.optim.RMSprop, alpha=0.9)
    assert all(torch.equal(a, b) for a, b in zip(train(torch.optim.RMSprop, BETA2), smoothed, strict=True))


def test_both_with_a_rate_and_a_decay() -> None:
    """The two combine with each other and with remedies of the rate and of the weight decay."""
    rate, decay = remedy("scale_learning_rate", factor=0.5), remedy("reduce_weight_decay", factor=0.5)
    by_remedies = train(torch.optim.AdamW, BETA2, decay, EPSILON, rate, weight_decay=0.2)
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.1, betas=(0.9, 0.9), eps=1e-3)
    for _ in range(6):
        step(model, optimizer, squared)
    for one, other in zip(by_remedies, model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("make", "given", "reason"),
    [
        (sgd, EPSILON, "SGD divides by no second moment"),
        (sgd, BETA2, "SGD averages no squared gradients"),
        (lambda m: torch.optim.Adam(m.parameters(), eps=1e-3), EPSILON, "is 0.001 already"),
        (lambda m: torch.optim.Adam(m.parameters(), betas=(0.5, 0.9)), BETA2, "is 0.9 already"),
        (lambda m: torch.optim.Adagrad(m.parameters()), BETA2, "Adagrad averages no"),
    ],
)
def test_optimizers_without_the_setting(make: Callable[[nn.Module], Optimizer], given: Remedy, reason: str) -> None:
    """An optimizer that has no such setting, or has this value already, is refused with the reason."""
    model = perceptron()
    with pytest.raises(NotApplicable, match=reason):
        AppliedRemedies(model, make(model), [given])


@pytest.mark.parametrize("given", [EPSILON, BETA2])
def test_another_optimizer_has_its_own_settings(given: Remedy) -> None:
    """Beside a remedy that lets another optimizer step, the settings of the script's are of no use."""
    model = perceptron()
    switch = remedy("switch_optimizer", optimizer="SGD", learning_rate=0.1)
    with pytest.raises(NotApplicable, match="SGD steps in place of Adam"):
        AppliedRemedies(model, torch.optim.Adam(model.parameters()), [switch, given])


def test_an_epsilon_that_swallows_the_updates_is_repaired() -> None:
    """With gradients far below the epsilon nothing is learned; with a smaller epsilon the loss falls."""

    def train_with(*remedies: Remedy) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        if remedies:
            apply(model, optimizer, *remedies)
        for _ in range(150):
            last = step(model, optimizer, lambda m: 1e-12 * (m(batch()) - 1).square().mean())
        return last * 1e12

    assert train_with() > 0.5
    assert train_with(remedy("optimizer_epsilon", epsilon=1e-15)) < 0.1
