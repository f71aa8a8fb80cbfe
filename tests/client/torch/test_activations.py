"""Statistics of activations, the scale of targets, and clipping on demand."""

from __future__ import annotations

import copy
import io
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.guards.guarding import guard
from tests.client.torch.recording import Recording
from torch import Tensor, nn
from torch.nn import functional

import gradmedic
from gradmedic.guard.policy import GuardPolicy
from gradmedic.protocol.statistics import STATISTICS

pytestmark = pytest.mark.usefixtures("one_thread")


class Functional(nn.Module):
    """A model whose activations are functions, one of them behind a normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 50), nn.Linear(50, 50), nn.Linear(50, 1)
        self.norm = nn.LayerNorm(50)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        x = torch.tanh(self.first(x))
        result: Tensor = self.third(torch.relu(self.norm(self.second(x))))
        return result


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> None:
    """Train once."""
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def test_zeros_and_saturated_outputs_are_counted() -> None:
    """Fractions are those of the activation behind a layer, for weight and bias; without one they are 0."""
    model = nn.Sequential(
        nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 50), nn.BatchNorm1d(50), nn.Tanh(), nn.Linear(50, 50), nn.Sigmoid(),
        nn.Linear(50, 1),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = 30.0 * torch.randn(64, 4)
    with Recording(model, optimizer, activations=True) as recording:
        for _ in range(2):
            with torch.no_grad():
                after_relu = model[:2](inputs)
                after_tanh = model[2:5](after_relu)
                after_sigmoid = model[5:7](after_tanh)
            step(model, optimizer, inputs)
            statistics = recording.statistics()
            zeros = {name: numbers["activation_zero_fraction"] for name, numbers in statistics.items()}
            saturated = {name: numbers["activation_saturation"] for name, numbers in statistics.items()}
            assert zeros["0.weight"] == zeros["0.bias"] == pytest.approx(float((after_relu == 0).float().mean()))
            slope = 1 - after_tanh.double() ** 2
            expected = float((slope < 0.05).double().mean())
            assert saturated["2.weight"] == saturated["3.weight"] == pytest.approx(expected)
            slope = 4 * after_sigmoid.double() * (1 - after_sigmoid.double())
            assert saturated["5.bias"] == pytest.approx(float((slope < 0.05).double().mean()))
            assert zeros["7.weight"] == saturated["7.weight"] == saturated["0.weight"] == 0.0


def test_activations_that_are_functions_are_seen_in_their_layer() -> None:
    """From the second step on, activations that are functions are measured, but not behind a normalization."""
    model = Functional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = 100.0 * torch.randn(64, 4)
    expected = float((torch.tanh(model.first(inputs)).abs() > math.sqrt(0.95)).float().mean())
    with Recording(model, optimizer, activations=True) as recording:
        step(model, optimizer, inputs)
        recording.log()
        step(model, optimizer, inputs)
        statistics = recording.statistics()
    assert statistics["first.weight"]["activation_saturation"] == pytest.approx(expected)
    assert statistics["second.weight"]["activation_zero_fraction"] == 0.0


def test_a_meter_changes_nothing_and_leaves_no_trace() -> None:
    """Weights are the same to the bit, copies work, and no hook is left in the end."""

    def train(*, watched: bool) -> bytes:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        recording = Recording(model, optimizer, activations=True) if watched else None
        for _ in range(5):
            step(model, optimizer, torch.randn(8, 4))
            if recording is not None:
                copy.deepcopy(model).eval()(torch.ones(1, 4))
                torch.save(model, io.BytesIO())
                recording.log()
        if recording is not None:
            recording.watch.close()
        assert not any(module._forward_hooks for module in model.modules())
        return b"".join(p.detach().numpy().tobytes() for p in model.parameters())

    assert train(watched=True) == train(watched=False)


def test_activations_are_stored(service_url: str, client: gradmedic.Client) -> None:
    """A run with activations has nine statistics."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradmedic.init("activations", base_url=service_url) as run:
        run.watch(model, optimizer, activations=True)
        for _ in range(5):
            step(model, optimizer, 100.0 * torch.randn(8, 4))
            run.log()
    assert client.runs.get(run.id).statistics == list(STATISTICS)
    (series,) = client.runs.steps(run.id, "activation_saturation", layer="0.weight").series
    assert series.mean[0] is not None
    assert series.mean[0] > 0.5


# --- targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), lambda *given: functional.smooth_l1_loss(*given)],
    ids=["mse", "l1", "huber", "smooth l1"],
)
def test_the_scale_of_the_first_targets_is_known(loss: Any) -> None:
    """The scale of the first targets is measured, and after the last watch torch has its own losses again."""
    originals = (functional.mse_loss, functional.l1_loss)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    targets = 250.0 * torch.randn(20, 1)
    with Recording(model, optimizer) as recording:
        for scale in (1.0, 7.0):
            loss(model(torch.randn(20, 3)), scale * targets).backward()
            optimizer.step()
            recording.log()
        training = recording.watch.training()
    assert (functional.mse_loss, functional.l1_loss) == originals
    assert training is not None
    assert training.target_rms == pytest.approx(float(targets.square().mean().sqrt()), rel=1e-6)


# --- reactions ----------------------------------------------------------------------------------------------------


def test_clipping_that_was_asked_for_comes_after_measuring() -> None:
    """Gradients are measured before clipping, updates after it, and a gradient that is not finite moves nothing."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with Recording(model, optimizer) as recording:
        guard(recording, GuardPolicy(clips=True)).clip(0.5)
        for value in (10.0, 1e-4, math.nan):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, value)
            before = [parameter.detach().clone() for parameter in model.parameters()]
            optimizer.step()
            moved = math.sqrt(
                sum(float((p.detach() - b).square().sum()) for p, b in zip(model.parameters(), before, strict=True))
            )
            measurement = recording.log()
            norms = [numbers["grad_norm"] for numbers in recording.by_layer(measurement).values()]
            total = value * 4.0  # of 16 elements
            np.testing.assert_allclose(np.linalg.norm(norms), total, rtol=1e-6)
            expected = 0.0 if math.isnan(value) else min(0.5, total)
            assert moved == pytest.approx(expected, rel=1e-4, abs=1e-7)
            assert measurement.clip_coefficient is not None


@pytest.mark.slow
def test_on_unhealthy_clip_does_what_the_diagnosis_advises(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """From the alarm on, an exploding recurrence is clipped to the norm that the diagnosis advises."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.RNN(4, 16, batch_first=True, nonlinearity="relu"), "head": nn.Linear(16, 1)})
    rate = 1e-5
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    clipped_from = last = 400
    with gradmedic.init("clip", base_url=service_url, on_unhealthy="clip", flush_interval=0.01, log_freq=1) as run:
        run.watch(model, optimizer)
        for i in range(last):
            inputs = torch.randn(8, 20, 4)
            states, _ = model["rnn"](inputs)
            loss = (model["head"](states).sum(dim=1) - inputs.sum(dim=(1, 2))[:, None]).square().mean()
            optimizer.zero_grad()
            (loss * 1.4 ** max(0, i - 60)).backward()
            optimizer.step()
            run.log(loss=loss.detach())
            run.flush()
            if i == last:
                break
            if clipped_from == 400 and "gradients are clipped to the norm" in caplog.text:
                clipped_from, last = i + 1, i + 20
    match = re.search(r"gradients are clipped to the norm (\S+) from now on", caplog.text)
    assert match is not None
    max_norm = float(match.group(1))
    names = ["clip_coefficient", "grad_norm", "update_norm"]
    series = client.runs.steps(run.id, names, max_points=500).series
    (coefficient,) = [item for item in series if item.statistic == names[0]]
    assert [i for i, count in enumerate(coefficient.count) if count] == list(range(clipped_from, last + 1))
    grad_norms, update_norms = (
        np.linalg.norm(np.array([item.mean for item in series if item.statistic == name], dtype=float), axis=0)
        for name in names[1:]
    )
    grad_norms, coefficients = grad_norms[clipped_from:], np.array(coefficient.mean[clipped_from:], dtype=float)
    np.testing.assert_allclose(coefficients, max_norm / grad_norms, rtol=1e-3)
    np.testing.assert_allclose(update_norms[clipped_from:], rate * max_norm, rtol=1e-3)
    assert grad_norms[-1] > 100 * grad_norms[0]  # it goes on diverging
    assert update_norms[clipped_from - 1] > 10 * update_norms[-1]
