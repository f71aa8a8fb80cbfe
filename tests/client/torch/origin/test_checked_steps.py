"""A trial of the kind `locate` names the operation and the line, also of a loss outside of the watched model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradmedic.protocol.origins import Origin
from gradmedic.torch.origin.checked_steps import CannotCheck, CheckedSteps

pytestmark = pytest.mark.usefixtures("one_thread")

FAULTY = 4
"""The step that fails."""
Loss = Callable[[Tensor, int], Tensor]


@pytest.fixture
def checked() -> Iterator[Callable[..., CheckedSteps]]:
    """Return a function that makes checks, which end after the test."""
    made: list[CheckedSteps] = []

    def make(start: int = FAULTY - 1) -> CheckedSteps:
        made.append(CheckedSteps(start, lambda _origin: None))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Network(nn.Module):
    """Two layers with moments, and a counter that each call raises."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs `[8, 1]`."""
        self.calls += 1
        result: Tensor = self.last(self.norm(self.first(x)).tanh())
        return result


def fail_in_forward(output: Tensor, step: int) -> Tensor:
    """A logarithm outside of the model is taken of a negative number."""
    shifted = output - (output.max().detach() + 1 if step == FAULTY else output.min().detach() - 1)
    return shifted.log().mean()


def fail_in_backward(output: Tensor, step: int) -> Tensor:
    """The root outside of the model has an infinite slope."""
    distance = (output - output.detach() + (step != FAULTY)).square()
    return distance.sqrt().mean()


def train(
    checks: CheckedSteps, loss_of: Loss, *, model: Any = None, logs: Callable[[Tensor], Any] = lambda loss: loss,
    optimizer_type: Any = torch.optim.SGD, batch: Callable[[int], Tensor] | None = None, steps: int = 8,
) -> Origin | None:  # fmt: skip
    """Train as a script does in a trial, and return the origin."""
    torch.manual_seed(0)
    model = Network() if model is None else model
    optimizer = optimizer_type(model.parameters(), lr=0.01)
    checks.watch({"": model}, [optimizer])
    for step in range(steps):
        x = torch.randn(8, 4) if batch is None else batch(step)
        optimizer.zero_grad()
        loss = loss_of(model(x), step)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        checks.finish_step(logs(loss))
        if checks.end_step(step + 1):
            break
    checks.close()
    return checks.origin


def line_of(function: Callable[..., Any], text: str) -> int:
    """Return the number of the line of a function that has a text."""
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("logs", [lambda loss: loss, lambda loss: loss.item(), lambda _loss: None])
@pytest.mark.parametrize(
    ("loss_of", "operation", "direction", "text"),
    [(fail_in_forward, "log", "forward", ".log()"), (fail_in_backward, "sqrt", "backward", ".sqrt()")],
)
def test_a_loss_outside_of_the_model_is_located(
    checked: Any, loss_of: Loss, operation: str, direction: str, text: str, logs: Any
) -> None:
    """Operation, line and step are named whether the script logs the loss as a tensor, as a number, or not at all."""
    origin = train(checked(), loss_of, logs=logs)
    assert origin is not None
    assert (origin.operation, origin.direction, origin.module) == (operation, direction, None)
    assert origin.source is not None
    assert origin.source.line == line_of(loss_of, text)
    assert origin.step == FAULTY
    assert origin.is_loss_finite == (direction == "backward")
    (batch,) = origin.batch_tensors
    assert (batch.shape, len(batch.digest or "")) == ([8, 4], 16)


@pytest.mark.parametrize("part", [slice(None), slice(0, 4)], ids=["whole", "part"])
def test_an_empty_buffer_that_is_overwritten_is_judged(checked: Any, part: slice) -> None:
    """What was written into a tensor of `torch.empty` counts: the operation that made it is named, not its readers."""

    def loss_of(output: Tensor, step: int) -> Tensor:
        buffer = torch.empty(8)
        buffer.zero_()
        buffer[part] = (-output.detach().abs().sum(1) - 1.0 if step == FAULTY else output.detach().sum(1).exp())[part]
        made = torch.empty(8)
        torch.log(buffer[part], out=made[part])
        return (output.sum(1)[part] * made[part]).mean()

    origin = train(checked(), loss_of)
    assert origin is not None
    assert origin.operation == "log"
    assert origin.source is not None
    assert origin.source.line == line_of(loss_of, "torch.log(")


def test_the_same_inputs_have_the_same_fingerprint(checked: Any) -> None:
    """The fingerprint is that of the inputs, not of the weights."""
    batches = [torch.randn(8, 4, generator=torch.Generator().manual_seed(number)) for number in range(8)]
    first, second = (train(checked(), fail_in_forward, batch=lambda step: batches[step]) for _ in range(2))
    other = train(checked(), fail_in_forward, batch=lambda step: batches[step - 1])
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.batch_tensors == second.batch_tensors
    assert first.batch_tensors != other.batch_tensors


def test_nothing_is_computed_twice(checked: Any) -> None:
    """A model that counts its calls, and moments of a normalization, are as without the checks."""
    plain, model = Network(), Network()
    model.load_state_dict(plain.state_dict())

    def healthy(output: Tensor, _step: int) -> Tensor:
        return output.square().mean()

    assert train(checked(start=100), healthy, model=plain) is None
    assert train(checked(start=0), healthy, model=model) is None
    assert model.calls == plain.calls
    for one, other in zip(plain.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_nothing_is_accused_before_the_first_checked_step(checked: Any) -> None:
    """Weights that were not finite before the checks are no origin: the reason says so."""
    origin = train(checked(start=FAULTY + 2), fail_in_backward)
    assert origin is not None
    assert (origin.operation, origin.step) == (None, FAULTY + 2)
    assert origin.reason == "the weights were not finite before the first step that was checked"


def test_a_compiled_model_is_located_without_the_compiler(checked: Any) -> None:
    """The answer says that the compiler was left out."""
    torch._dynamo.reset()
    model = torch.compile(Network(), backend="aot_eager")
    origin = train(checked(), fail_in_forward, model=model)
    torch._dynamo.reset()
    assert origin is not None
    assert (origin.operation, origin.is_eager) == ("log", True)
    assert origin.text is not None
    assert "without the compiler" in origin.text


class Checkpointed(Network):
    """Computes a part again in the backward pass, where the root has an infinite slope."""

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs `[8, 1]`."""
        result: Tensor = checkpoint(self.compute, x, use_reentrant=False)
        return result

    def compute(self, x: Tensor) -> Tensor:
        """Return outputs; they have an infinite slope once the counter is up."""
        self.calls += torch.is_grad_enabled() and torch._C._current_autograd_node() is None
        y = self.first(x)
        shift = 0.0 if self.calls == FAULTY + 1 else 1.0
        result: Tensor = self.last((y - y.detach() + shift).square().sqrt())
        return result


def test_a_checkpointed_module_is_located(checked: Any) -> None:
    """An operation that runs again in the backward pass has its line and its module."""
    model = Checkpointed()
    origin = train(checked(), lambda output, _step: output.mean(), model=model)
    assert origin is not None
    assert (origin.operation, origin.direction, origin.module) == ("sqrt", "backward", "")
    assert origin.source is not None
    assert origin.source.line == line_of(Checkpointed.compute, ".sqrt()")


def test_nan_in_the_data_is_no_operation(checked: Any) -> None:
    """A batch that is not finite itself is the origin, of the kind `data`."""

    def batch(step: int) -> Tensor:
        values = [[1.0, 2.0, 3.0, math.nan if step == FAULTY else 4.0 + step]] * 8
        return torch.tensor(values) + torch.arange(8)[:, None]

    origin = train(checked(), lambda output, _step: output.square().mean(), batch=batch)
    assert origin is not None
    assert (origin.kind, origin.step) == ("data", FAULTY)


def test_an_update_that_is_not_finite_is_located(checked: Any) -> None:
    """An optimizer without an epsilon divides 0 by 0, although every gradient is finite."""

    def adam(parameters: Any, lr: float) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, lr=lr, eps=0.0, foreach=False)

    origin = train(checked(start=0), lambda output, _step: functional.mse_loss(output, output.detach()),
                   optimizer_type=adam)  # fmt: skip
    assert origin is not None
    assert origin.source is not None
    assert "optimizer.step()" in (origin.source.text or "")
    assert origin.step == 0


def test_a_training_of_several_processes_is_refused(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason says why."""
    monkeypatch.setattr("gradmedic.torch.origin.locator.get_group_size", lambda: 2)
    model = Network()
    with pytest.raises(CannotCheck, match="all processes"):
        checked().watch({"": model}, [torch.optim.SGD(model.parameters(), lr=0.1)])
