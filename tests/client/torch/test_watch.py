"""What a `Watch` measures while a torch model trains."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import OPTIMIZERS, arrays, backward, norm, perceptron
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_statistics_are_those_of_gradients_weights_and_updates(optimizer_name: str) -> None:
    """All seven statistics of every layer and step are those that numpy computes from copies."""
    model = perceptron()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    with Recording(model, optimizer) as recording:
        for _ in range(5):
            optimizer.zero_grad()
            backward(model)
            gradients = {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
            before = arrays(model)
            optimizer.step()
            after = arrays(model)
            statistics = recording.statistics()
            assert list(statistics) == list(before)
            for name, numbers in statistics.items():
                gradient = gradients[name].astype(np.float64)
                expected = {
                    "grad_norm": np.linalg.norm(gradient),
                    "grad_abs_max": np.abs(gradient).max(),
                    "grad_zero_fraction": np.mean(gradient == 0),
                    "nonfinite_count": 0.0,
                    "weight_norm": np.linalg.norm(before[name].astype(np.float64)),
                }
                assert {k: numbers[k] for k in expected} == pytest.approx(expected, rel=1e-6)
                change = np.linalg.norm(after[name].astype(np.float64) - before[name])
                rounding = 2.0**-23 * expected["weight_norm"]  # rounding of the weights, which the state does not show
                assert numbers["update_norm"] == pytest.approx(change, rel=1e-6, abs=rounding)
                assert numbers["grad_mean"] == pytest.approx(gradient.mean(), abs=1e-6 * np.abs(gradient).max())


def train(optimizer_name: str, *, watched: bool, clip: bool) -> tuple[dict[str, NDArray[Any]], Tensor, list[float]]:
    """Train a model with dropout; return its weights, the generator's state and the losses."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.BatchNorm1d(50), nn.Sigmoid(), nn.Linear(50, 1))
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    recording = Recording(model, optimizer, log_freq=3) if watched else None
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = backward(model)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if recording is not None:
            recording.log()
    if recording is not None:
        recording.watch.close()
    return arrays(model), torch.get_rng_state(), losses


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_training_is_bit_identical_with_and_without(optimizer_name: str, clip: bool) -> None:
    """Weights, losses and the random generator's state are equal to the bit."""
    weights, state, losses = train(optimizer_name, watched=False, clip=clip)
    watched_weights, watched_state, watched_losses = train(optimizer_name, watched=True, clip=clip)
    assert losses == watched_losses
    assert torch.equal(state, watched_state)
    for name, expected in weights.items():
        assert expected.tobytes() == watched_weights[name].tobytes(), name


# --- which layers, which steps ------------------------------------------------------------------------------------


def test_frozen_and_unused_parameters_are_absent() -> None:
    """A layer without a gradient has no statistics in that step; a layer in no optimizer is frozen."""
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1), "frozen": nn.Linear(3, 1)})
    model["frozen"].requires_grad_(False)
    optimizer = torch.optim.SGD([*model["used"].parameters(), *model["unused"].parameters()], lr=0.1)
    with Recording(model, optimizer) as recording:
        model["used"](model["frozen"](torch.randn(2, 3)).expand(2, 3)).sum().backward()
        optimizer.step()
        assert set(recording.statistics()) == {"used.weight", "used.bias"}
        assert {name for name, layer in recording.layers.items() if layer.frozen} == {"frozen.weight", "frozen.bias"}


def test_tied_weights_are_one_layer() -> None:
    """A parameter with two names is listed and measured once."""
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 3), "output": nn.Linear(3, 7, bias=False)})
    model["output"].weight = model["embedding"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        model["output"](model["embedding"](torch.tensor([1, 2]))).sum().backward()
        optimizer.step()
        assert list(recording.statistics()) == ["embedding.weight"]


def test_alternating_optimizers_touch_their_own_layers() -> None:
    """Only the layers of optimizers that stepped since the last log() have statistics."""
    models = {"generator": perceptron(), "critic": perceptron()}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=rate) for (name, model), rate in zip(
        models.items(), (0.1, 0.2), strict=True)}  # fmt: skip
    with Recording(models, list(optimizers.values())) as recording:
        for stepping in (["critic"], ["generator"], ["critic", "critic", "generator"]):
            for name in stepping:
                optimizers[name].zero_grad()
                backward(models[name])
                optimizers[name].step()
            measurement = recording.log()
            assert {layer.split(".")[0] for layer in recording.by_layer(measurement)} == set(stepping)
            assert measurement.learning_rate == (0.2 if "critic" in stepping else 0.1)


def test_several_optimizer_steps_in_one_log_keep_the_last_values_and_the_worst_count() -> None:
    """A NaN gradient between two logs is not hidden by a finite step after it."""
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with Recording(layer, optimizer) as recording:
        for values in ([[np.nan, np.inf]], [[3.0, 4.0]]):
            layer.weight.grad = torch.tensor(values)
            optimizer.step()
        (numbers,) = recording.statistics().values()
        assert numbers["nonfinite_count"] == 2
        assert recording.statistics() == {}


def test_seldom_logging_of_clipped_steps_holds_few_coefficients() -> None:
    """Of many clipped steps that are not sampled, few coefficients are held, and the smallest one counts."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        recording.sampler.is_sampling = False
        for max_norm in (1e-3, *[1e-2] * 1000):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
        assert len(recording.watch._measurement.clip_coefficients) <= 300
        assert recording.log().clip_coefficient == pytest.approx(1e-3 / float(norm), rel=1e-3)


def test_seldom_logging_keeps_the_same_numbers_and_no_memory() -> None:
    """Of a thousand optimizer steps, the last values, largest count and smallest coefficient are kept."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(gradient: float, max_norm: float) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()

    with Recording(model, optimizer) as recording:
        step(1.0, max_norm=1e-3)
        for parameter in list(model.parameters())[:1]:
            parameter.grad = torch.full_like(parameter, math.inf)
        optimizer.step()
        for parameter in model.parameters():
            parameter.data.fill_(1.0)
        for _ in range(200):
            step(1.0, max_norm=100.0)
        tracemalloc.start()
        for _ in range(800):
            step(1.0, max_norm=100.0)
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        step(0.5, max_norm=100.0)
        measurement = recording.log()
    assert grown < 800_000  # one by one they take twice as much
    assert measurement.row is not None
    counts = measurement.row.column("nonfinite_count")
    norms = measurement.row.column("grad_norm")
    assert counts is not None
    assert norms is not None
    assert list(counts) == [30.0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(norms, [0.5 * math.sqrt(p.numel()) for p in model.parameters()], rtol=1e-6)
    assert measurement.clip_coefficient == pytest.approx(1e-3 / math.sqrt(sum(p.numel() for p in model.parameters())))


def test_accumulated_gradients_are_measured_once_whole() -> None:
    """A log() without an optimizer step has no statistics; the one with a step has those of the whole gradient."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        for _ in range(3):
            backward(model)
            measurement = recording.log()
            assert measurement.row is None
            assert not measurement.skipped
        backward(model)
        expected = norm(model.get_parameter("0.weight").grad)
        optimizer.step()
        assert recording.statistics()["0.weight"]["grad_norm"] == pytest.approx(expected, rel=1e-6)


def test_parameters_that_join_the_optimizer_later_are_layers() -> None:
    """Parameters of a group that is added later are layers, with the model's name if they have one."""
    model = perceptron()
    stray = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        backward(model)
        optimizer.step()
        assert set(recording.statistics()) == {"0.weight", "0.bias"}
        optimizer.add_param_group({"params": list(model[2].parameters())})
        model.append(extra := nn.Linear(1, 1))
        optimizer.add_param_group({"params": [*extra.parameters(), stray], "lr": 0.5})
        stray.grad = torch.ones(3)
        backward(model)
        optimizer.step()
        measurement = recording.log()
        assert set(recording.by_layer(measurement)) == {
            "0.weight", "0.bias", "2.weight", "2.bias", "5.weight", "5.bias", "parameter",
        }  # fmt: skip
        assert measurement.learning_rate == 0.5


def test_only_sampled_steps_are_measured() -> None:
    """With log_freq 4, the first twenty steps and then every fourth are measured."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer, log_freq=4) as recording:
        sampled = []
        for i in range(30):
            backward(model)
            optimizer.step()
            if recording.statistics():
                sampled.append(i)
    assert sampled == [*range(20), 20, 24, 28]


def test_few_optimizer_steps_of_a_loop_that_never_logs_are_measured() -> None:
    """Without log(), one in ten optimizer steps is measured after the first ones; weights are as without a watch."""

    def run(*, watched: bool) -> tuple[dict[str, NDArray[Any]], int]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        recording = Recording(model, optimizer, log_freq=10, activations=True) if watched else None
        for _ in range(500):
            optimizer.zero_grad()
            backward(model)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        if recording is None:
            return arrays(model), 0
        measured = recording.watch._update_count
        assert len(recording.statistics()) == 4
        recording.watch.close()
        return arrays(model), measured

    weights, measured = run(watched=True)
    expected, _ = run(watched=False)
    assert 40 <= measured <= 90
    assert all(weights[name].tobytes() == expected[name].tobytes() for name in expected)
