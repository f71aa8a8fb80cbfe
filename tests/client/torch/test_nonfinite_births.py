"""A non-finite gradient is recorded at its own step with its layers, although that step is not due to be sampled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from torch import Tensor, nn

from gradmedic.recording.instrumentation import Measurement

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning", "few_first_steps")

SAMPLED = 8
"""Steps at the start that are always sampled in these tests."""
Fault = Callable[[Tensor], Tensor]


@pytest.fixture
def few_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample fewer steps at the start than a run does: what is tested comes after them."""
    monkeypatch.setattr("gradmedic.recording.sampler.FIRST_STEPS", SAMPLED)


def no_fault(x: Tensor) -> Tensor:
    """Return the input."""
    return x


def nan_in_forward(x: Tensor) -> Tensor:
    """Return NaN where the root of a negative number is taken."""
    return x + torch.sqrt(x.mean() * 0 - 1)


def root_of_zero(x: Tensor) -> Tensor:
    """Return the input; the gradient of the root at zero is NaN."""
    return x + torch.sqrt((x * 0).square().sum(-1, keepdim=True)) * 0


def unused_branch(x: Tensor) -> Tensor:
    """Return the input; the gradient of the branch that is not taken is NaN."""
    return torch.where(x.abs() < 1e9, x, x / (x.detach() * 0))


def one_example(x: Tensor) -> Tensor:
    """Return the input; the gradient of one example is infinite times zero."""
    first = x[:1] + torch.sqrt((x[:1] * 0).square()) * 0
    return torch.cat([first, x[1:]])


FAULTS: dict[str, Fault] = {
    "forward": nan_in_forward, "root": root_of_zero, "branch": unused_branch, "example": one_example,
}  # fmt: skip


class Perceptron(nn.Module):
    """Layers of 256 units, with or without biases."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(256, 256, bias=bias) for _ in range(6)])
        self.fault: Fault = no_fault
        self.place = 3

    def make_batch(self) -> Tensor:
        """Return inputs."""
        return torch.randn(16, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        for i, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            if i == self.place:
                x = self.fault(x)
        return x


class Convolutional(nn.Module):
    """Convolutions with batch normalization, without biases, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(3 if i == 0 else 64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
                )
                for i in range(3)
            ]
        )
        self.head = nn.Linear(64, 10)
        self.fault: Fault = no_fault
        self.place = 1

    def make_batch(self) -> Tensor:
        """Return images."""
        return torch.randn(4, 3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.place:
                x = self.fault(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Transformer(nn.Module):
    """Two pre-norm blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(32, 64)
        self.blocks = nn.ModuleList(
            [nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)]
        )
        self.head = nn.Linear(64, 32)
        self.fault: Fault = no_fault
        self.place = 0

    def make_batch(self) -> Tensor:
        """Return sequences of vectors."""
        return torch.randn(4, 10, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.place:
                x = self.fault(x)
        out: Tensor = self.head(x)
        return out


class Recurrent(nn.Module):
    """A GRU between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 96)
        self.gru = nn.GRU(96, 96, batch_first=True)
        self.head = nn.Linear(96, 16)
        self.fault: Fault = no_fault
        self.place = 0

    def make_batch(self) -> Tensor:
        """Return sequences."""
        return torch.randn(4, 12, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        x, _ = self.gru(self.enter(x))
        out: Tensor = self.head(self.fault(x))
        return out


Model = Perceptron | Convolutional | Transformer | Recurrent
MODELS: dict[str, Callable[[], Model]] = {
    "perceptron": Perceptron, "perceptron without biases": lambda: Perceptron(bias=False),
    "convolutional": Convolutional, "transformer": Transformer, "recurrent": Recurrent,
}  # fmt: skip
CLIPPING: dict[str, Callable[[list[nn.Parameter]], object]] = {
    "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, 1.0),
    "value": lambda parameters: nn.utils.clip_grad_value_(parameters, 1.0),
    "no": lambda _parameters: None,
}


def with_clippings(*choices: Iterable[str]) -> list[tuple[str, ...]]:
    """Return every combination of choices, each with one way to clip. The ways take turns."""
    combinations = itertools.product(*map(enumerate, choices))
    clippings = list(CLIPPING)
    return [
        (*(choice for _, choice in combination), clippings[sum(place for place, _ in combination) % len(clippings)])
        for combination in combinations
    ]


def find_nonfinite(model: nn.Module) -> set[str]:
    """Return the names of the parameters whose gradient has a non-finite element."""
    return {n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()}


def find_recorded(recording: Recording, measurement: Measurement) -> set[str]:
    """Return the names of the layers that were recorded as non-finite."""
    return {name for name, numbers in recording.by_layer(measurement).items() if numbers["nonfinite_count"] > 0}


def train(
    model: Model,
    clip: str,
    born_at: int,
    *,
    fault: Fault = no_fault,
    spoil: Callable[[Model, Tensor], Tensor | None] = lambda _model, _batch: None,
    log_freq: int = 1000,
) -> tuple[list[int], set[str], set[str]]:
    """Train until a step behind the fault. Return the sampled steps after the start, and the expected and found layers.

    Args:
        model: the model.
        clip: how the script clips.
        born_at: step at which the fault acts.
        fault: acts on an activation.
        spoil: acts on the batch in place, or returns something to add to the loss.
        log_freq: steps from one sample to the next.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sampled, expected, found = [], set[str](), set[str]()
    with Recording(model, optimizer, log_freq=log_freq) as recording:
        for step in range(born_at + 2):
            optimizer.zero_grad()
            batch = model.make_batch()
            model.fault = fault if step == born_at else no_fault
            extra = spoil(model, batch) if step == born_at else None
            loss = model(batch).square().mean()
            if extra is not None:
                loss = loss + extra
            loss.backward()
            if step == born_at:
                expected = find_nonfinite(model)
            CLIPPING[clip](list(model.parameters()))
            optimizer.step()
            measurement = recording.log()
            if measurement.row is not None and step >= SAMPLED:
                sampled.append(step)
                if step == born_at:
                    found = find_recorded(recording, measurement)
    return sampled, expected, found


@pytest.mark.parametrize(("name", "fault", "clip"), with_clippings(MODELS, FAULTS))
def test_a_nan_of_an_activation_is_recorded_at_its_step(name: str, fault: str, clip: str) -> None:
    """The step is exact, and the layers are those with a non-finite gradient, for NaN in forward and in backward."""
    sampled, expected, found = train(MODELS[name](), clip, SAMPLED + 2, fault=FAULTS[fault])
    assert sampled[:1] == [SAMPLED + 2]
    assert expected
    assert found == expected


def nan_in_data(_model: Model, batch: Tensor) -> None:
    """Put one NaN into a batch."""
    batch.view(-1)[5] = math.nan


@pytest.mark.parametrize(("name", "clip"), with_clippings(MODELS))
def test_a_nan_in_the_data_is_recorded_at_its_step(name: str, clip: str) -> None:
    """One NaN in one batch is recorded at the step of that batch."""
    sampled, expected, found = train(MODELS[name](), clip, SAMPLED + 4, spoil=nan_in_data)
    assert sampled[:1] == [SAMPLED + 4]
    assert found == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_nan_of_a_single_layer_is_recorded_for_this_layer_alone(name: str) -> None:
    """A gradient that is NaN in one layer alone, as of a weight whose norm is zero, is recorded for this layer."""
    names = [name for name, _ in MODELS[name]().named_parameters()]
    clippings = itertools.cycle(CLIPPING)
    for place in range(0, len(names), 3):

        def spoil(model: Model, _batch: Tensor, place: int = place) -> Tensor:
            parameter = list(model.parameters())[place]
            return torch.sqrt((parameter * 0).square().sum()) * 0

        sampled, expected, found = train(MODELS[name](), next(clippings), SAMPLED + 1, spoil=spoil)
        assert sampled[:1] == [SAMPLED + 1]
        assert found == expected == {names[place]}


@pytest.mark.parametrize(("name", "fault", "clip"), with_clippings(MODELS, ["forward", "root"]))
def test_on_a_device_the_step_and_the_layers_are_recorded(
    name: str, fault: str, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code for accelerators, which waits for nothing, names the same step and the same layers."""
    for module in ("statistics", "updates", "nonfinite_check", "clipping_meter", "watch"):
        monkeypatch.setattr(f"gradmedic.torch.{module}.is_measured_on_host", lambda _tensor: False)
    sampled, expected, found = train(MODELS[name](), clip, SAMPLED + 2, fault=FAULTS[fault])
    assert sampled[:1] == [SAMPLED + 2]
    assert found == expected


@pytest.mark.parametrize("name", MODELS)
def test_finite_gradients_are_not_sampled_besides(name: str) -> None:
    """Steps with finite gradients stay unsampled, also with tiny, large and zero gradients and half precision."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = MODELS[name]().to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with Recording(model, optimizer, log_freq=1000) as recording:
            sampled = []
            for scale in [1.0] * SAMPLED + [1e-30, 1.0, 1e18, 0.0]:
                optimizer.zero_grad()
                model(model.make_batch().to(dtype)).square().mean().mul(scale).backward()
                optimizer.step()
                sampled.append(recording.log().row is not None)
        assert sampled == [True] * SAMPLED + [False] * 4


def test_gradients_that_stay_nan_are_not_sampled_for_ever() -> None:
    """A training whose gradients are NaN at every step has a bounded number of samples besides those that are due."""
    model = Perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer, log_freq=10) as recording:
        sampled = []
        for _ in range(1500):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan)
            optimizer.step()
            sampled.append(recording.log().row is not None)
    assert sum(sampled[:100]) >= 90
    assert sum(sampled[500:]) <= 220


def test_sparse_gradients_scalars_and_frozen_layers_are_looked_at() -> None:
    """A NaN is found in the gradient of a scalar, and in a sparse one; layers without a gradient are passed over."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(3000, 16, sparse=True)
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.frozen = nn.Linear(16, 16).requires_grad_(False)

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.frozen(self.embedding(tokens)) * self.scale
            return out

    for spoiled in ("embedding.weight", "scale"):
        model = Odd()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        with Recording(model, optimizer, log_freq=1000) as recording:
            for step in range(SAMPLED + 8):
                optimizer.zero_grad()
                loss = model(torch.randint(0, 3000, (8,))).square().mean()
                if step == SAMPLED + 7:
                    loss = loss + torch.sqrt((model.get_parameter(spoiled) * 0).sum()) * 0
                loss.backward()
                optimizer.step()
                measurement = recording.log()
                assert (measurement.row is not None) == (step < SAMPLED or step == SAMPLED + 7)
                if step == SAMPLED + 7:
                    assert spoiled in find_recorded(recording, measurement)


def test_what_the_look_leaves_is_the_training_to_the_bit() -> None:
    """Weights are the same to the bit with and without a watch, also over a step with a NaN."""

    def weights(is_watched: bool) -> list[np.ndarray]:
        torch.manual_seed(3)
        model = Transformer()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        recording = Recording(model, optimizer, log_freq=1000) if is_watched else None
        for step in range(SAMPLED + 6):
            optimizer.zero_grad()
            loss = model(model.make_batch()).square().mean()
            loss.backward()
            if step == SAMPLED + 4:
                next(model.parameters()).grad[0] = math.nan  # type: ignore[index]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if recording is not None:
                recording.log()
        if recording is not None:
            recording.watch.close()
        return [parameter.detach().numpy() for parameter in model.parameters()]

    for with_watch, without in zip(weights(True), weights(False), strict=True):
        np.testing.assert_array_equal(with_watch, without)
