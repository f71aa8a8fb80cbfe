"""How the gradient travels from block to block."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import arrays, perceptron
from torch import Tensor, nn

from gradmedic.protocol.probes import MAX_SUBJECTS, name_metric, parse_metric
from gradmedic.torch.probes.block_flow import MOST_ELEMENTS, compute_rms, find_blocks, take_sample

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")


class Residual(nn.Module):
    """A block with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Add the inner signal."""
        result: Tensor = x + self.inner(x)
        return result


class Stack(nn.Module):
    """A network of residual blocks that are called from the last one to the first."""

    def __init__(self, blocks: int, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(blocks))
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Call the blocks, and keep what they give out."""
        x = self.first(x)
        self.kept = []
        for block in reversed(self.blocks):
            x = block(x)
            if x.requires_grad:
                x.retain_grad()
            self.kept.append(x)
        return x


def rms(tensor: Tensor | None) -> float:
    """Return the root mean square in float64, by numpy."""
    assert tensor is not None
    return math.sqrt(np.square(tensor.detach().double().numpy()).mean())


def train_step(
    recording: Recording, model: nn.Module, optimizer: torch.optim.Optimizer, scale: float = 1.0
) -> dict[str, float]:
    """Make one step, and return its probes."""
    optimizer.zero_grad()
    (model(torch.randn(8, 6)).square().mean() * scale).backward()
    optimizer.step()
    return dict(recording.log().probes)


def subjects(probes: dict[str, float], probe: str) -> list[str]:
    """Return what a probe was measured of, in order."""
    parsed = [parse_metric(name) for name in probes]
    return [each[1] for each in parsed if each is not None and each[0] == probe]


def test_numbers_are_those_of_autograd_in_the_order_of_calls() -> None:
    """Gradient, output and zeros at each block are what autograd and numpy give; the order is that of the calls."""
    model = Stack(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        for _ in range(2):
            probes = train_step(recording, model, optimizer)
            names = [f"blocks.{i}" for i in (4, 3, 2, 1, 0)]
            assert subjects(probes, "output_gradient_rms") == names
            for name, kept in zip(names, model.kept, strict=True):
                assert probes[name_metric("output_gradient_rms", name)] == pytest.approx(rms(kept.grad), rel=1e-6)
                assert probes[name_metric("output_rms", name)] == pytest.approx(rms(kept), rel=1e-6)
                assert probes[name_metric("output_zero_share", name)] == 0.0


def test_several_calls_count_together() -> None:
    """Of two backward passes of one step, the root of the mean square counts."""
    model = Stack(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        squares = []
        for factor in (1.0, 10.0):
            (model(torch.randn(8, 6)).square().mean() * factor).backward()
            squares.append(rms(model.kept[0].grad) ** 2)
        optimizer.step()
        probes = recording.log().probes
        number = probes[name_metric("output_gradient_rms", "blocks.2")]
        assert number == pytest.approx(math.sqrt(sum(squares) / 2), rel=1e-6)


def test_a_model_without_repetition_is_measured_behind_its_matrices() -> None:
    """A perceptron has its linear layers, with the dead share of none."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        assert subjects(train_step(recording, model, optimizer), "output_rms") == ["0", "2", "4"]


def test_of_many_blocks_some_are_measured() -> None:
    """Of 40 blocks, 16 are chosen, the first and the last in the order of calls among them."""
    model = Stack(40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        for _ in range(2):
            names = subjects(train_step(recording, model, optimizer), "output_gradient_rms")
            assert len(names) == MAX_SUBJECTS
            assert (names[0], names[-1]) == ("blocks.39", "blocks.0")


def test_a_transformer_has_its_layers_and_names_go_with_the_run() -> None:
    """Blocks of a named model have the names of its layers, also inside `torch.compile`'s wrapper."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording({"encoder": model}, optimizer) as recording:
        model(torch.randn(2, 5, 8)).square().mean().backward()
        optimizer.step()
        names = subjects(dict(recording.log().probes), "output_gradient_rms")
        assert names == [f"encoder.layers.{i}" for i in range(4)]
        assert all(any(layer.startswith(f"{name}.") for layer in recording.layers) for name in names)
    assert list(find_blocks(dict(model.named_modules()))) == [f"layers.{i}" for i in range(4)]


def test_a_loss_scale_is_divided_away() -> None:
    """The gradient under a loss scaler is that without it."""
    model = Stack(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Recording(model, optimizer, scaler=scaler) as recording:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(8, 6)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            number = recording.log().probes[name_metric("output_gradient_rms", "blocks.0")]
            assert number == pytest.approx(rms(model.kept[-1].grad) / 1024, rel=1e-5)


def test_evaluations_and_steps_that_are_not_probed_have_none() -> None:
    """Neither an evaluation nor a step between two probes is measured."""
    model = Stack(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        with torch.no_grad():
            model(torch.randn(8, 6))
        assert not recording.log().probes
        probed = [bool(train_step(recording, model, optimizer)) for _ in range(6)]
    assert True in probed
    assert False in probed


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_numbers_of_any_size_are_right(size: float) -> None:
    """Squares beyond float32 do no harm."""
    numbers = torch.randn(1000)
    assert float(compute_rms(numbers * size)) == pytest.approx(size * rms(numbers), rel=1e-6)


def test_a_large_tensor_is_sampled_evenly() -> None:
    """A gradient that is zero but for the last time step is found, in any layout of the memory."""
    gradient = torch.zeros(64, 128, 32)
    gradient[:, -1] = 1.0
    for tensor in (gradient, gradient.transpose(0, 2), gradient.expand(3, -1, -1, -1)):
        sample = take_sample(tensor)
        assert sample.numel() <= MOST_ELEMENTS
        assert float(sample.mean()) == pytest.approx(1 / 128, rel=0.05)


def test_training_is_the_same_and_nothing_is_kept() -> None:
    """Weights and random numbers are those of a training that is not watched; outputs are freed; hooks go."""
    weights = []
    for is_watched in (False, True):
        torch.manual_seed(1)
        model = Stack(4)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        recording = Recording(model, optimizer) if is_watched else None
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            if recording is not None:
                recording.log()
        if recording is not None:
            output = weakref.ref(model.kept[0])
            model.kept = []
            gc.collect()
            assert output() is None
            copied = copy.deepcopy(model)
            copied(torch.randn(8, 6)).sum().backward()
            torch.manual_seed(2)
            recording.watch.close()
        torch.manual_seed(3)
        weights.append((arrays(model), torch.rand(3)))
        assert not any(module._forward_hooks for module in model.modules())
    for name, array in weights[0][0].items():
        np.testing.assert_array_equal(array, weights[1][0][name])


def test_checkpointed_and_structured_blocks_are_measured() -> None:
    """Blocks inside checkpointing, and blocks that give out tuples, have the gradients of autograd."""

    class Pair(Residual):
        def forward(self, x: Any) -> Any:
            x = x[0] if isinstance(x, tuple) else x
            return super().forward(x), None

    for use_reentrant in (False, True):
        torch.manual_seed(0)
        blocks = nn.Sequential(*(Pair(6) for _ in range(3)))
        model = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(6, 1)})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with Recording(model, optimizer) as recording:
            inputs = torch.randn(8, 6, requires_grad=True)
            x: Any = inputs
            for block in blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=use_reentrant)[0]
            x.retain_grad()
            model["head"](x).sum().backward()
            optimizer.step()
            probes = recording.log().probes
        assert probes[name_metric("output_gradient_rms", "blocks.2")] == pytest.approx(rms(x.grad), rel=1e-6)
