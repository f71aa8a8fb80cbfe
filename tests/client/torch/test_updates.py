"""Updates that are read from the optimizer's state, compared with copies of the weights in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from torch import Tensor, nn, optim

from gradmedic.torch.update_rules import find_rule

Make = Callable[[Any], optim.Optimizer]

KNOWN: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd decay": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.3),
    "sgd maximize decay": lambda p: optim.SGD(p, lr=0.01, weight_decay=0.3, maximize=True),
    "sgd momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "sgd nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd nesterov decay": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.2),
    "sgd nesterov maximize": lambda p: optim.SGD(
        p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.2, maximize=True
    ),
    "sgd fused": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adam decay amsgrad": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adam decoupled": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "adam tensor rate": lambda p: optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "adam eps": lambda p: optim.Adam(p, lr=0.01, eps=0.1, betas=(0.5, 0.6), maximize=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "adamw foreach amsgrad": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
    "adamw fused maximize": lambda p: optim.AdamW(p, lr=0.01, fused=True, maximize=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
    "rmsprop centered": lambda p: optim.RMSprop(p, lr=0.01, centered=True, alpha=0.8),
    "rmsprop momentum": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.01, initial_accumulator_value=0.1),
}


class MyAdam(optim.Adam):
    """A derived class, which may do anything."""


UNKNOWN: dict[str, Make] = {
    "rmsprop decay": lambda p: optim.RMSprop(p, lr=0.01, weight_decay=0.1),
    "adagrad decay": lambda p: optim.Adagrad(p, lr=0.1, weight_decay=0.1),
    "derived": lambda p: MyAdam(p, lr=0.01),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
}


def model() -> nn.Module:
    """Return layers that are longer than a chunk, short, and of a size in between."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(600, 400), nn.Tanh(), nn.Linear(400, 10), nn.Tanh(), nn.Linear(10, 1))


def backward(network: nn.Module) -> None:
    """Compute gradients."""
    loss = network(torch.randn(8, 600)).square().mean()
    loss.backward()


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_the_update_is_the_difference_of_the_weights(name: str) -> None:
    """The update norm is that of the difference of the weights, up to float32 rounding, for every layer and step."""
    network = model()
    optimizer = (KNOWN | UNKNOWN)[name](network.parameters())
    with Recording(network, optimizer) as recording:
        for _ in range(6):
            optimizer.zero_grad()
            backward(network)
            group = optimizer.param_groups[0]
            rules = [find_rule(optimizer, group, parameter) for parameter in network.parameters()]
            assert all((rule is not None) is (name in KNOWN) for rule in rules)
            before = {n: p.detach().double().clone() for n, p in network.named_parameters()}
            optimizer.step()
            statistics = recording.statistics()
            assert not recording.watch._measured_by_copies
            for n, p in network.named_parameters():
                change = float((p.detach().double() - before[n]).norm())
                rounding = 2.0**-24 * float(before[n].norm())
                assert statistics[n]["update_norm"] == pytest.approx(change, rel=2e-6, abs=rounding), n


def test_float64_is_read_to_its_own_precision() -> None:
    """In float64 the update norm is exact."""
    network = model().double()
    optimizer = optim.AdamW(network.parameters(), lr=0.01)
    with Recording(network, optimizer) as recording:
        network(torch.randn(8, 600, dtype=torch.float64)).square().mean().backward()
        before = {n: p.detach().clone() for n, p in network.named_parameters()}
        optimizer.step()
        for n, numbers in recording.statistics().items():
            change = float((network.get_parameter(n).detach() - before[n]).norm())
            assert numbers["update_norm"] == pytest.approx(change, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_updates_are_compared_with_copies(dtype: torch.dtype) -> None:
    """In 16 bits, where an update may change nothing, the update norm is that of what changed."""
    network = model().to(dtype)
    optimizer = optim.SGD(network.parameters(), lr=1e-7)
    with Recording(network, optimizer) as recording:
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(1.0)
        optimizer.step()
        assert {numbers["update_norm"] for numbers in recording.statistics().values()} == {0.0}


def test_an_optimizer_that_is_not_what_it_says_is_noticed() -> None:
    """If something else updates the weights, the first sample is left out and the following ones are right."""
    network = model()
    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    with Recording(network, optimizer) as recording:
        inner = optim.SGD(network.parameters(), lr=3.0)

        @optimizer.register_step_pre_hook
        def replace(*_: Any) -> None:
            inner.step()

        backward(network)
        optimizer.step()
        assert recording.statistics() == {}
        before = {n: p.detach().double().clone() for n, p in network.named_parameters()}
        optimizer.step()
        for n, numbers in recording.statistics().items():
            change = float((network.get_parameter(n).detach().double() - before[n]).norm())
            assert numbers["update_norm"] == pytest.approx(change, rel=1e-5)


def test_memory_is_that_of_two_chunks_where_the_state_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one short layer at a time is copied."""
    network = model()
    optimizer = optim.Adam(network.parameters(), lr=0.01)
    copied: list[int] = []
    clone = Tensor.clone

    def note(tensor: Tensor, **arguments: Any) -> Tensor:
        copied.append(tensor.numel())
        return clone(tensor, **arguments)

    with Recording(network, optimizer) as recording:
        backward(network)
        monkeypatch.setattr(Tensor, "clone", note)
        for _ in range(10):
            optimizer.step()
            assert recording.statistics()
    assert copied
    assert max(copied) <= 65_536


def test_ten_million_elements_are_measured_to_a_millionth() -> None:
    """Gradient, weight and update of one long layer are right to a millionth."""
    parameter = nn.Parameter(torch.randn(10_500_000) * 0.1)
    module = nn.ParameterDict({"w": parameter})
    optimizer = optim.Adam([parameter], lr=0.01)
    with Recording(module, optimizer) as recording:
        parameter.grad = torch.randn(10_500_000) + 0.3
        before = parameter.detach().double().numpy().copy()
        gradient = parameter.grad.double().numpy()
        optimizer.step()
        (numbers,) = recording.statistics().values()
    assert numbers["grad_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-6)
    assert numbers["grad_mean"] == pytest.approx(gradient.mean(), rel=1e-6)
    assert numbers["weight_norm"] == pytest.approx(np.linalg.norm(before), rel=1e-6)
    change = np.linalg.norm(parameter.detach().double().numpy() - before)
    assert numbers["update_norm"] == pytest.approx(change, rel=1e-6)


class OnADevice:
    """Makes the code for accelerators run on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("statistics", "updates"):
            monkeypatch.setattr(f"gradmedic.torch.{module}.is_measured_on_host", lambda _tensor: False)


@pytest.mark.parametrize("name", ["sgd nesterov decay", "adamw", "rmsprop centered", "adagrad", "adamax"])
def test_the_path_of_accelerators_measures_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for accelerators measures the same numbers, up to the error of a float32 sum."""

    def measure() -> list[dict[str, dict[str, float]]]:
        network = model()
        optimizer = (KNOWN | UNKNOWN)[name](network.parameters())
        with Recording(network, optimizer) as recording:
            found = []
            for i in range(3):
                optimizer.zero_grad()
                backward(network)
                if i == 2:
                    network.get_parameter("0.bias").grad[3] = torch.nan  # type: ignore[index]
                optimizer.step()
                found.append(recording.statistics())
        return found

    on_cpu = measure()
    OnADevice(monkeypatch)
    for expected, found in zip(on_cpu, measure(), strict=True):
        for layer, numbers in found.items():
            # the one float32 sum that the foreach norm is drifts on a CPU, as it does not in pieces
            assert numbers == pytest.approx(expected[layer], rel=2e-4, abs=1e-7, nan_ok=True), layer
