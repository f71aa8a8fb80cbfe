"""Steps that a guard decides on before the optimizer changes anything."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.guards.guarding import SKIP, SKIP_NONFINITE, STOP, Switch, guard
from tests.client.torch.recording import Recording
from tests.client.torch.watched_models import OPTIMIZERS, arrays, backward, perceptron
from torch import nn

from gradmedic.exceptions import UnhealthyRunError
from gradmedic.guard.spike_rule import FEWEST_NORMS, MOST_SKIPPED_IN_A_ROW
from gradmedic.torch.guards.step_guard import STANDSTILL, Decision, StepGuard

pytestmark = pytest.mark.usefixtures("one_thread")


def fill_gradients(model: nn.Module, value: float) -> None:
    """Set every element of the gradients."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)


def read_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[bytes, Any]:
    """Return weights and the state of an optimizer, as bytes and plain values."""
    states = optimizer.state_dict()["state"].items()
    return b"".join(array.tobytes() for array in arrays(model).values()), {
        (number, name): value.tolist() if isinstance(value, torch.Tensor) else value
        for number, state in states
        for name, value in state.items()
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_a_skipped_step_changes_neither_weights_nor_the_optimizers_state(name: str, value: float) -> None:
    """A gradient that is not finite or a spike leaves all as it was; the gradient is there again after the step."""
    model = perceptron()
    optimizer = OPTIMIZERS[name](model.parameters())
    with Recording(model, optimizer) as recording:
        guard(recording, SKIP)
        for _ in range(FEWEST_NORMS):
            fill_gradients(model, 0.1)
            optimizer.step()
            assert not recording.log().skipped
        before = read_state(model, optimizer)
        fill_gradients(model, value)
        optimizer.step()
        after = read_state(model, optimizer)
        np.testing.assert_equal(after, before)
        for parameter in model.parameters():
            assert parameter.grad is not None
            np.testing.assert_equal(parameter.grad.numpy(), np.full(parameter.shape, value, np.float32))
        measurement = recording.log()
        (action,) = measurement.guard_actions
        assert measurement.skipped
        assert measurement.row is None
        assert action.action == "skip"
        assert action.reason == ("gradient_spike" if value == 1e6 else "nonfinite_gradient")
        fill_gradients(model, 0.1)
        optimizer.step()
        measurement = recording.log()
        assert not measurement.skipped
        assert measurement.row is not None
        assert not measurement.guard_actions
        assert read_state(model, optimizer)[0] != before[0]


@pytest.mark.parametrize("log_freq", [1, 7])
def test_a_training_in_which_the_guard_never_acts_is_the_same_to_the_bit(log_freq: int) -> None:
    """Weights, states, losses and random numbers with a guard equal those without one."""

    def train(*, is_guarded: bool) -> tuple[tuple[bytes, Any], list[float], list[int]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        recording = Recording(model, optimizer, log_freq=log_freq)
        if is_guarded:
            guard(recording, SKIP)
        losses = []
        for step in range(200):
            optimizer.zero_grad()
            losses.append(backward(model).item())
            if step % 3 == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            assert not recording.log().guard_actions
        recording.watch.close()
        return read_state(model, optimizer), losses, torch.get_rng_state().tolist()

    np.testing.assert_equal(train(is_guarded=True), train(is_guarded=False))


def test_a_spike_is_seen_although_the_script_clips() -> None:
    """The norm from before the clipping counts, whichever way the script clips."""
    for clip in (
        lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.1),
        lambda model: [nn.utils.clip_grad_norm_(layer.parameters(), 0.5) for layer in (model[0], model[2], model[4])],
    ):
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recording(model, optimizer) as recording:
            guard(recording, SKIP)
            skipped = []
            for value in [*[1.0] * FEWEST_NORMS, 100.0, 1.0]:
                fill_gradients(model, value)
                clip(model)
                optimizer.step()
                measurement = recording.log()
                skipped.append(measurement.skipped)
                if measurement.skipped:
                    size = sum(p.numel() for p in model.parameters())
                    (action,) = measurement.guard_actions
                    assert action.numbers["grad_norm"] == pytest.approx(100.0 * math.sqrt(size), rel=1e-5)
                    assert action.numbers["limit"] == pytest.approx(4.0 * math.sqrt(size), rel=1e-5)
        assert skipped == [*[False] * FEWEST_NORMS, True, False]


def test_larger_gradients_that_stay_are_taken() -> None:
    """At most five spikes in a row are skipped; then the norms are the new level."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with Recording(model, optimizer) as recording:
        guard(recording, SKIP)
        skipped = []
        for value in [*[1.0] * FEWEST_NORMS, *[100.0] * 20]:
            fill_gradients(model, value)
            optimizer.step()
            skipped.append(recording.log().skipped)
    assert sum(skipped) == MOST_SKIPPED_IN_A_ROW


def test_steps_with_a_nonfinite_gradient_are_never_taken_and_listed_up_to_a_number() -> None:
    """However many come in a row, the weights stay finite; the list ends with the sentence that it does not help."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        guard(recording, SKIP_NONFINITE)
        actions = []
        for _ in range(STANDSTILL + 30):
            fill_gradients(model, math.nan)
            optimizer.step()
            measurement = recording.log()
            assert measurement.skipped
            actions += [action.action for action in measurement.guard_actions]
        assert actions == [*["skip"] * STANDSTILL, "give_up"]
        assert all(p.isfinite().all() for p in model.parameters())


def test_without_permission_spikes_are_taken() -> None:
    """`on_nonfinite="skip"` alone leaves large finite gradients to the optimizer."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with Recording(model, optimizer) as recording:
        guard(recording, SKIP_NONFINITE)
        for value in [*[1.0] * 50, 1e6]:
            fill_gradients(model, value)
            optimizer.step()
            assert not recording.log().skipped


def test_each_optimizer_has_norms_of_its_own() -> None:
    """The large gradients of a critic are no spikes beside those of its generator, and its spike is skipped alone."""
    models = {"generator": perceptron(), "critic": perceptron()}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=1e-6) for name, model in models.items()}
    with Recording(models, list(optimizers.values())) as recording:
        guard(recording, SKIP)
        for step in range(40):
            for name, value in (("generator", 1e-3), ("critic", 1e3 if step != 30 else 1e6)):
                fill_gradients(models[name], value)
                optimizers[name].step()
            measurement = recording.log()
            layers = {layer.split(".")[0] for layer in recording.by_layer(measurement)}
            assert not measurement.skipped  # the generator has stepped
            assert layers == ({"generator"} if step == 30 else {"generator", "critic"})
            assert len(measurement.guard_actions) == (step == 30)


def test_stop_names_the_layer_and_takes_no_step_until_the_training_ends() -> None:
    """The switch gets the layer that is nearest to the loss, and the weights stay as they were."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    switch = Switch()
    with Recording(model, optimizer) as recording:
        guard(recording, STOP, switch)
        fill_gradients(model, 1.0)
        optimizer.step()
        recording.log()
        before = arrays(model)
        for name in ("0.weight", "2.bias"):
            model.get_parameter(name).grad = torch.full_like(model.get_parameter(name), math.nan)
        optimizer.step()
        fill_gradients(model, 1.0)
        optimizer.step()
        np.testing.assert_equal(arrays(model), before)
        measurement = recording.log()
    (reason,) = switch.reasons
    assert reason == "The gradient is not finite in 2 of 6 layers, the last of them 2.bias"
    (action,) = measurement.guard_actions
    assert (action.action, action.reason) == ("stop", "nonfinite_gradient")
    assert action.numbers["nonfinite_layers"] == 2


def test_a_script_that_never_logs_is_stopped_by_its_next_step() -> None:
    """The optimizer's step raises, because no log() can; the step is not taken."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    switch = Switch()
    switch.has_logged = False
    with Recording(model, optimizer) as recording:
        guard(recording, STOP, switch)
        before = arrays(model)
        fill_gradients(model, math.nan)
        optimizer.step()
        fill_gradients(model, 1.0)
        with pytest.raises(UnhealthyRunError, match=r"6 of 6 layers, the last of them 4\.bias"):
            optimizer.step()
        np.testing.assert_equal(arrays(model), before)


@pytest.mark.parametrize("name", ["sgd", "lbfgs"])
def test_a_closure_is_called_and_its_step_is_skipped(name: str) -> None:
    """A guard decides when the closure has computed the gradients, as in Lightning and LBFGS."""
    model = perceptron()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if name == "lbfgs":
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5, line_search_fn="strong_wolfe")
    inputs = torch.randn(8, 6)
    factor = 1.0

    def closure() -> float:
        optimizer.zero_grad()
        loss = (model(inputs) ** 2).mean() * factor
        loss.backward()
        return float(loss.item())

    with Recording(model, optimizer) as recording:
        guard(recording, SKIP_NONFINITE)
        for step in range(5):
            factor = math.nan if step == 3 else 1.0
            before = arrays(model)
            optimizer.step(closure)
            has_moved = any(not np.array_equal(before[name], array) for name, array in arrays(model).items())
            assert has_moved == (step != 3)
            assert recording.log().skipped == (step == 3)


def test_a_loss_scalers_skip_is_counted_once() -> None:
    """A step that a loss scaler leaves out is no action of the guard, also where a fused optimizer is told so."""
    for fused in (False, True):
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        with Recording(model, optimizer, scaler=scaler) as recording:
            guard(recording, SKIP)
            for step in range(60):
                optimizer.zero_grad()
                factor = {30: math.inf, 45: 1e7}.get(step, 1.0)
                loss = (model(torch.ones(8, 6)) ** 2).mean() + model(torch.ones(8, 6)).mean()
                scaler.scale(loss * factor).backward()
                scaler.step(optimizer)
                scaler.update()
                measurement = recording.log()
                assert measurement.skipped == (step in (30, 45)), (fused, step)
                assert len(measurement.guard_actions) == (step == 45)
            assert all(p.isfinite().all() for p in model.parameters())


def test_accumulated_gradients_are_judged_at_the_step() -> None:
    """Backward passes without a step are not judged, and those of a skipped step are cleared as the script does."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    with Recording(model, optimizer) as recording:
        guard(recording, SKIP)
        skipped = 0
        for step in range(40):
            optimizer.zero_grad()
            for part in range(4):
                backward(model, scale=1e6 if (step, part) == (30, 2) else 1.0)
            optimizer.step()
            skipped += recording.log().skipped
    assert skipped == 1


def test_sparse_gradients_and_half_precision_have_a_norm() -> None:
    """A guard judges sparse embeddings and float16 gradients whose squares overflow."""
    embedding = nn.Embedding(10, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(embedding.parameters())
    half = nn.Linear(400, 400).half()
    half_optimizer = torch.optim.SGD(half.parameters(), lr=1e-3)
    with Recording({"embedding": embedding, "half": half}, [optimizer, half_optimizer]) as recording:
        guard(recording, SKIP)
        for step in range(40):
            optimizer.zero_grad()
            (embedding(torch.tensor([1, 1, 2])).sum() * (1e6 if step == 30 else 1.0)).backward()
            optimizer.step()  # type: ignore[no-untyped-call]
            fill_gradients(half, 400.0)  # a norm of 160,000, beyond the range of float16
            half_optimizer.step()
            assert len(recording.log().guard_actions) == (step == 30)


def test_an_optimizer_that_moves_weights_without_gradients_is_not_guarded(caplog: pytest.LogCaptureFixture) -> None:
    """A step that cannot be left out is not reported as left out for ever: the guard ends with a sentence."""

    class Drift(torch.optim.SGD):
        def step(self, _closure: Any = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for group in self.param_groups:
                    torch._foreach_mul_(group["params"], 0.99)

    model = perceptron()
    optimizer = Drift(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording, caplog.at_level(logging.WARNING, "gradmedic"):
        guarding = guard(recording, SKIP)
        fill_gradients(model, math.nan)
        optimizer.step()
        assert guarding.is_over
        assert "no longer guarded: Drift changes weights that have no gradient" in caplog.text


def test_an_error_of_the_guard_ends_the_guard_and_not_the_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is logged once, the step is taken, and the training is observed on."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def fail(*_: Any) -> None:
        raise OSError("of the guard")

    with Recording(model, optimizer) as recording, caplog.at_level(logging.WARNING, "gradmedic"):
        guarding = guard(recording, SKIP)
        monkeypatch.setattr(guarding, "_judge", fail)
        for _ in range(3):
            before = arrays(model)
            backward(model)
            optimizer.step()
            assert any(not np.array_equal(before[name], array) for name, array in arrays(model).items())
            assert recording.statistics()
            optimizer.zero_grad()
    assert caplog.text.count("of the guard") == 1


def test_a_closed_guard_leaves_nothing_in_optimizer_and_torch() -> None:
    """Hooks are gone, and torch's clipping function is the original one."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    original = nn.utils.clip_grad._clip_grads_with_norm_
    with Recording(model, optimizer) as recording:
        guarding = guard(recording, SKIP)
        backward(model)
        optimizer.step()
        guarding.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert nn.utils.clip_grad._clip_grads_with_norm_ is original


class NotingRewinder:
    """Notes what a guard shows it, and goes back when it is asked."""

    def __init__(self) -> None:
        self.decisions: list[Decision | None] = []
        self.troubles: list[Decision] = []

    def after_step(self, optimizer: torch.optim.Optimizer, decision: Decision | None) -> None:
        """Note a decision."""
        assert all(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        self.decisions.append(decision)

    def on_trouble(self, optimizer: torch.optim.Optimizer, decision: Decision) -> bool:
        """Note the trouble."""
        self.troubles.append(decision)
        return True

    def on_signal(self, signal: float) -> bool:
        """Do nothing."""
        return False


def attach_rewinder(guarding: StepGuard) -> NotingRewinder:
    """Return a rewinder that is attached to a guard."""
    guarding.rewinder = rewinder = NotingRewinder()
    return rewinder


def test_a_rewinder_sees_every_decision_and_the_spikes_that_stay() -> None:
    """After as many skipped spikes as may be it is asked; if it goes back, the step is not taken either."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(model, optimizer) as recording:
        rewinder = attach_rewinder(guard(recording, SKIP))
        for _ in range(FEWEST_NORMS):
            fill_gradients(model, 1.0)
            optimizer.step()
        before = arrays(model)
        for _ in range(MOST_SKIPPED_IN_A_ROW + 1):
            fill_gradients(model, 100.0)
            optimizer.step()
        np.testing.assert_equal(arrays(model), before)
    assert len(rewinder.decisions) == FEWEST_NORMS + MOST_SKIPPED_IN_A_ROW + 1
    assert [each.in_a_row for each in rewinder.decisions if each is not None and each.is_skipped] == [1, 2, 3, 4, 5]
    (trouble,) = rewinder.troubles
    assert trouble.in_a_row == MOST_SKIPPED_IN_A_ROW
    assert not trouble.is_skipped


@pytest.mark.slow
def test_a_compiled_step_is_guarded() -> None:
    """`torch.compile` leaves the hooks as they are: a step is left out, and later ones are taken."""

    class Descent(torch.optim.Optimizer):
        """An optimizer of a script, which torch can compile as one graph."""

        @torch.no_grad()
        def step(self, _closure: Any = None) -> None:  # type: ignore[override]
            """Update the weights."""
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-0.1)

    model = perceptron()
    optimizer = Descent(model.parameters(), {})
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    with Recording(model, optimizer) as recording:
        guard(recording, SKIP_NONFINITE)
        for number in range(6):
            fill_gradients(model, math.nan if number == 3 else 1.0)
            before = arrays(model)
            step()
            has_moved = any(not np.array_equal(before[name], array) for name, array in arrays(model).items())
            assert has_moved == (number != 3)
            assert recording.log().skipped == (number == 3)
