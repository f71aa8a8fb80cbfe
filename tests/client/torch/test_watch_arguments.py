"""Arguments of `Run.watch()` that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.client.torch.watched_models import perceptron
from torch import nn

import gradmedic


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, torch.optim.SGD([torch.zeros(1)], lr=0.1)), "model must be"),
        ((perceptron(), "adam"), "optimizer must be"),
        ((nn.Sequential(nn.ReLU()), torch.optim.SGD([torch.zeros(1)], lr=0.1)), "model with parameters"),
        ((perceptron(), torch.optim.SGD([torch.zeros(1)], lr=0.1)), "updates no parameter"),
    ],
)
def test_what_cannot_be_watched_is_refused(arguments: tuple[Any, Any], message: str) -> None:
    """Wrong arguments are errors, in a disabled run too."""
    with pytest.raises(gradmedic.ConfigurationError, match=message):
        gradmedic.init(mode="disabled").watch(*arguments)


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
