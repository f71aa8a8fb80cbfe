"""Small torch programs with a numerical bug, recorded through the SDK: the cause is the bug, not the learning rate."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.corpus.foreign.recorder import read_journal
from torch import Tensor, nn
from torch.nn import functional

import gradmedic
from gradmedic.protocol.diagnosis import DiagnosisAtStep
from gradmedic_diagnosis import Diagnostician

FEATURES, CLASSES, BATCH, EXAMPLES = 8, 4, 64, 256
AFTERMATH = 5
"""Steps that a script goes on after its first non-finite loss."""

LossOf = Callable[[nn.Module, Tensor, Tensor], Tensor]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, as many small trainings run at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_data() -> tuple[Tensor, Tensor]:
    """Return examples of classes that a linear model separates."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, FEATURES, generator=generator)
    return x, (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1)


def make_model(*, zero: bool) -> nn.Module:
    """Return a linear model of zeros, or a small network of torch's own initialization."""
    torch.manual_seed(0)
    if not zero:
        return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    model = nn.Linear(FEATURES, CLASSES)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def train(
    folder: Path, loss_of: LossOf, *, zero: bool = False, optimizer: str = "SGD", rate: float = 0.1, steps: int = 150
) -> DiagnosisAtStep:
    """Train a program until some steps after its first non-finite loss, and diagnose what its run recorded."""
    model, (x, y) = make_model(zero=zero), make_data()
    stepper: torch.optim.Optimizer = getattr(torch.optim, optimizer)(model.parameters(), lr=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = gradmedic.init(mode="offline", dir=folder, silent=True, name="program", project="programs")
        run.watch(model, stepper)
        left = AFTERMATH
        for _ in range(steps):
            chosen = torch.randint(EXAMPLES, (BATCH,))
            stepper.zero_grad()
            loss = loss_of(model, x[chosen], y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            stepper.step()
            run.log(loss=loss)
            left -= not math.isfinite(loss.item())
            if not left:
                break
        run.finish(timeout=60)
    description, block = read_journal(folder, run.id)
    return Diagnostician(description.layers, description.training, framework=description.framework).update(block)


def log_of_softmax(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A probability of a wrong class is exactly zero: its logarithm, or the slope of that, is infinite."""
    probabilities = functional.softmax(60 * model(x).tanh() * x[:, :1].abs(), dim=1)
    return -probabilities.log()[torch.arange(len(y)), y].mean()


def log_of_sigmoid(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A sigmoid in float32 is exactly one from 17 on."""
    probability = torch.sigmoid(10 * model(x)[:, 0])
    is_positive = (y > 1).float()
    return -(is_positive * probability.log() + (1 - is_positive) * (1 - probability).log()).mean()


def exponential(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """An exponential in float32 overflows from 89 on; here one feature of an example is large now and then."""
    scale = 1 + 1e5 * (torch.rand(()) < 0.05)
    return functional.cross_entropy(model(x), y) + 1e-3 * torch.exp(scale * model(x)[:, 0].abs()).mean()


def entropy_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """X log x at zero is 0 * -inf."""
    probabilities = torch.softmax(30 * model(x), dim=1)
    return functional.cross_entropy(model(x), y) + 0.01 * (probabilities * probabilities.log()).sum(1).mean()


def zero_variance(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The standard deviation of the classes of an output is zero where all weights are, else now and then."""
    output = model(x)
    spread = output.std(1, keepdim=True) * (torch.rand(()) > 0.05)
    return functional.cross_entropy((output - output.mean(1, keepdim=True)) / spread, y)


def root_at_zero(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The slope of a root is infinite at zero: an example whose target is its own output."""
    output = model(x)
    is_hit = torch.rand(len(y), 1) < 0.002
    return torch.where(is_hit, output - output.detach(), output - functional.one_hot(y)).square().sum(1).sqrt().mean()


def angle_of_equal_vectors(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The slope of acos is infinite at one."""
    cosine = functional.cosine_similarity(model(x) + 1e-3, functional.one_hot(y).float())
    return torch.acos(cosine.round(decimals=2) + cosine - cosine.detach()).mean()


FORWARD = (log_of_sigmoid, exponential, entropy_by_hand, zero_variance)
"""Programs whose loss is the first number that is not finite."""
BACKWARD = (root_at_zero, angle_of_equal_vectors)
"""Programs whose gradient is."""
NUMERICAL = {"nonfinite_loss", "numerical_instability"}


@pytest.mark.parametrize(
    ("loss_of", "zero"), list(itertools.product((*FORWARD, *BACKWARD, log_of_softmax), (False, True)))
)
def test_a_numerical_bug_comes_first(tmp_path: Path, loss_of: LossOf, *, zero: bool) -> None:
    """The bug is the first cause, with weights of zero too, under Adam at an ordinary rate and under SGD."""
    expected = {"nonfinite_loss"} if loss_of in FORWARD else {"numerical_instability"}
    expected = NUMERICAL if loss_of is log_of_softmax else expected
    found = []
    for optimizer, rate in (("SGD", 0.05), ("Adam", 0.003)):
        diagnosis = train(tmp_path / optimizer, loss_of, zero=zero, optimizer=optimizer, rate=rate)
        if diagnosis.verdict == "exploding":  # else the program was lucky
            found.append(diagnosis.causes[0].cause)
            assert not any("inf times" in cause.explanation for cause in diagnosis.causes)
            assert not [advice.remedy.id for advice in diagnosis.advice if "clip" in advice.remedy.id]
    assert {*found} <= expected
    assert found or zero


def test_a_bad_number_of_the_data_comes_first(tmp_path: Path) -> None:
    """A batch with a missing value: the cause is the data, with the number of bad elements."""
    calls = itertools.count()

    def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if next(calls) == 30:
            x = x.clone()
            x[3, 2] = math.nan
        return functional.cross_entropy(model(x), y)

    diagnosis = train(tmp_path, loss_of)
    assert diagnosis.causes[0].cause == "nonfinite_input"
    assert diagnosis.causes[0].evidence["input_nonfinite_count"] == 1


def test_labels_that_are_all_ignored_are_named(tmp_path: Path) -> None:
    """A batch of padding: the mean over no labels. Torch gives it gradients of zero, so that the run goes on."""
    calls = itertools.count()

    def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), torch.full_like(y, -100) if next(calls) == 30 else y)

    cause = train(tmp_path, loss_of, steps=40).causes[0]
    assert cause.cause == "nonfinite_loss"
    assert cause.evidence["ignored_label_share"] == 1
    assert "All labels" in cause.explanation


def test_a_rate_that_jumps_is_named(tmp_path: Path) -> None:
    """The rate rises three hundred times at step 60, as after a wrong resume."""
    calls = itertools.count()
    optimizers: list[torch.optim.Optimizer] = []

    def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if next(calls) == 60:
            optimizers[0].param_groups[0]["lr"] *= 300
        return functional.cross_entropy(model(x), y)

    class Recorded(torch.optim.SGD):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            optimizers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Recorded", Recorded, raising=False)
        diagnosis = train(tmp_path, loss_of, optimizer="Recorded")
    assert diagnosis.causes[0].cause == "learning_rate_jump"
    assert diagnosis.causes[0].evidence["rise"] == pytest.approx(300)
