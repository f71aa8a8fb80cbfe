"""`on_nonfinite="locate"` names the origin of a non-finite number, and the training computes the same to the bit."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import gradmedic
from gradmedic.cli.diagnose import render_diagnosis
from gradmedic.protocol.origins import Origin

pytestmark = pytest.mark.usefixtures("one_thread")

FAULTY_STEP = 2
MARK = 3.0
"""Value in a batch for which the network has its fault."""
Fault = Callable[[Tensor], Tensor]


def root(x: Tensor) -> Tensor:
    """Return zeros whose gradient is not finite."""
    return (x - x.detach()).sqrt()


def logarithm(x: Tensor) -> Tensor:
    """Return what is not finite."""
    return (x - x.amax() - 1).log()


class Network(nn.Module):
    """A network with noise, moments and a checkpoint, whose middle has a fault on one step."""

    def __init__(self, fault: Fault | None = None, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 1)
        self.fault, self.checkpointed = fault, checkpointed
        self.calls, self.history = 0, list[int]()
        self.counter: Tensor
        self.register_buffer("counter", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, 1]`."""
        self.calls += 1
        self.history.append(self.calls)
        self.counter.add_(1)
        is_marked = bool(x[0, 0] == MARK)
        x = checkpoint(self.first, x, use_reentrant=False) if self.checkpointed else self.first(x)
        x = x + self.lstm(x[None])[0][0]
        if self.fault is not None and is_marked:
            x = x + 0.01 * self.fault(x)
        output: Tensor = self.head(x)
        return output


class Training:
    """A short training, watched or not.

    Args:
        network: the network, or a wrapper around it.
        loss: computes the loss of outputs and targets on the step that fails; else the squared error.
        locates: whether the origin is looked for.
        bfloat16: whether autocast computes.
    """

    def __init__(
        self, network: nn.Module, *, loss: Callable[[Tensor, Tensor], Tensor] | None = None, locates: bool = True,
        bfloat16: bool = False, watched: Any = None,
    ) -> None:  # fmt: skip
        self.network, self.loss, self.bfloat16 = network, loss, bfloat16
        self.optimizer = torch.optim.Adam(network.parameters(), 0.01)
        self.recording = Recording(watched or network, self.optimizer) if locates else None
        self.step = 0
        if self.recording is not None:
            self.recording.watch.locate_origin(lambda: self.step)
        self.states: list[Tensor] = []

    def backward(self) -> Tensor:
        """Compute gradients of one batch, and return the loss."""
        inputs, targets = torch.randn(16, 4), torch.rand(16, 1)
        if self.step == FAULTY_STEP:
            inputs[0, 0] = MARK
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            outputs = self.network(inputs).float()
            is_faulty = self.loss is not None and self.step == FAULTY_STEP
            loss = functional.mse_loss(outputs, targets)
            if is_faulty and self.loss is not None:
                loss = loss + self.loss(outputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self, loss: Tensor) -> None:
        """Update the weights."""
        self.states += [p.grad.clone() for p in self.network.parameters() if p.grad is not None]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.states += [tensor.detach().clone() for tensor in (*self.network.parameters(), *self.network.buffers())]
        self.states += [torch.get_rng_state(), torch.tensor([random.random(), np.random.rand()])]
        self.step += 1
        if self.recording is not None:
            self.recording.watch.finish_step(loss)

    def run(self, steps: int = FAULTY_STEP + 1) -> Origin | None:
        """Train, and return the origin that was found."""
        for _ in range(steps):
            self.update(self.backward())
        return self.close()

    def close(self) -> Origin | None:
        """End the watch, and return the origin that was found."""
        if self.recording is None:
            return None
        training = self.recording.watch.training()
        self.recording.watch.close()
        return None if training is None else training.origin


def seed() -> None:
    """Seed all generators."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed all generators before a test, and leave no function mode."""
    seed()
    yield
    assert torch._C._len_torch_function_stack() == 0


def same_bits(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether tensors are equal, also in NaN."""
    return len(one) == len(other) and all(
        torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
        for a, b in zip(one, other, strict=True)
    )


CASES: dict[str, dict[str, Any]] = {
    "forward": {"fault": logarithm}, "backward": {"fault": root}, "checkpoint": {"fault": root, "checkpointed": True},
    "autocast": {"fault": root, "bfloat16": True}, "loss": {"loss": lambda y, _: logarithm(y).mean()},
    "gradient of the loss": {"loss": lambda y, _: root(y).mean()}, "finite": {},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_training_computes_the_same_bits(name: str) -> None:
    """Gradients, weights, buffers and generators are those of an unwatched training, also after the failure."""
    case = CASES[name]

    def train(*, locates: bool) -> tuple[Training, Origin | None]:
        seed()
        network = Network(case.get("fault"), checkpointed=case.get("checkpointed", False))
        training = Training(network, loss=case.get("loss"), locates=locates, bfloat16=case.get("bfloat16", False))
        return training, training.run(FAULTY_STEP + 3)

    plain, _ = train(locates=False)
    located, origin = train(locates=True)
    assert same_bits(plain.states, located.states)
    assert (origin is None) == (name == "finite")


@pytest.mark.parametrize(
    ("name", "operation", "direction", "module"),
    [
        ("forward", "log", "forward", ""),
        ("backward", "sqrt", "backward", ""),
        ("checkpoint", "sqrt", "backward", ""),
        ("autocast", "sqrt", "backward", ""),
        ("loss", "log", "forward", None),
        ("gradient of the loss", "sqrt", "backward", None),
    ],
)
def test_operation_module_line_and_step_are_named(
    name: str, operation: str, direction: str, module: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The origin has them, and one line of the log does."""
    case = CASES[name]
    network = Network(case.get("fault"), checkpointed=case.get("checkpointed", False))
    training = Training(network, loss=case.get("loss"), bfloat16=case.get("bfloat16", False))
    with caplog.at_level(logging.WARNING, "gradmedic"):
        origin = training.run(FAULTY_STEP + 3)
    assert origin is not None
    assert (origin.operation, origin.direction, origin.module) == (operation, direction, module)
    assert (origin.step, origin.kind, origin.reproduced) == (FAULTY_STEP, "numeric", "1 of 1")
    assert origin.is_loss_finite is (direction == "backward")
    assert origin.source is not None
    assert origin.source.text is not None
    assert operation in origin.source.text
    lines = [record.getMessage() for record in caplog.records if "born" in record.getMessage()]
    assert lines == [f"gradmedic: {origin.text}"]
    assert f"born at step {FAULTY_STEP} in" in lines[0]
    assert f"test_locator.py:{origin.source.line}" in lines[0]


def test_the_failing_part_of_an_accumulated_step_is_named() -> None:
    """Of several batches before one update, it does not matter which one fails."""
    training = Training(Network(root))
    training.step = FAULTY_STEP
    training.backward()
    training.step = 0
    for _ in range(3):
        training.backward()
    training.update(torch.zeros(()))
    origin = training.close()
    assert origin is not None
    assert origin.operation == "sqrt"


def test_state_of_the_model_outside_of_buffers_is_not_touched() -> None:
    """Counters and lists of a module are as after one forward pass."""
    network = Network(root)
    Training(network).run()
    assert network.calls == FAULTY_STEP + 1
    assert network.history == list(range(1, FAULTY_STEP + 2))
    assert network.counter == FAULTY_STEP + 1


def test_hooks_of_the_script_are_not_called_again() -> None:
    """What a hook of the script collects is as without the repetition."""
    network, seen = Network(root), list[int]()
    network.head.register_forward_hook(lambda *_: seen.append(1))
    next(network.parameters()).register_hook(lambda _: seen.append(2))  # type: ignore[no-untyped-call]
    assert Training(network).run() is not None
    assert seen == [1, 2] * (FAULTY_STEP + 1)


def test_a_script_that_leaves_out_the_update_is_served_by_its_log() -> None:
    """A non-finite loss that is only logged is located too."""
    training = Training(Network(logarithm))
    for _ in range(FAULTY_STEP):
        training.update(training.backward())
    loss = training.backward()
    training.optimizer.zero_grad()
    assert training.recording is not None
    training.recording.watch.finish_step(loss)
    origin = training.close()
    assert origin is not None
    assert origin.operation == "log"


def test_skipped_steps_of_a_loss_scaler_are_no_fault() -> None:
    """A scale that is too large makes gradients infinite; the scaler lowers it, and no update is made."""
    network = Network()
    training = Training(network)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for _ in range(3):
        loss = network(torch.randn(16, 4) * 100).square().mean()
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
    assert scaler.get_scale() < 2.0**127
    assert training.close() is None


def test_nan_in_the_batch_is_the_data() -> None:
    """The kind is `data`, and the sentence says so."""
    network = Network()
    training = Training(network)
    inputs = torch.randn(16, 4)
    inputs[3, 1] = torch.nan
    network(inputs).mean().backward()
    training.update(torch.zeros(()))
    origin = training.close()
    assert origin is not None
    assert (origin.kind, origin.input and origin.input.count) == ("data", 1)
    assert origin.text is not None
    assert "in the data" in origin.text


class Ignored(TorchFunctionMode):
    """A function mode of the script."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("fault", "loss", "operation"),
    [(root, None, "sqrt"), (logarithm, None, "log"), (None, lambda y, _: logarithm(y).mean(), None)],
)
def test_below_a_mode_of_the_script_the_model_alone_is_repeated(
    fault: Fault | None, loss: Callable[[Tensor, Tensor], Tensor] | None, operation: str | None
) -> None:
    """The gradient of the output is enough to repeat the model; of the loss, only its graph is known."""
    with Ignored():
        origin = Training(Network(fault), loss=loss).run()
    assert origin is not None
    assert origin.operation == operation
    if operation is None:
        assert origin.reason is not None
        assert "outside of the watched model" in origin.reason
        assert "Log" in origin.operations
        assert origin.is_loss_finite is False


def test_a_mode_that_is_entered_behind_the_tape_stays() -> None:
    """A mode that the script enters between output and update is still there after the tape was removed."""
    network = Network()
    training = Training(network)
    output = network(torch.randn(16, 4))
    mode = Ignored()
    with mode:
        output.mean().backward()
        training.optimizer.step()
        assert torch.overrides._get_current_function_mode_stack() == [mode]  # type: ignore[no-untyped-call]
    training.close()


def test_a_module_with_a_faster_path_computes_as_without_a_watch() -> None:
    """A transformer in `eval()` has other kernels below a mode, so that the recording ends before it is called."""
    teacher = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()

    def distill(outputs: Tensor, _targets: Tensor) -> Tensor:
        with torch.no_grad():
            taught: Tensor = teacher(torch.ones(16, 2, 4)).mean()
            states.append(taught)
        return (outputs - taught).square().mean() + root(outputs).mean()

    states: list[Tensor] = []
    training = Training(Network(), loss=distill)
    origin = training.run()
    with torch.no_grad():
        assert torch.equal(states[0], teacher(torch.ones(16, 2, 4)).mean())
    assert origin is not None
    assert (origin.operation, origin.is_loss_finite) == (None, True)
    assert origin.reason is not None


def test_weights_that_are_not_finite_are_the_reason() -> None:
    """Of a step after the failure nothing is claimed."""
    network = Network()
    with torch.no_grad():
        network.head.weight[0, 0] = torch.nan
    origin = Training(network).run(1)
    assert origin is not None
    assert origin.operation is None
    assert origin.reason is not None
    assert "weights" in origin.reason


def test_an_input_that_was_changed_in_place_is_the_reason() -> None:
    """The batch is no longer what the model was called with."""
    network = Network(root)
    training = Training(network)
    inputs = torch.full((16, 4), MARK)
    loss = network(inputs).mean()
    loss.backward()
    inputs.zero_()
    training.update(loss)
    origin = training.close()
    assert origin is not None
    assert origin.reason == "a tensor that the step used was changed in place since"


def test_a_model_that_cannot_run_twice_is_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is told, not raised."""

    def once(x: Tensor) -> Tensor:
        if tokens:
            raise RuntimeError("the reader is exhausted")
        tokens.append(1)
        return root(x)

    tokens: list[int] = []
    with caplog.at_level(logging.WARNING, "gradmedic"):
        origin = Training(Network(once)).run()
    assert origin is not None
    assert origin.reason == "the step could not be repeated: RuntimeError: the reader is exhausted"
    assert "the reader is exhausted" in caplog.text


def test_a_fault_that_comes_and_goes_is_not_reproduced() -> None:
    """A step that is finite when it is repeated is told as such."""

    def flaky(x: Tensor) -> Tensor:
        tokens.append(1)
        return root(x) if len(tokens) == 1 else x

    tokens: list[int] = []
    origin = Training(Network(flaky)).run()
    assert origin is not None
    assert (origin.operation, origin.reproduced) == (None, "0 of 1")


def test_a_network_that_is_not_watched_is_told() -> None:
    """What it computed cannot be repeated, and the operation that reads it is not accused."""
    other = nn.Linear(4, 1)
    hidden = logarithm(other(torch.ones(16, 4)))
    origin = Training(Network(), loss=lambda outputs, _: (outputs + hidden).mean()).run()
    assert origin is not None
    assert origin.operation is None
    assert origin.reason is not None
    assert "outside of the watched models" in origin.reason


def test_parallel_data_is_not_repeated() -> None:
    """All processes or devices would have to repeat it together."""
    network = Network(root)
    origin = Training(nn.DataParallel(network)).run()
    assert origin is not None
    assert origin.reason is not None
    assert "DataParallel" in origin.reason


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_repeated_without_the_compiler() -> None:
    """The origin says so."""

    class Faulty(nn.Module):
        """A part with a fault."""

        def forward(self, x: Tensor) -> Tensor:
            """Return the input, with an infinite gradient."""
            return x + root(x)

    torch._dynamo.reset()
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(4, 8), Faulty(), nn.Linear(8, 1)), backend="aot_eager")
    try:
        origin = Training(compiled).run(1)
    finally:
        torch._dynamo.reset()
    assert origin is not None
    assert (origin.operation, origin.module, origin.is_eager) == ("sqrt", "1", True)


def test_sparse_gradients_are_explained() -> None:
    """The rows of an embedding that the batch reaches count."""

    class Embedded(nn.Module):
        """An embedding with sparse gradients behind a fault."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4, sparse=True)

        def forward(self, x: Tensor) -> Tensor:
            """Return zeros."""
            return root(self.embedding(x))

    network = Embedded()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with Recording(network, optimizer) as recording:
        recording.watch.locate_origin(lambda: 0)
        network(torch.tensor([1, 5])).mean().backward()
        optimizer.step()
        training = recording.watch.training()
    assert training is not None
    assert training.origin is not None
    assert (training.origin.operation, training.origin.module) == ("sqrt", "")


def test_an_optimizer_with_a_closure_trains() -> None:
    """Its gradients are there only during the step; nothing is looked for, and nothing is raised."""
    network = nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=2)
    with Recording(network, optimizer) as recording:
        recording.watch.locate_origin(lambda: 0)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = network(torch.ones(2, 4)).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        training = recording.watch.training()
        assert training is None or training.origin is None


def test_the_batch_of_the_step_is_described() -> None:
    """Inputs and targets in this order, with the digest of the very batch, and without parameters or buffers."""
    network, seen = Network(root), list[Tensor]()
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    origin = Training(network).run()
    assert origin is not None
    inputs, targets = origin.batch_tensors
    assert (inputs.shape, targets.shape) == ([16, 4], [16, 1])
    content = seen[FAULTY_STEP].numpy().tobytes()
    assert inputs.digest == hashlib.sha256(content).hexdigest()[:16]
    assert inputs.max == MARK


def test_the_service_has_the_origin(service_url: str, client: gradmedic.Client) -> None:
    """The run's facts contain the origin after the step that failed, and `gradmedic diagnose` prints it."""
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    with gradmedic.init("origins", base_url=service_url, on_nonfinite="locate") as run:
        run.watch(network, optimizer)
        for step in range(3):
            output = network(torch.randn(8, 4))
            loss = (root(output) if step == FAULTY_STEP else output.square()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
        assert run.flush()
    stored = client.runs.get(run.id)
    assert stored.training is not None
    origin = stored.training.origin
    assert origin is not None
    assert origin.text is not None
    printed = render_diagnosis(client.runs.diagnosis(run.id), stored)
    assert origin.text in " ".join(printed.split())
    assert "y = torch.sqrt(x.clamp_min(0) + 1e-8)" in printed
    assert (origin.operation, origin.step, origin.direction) == ("sqrt", FAULTY_STEP, "backward")
    assert origin.source is not None
    assert origin.source.file.endswith("test_locator.py")


def test_only_what_is_asked_for_is_looked_for(service_url: str, client: gradmedic.Client) -> None:
    """By default, no origin is looked for."""
    network = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    with gradmedic.init("origins", base_url=service_url) as run:
        run.watch(network, optimizer)
        root(network(torch.ones(2, 4))).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        run.log(loss=0.0)
    training = client.runs.get(run.id).training
    assert training is not None
    assert training.origin is None
