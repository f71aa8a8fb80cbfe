"""Remedies of optimizers and gradients, compared with loops that are written by hand."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from tests.client.torch.remedies.optimizer_training import (
    STEP_REMEDIES,
    STEPS,
    Schedule,
    assert_same,
    batches,
    perceptron,
    remedies,
    sgd,
    train,
    train_by_hand,
)
from tests.client.torch.remedies.training import apply
from torch import Tensor, nn

from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.remedies.updates import OPTIMIZERS
from gradmedic.torch.remedies import AppliedRemedies

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("id", [id for id in STEP_REMEDIES if id != "switch_optimizer"])
def test_each_remedy_does_what_its_formula_says(id: str) -> None:
    """A training with one remedy ends with the weights of a loop that is written by hand."""
    assert_same(train(remedies(id))[0], train_by_hand((id,)))


@pytest.mark.parametrize(
    "id", [id for id in STEP_REMEDIES if id not in ("skip_nonfinite_steps", "clip_grad_norm_per_layer")]
)
def test_each_remedy_changes_something(id: str) -> None:
    """A training with a remedy ends with other weights than one without."""
    plain = [p.detach() for p in train([])[0].parameters()]
    changed = train(remedies(id))[0].parameters()
    assert any(not torch.allclose(a, b, rtol=1e-4) for a, b in zip(changed, plain, strict=True))


@pytest.mark.parametrize(
    "pair", list(itertools.combinations([id for id in STEP_REMEDIES if id != "rescale_loss_gradient"], 2))
)
def test_remedies_compose_in_one_order(pair: tuple[str, str]) -> None:
    """Two remedies give what a loop by hand gives, to the bit the same in both orders."""
    one, other = train(remedies(*pair))[0], train(remedies(*reversed(pair)))[0]
    assert_same(one, train_by_hand(pair), tolerance=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_all_remedies_are_combined() -> None:
    """All remedies that can be combined give what a loop by hand gives."""
    ids = tuple(id for id in STEP_REMEDIES if id != "switch_optimizer")
    assert_same(train(remedies(*ids))[0], train_by_hand(ids), tolerance=1e-4)


def test_no_remedies_change_nothing() -> None:
    """Without remedies the training is that of a loop by hand."""
    model = perceptron()
    optimizer = sgd(model)
    AppliedRemedies(model, optimizer, []).attach_before_measurement()
    plain, _ = train([])
    assert_same(plain, train_by_hand(()))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "SGD"])
def test_switching_is_training_with_the_other_optimizer(name: str) -> None:
    """Another optimizer in place of the script's SGD does what it does alone."""
    given = [Remedy(id="switch_optimizer", parameters={"optimizer": name, "learning_rate": 0.02})]
    switched, seen = train(given, lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    alone, _ = train([], lambda m: getattr(torch.optim, name)(m.parameters(), lr=0.02, weight_decay=0.0))
    assert seen == [0.1] * STEPS
    for a, b in zip(switched.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_switching_to_sgd() -> None:
    """SGD in place of the script's Adam does what it does alone."""
    given = [Remedy(id="switch_optimizer", parameters={"optimizer": "SGD", "learning_rate": 0.02})]
    switched, _ = train(given, lambda m: torch.optim.Adam(m.parameters(), lr=0.5))
    alone, _ = train([], lambda m: torch.optim.SGD(m.parameters(), lr=0.02))
    for a, b in zip(switched.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


SCHEDULES: dict[str, tuple[Schedule, Callable[[int], float]]] = {
    "step": (lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5), lambda step: 0.5 ** (step // 3)),
    "lambda": (
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda step: 1 / (1 + step),
    ),
    "from zero": (
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 4)),
        lambda step: min(1.0, step / 4),
    ),
}


@pytest.mark.parametrize("is_scheduled_first", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("id", ["limit_learning_rate", "scale_learning_rate", "warm_up", "switch_optimizer"])
def test_schedulers_go_on(name: str, id: str, is_scheduled_first: bool) -> None:
    """A scheduler reads its own rates, which the remedy changes, whether it was made before or after."""
    make, factor = SCHEDULES[name]
    model, seen = train(remedies(id), schedule=make, is_scheduled_first=is_scheduled_first)
    assert seen == pytest.approx([0.1 * factor(step) for step in range(STEPS)])
    assert_same(model, train_by_hand((id,), factor), tolerance=1e-4)


@pytest.mark.parametrize("id", [id for id in STEP_REMEDIES if id != "skip_nonfinite_steps"])
def test_closures_get_the_remedy_and_run_once(id: str) -> None:
    """With a closure each remedy does the same as without one, and the closure runs once in a step."""
    assert_same(train(remedies(id), with_closure=True)[0], [p.detach() for p in train(remedies(id))[0].parameters()])
    model = perceptron()
    optimizer = sgd(model)
    apply(model, optimizer, *remedies(id))
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(torch.ones(2, 6)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        calls.append(1)
        return loss

    optimizer.step(closure=closure)  # type: ignore[arg-type]
    assert calls == [1]


def test_steps_that_are_not_finite_are_skipped() -> None:
    """A step with NaN gradients changes no weights and no momentum, and leaves the gradients as they are."""
    for switch in ([], remedies("switch_optimizer")):
        model = perceptron()
        optimizer = sgd(model)
        apply(model, optimizer, *[*remedies("skip_nonfinite_steps", "weight_decay"), *switch])
        before = copy.deepcopy(model.state_dict())
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan)
        optimizer.step()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(p.grad is not None and p.grad.isnan().all() for p in model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_infinite_norm_makes_nan_as_in_torch() -> None:
    """Clipping an infinite norm makes weights NaN, as torch's own function does."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    apply(model, optimizer, *remedies("clip_grad_norm"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    optimizer.step()
    assert all(p.isnan().all() for p in model.parameters())


@pytest.mark.parametrize("id", ["clip_grad_norm", "clip_grad_value", "switch_optimizer", "l1_penalty"])
def test_fused_optimizers_with_a_loss_scaler(id: str) -> None:
    """With a fused optimizer and a loss scaler, a remedy gets unscaled gradients, and overflows are skipped."""
    given = remedies(id)
    results = []
    for is_scaled in (False, True):
        model = perceptron()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        if id == "switch_optimizer":
            given = [Remedy(id=id, parameters={"optimizer": "RMSprop", "learning_rate": 0.01})]
        apply(model, optimizer, *given)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=is_scaled)
        for index, (inputs, targets) in enumerate(batches()):
            optimizer.zero_grad()
            loss = ((model(inputs) - targets) ** 2).mean()
            scaler.scale(loss).backward()
            before = copy.deepcopy(model.state_dict())
            if is_scaled and index == 3:
                next(model.parameters()).grad = torch.full_like(next(model.parameters()), torch.inf)
            if index == 3 and not is_scaled:
                continue
            scaler.step(optimizer)
            scaler.update(1024.0 if is_scaled else None)
            if index == 3:
                assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        results.append([p.detach() for p in model.parameters()])
    for plain, scaled in zip(*results, strict=True):
        torch.testing.assert_close(plain, scaled, rtol=1e-4, atol=1e-5)


def test_groups_that_are_added_or_reloaded_later() -> None:
    """Another optimizer uses the parameters and rates that the script's groups have at each step."""
    model = perceptron()
    first, second = model[0], model[2]
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    apply(model, optimizer, *[Remedy(id="switch_optimizer", parameters={"optimizer": "Adam", "learning_rate": 0.01})])
    reference = copy.deepcopy(model)
    alone = torch.optim.Adam(reference[0].parameters(), lr=0.01)
    for index, (inputs, targets) in enumerate(batches()):
        if index == 3:
            optimizer.add_param_group({"params": list(second.parameters()), "lr": 0.2})
            alone.add_param_group({"params": list(reference[2].parameters()), "lr": 0.02})
        if index == 5:
            state = optimizer.state_dict()
            state["param_groups"][0]["lr"] = 0.05
            optimizer.load_state_dict(state)
            alone.param_groups[0]["lr"] = 0.005
        for each, stepping in ((model, optimizer), (reference, alone)):
            each.zero_grad()
            ((each(inputs) - targets) ** 2).mean().backward()
            stepping.step()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_that_raises_leaves_the_rate_of_the_script() -> None:
    """If the optimizer raises, the next step begins with the script's learning rate, not with the scaled one."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    apply(model, optimizer, *remedies("scale_learning_rate"))

    def fail() -> float:
        raise RuntimeError("no batch")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="no batch"):
            optimizer.step(fail)
    model(torch.ones(1, 6)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    for (_, old), new, gradient in zip(before.items(), model.parameters(), gradients, strict=True):
        torch.testing.assert_close(new.detach(), old - 0.03 * gradient)


def test_a_schedule_that_rises_to_a_peak_has_the_new_rate_there() -> None:
    """With a scheduler that rises to a peak, the other optimizer's learning rate at the peak is the one asked for."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=10)
    applied = AppliedRemedies(model, optimizer, remedies("switch_optimizer"))
    seen = []
    applied.attach_before_measurement()
    applied.attach_after_measurement()
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    for _ in range(9):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    applied.close()
    assert max(seen) == pytest.approx(0.01, rel=0.05)
