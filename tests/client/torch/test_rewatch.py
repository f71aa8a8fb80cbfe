"""A model that is watched again, and optimizers that are not watched."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import arrays, backward, norm, perceptron
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

import gradmedic
from gradmedic.torch.unwatched_steps import ACCUMULATED_STEPS, STEPS_WITHOUT_GRADIENTS

HOOKS = 8
"""Hooks of a watch before the first batch, without those of probes: four in the model, two in its optimizer, two in
torch."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Return a function that returns the warnings of the SDK so far."""
    with caplog.at_level(logging.WARNING, "gradmedic"):
        yield lambda: [record.getMessage() for record in caplog.records]


def count_hooks(model: nn.Module, *optimizers: torch.optim.Optimizer) -> int:
    """Return the number of hooks in a model, in its optimizers and in torch."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    hooks += sum(len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in optimizers)
    return hooks + len(torch_optimizer._global_optimizer_pre_hooks) + len(torch_optimizer._global_optimizer_post_hooks)


def train(run: gradmedic.Run | None, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Train, log each step, and return the gradient norms of a layer."""
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = backward(model)
        norms.append(norm(model.get_parameter("0.weight").grad))
        optimizer.step()
        if run is not None:
            run.log(loss)
    return norms


def read_norms(client: gradmedic.Client, run: gradmedic.Run) -> list[float | None]:
    """Return the stored gradient norms of a layer, None where it was absent."""
    (series,) = client.runs.steps(run.id, "grad_norm", layer="0.weight", max_points=2000).series
    return [mean if count else None for mean, count in zip(series.mean, series.count, strict=True)]


def test_a_second_stage_is_measured_with_its_own_optimizer(
    service_url: str, client: gradmedic.Client, warnings: Callable[[], list[str]]
) -> None:
    """watch() of a watched model replaces the old watch: layers stay the same, the new optimizer's steps are stored."""

    def run_stages(*, mode: str) -> tuple[gradmedic.Run, list[float], Any]:
        torch.manual_seed(0)
        model = perceptron()
        model[0].requires_grad_(False)
        first = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        run = gradmedic.init("stages", base_url=service_url, log_freq=1, mode=mode)
        run.watch(model, first)
        for _ in range(10):
            first.zero_grad()
            loss = backward(model)
            first.step()
            run.log(loss)
        model[0].requires_grad_(True)
        second = torch.optim.Adam(model.parameters(), lr=0.01)
        run.watch(model, second)
        assert not first._optimizer_step_pre_hooks
        assert not first._optimizer_step_post_hooks
        norms = train(run, model, second, 10)
        assert run.finish()
        return run, norms, arrays(model)

    run, norms, weights = run_stages(mode="online")
    _, _, expected = run_stages(mode="disabled")
    assert all(weights[name].tobytes() == expected[name].tobytes() for name in expected)
    stored = client.runs.get(run.id)
    assert [layer.name for layer in stored.layers] == [name for name, _ in perceptron().named_parameters()]
    assert read_norms(client, run) == [None] * 10 + [float(np.float32(n)) for n in norms]
    assert stored.training is not None
    assert [optimizer.name for optimizer in stored.training.optimizers] == ["Adam"]
    assert not warnings()


def test_what_was_measured_before_the_new_watch_is_kept(warnings: Callable[[], list[str]]) -> None:
    """A step between the last log() and watch() belongs to the next log()."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradmedic.init(mode="offline") as run:
        run.watch(model, optimizer)
        backward(model)
        optimizer.step()
        run.watch(model, torch.optim.Adam(model.parameters()))
        (watch,) = run._instrumentations
        row = watch.finish_step().read().row
    assert row is not None
    assert len(row.layers) == 6
    assert not warnings()


def test_a_layer_of_another_shape_is_a_new_layer(service_url: str, client: gradmedic.Client) -> None:
    """A head that is replaced between two watches has a name of its own; the other layers stay the same."""
    model = perceptron()
    with gradmedic.init("heads", base_url=service_url) as run:
        for outputs in (1, 3):
            model[4] = nn.Linear(4, outputs)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            run.watch(model, optimizer)
            train(run, model, optimizer, 3)
    names = [layer.name for layer in client.runs.get(run.id).layers]
    assert names == [*(name for name, _ in perceptron().named_parameters()), "4.weight#2", "4.bias#2"]


def test_a_notebook_cell_that_is_run_again_watches_the_same_model(
    service_url: str, client: gradmedic.Client, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    """The same model and optimizer are watched by the run of the second init() alone; its end leaves nothing."""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = count_hooks(model, optimizer)
    for _ in range(2):
        run = gradmedic.init("notebook", base_url=service_url, log_freq=1)
        run.watch(model, optimizer)
        of_one_watch = count_hooks(model, optimizer)
        run.watch(model, optimizer)
        hooks = count_hooks(model, optimizer)
        norms = train(run, model, optimizer, 5)
    assert hooks == of_one_watch
    assert hooks - before >= HOOKS
    assert run.finish()
    assert count_hooks(model, optimizer) == before
    assert read_norms(client, run) == [float(np.float32(n)) for n in norms]
    assert not warnings()


def test_a_model_is_watched_by_its_newest_run() -> None:
    """A watch in a second run of the process ends the first run's; the first run goes on without gradients."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradmedic.init(mode="offline") as first, gradmedic.init(mode="offline") as second:
        first.watch(model, optimizer)
        hooks = count_hooks(model, optimizer)
        second.watch(torch.nn.DataParallel(model), optimizer)
        assert count_hooks(model, optimizer) == hooks - 5  # five of them are hooks of the wrapper
        assert not first._instrumentations
        first.log(1.0)


def test_unwatch_leaves_nothing_and_the_run_goes_on(service_url: str, client: gradmedic.Client) -> None:
    """After unwatch() no hook is left, log() records losses, and another model may have the same layers."""
    model, other = perceptron(), perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = count_hooks(model, optimizer)
    with gradmedic.init("unwatched", base_url=service_url) as run:
        run.watch(model, optimizer, activations=True)
        train(run, model, optimizer, 3)
        run.unwatch()
        run.unwatch()
        assert count_hooks(model, optimizer) == before
        train(run, model, optimizer, 3)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        run.watch(other, optimizer, activations=True)
        train(run, other, optimizer, 3)
    stored = client.runs.get(run.id)
    assert stored.last_step == 8
    assert len(stored.layers) == 6
    assert [value is None for value in read_norms(client, run)] == [False] * 3 + [True] * 3 + [False] * 3
    assert stored.training is not None
    assert stored.framework == f"torch {torch.__version__}"


# --- optimizers that are not watched ------------------------------------------------------------------------------


class SharpnessAware(torch.optim.Optimizer):
    """SAM (Foret et al. 2021) as scripts have it: `first_step`, `second_step`, and a base optimizer that steps."""

    def __init__(self, parameters: Any, base: type[torch.optim.Optimizer], rho: float = 0.05, **arguments: Any) -> None:
        super().__init__(parameters, {"rho": rho, **arguments})
        self.base_optimizer = base(self.param_groups, **arguments)
        self._shifts: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb."""
        gradients = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        total = torch.nn.utils.get_total_norm([p.grad for p in gradients if p.grad is not None])
        for parameter in gradients:
            assert parameter.grad is not None
            self._shifts[parameter] = parameter.grad * (0.05 / (total + 1e-12))
            parameter.add_(self._shifts[parameter])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        """Go back, and step."""
        for parameter, shift in self._shifts.items():
            parameter.sub_(shift)
        self.base_optimizer.step()
        self.zero_grad()


def train_sharpness_aware(run: gradmedic.Run, model: nn.Module, optimizer: SharpnessAware, steps: int) -> None:
    """Train with SAM, whose own `step()` is never called."""
    for _ in range(steps):
        backward(model)
        optimizer.first_step()
        loss = backward(model)
        optimizer.second_step()
        run.log(loss)


def test_an_optimizer_inside_the_watched_one_is_named_and_can_be_watched(
    service_url: str, client: gradmedic.Client, warnings: Callable[[], list[str]]
) -> None:
    """A base optimizer that steps alone is said once, with the call that helps; the run is not healthy until then."""
    torch.manual_seed(0)
    model = perceptron()
    optimizer = SharpnessAware(model.parameters(), torch.optim.SGD, lr=0.1)
    run = gradmedic.init("sam", base_url=service_url)
    run.watch(model, optimizer)
    train_sharpness_aware(run, model, optimizer, 40)
    (message,) = warnings()
    assert "SGD updates layers of the watched model" in message
    assert "SharpnessAware was given, but its step() is not called" in message
    assert "run.watch(model, optimizer.base_optimizer)" in message
    diagnosis = run.diagnosis()
    assert diagnosis.verdict == "undetermined"
    assert "o gradients were sent" in diagnosis.summary
    run.watch(model, optimizer.base_optimizer)
    train_sharpness_aware(run, model, optimizer, 40)
    assert run.diagnosis().verdict == "healthy"
    assert run.finish()
    assert len(warnings()) == 1


def test_a_stage_whose_optimizer_is_not_watched_is_not_healthy(
    service_url: str, client: gradmedic.Client, warnings: Callable[[], list[str]]
) -> None:
    """A healthy run that goes on with an optimizer that is not watched is said once, and becomes undetermined."""
    model = perceptron()
    run = gradmedic.init("unwatched stage", base_url=service_url, log_freq=4)
    run.watch(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.05))
    train(run, model, optimizer, 40)
    assert run.diagnosis().verdict == "healthy"
    train(run, model, torch.optim.Adam(model.parameters()), 60)
    assert run.diagnosis().verdict == "undetermined"
    assert run.finish()
    (message,) = warnings()
    assert "Adam updates layers of the watched model, but watch() was not given it" in message


def test_a_second_optimizer_of_the_same_model_is_said_once(warnings: Callable[[], list[str]]) -> None:
    """Gradients of a part of the model that another optimizer updates are not recorded, and a warning names it."""
    model = perceptron()
    watched = torch.optim.SGD(model[0].parameters(), lr=0.1)
    unwatched = torch.optim.RMSprop(model[2].parameters(), lr=0.01)
    with Recording(model, watched) as recording:
        for _ in range(3):
            backward(model)
            watched.step()
            unwatched.step()
            assert set(recording.statistics()) == {"0.weight", "0.bias"}
    (message,) = warnings()
    assert "RMSprop updates layers of the watched model" in message


def test_other_models_wrappers_and_inner_optimizers_cause_no_warning(warnings: Callable[[], list[str]]) -> None:
    """Steps of other models' optimizers, around a watched step and inside one, are none of the watched model."""

    class Outer(torch.optim.SGD):
        """Steps an optimizer of the same parameters."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, lr=0.0)
            self.inner = inner

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            """Step the inner one."""
            self.inner.step()

    model, other = perceptron(), perceptron()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = Outer(inner)
    of_other = torch.optim.SGD(other.parameters(), lr=0.1)
    for given in (inner, outer):
        with Recording(model, given) as recording:
            for _ in range(3):
                backward(model)
                outer.step()
                backward(other)
                of_other.step()
                assert len(recording.statistics()) == 6
    assert not warnings()


@pytest.mark.parametrize("clip", [False, True])
def test_a_step_that_was_replaced_is_warned_of_with_its_reason(
    clip: bool, service_url: str, client: gradmedic.Client, warnings: Callable[[], list[str]]
) -> None:
    """An optimizer whose step() the script replaced causes one warning after 20 steps, and no healthy verdict."""

    @torch.no_grad()
    def descend(self: torch.optim.Optimizer) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(0.05 * parameter.grad)

    def run_training(mode: str) -> tuple[gradmedic.Run, Any]:
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.step = types.MethodType(descend, optimizer)  # type: ignore[method-assign]
        run = gradmedic.init("replaced", base_url=service_url, mode=mode)
        run.watch(model, optimizer)
        for step in range(40):
            optimizer.zero_grad()
            loss = backward(model)
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            run.log(loss)
            assert bool(warnings()) is (mode == "online" and step >= STEPS_WITHOUT_GRADIENTS - 1)
        return run, arrays(model)

    _, expected = run_training("disabled")
    run, weights = run_training("online")
    assert all(weights[name].tobytes() == expected[name].tobytes() for name in expected)
    (message,) = warnings()
    assert "torch never saw SGD.step()" in message
    diagnosis = run.diagnosis()
    assert (diagnosis.verdict, diagnosis.score) == ("undetermined", 0.0)
    assert "o gradients were sent" in diagnosis.summary
    assert run.finish()


def test_accumulation_of_gradients_is_no_silence(warnings: Callable[[], list[str]]) -> None:
    """Many calls of log() without a step are accumulation, until there are very many of them."""
    model = perceptron()
    with Recording(model, torch.optim.SGD(model.parameters(), lr=0.1)) as recording:
        for i in range(ACCUMULATED_STEPS + 10):
            assert recording.log().row is None
            assert bool(warnings()) is (i >= ACCUMULATED_STEPS - 1)
    assert "log() once for each optimizer step" in warnings()[0]


def test_the_hooks_of_all_optimizers_are_there_only_while_a_model_is_watched() -> None:
    """A process that watches nothing has no hook at all in torch's optimizers."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = count_hooks(model, optimizer)
    with Recording(model, optimizer):
        assert count_hooks(model, optimizer) >= before + HOOKS
    assert count_hooks(model, optimizer) == before
