"""How Adam's second moment stands to the gradient and to epsilon, against the optimizer's rule in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import backward, perceptron
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradmedic.protocol.probes import MAX_SUBJECTS, name_metric, parse_metric
from gradmedic.torch.probes import sample, second_moment

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")

BETA, EPSILON = 0.9, 1e-3

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "plain": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.9, BETA), eps=EPSILON, foreach=False),
    "foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, BETA), eps=EPSILON, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.9, BETA), eps=EPSILON, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.9, BETA), eps=EPSILON, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2, betas=(0.9, BETA), eps=EPSILON),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_both_numbers_are_those_of_the_rule(kind: str) -> None:
    """The root mean square is of g over the corrected root that was used, but at least epsilon, layer by layer."""
    model = perceptron()
    optimizer = OPTIMIZERS[kind](model.parameters())
    moments = {name: np.zeros(parameter.shape) for name, parameter in model.named_parameters()}
    highest = {name: np.zeros(parameter.shape) for name, parameter in model.named_parameters()}
    with Recording(model, optimizer) as recording:
        for step in range(1, 4):
            optimizer.zero_grad()
            backward(model, 10.0**-step)
            gradients = {
                name: p.grad.double().numpy().copy() for name, p in model.named_parameters() if p.grad is not None
            }
            optimizer.step()
            probes = recording.log().probes
            for name, gradient in gradients.items():
                moments[name] = BETA * moments[name] + (1 - BETA) * gradient**2
                highest[name] = np.maximum(highest[name], moments[name])
                if not name.endswith("weight"):
                    assert name_metric("second_moment_ratio", name) not in probes
                    continue
                used = highest[name] if kind == "amsgrad" else moments[name]
                root = np.sqrt(used / (1 - BETA**step))
                ratio = np.sqrt(np.mean((gradient / np.maximum(root, EPSILON)) ** 2))
                assert probes[name_metric("second_moment_ratio", name)] == pytest.approx(ratio, rel=1e-4)
                share = np.mean(root[gradient != 0] < EPSILON) if (gradient != 0).any() else 0.0
                assert probes[name_metric("epsilon_share", name)] == pytest.approx(share, abs=1e-6)


def test_a_loss_scaler_changes_nothing() -> None:
    """The scale is divided out, whether the scaler does it or a fused step."""
    numbers = []
    for fused, scale in ((False, None), (False, 1024.0), (True, 1024.0)):
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        with Recording(model, optimizer, scaler=scaler) as recording:
            for _ in range(2):
                optimizer.zero_grad()
                scaler.scale((model(torch.randn(8, 6)) ** 2).mean()).backward()
                scaler.step(optimizer)
                scaler.update()
                probes = recording.log().probes
        numbers.append([probes[name] for name in sorted(probes)])
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-4)
    assert numbers[2] == pytest.approx(numbers[0], rel=1e-4)


def test_a_large_layer_is_sampled() -> None:
    """Of a layer with more elements, some that lie evenly apart stand for all."""
    assert len(sample.sample_elements(torch.zeros(100_000))) <= sample.SAMPLE
    assert sample.sample_elements(torch.arange(10.0), 4).tolist() == [0.0, 3.0, 6.0, 9.0]
    transposed = torch.arange(12.0).reshape(3, 4).T
    assert sample.sample_elements(transposed, 4).tolist() == transposed.reshape(-1)[::3].tolist()


def test_as_many_layers_as_a_probe_may_have_are_measured() -> None:
    """Of more layers, some that lie evenly apart are measured."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))
    optimizer = torch.optim.Adam(model.parameters())
    with Recording(model, optimizer) as recording:
        backward(model)
        optimizer.step()
        probes = recording.log().probes
    ratios = [name for name in probes if name.startswith(name_metric("second_moment_ratio"))]
    assert len(ratios) == MAX_SUBJECTS
    assert {name_metric("second_moment_ratio", f"{i}.weight") for i in (0, 19)} <= set(ratios)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adamax])
def test_optimizers_without_such_a_moment_have_no_probe(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Nothing is measured, and nothing fails, where the state holds no second moment of Adam."""
    model = perceptron()
    optimizer = make(model.parameters(), lr=1e-3)
    with Recording(model, optimizer) as recording:
        backward(model)
        optimizer.step()
        probes = {parse_metric(name) for name in recording.log().probes}
    assert {"second_moment_ratio", "epsilon_share"}.isdisjoint(parsed[0] for parsed in probes if parsed)


class NoReading(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails if a number is read from a tensor, for which a device would be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation that reads nothing."""
        del types
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_no_number_is_read_while_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the step in a tensor of a device, as capturable and fused steps have it, all is computed there."""
    monkeypatch.setattr(
        second_moment, "read_number", lambda number: None if isinstance(number, torch.Tensor) else float(number)
    )
    parameter = nn.Parameter(torch.randn(300, 300))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.randn(300, 300)
    optimizer.step()
    with torch.no_grad(), NoReading():  # type: ignore[no-untyped-call]
        numbers = second_moment._measure_layer(optimizer.param_groups[0], optimizer.state[parameter], parameter.grad)
    assert numbers is not None
    assert numbers.tolist() == pytest.approx([1.0, 0.0], rel=1e-4)
