"""Whether gradients of earlier optimizer steps are still there when the next backward pass begins."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import backward, norm, perceptron
from torch import nn

from gradmedic.torch.carried_gradients import AGREEING_STEPS

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")

Step = Callable[[nn.Module, torch.optim.Optimizer], None]


def without_zeroing(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Forget `zero_grad`."""
    backward(model)
    optimizer.step()


def clipped_without_zeroing(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Forget `zero_grad`, and clip."""
    backward(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def accumulated_without_zeroing(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Forget `zero_grad` in a script that adds up two micro-batches."""
    backward(model, 0.5)
    backward(model, 0.5)
    optimizer.step()


def usual(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Set gradients to None."""
    optimizer.zero_grad()
    backward(model)
    optimizer.step()


def zeroed_in_place(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Set gradients to zero."""
    optimizer.zero_grad(set_to_none=False)
    backward(model)
    optimizer.step()


def zeroed_through_data(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Set gradients to zero in a way that no version counter shows."""
    backward(model)
    optimizer.step()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.data.zero_()


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Add up the gradients of four micro-batches."""
    for _ in range(4):
        backward(model, 0.25)
    optimizer.step()
    optimizer.zero_grad()


def zeroed_late(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Compute gradients for another network first, which are removed before those of the step."""
    backward(model)
    optimizer.zero_grad()
    backward(model)
    optimizer.step()


def zeroed_late_through_data(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The same in a way that no version counter shows."""
    backward(model)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.data.zero_()
    backward(model)
    optimizer.step()


def with_closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Compute gradients while the optimizer steps."""

    def closure() -> float:
        optimizer.zero_grad()
        return float(backward(model).detach())

    optimizer.step(closure)


def without_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Step without a backward pass."""
    del model
    optimizer.step()


CASES: list[tuple[Step, bool | None]] = [
    (without_zeroing, True),
    (clipped_without_zeroing, True),
    (accumulated_without_zeroing, True),
    (usual, False),
    (zeroed_in_place, False),
    (zeroed_through_data, False),
    (accumulated, False),
    (zeroed_late, False),
    (zeroed_late_through_data, False),
    (with_closure, None),
    (without_gradients, None),
]


@pytest.mark.parametrize("log_freq", [1, 50])
@pytest.mark.parametrize(("step", "expected"), CASES, ids=[step.__name__ for step, _ in CASES])
def test_it_is_found_out_from_a_few_steps(step: Step, expected: bool | None, log_freq: int) -> None:
    """Gradients are carried over where nothing zeroes them between two steps, whatever else the script does."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    with Recording(model, optimizer, log_freq=log_freq) as recording:
        for _ in range(AGREEING_STEPS + 3):
            step(model, optimizer)
            recording.log()
        training = recording.watch.training()
    assert training is not None
    assert training.carries_gradients is expected


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
        lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
        lambda p: torch.optim.SGD(p, lr=1e-3, weight_decay=0.1, foreach=False),
    ],
)
@pytest.mark.parametrize("zeroes", [False, True])
def test_the_kind_of_the_optimizer_makes_no_difference(make: Callable[..., Any], zeroes: bool) -> None:
    """Fused and plain loops leave gradients as they were."""
    model = perceptron()
    optimizer = make(model.parameters())
    with Recording(model, optimizer) as recording:
        for _ in range(AGREEING_STEPS + 3):
            (usual if zeroes else without_zeroing)(model, optimizer)
            recording.log()
        training = recording.watch.training()
    assert training is not None
    assert training.carries_gradients is not zeroes


def test_one_of_two_optimizers_is_enough() -> None:
    """A script that zeroes the gradients of one optimizer only carries those of the other one."""
    first, second = perceptron(), perceptron()
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in (first, second)]
    with Recording({"first": first, "second": second}, optimizers) as recording:
        for _ in range(AGREEING_STEPS + 3):
            usual(first, optimizers[0])
            without_zeroing(second, optimizers[1])
            recording.log()
        training = recording.watch.training()
    assert training is not None
    assert training.carries_gradients


@pytest.mark.parametrize("step", [without_zeroing, usual, accumulated])
def test_the_training_is_the_same_and_nothing_stays(step: Step) -> None:
    """The weights are bit for bit those of a training that is not watched, and no hook acts any more."""
    weights = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        recording = Recording(model, optimizer) if is_watched else None
        for _ in range(AGREEING_STEPS + 3):
            step(model, optimizer)
            if recording is not None:
                recording.log()
        if recording is not None:
            assert not any(parameter._backward_hooks for parameter in model.parameters())
            recording.watch.close()
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert norm(weights[0][0])


def test_a_closed_watch_keeps_no_gradient() -> None:
    """A watch that was closed keeps no old gradient alive."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Recording(model, optimizer):
        without_zeroing(model, optimizer)
        gradients = [weakref.ref(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    optimizer.zero_grad()
    assert all(gradient() is None for gradient in gradients)
