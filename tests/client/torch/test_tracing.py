"""A model that is called to record its operations before it trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.client.torch.watched_models import arrays, backward, perceptron
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import gradmedic

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning"),
]

EXAMPLE_BATCH = 3
"""Examples of the traced batch. A batch of the training has eight."""


def trace(model: nn.Module) -> object:
    """Record the model as `torch.jit.trace` does, which `SummaryWriter.add_graph` calls too."""
    return torch.jit.trace(model, torch.full((EXAMPLE_BATCH, 6), 100.0))  # type: ignore[no-untyped-call]


def make_fake(model: nn.Module) -> object:
    """Call the model with tensors that have no data."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return model(torch.empty(EXAMPLE_BATCH, 6))


def make_graph(model: nn.Module) -> object:
    """Record the model with torch.fx."""
    return make_fx(lambda inputs: model(inputs))(torch.full((EXAMPLE_BATCH, 6), 100.0))


def transform(model: nn.Module) -> object:
    """Compute a gradient for each example with torch.func."""

    def loss(parameters: dict[str, Tensor], example: Tensor) -> Any:
        return torch.func.functional_call(model, parameters, (example,)).sum()

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.full((EXAMPLE_BATCH, 6), 100.0))


RECORDERS: dict[str, Callable[[nn.Module], object]] = {
    "jit.trace": trace,
    "fake tensors": make_fake,
    "make_fx": make_graph,
    "torch.func": transform,
}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Collect the warnings of the SDK."""
    with caplog.at_level(logging.WARNING, "gradmedic"):
        yield caplog


def train(url: str, record: Callable[[nn.Module], object] | None, *, watched: bool) -> tuple[Any, Any]:
    """Train a model that may be recorded between `watch()` and the first step; return the run and the weights."""
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = gradmedic.init("traced", base_url=url, mode="online" if watched else "disabled")
    run.watch(model, optimizer, activations=True)
    if record is not None:
        record(model)
    for _ in range(5):
        optimizer.zero_grad()
        loss = backward(model)
        optimizer.step()
        run.log(loss)
    assert run.finish()
    return run, arrays(model)


@pytest.mark.parametrize("name", RECORDERS)
def test_a_run_whose_model_was_recorded_is_stored_with_the_facts_of_its_own_batch(
    name: str, service_url: str, client: gradmedic.Client, warnings: pytest.LogCaptureFixture
) -> None:
    """The run is stored, and its first batch is the first one of the training, not the one that was recorded."""
    run, weights = train(service_url, RECORDERS[name], watched=True)
    _, expected = train(service_url, RECORDERS[name], watched=False)
    stored = client.runs.get(run.id)
    assert stored.last_step == 4
    assert stored.training is not None
    assert stored.training.batch_size == 8
    assert stored.training.input_abs_max is not None
    assert stored.training.input_abs_max < 100.0
    assert all(weights[name].tobytes() == expected[name].tobytes() for name in expected)
    assert not warnings.records


def test_what_a_model_records_is_the_same_with_and_without_a_watch() -> None:
    """The graph that `torch.jit.trace` records has no operation of the SDK."""
    model = perceptron()
    example = torch.ones(EXAMPLE_BATCH, 6)
    plain = torch.jit.trace(model, example)  # type: ignore[no-untyped-call]
    with gradmedic.init(mode="offline") as run:
        run.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), activations=True)
        watched = torch.jit.trace(model, example)  # type: ignore[no-untyped-call]
    kinds, expected = ([node.kind() for node in traced.inlined_graph.nodes()] for traced in (watched, plain))
    assert kinds == expected
