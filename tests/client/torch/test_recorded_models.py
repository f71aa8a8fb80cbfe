"""Models that torch scripts, traces, exports, transforms, copies or saves, before or after they are watched."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.recording import Recording
from torch import Tensor, nn
from torch.jit import _recursive

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.usefixtures("one_thread", "no_warning"),
]

INPUTS = torch.linspace(-1, 1, 32).reshape(8, 4)
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
Called = Callable[[Tensor], Tensor]


def make_model() -> nn.Sequential:
    """Return a small model with the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def save(model: nn.Module) -> nn.Module:
    """Return the model after a way through a file."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def export(model: nn.Module) -> Called:
    """Return the exported model as a module."""
    exported: Called = torch.export.export(model, (INPUTS,)).module()
    return exported


def transform(model: nn.Module) -> Called:
    """Compute the gradients of each example, and return the model."""
    parameters: dict[str, Any] = dict(model.named_parameters())

    def compute_loss(parameters: dict[str, Any], example: Tensor) -> Any:
        return torch.func.functional_call(model, parameters, (example,)).square().sum()

    torch.func.vmap(torch.func.grad(compute_loss), in_dims=(None, 0))(parameters, INPUTS)
    return model


def call_functionally(model: nn.Module) -> Called:
    """Return a function that calls the model with its own parameters."""
    return lambda inputs: torch.func.functional_call(model, dict(model.named_parameters()), (inputs,))


SHARED: dict[str, Callable[[Any], Called]] = {
    "script": torch.jit.script,
    "trace": lambda model: torch.jit.trace(model, INPUTS),  # type: ignore[no-untyped-call]
    "fx": torch.fx.symbolic_trace,
    "transform": transform,
    "functional call": call_functionally,
}
"""Ways to call a model that share its parameters."""
COPIES: dict[str, Callable[[Any], Called]] = {
    "copy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    "file": save,
    "export": export,
}
"""Ways that make another model."""


def train(called: Called, model: nn.Module, recording: Recording | None, optimizer: torch.optim.Optimizer) -> Tensor:
    """Train three steps, with statistics of each layer at each of them, and return the weights."""
    for _ in range(3):
        optimizer.zero_grad()
        called(INPUTS).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if recording is not None:
            statistics = recording.statistics()
            assert list(statistics) == NAMES
            assert statistics["0.weight"]["grad_norm"] > 0
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer of the model."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train_unwatched(convert: Callable[[Any], Called]) -> Tensor:
    """Return the weights without a watch."""
    model = make_model()
    return train(convert(model), model, None, make_optimizer(model))


@pytest.mark.parametrize("way", SHARED)
def test_a_model_is_recorded_after_it_is_watched(way: str) -> None:
    """A watched model can be recorded, trains as an unwatched one, and its first batch is a real one."""
    model = make_model()
    optimizer = make_optimizer(model)
    with Recording(model, optimizer) as recording:
        called = SHARED[way](model)
        weights = train(called, model, recording, optimizer)
        training = recording.watch.training()
        assert training is not None
        assert training.batch_size in (None, len(INPUTS))
        model(INPUTS)  # the hooks are where they were
        assert recording.layers["0.weight"].kind == "Linear"
    assert torch.equal(weights, train_unwatched(SHARED[way]))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("way", SHARED)
def test_activations_of_a_model_that_is_recorded_are_no_trouble(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """With `activations=True`, a watched model can be recorded too."""
    model = make_model()
    optimizer = make_optimizer(model)
    with Recording(model, optimizer, activations=True) as recording:
        train(SHARED[way](model), model, recording, optimizer)
    if way in ("script", "trace"):
        assert caplog.text.count("no activation is measured") == 1
        caplog.clear()


@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.parametrize("part", ["whole", "layer"])
@pytest.mark.parametrize("activations", [False, True])
def test_a_model_is_watched_after_it_is_recorded(
    way: str, part: str, activations: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that TorchScript runs, all of it or one module, is watched with the kinds of its layers."""

    def convert(model: nn.Sequential) -> Any:
        if part == "whole":
            return SHARED[way](model)
        model[0] = SHARED[way](model[0])  # type: ignore[assignment]
        return model

    model = convert(make_model())
    optimizer = make_optimizer(model)
    with Recording(model, optimizer, activations=activations) as recording:
        weights = train(model, model, recording, optimizer)
        assert [layer.kind for layer in recording.layers.values()] == ["Linear"] * 4
    plain = convert(make_model())
    assert torch.equal(weights, train(plain, plain, None, make_optimizer(plain)))
    caplog.clear()  # of activations that nothing shows


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("activations", [False, True])
def test_a_copy_of_a_watched_model_is_a_model_like_any_other(way: str, activations: bool) -> None:
    """A copy computes the same, is not watched, and leaves the watch of the original as it is."""
    model = make_model()
    optimizer = make_optimizer(model)
    with Recording(model, optimizer, activations=activations) as recording:
        copied = COPIES[way](model)
        assert torch.equal(copied(INPUTS), make_model()(INPUTS))
        weights = train(model, model, recording, optimizer)
        training = recording.watch.training()
        assert training is not None
        assert training.batch_size == len(INPUTS)
    assert torch.equal(weights, train_unwatched(lambda model: model))


def test_hooks_of_the_script_are_still_scripted() -> None:
    """Scripting hides the hooks of a watch only, and torch has its own function again after the last watch."""
    original = _recursive.create_script_module
    calls: list[str] = []
    model = make_model()
    optimizer = make_optimizer(model)
    model.register_forward_hook(lambda *_: calls.append("first"))
    with Recording(model, optimizer):
        model.register_forward_hook(lambda *_: calls.append("last"))
        with pytest.raises(Exception, match="single top-level function"):
            torch.jit.script(model)
        model(INPUTS)
        assert calls == ["first", "last"]
    assert _recursive.create_script_module is original
