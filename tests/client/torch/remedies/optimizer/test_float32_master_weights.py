"""Float32 copies of 16-bit weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, step
from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.remedies import AppliedRemedies, NotApplicable

pytestmark = pytest.mark.usefixtures("one_thread")

MASTER = remedy("float32_master_weights")


def squared(model: nn.Module) -> Tensor:
    """Return a loss."""
    value: Tensor = (model(batch().to(next(model.parameters()).dtype)).float() - 1).square().mean()
    return value


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-4, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1, fused=True),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_weights_are_rounded_float32_weights(name: str, dtype: torch.dtype) -> None:
    """The optimizer does, to the bit, what it does with float32 parameters; memory and gradients stay the script's."""
    model = perceptron(nn.Tanh()).to(dtype)
    wide = copy.deepcopy(model).float()
    optimizer, alone = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](wide.parameters())
    apply(model, optimizer, MASTER)
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    for _ in range(30):
        step(model, optimizer, squared)
        for parameter, other in zip(model.parameters(), wide.parameters(), strict=True):
            assert parameter.grad is not None
            other.grad = parameter.grad.float()
        alone.step()
    for parameter, other in zip(model.parameters(), wide.parameters(), strict=True):
        assert torch.equal(parameter, other.to(dtype))
        assert parameter.dtype == dtype
    assert memory == [parameter.data_ptr() for parameter in model.parameters()]


def test_updates_below_the_precision_add_up() -> None:
    """In bfloat16 small updates are lost and the loss stays; with the remedy it falls."""

    def train(*remedies: Remedy) -> tuple[float, float]:
        model = perceptron(nn.Tanh()).to(torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), lr=3e-4)
        apply(model, optimizer, *remedies)
        all_losses = [step(model, optimizer, squared) for _ in range(400)]
        return all_losses[0], all_losses[-1]

    first, last = train()
    assert last > 0.95 * first
    first, last = train(MASTER)
    assert last < 0.8 * first


def test_what_the_script_sets_is_kept() -> None:
    """A weight that the script sets itself, or loads, is what the next step starts from."""
    model = perceptron().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    apply(model, optimizer, MASTER)
    step(model, optimizer, squared)
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    before = model[0].weight.detach().float().clone()
    step(model, optimizer, squared)
    gradient = model[0].weight.grad.float()
    assert torch.equal(model[0].weight.detach(), (before - 1e-3 * gradient).to(torch.bfloat16))


def test_a_state_that_was_loaded_is_brought_to_float32() -> None:
    """Moments that a script loads, which torch rounds to the parameter's dtype, do not break the next step."""
    model = perceptron().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, squared)  # before the remedy
    apply(model, optimizer, MASTER)
    step(model, optimizer, squared)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, squared)
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(moment.dtype == torch.float32 for moment in moments)


def test_a_step_that_raises_leaves_the_scripts_parameters() -> None:
    """After a step that raised, the next one begins with parameters of the script's dtype and memory."""
    model = perceptron().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    apply(model, optimizer, MASTER)
    step(model, optimizer, squared)
    memory = model[0].weight.data_ptr()
    handle = optimizer.register_step_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        step(model, optimizer, squared)
    handle.remove()
    optimizer.step()
    assert model[0].weight.data_ptr() == memory
    assert model[0].weight.dtype == torch.bfloat16


def test_clipped_updates_and_decay_act_on_the_copies() -> None:
    """Remedies of the weights change the float32 copies, in which small changes are not lost."""
    model = perceptron().to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    apply(model, optimizer, remedy("weight_decay", weight_decay=1.0), MASTER, remedy("clip_update", threshold=1.0))
    before = float(model[0].weight.detach().float().norm())
    for _ in range(1000):
        optimizer.zero_grad()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert float(model[0].weight.detach().float().norm()) == pytest.approx(before * (1 - 1e-5) ** 1000, rel=2e-3)


def test_float32_parameters_need_no_copies() -> None:
    """A model in float32 is refused, also if it computes in bfloat16 under autocast."""
    model = perceptron()
    with pytest.raises(NotApplicable, match="no parameter in bfloat16 or float16"):
        AppliedRemedies(model, torch.optim.AdamW(model.parameters()), [MASTER])
