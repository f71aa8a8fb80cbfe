"""The norm of the loss's gradient at the output of the watched model."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.runs import start
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import norm, perceptron
from torch import Tensor, nn

import gradmedic

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")


def output_norm(recording: Recording) -> float | None:
    """End a step and return its norm."""
    return recording.log().output_gradient_norm


def make() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Return a model and its optimizer."""
    model = perceptron()
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def test_it_is_the_norm_of_the_gradient_at_the_output() -> None:
    """It is what autograd gives for the output, also over several calls and several backward passes."""
    model, optimizer = make()
    with Recording(model, optimizer) as recording:
        for calls in (1, 3):
            optimizer.zero_grad()
            squares = 0.0
            for _ in range(calls):
                output = model(torch.randn(8, 6))
                output.retain_grad()
                (output**2).sum().backward()
                squares += norm(output.grad) ** 2
            optimizer.step()
            assert output_norm(recording) == pytest.approx(math.sqrt(squares), rel=1e-6)


@pytest.mark.parametrize(
    "compute_loss",
    [
        lambda output, weight: output.detach().sum() + 0 * weight.sum(),
        lambda output, _weight: (output * 0).sum(),
        lambda output, _weight: torch.relu(output * 0 - 1).sum(),
        lambda _output, weight: (weight**2).sum(),
    ],
    ids=["detached", "masked", "satisfied hinge", "penalty alone"],
)
def test_it_is_zero_if_the_loss_sends_no_gradient(compute_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A loss that is detached from the output, masked or satisfied has the norm 0, and not none."""
    model, optimizer = make()
    with Recording(model, optimizer) as recording:
        compute_loss(model(torch.randn(8, 6)), next(model.parameters())).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert output_norm(recording) == 0.0


def test_it_is_none_where_it_was_not_measured() -> None:
    """A step that is not sampled, has no optimizer step, or calls no model has no norm; nor has an evaluation."""
    model, optimizer = make()
    with Recording(model, optimizer, log_freq=25) as recording:
        for step in range(30):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).sum().backward()
            if step != 3:
                optimizer.step()
            assert (output_norm(recording) is not None) == ((step < 20 and step != 3) or step == 25)
    with Recording(model, optimizer) as recording:
        with torch.no_grad():
            model(torch.randn(8, 6))
        optimizer.step()
        assert output_norm(recording) is None
        model(torch.randn(8, 6)).sum().backward()  # this step ends without an update
        assert output_norm(recording) is None
        optimizer.step()
        assert output_norm(recording) is None


def test_a_late_backward_pass_of_an_earlier_output_does_not_count() -> None:
    """The gradient at an output of an earlier step belongs to no step."""
    model, optimizer = make()
    with Recording(model, optimizer) as recording:
        old = model(torch.randn(8, 6))
        optimizer.step()
        output_norm(recording)
        new = model(torch.randn(8, 6))
        (old.sum() * 100 + new.sum()).backward()
        optimizer.step()
        assert output_norm(recording) == pytest.approx(math.sqrt(8), rel=1e-6)


def test_outputs_of_any_structure_are_taken_together() -> None:
    """Dictionaries, tuples, integer tensors and outputs that the loss does not use are all right."""

    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> dict[str, Any]:
            y = self.inner(x)
            return {"a": y * 3.0, "b": (y * 4.0, [y * 5.0]), "classes": y.argmax(-1), "bias": self.bias, "none": None}

    model = Structured()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        output = model(torch.randn(9, 6))
        (output["a"].sum() * 3 + output["b"][0].sum() * 4 + output["bias"].sum()).backward()
        optimizer.step()
        assert output_norm(recording) == pytest.approx(15.0, rel=1e-6)
    assert not model.bias._backward_hooks


def test_several_models_are_taken_together(service_url: str, client: gradmedic.Client) -> None:
    """The norm of a run is one over all models, in one `watch()` or in two; it is stored as a series."""
    models = {name: nn.Linear(3, 1) for name in ("a", "b")}
    optimizer = torch.optim.SGD([p for model in models.values() for p in model.parameters()], lr=0.0)
    for is_joint in (True, False):
        with start(service_url) as run:
            if is_joint:
                run.watch(models, optimizer)
            else:
                for name, model in models.items():
                    run.watch(model, optimizer, prefix=f"{name}.")
            for _ in range(4):
                loss = 3.0 * models["a"](torch.ones(1, 3)).sum() + 4.0 * models["b"](torch.ones(1, 3)).sum()
                loss.backward()
                optimizer.step()
                run.log(loss)
        (series,) = client.runs.steps(run.id, "output_gradient_norm", max_points=10).series
        assert series.mean == [5.0] * 4


def test_nonfinite_and_extreme_gradients_are_kept() -> None:
    """A NaN stays NaN, an infinity infinite, and squares neither overflow nor vanish."""
    model, optimizer = make()
    with Recording(model, optimizer) as recording:
        for factor in (math.nan, math.inf, 1e30, 1e-30):
            optimizer.zero_grad()
            (model(torch.randn(4, 6)) * factor).sum().backward()
            optimizer.zero_grad()
            optimizer.step()
            measured = output_norm(recording)
            assert measured is not None
            if math.isfinite(factor):
                assert measured == pytest.approx(2 * factor, rel=1e-5)
            else:
                assert not math.isfinite(measured)


def test_it_is_divided_by_the_loss_scale() -> None:
    """Under a loss scaler, the norm is that of the unscaled loss; a step that is skipped has none."""
    model, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Recording(model, optimizer, scaler=scaler) as recording:
        for factor in (1.0, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(4, 6)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            measured = output_norm(recording)
            if math.isfinite(factor):
                assert measured == pytest.approx(2.0, rel=1e-6)
            else:
                assert measured is None


def test_the_path_of_accelerators_measures_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed on a device, without waiting, is the same number."""
    monkeypatch.setattr("gradmedic.torch.statistics.is_measured_on_host", lambda _tensor: False)
    model, optimizer = make()
    with Recording(model, optimizer) as recording:
        for _ in range(2):
            optimizer.zero_grad()
            for factor in (3.0, 4.0):
                (model(torch.ones(1, 6)) * factor).sum().backward()
            optimizer.step()
            assert output_norm(recording) == pytest.approx(5.0, rel=1e-6)


def test_a_compiled_model_trains_the_same_and_may_have_no_norm() -> None:
    """`torch.compile` of a watched model compiles one graph once; where the norm is measured, it is right."""
    torch._dynamo.reset()
    model, optimizer = make()
    graphs = []

    def count(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with Recording(model, optimizer, log_freq=2) as recording:
        compiled = torch.compile(model, backend=count)
        for _ in range(26):
            optimizer.zero_grad()
            compiled(torch.ones(4, 6)).sum().backward()
            optimizer.step()
            measured = output_norm(recording)
            assert measured is None or measured == pytest.approx(2.0, rel=1e-6)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_models_are_copied_scripted_and_traced_as_without_a_watch() -> None:
    """A copy has a hook that does nothing; TorchScript and a tracer see none."""
    model, optimizer = make()
    with Recording(model, optimizer) as recording:
        duplicate = copy.deepcopy(model)
        duplicate(torch.randn(2, 6)).sum().backward()
        torch.jit.script(model)
        torch.jit.trace(model, torch.randn(2, 6))  # type: ignore[no-untyped-call]
        optimizer.step()
        assert output_norm(recording) is None
    assert not model._forward_hooks


def test_nothing_is_kept_and_nothing_is_changed() -> None:
    """Outputs are freed as without a watch, and weights are the same to the bit."""

    def train(is_watched: bool) -> list[np.ndarray]:
        torch.manual_seed(0)
        model, optimizer = make()
        recording = Recording(model, optimizer) if is_watched else None
        for _ in range(5):
            optimizer.zero_grad()
            output = model(torch.randn(8, 6))
            alive = weakref.ref(output)
            output.square().mean().backward()
            optimizer.step()
            if recording is not None:
                recording.log()
            del output
            gc.collect()
            assert alive() is None
        if recording is not None:
            recording.watch.close()
        return [parameter.detach().numpy() for parameter in model.parameters()]

    for with_watch, without in zip(train(True), train(False), strict=True):
        np.testing.assert_array_equal(with_watch, without)


def test_it_counts_towards_the_cost_of_sampling() -> None:
    """The time that the hooks take is added to what sampling costs."""
    model, optimizer = make()
    with Recording(model, optimizer) as recording:
        before = recording.sampler.spent
        output = model(torch.randn(8, 6))
        after_forward = recording.sampler.spent
        output.sum().backward()
        assert before < after_forward < recording.sampler.spent


def test_outputs_of_one_operation_that_the_loss_does_not_use_are_zero() -> None:
    """A recurrent module under autocast, of whose outputs the loss uses one, is watched on."""
    model = nn.LSTM(3, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        for _ in range(2):
            # Some processors lack what oneDNN needs for a recurrence in bfloat16.
            with (
                torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
                torch.autocast("cpu", dtype=torch.bfloat16),
            ):
                state = model(torch.randn(7, 4, 3))[1][0]
            state.float().sum().backward()
            optimizer.step()
            assert output_norm(recording) == pytest.approx(math.sqrt(4 * 5), rel=1e-2)
