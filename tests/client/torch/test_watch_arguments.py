"""Arguments of `Run.watch()` that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import backward, perceptron
from torch import nn

import gradmedic


class Schedule:
    """A schedule that holds its optimizer under a name of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.inner = optimizer


class Hookless(torch.optim.Optimizer):
    """An optimizer around another one, without torch's own constructor."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base


class Wrapper:
    """What frameworks put around an optimizer: it is no optimizer of torch, and has one."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        """Step the optimizer inside."""
        self.optimizer.step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, torch.optim.SGD([torch.zeros(1)], lr=0.1)), "model must be"),
        ((perceptron(), "adam"), "optimizer must be a torch.optim.Optimizer .* not str: .*run.log\\(gradients=...\\)"),
        ((perceptron(), None), "create the optimizer first"),
        ((perceptron(), []), "optimizer is empty"),
        ((perceptron(), torch.optim.SGD), "SGD\\(model.parameters\\(\\), ...\\), and not its class"),
        ((perceptron(), list(perceptron().parameters())), "the optimizer that was made with these parameters"),
        ((perceptron(), perceptron()), "the model comes first"),
        ((perceptron(), Schedule(torch.optim.SGD([torch.zeros(1)], lr=0.1))), "watch\\(model, optimizer.inner\\)"),
        ((perceptron(), Hookless(torch.optim.SGD([torch.zeros(1)], lr=0.1))), "watch\\(model, optimizer.base\\)"),
        ((nn.Sequential(nn.ReLU()), torch.optim.SGD([torch.zeros(1)], lr=0.1)), "model with parameters"),
        ((perceptron(), torch.optim.SGD([torch.zeros(1)], lr=0.1)), "updates no parameter"),
    ],
)
def test_what_cannot_be_watched_is_refused(arguments: tuple[Any, Any], message: str) -> None:
    """Wrong arguments are errors, in a disabled run too."""
    with pytest.raises(gradmedic.ConfigurationError, match=message):
        gradmedic.init(mode="disabled").watch(*arguments)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_optimizer_inside_wrappers_is_watched(depth: int) -> None:
    """An object with an optimizer as `.optimizer` is watched as that optimizer, also alone in a mapping."""
    model = perceptron()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(depth):
        optimizer = Wrapper(optimizer)
    given: Any
    for given in (optimizer, [optimizer], {"all": optimizer}):
        with Recording(model, given) as recording:
            backward(model)
            optimizer.step()
            assert len(recording.statistics()) == 6


def test_a_wrapper_around_itself_is_refused() -> None:
    """A chain of wrappers without end is an error and no endless loop."""
    wrapper = Wrapper(None)
    wrapper.optimizer = Wrapper(wrapper)
    with pytest.raises(gradmedic.ConfigurationError, match="not Wrapper"):
        gradmedic.init(mode="disabled").watch(perceptron(), wrapper)  # type: ignore[arg-type]


def test_models_whose_parameters_are_flat_parts_are_refused() -> None:
    """A model that FSDP1 shards is refused: the parts of its flat parameters belong to no layer."""

    class FullyShardedDataParallel(nn.Sequential):
        """Has the name of torch's class, which needs several processes."""

    model = FullyShardedDataParallel(nn.Linear(2, 1))
    with pytest.raises(gradmedic.ConfigurationError, match="fully_shard"):
        gradmedic.init(mode="disabled").watch(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_two_models_need_names_that_differ() -> None:
    """Watching a second model with the same layer names is an error that proposes a prefix."""
    run = gradmedic.init(mode="offline")
    first, second = perceptron(), perceptron()
    run.watch(first, torch.optim.SGD(first.parameters(), lr=0.1))
    with pytest.raises(gradmedic.ConfigurationError, match="prefix"):
        run.watch(second, torch.optim.SGD(second.parameters(), lr=0.1))
    run.watch(second, torch.optim.SGD(second.parameters(), lr=0.1), prefix="second.")
    run.finish()
