"""Copies of the state of a training, and writing them back."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.client.torch.guards.trainings import MODELS, SCHEDULERS, SparseModel, Training
from tests.client.torch.watched_models import OPTIMIZERS, perceptron
from torch import nn

from gradmedic.torch.guards.snapshots import CannotRestore, TrainingState

pytestmark = pytest.mark.usefixtures("one_thread")


def state_of(training: Training) -> TrainingState:
    """Return the state of a training, which snapshots are taken of."""
    return TrainingState([training.model], [training.optimizer], training.scaler)


def check_that_it_goes_back(training: Training, *, first: int = 4) -> None:
    """Take a snapshot, train on, spoil everything, restore: the same batches must give the same bits as before."""
    state = state_of(training)
    for number in range(first):
        training.step(number)
    snapshot = state.take(first - 1)
    assert snapshot is not None
    expected = training.read()
    for number in range(first, first + 6):
        training.step(number)
    later = training.read()
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.fill_(math.nan)
    state.restore(snapshot)
    assert training.read() == expected
    for number in range(first, first + 6):
        training.step(number)
    assert training.read() == later


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_back_to_the_bit(optimizer: str) -> None:
    """The same batches lead to the same weights and the same state of the optimizer as the first time."""
    check_that_it_goes_back(Training(perceptron(), OPTIMIZERS[optimizer]))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_goes_back_to_the_bit(model: str) -> None:
    """Buffers, tied weights, parametrizations and half precision go back, too."""
    check_that_it_goes_back(Training(MODELS[model](), OPTIMIZERS["adam"]))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_is_found_and_goes_back(scheduler: str) -> None:
    """The rates after the restoration are those of the first time, though only the optimizer was given."""
    check_that_it_goes_back(Training(perceptron(), OPTIMIZERS["sgd"], SCHEDULERS[scheduler]))


def test_a_plateau_scheduler_goes_back() -> None:
    """A scheduler that reduces the rate at a plateau forgets the losses of the steps that are given up."""
    training = Training(perceptron(), OPTIMIZERS["sgd"])
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(training.optimizer, patience=0)
    scheduler.step(1.0)
    state = state_of(training)
    snapshot = state.take(0)
    assert snapshot is not None
    for _ in range(3):
        scheduler.step(math.inf)
    assert training.optimizer.param_groups[0]["lr"] < 0.1
    state.restore(snapshot)
    assert (training.optimizer.param_groups[0]["lr"], scheduler.best, scheduler.last_epoch) == (0.1, 1.0, 1)


def test_a_loss_scaler_goes_back() -> None:
    """The scale and its counter are those of the snapshot."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3)
    check_that_it_goes_back(Training(perceptron(), OPTIMIZERS["adam"], scaler=scaler))


def test_an_optimizer_with_lists_in_its_state_goes_back() -> None:
    """LBFGS keeps lists of tensors."""
    check_that_it_goes_back(Training(perceptron(), lambda p: torch.optim.LBFGS(p, max_iter=2)))


def test_sparse_gradients_go_back() -> None:
    """The state of SparseAdam goes back, and a sparse gradient becomes zero."""
    training = Training(SparseModel(), lambda p: torch.optim.SparseAdam(list(p)))
    check_that_it_goes_back(training)


def test_a_compiled_model_goes_back() -> None:
    """The weights are written in place, so that what was compiled computes with them."""
    training = Training(torch.compile(perceptron(), backend="eager"), OPTIMIZERS["adam"])  # type: ignore[arg-type]
    check_that_it_goes_back(training)


def test_a_state_from_before_the_first_step_is_restored() -> None:
    """What the optimizer has made since then is removed, and it begins anew."""
    check_that_it_goes_back(Training(perceptron(), OPTIMIZERS["adam"]), first=0)


def test_a_parameter_beside_the_models_goes_back() -> None:
    """A parameter that only the optimizer has is a part of the state."""
    temperature = nn.Parameter(torch.ones(()))
    training = Training(perceptron(), lambda p: torch.optim.SGD([*p, temperature], lr=0.1))
    state = state_of(training)
    snapshot = state.take(0)
    assert snapshot is not None
    with torch.no_grad():
        temperature.fill_(5.0)
    state.restore(snapshot)
    assert float(temperature.detach()) == 1.0


def test_a_state_that_the_script_emptied_is_made_again() -> None:
    """The state of the optimizer is what it was, though the script has cleared it."""
    training = Training(perceptron(), OPTIMIZERS["adam"])
    training.step(0)
    state = state_of(training)
    snapshot = state.take(0)
    assert snapshot is not None
    expected = training.read()
    training.optimizer.state.clear()
    state.restore(snapshot)
    assert training.read() == expected


def test_a_gradient_in_accumulation_becomes_zero() -> None:
    """The gradients that a script adds up belong to weights that are given up; their tensors stay."""
    training = Training(perceptron(), OPTIMIZERS["sgd"])
    state = state_of(training)
    snapshot = state.take(0)
    training.step(0, factor=math.nan)
    gradients = [parameter.grad for parameter in training.model.parameters()]
    assert snapshot is not None
    state.restore(snapshot)
    for before, parameter in zip(gradients, training.model.parameters(), strict=True):
        assert parameter.grad is before
        assert before is not None
        assert not before.any()


def test_a_backward_pass_through_a_restored_model_still_works() -> None:
    """A script that logs between the forward and the backward pass is not ended by a restoration in between."""
    training = Training(perceptron(), OPTIMIZERS["sgd"])
    state = state_of(training)
    snapshot = state.take(0)
    assert snapshot is not None
    loss = training.model(torch.ones(2, 6)).sum()
    state.restore(snapshot)
    loss.backward()


def test_snapshots_share_no_memory_with_the_training() -> None:
    """A later step changes no snapshot, and a restoration does not either."""
    training = Training(perceptron(), OPTIMIZERS["adam"])
    training.step(0)
    state = state_of(training)
    snapshot = state.take(0)
    assert snapshot is not None
    before = [tensor.clone() for tensor in snapshot.tensors]
    training.step(1)
    state.restore(snapshot)
    training.step(2)
    assert all(map(torch.equal, before, snapshot.tensors))


def test_the_memory_of_an_old_snapshot_is_used_again() -> None:
    """A snapshot is written over one that is not needed any more, if it has the same layout."""
    training = Training(perceptron(), OPTIMIZERS["adam"])
    state = state_of(training)
    without_state = state.take(-1)
    training.step(0)
    first = state.take(0, without_state)
    training.step(1)
    second = state.take(1, first)
    assert without_state is not None
    assert first is not None
    assert second is not None
    assert second.tensors is first.tensors
    assert first.tensors is not without_state.tensors
    state.restore(second)


def add_parameter(training: Training) -> None:
    """Add a layer to the model."""
    assert isinstance(training.model, nn.Sequential)
    training.model.append(nn.Linear(1, 1))


def remove_parameter(training: Training) -> None:
    """Remove the last layer of the model."""
    assert isinstance(training.model, nn.Sequential)
    del training.model[4]


def change_shape(training: Training) -> None:
    """Put a larger last layer in place of the last layer."""
    assert isinstance(training.model, nn.Sequential)
    training.model[4] = nn.Linear(4, 2)


def add_group(training: Training) -> None:
    """Add a group of parameters to the optimizer."""
    training.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add_parameter, r"5\.(weight|bias) was added to the model since then"),
        (remove_parameter, r"4\.(weight|bias) was removed from the model since then"),
        (change_shape, r"4\.weight was \[1, 4\] of torch.float32, and is \[2, 4\] of torch.float32 now"),
        (add_group, "a group of parameters was added to an optimizer"),
    ],
)
def test_a_training_that_has_changed_is_not_touched(change: Callable[[Training], None], reason: str) -> None:
    """A snapshot of another layer, shape or group is refused with the reason, before anything is written."""
    training = Training(perceptron(), OPTIMIZERS["sgd"])
    training.step(0)
    state = state_of(training)
    snapshot = state.take(0)
    assert snapshot is not None
    change(training)
    training.step(1)
    before = training.read()
    with pytest.raises(CannotRestore, match=reason):
        state.restore(snapshot)
    assert training.read() == before


def test_a_lazy_model_has_no_state_yet() -> None:
    """Before its parameters have shapes, no snapshot is taken."""
    model = nn.Sequential(nn.LazyLinear(3))
    state = TrainingState([model], [torch.optim.SGD(model.parameters(), lr=0.1)])
    assert state.take(0) is None
    model(torch.ones(1, 2))
    assert state.take(0) is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_numbers_are_found(bad: float) -> None:
    """One bad element of a weight, a buffer or a state of the optimizer is found; large numbers are none."""
    training = Training(MODELS["batch norm"](), OPTIMIZERS["adam"])
    training.step(0)
    state = state_of(training)
    good = state.take(0)
    assert good is not None
    tensors = [*training.model.parameters(), *training.model.buffers()]
    tensors += [each for values in training.optimizer.state.values() for each in values.values()]
    for tensor in (each for each in tensors if each.is_floating_point()):
        before = tensor.detach().clone()
        tensor.data.fill_(3e38)
        assert state.is_finite_now()
        tensor.data.view(-1)[-1] = bad
        assert not state.is_finite_now()
        snapshot = state.take(1)
        assert snapshot is not None
        assert not state.is_finite(snapshot)
        tensor.data.copy_(before)
    assert state.is_finite(good)


def test_infinite_elements_from_the_start_belong_there() -> None:
    """A mask with infinite elements does not make a state a bad one."""
    training = Training(MODELS["masked"](), OPTIMIZERS["sgd"])
    state = state_of(training)
    snapshot = state.take(0)
    assert snapshot is not None
    assert state.is_finite(snapshot)
    assert state.is_finite_now()
