"""Remedies of optimizers and gradients, compared with loops that are written by hand."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradmedic.exceptions import ConfigurationError, UsageError
from gradmedic.protocol.remedies import OPTIMIZERS, REMEDIES, Remedy
from gradmedic.torch.clipping import NORM_EPSILON
from gradmedic.torch.remedies import AppliedRemedies, NotApplicable
from gradmedic.torch.remedies.gradients.clip import LEAST_ROW_NORM
from gradmedic.torch.remedies.optimizer_remedies import has_remedies
from gradmedic.torch.remedies.registry import REMEDY_CLASSES

STEPS = 8
PARAMETERS: dict[str, dict[str, Any]] = {
    "clip_grad_norm": {"max_norm": 0.5},
    "clip_grad_value": {"clip_value": 0.05},
    "clip_grad_norm_per_layer": {"max_norm": 0.2},
    "adaptive_clip": {"clipping": 0.1},
    "scale_learning_rate": {"factor": 0.3},
    "warm_up": {"steps": 5},
    "switch_optimizer": {"optimizer": "Adam", "learning_rate": 0.01},
    "weight_decay": {"weight_decay": 0.1},
    "l1_penalty": {"strength": 0.01},
    "rescale_loss_gradient": {"factor": 0.25},
    "reduce_weight_decay": {"factor": 0.1},
    "skip_nonfinite_steps": {},
}
STEP_REMEDIES = [id for id in REMEDIES if id in REMEDY_CLASSES and REMEDY_CLASSES[id].kind == "optimizer"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Let torch use one thread."""
    torch.set_num_threads(1)


def remedies(*ids: str) -> list[Remedy]:
    """Return remedies with the parameters of the tests."""
    return [Remedy(id=id, parameters=PARAMETERS[id]) for id in ids]


def perceptron() -> nn.Sequential:
    """Return a small model, always the same."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a training, always the same; their targets are far off."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield torch.randn(8, 6, generator=generator), 5 * torch.randn(8, 1, generator=generator)


def sgd(model: nn.Module) -> Optimizer:
    """Return the optimizer of most tests."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


Schedule = Callable[[Optimizer], torch.optim.lr_scheduler.LRScheduler]


def apply(optimizer: Optimizer, model: nn.Module, given: list[Remedy]) -> AppliedRemedies:
    """Apply remedies as `watch()` does."""
    applied = AppliedRemedies(model, optimizer, given)
    applied.attach_before_measurement()
    applied.attach_after_measurement()
    return applied


def train(
    given: list[Remedy],
    make: Callable[[nn.Module], Optimizer] = sgd,
    *,
    schedule: Schedule | None = None,
    is_scheduled_first: bool = False,
    with_closure: bool = False,
) -> tuple[nn.Module, list[float]]:
    """Train with remedies; return the model and the learning rates that the script saw."""
    model = perceptron()
    optimizer = make(model)
    scheduler = schedule(optimizer) if schedule and is_scheduled_first else None
    apply(optimizer, model, given)
    if schedule and scheduler is None:
        scheduler = schedule(optimizer)
    seen = []
    for inputs, targets in batches():

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = ((model(inputs) - targets) ** 2).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        if with_closure:
            assert optimizer.step(closure) is not None  # type: ignore[arg-type]
        else:
            closure()
            optimizer.step()
        seen.append(float(optimizer.param_groups[0]["lr"]))
        if scheduler is not None:
            scheduler.step()
    return model, seen


def train_by_hand(ids: tuple[str, ...], schedule: Callable[[int], float] = lambda _: 1.0) -> list[Tensor]:
    """Train as `train(remedies(*ids))` should, with SGD with momentum or the other optimizer written out."""
    p = {id: PARAMETERS[id] for id in ids}
    model = perceptron()
    weights = [w.detach().clone().requires_grad_() for w in model.parameters()]
    momentum: list[Tensor | None] = [None] * len(weights)
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    adam_steps = 0
    for step, (inputs, targets) in enumerate(batches()):
        hidden = torch.tanh(inputs @ weights[0].T + weights[1])
        loss = ((hidden @ weights[2].T + weights[3] - targets) ** 2).mean()
        gradients = [g.clone() for g in torch.autograd.grad(loss, weights)]
        rate = 0.1 * schedule(step)
        if "scale_learning_rate" in p:
            rate *= 0.3
        if "warm_up" in p:
            rate *= min(1.0, (step + 1) / 5)
        if "switch_optimizer" in p:
            rate *= 0.01 / 0.1
        if "rescale_loss_gradient" in p:
            gradients = [0.25 * g for g in gradients]
        if "skip_nonfinite_steps" in p and not all(np.isfinite(g.numpy()).all() for g in gradients):
            continue
        if "clip_grad_value" in p:
            gradients = [torch.from_numpy(np.clip(g.numpy(), -0.05, 0.05)) for g in gradients]
        if "clip_grad_norm_per_layer" in p:
            gradients = [g * min(1.0, 0.2 / (float((g**2).sum() ** 0.5) + NORM_EPSILON)) for g in gradients]
        if "clip_grad_norm" in p:
            total = sum(float((g**2).sum()) for g in gradients) ** 0.5
            gradients = [g * min(1.0, 0.5 / (total + NORM_EPSILON)) for g in gradients]
        if "adaptive_clip" in p:
            gradients = [clip_rows_by_hand(w.detach(), g, 0.1) for w, g in zip(weights, gradients, strict=True)]
        if "l1_penalty" in p:
            gradients = [g + 0.01 * torch.sign(w.detach()) for w, g in zip(weights, gradients, strict=True)]
        decay = 0.01 * (0.1 if "reduce_weight_decay" in p else 1.0)
        with torch.no_grad():
            adam_steps += 1
            for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                if "weight_decay" in p and w.ndim == 2:
                    w -= rate * 0.1 * w
                g = g + decay * w
                if "switch_optimizer" in p:
                    first[i] = 0.9 * first[i] + 0.1 * g
                    second[i] = 0.999 * second[i] + 0.001 * g * g
                    mean, square = first[i] / (1 - 0.9**adam_steps), second[i] / (1 - 0.999**adam_steps)
                    w -= rate * mean / (square.sqrt() + 1e-8)
                    continue
                held = momentum[i]
                momentum[i] = held = g if held is None else 0.9 * held + g
                w -= rate * held
    return [w.detach() for w in weights]


def clip_rows_by_hand(weights: Tensor, gradient: Tensor, clipping: float) -> Tensor:
    """Clip as Brock et al. 2021 write it, row by row."""
    if weights.ndim == 1:
        bound = clipping * max(float(weights.norm()), LEAST_ROW_NORM)
        return gradient * min(1.0, bound / max(float(gradient.norm()), NORM_EPSILON))
    rows = [clip_rows_by_hand(w.ravel(), g.ravel(), clipping) for w, g in zip(weights, gradient, strict=True)]
    return torch.stack(rows).reshape(gradient.shape)


def assert_same(model: nn.Module, expected: list[Tensor], tolerance: float = 1e-5) -> None:
    """Compare the weights of a model with those of a loop by hand."""
    for parameter, reference in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), reference, rtol=tolerance, atol=tolerance)


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


def test_everything_at_once() -> None:
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
@pytest.mark.parametrize("id", ["scale_learning_rate", "warm_up", "switch_optimizer"])
def test_schedulers_go_on(name: str, id: str, is_scheduled_first: bool) -> None:
    """A scheduler reads its own rates, which the remedy multiplies, whether it was made before or after."""
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
    apply(optimizer, model, remedies(id))
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
        apply(optimizer, model, [*remedies("skip_nonfinite_steps", "weight_decay"), *switch])
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
    apply(optimizer, model, remedies("clip_grad_norm"))
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
        apply(optimizer, model, given)
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
    apply(optimizer, model, [Remedy(id="switch_optimizer", parameters={"optimizer": "Adam", "learning_rate": 0.01})])
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
    apply(optimizer, model, remedies("scale_learning_rate"))

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


def test_copies_and_saved_models_have_no_remedies() -> None:
    """Copies of the optimizer and the model have no remedies, and the model can be saved and loaded."""
    model = perceptron()
    optimizer = sgd(model)
    keys = list(model.state_dict())
    apply(optimizer, model, remedies("clip_grad_norm", "switch_optimizer"))
    copied = copy.deepcopy(optimizer)
    assert not has_remedies(copied)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert list(loaded.state_dict()) == keys == list(model.state_dict())


def test_closing_leaves_nothing() -> None:
    """After `close` the optimizer has no hooks and can get remedies again."""
    model = perceptron()
    optimizer = sgd(model)
    applied = apply(optimizer, model, remedies("clip_grad_norm"))
    applied.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    apply(optimizer, model, remedies("clip_grad_norm")).close()


def test_applying_twice_is_impossible() -> None:
    """Attaching remedies to one optimizer twice is an error; so is a remedy that is named twice."""
    model = perceptron()
    optimizer = sgd(model)
    late = AppliedRemedies(model, optimizer, remedies("warm_up"))
    apply(optimizer, model, remedies("clip_grad_norm"))
    with pytest.raises(UsageError, match="cannot be applied twice"):
        late.attach_before_measurement()
    with pytest.raises(ConfigurationError, match=r"remedies\[1\].id: repeats 'warm_up'"):
        AppliedRemedies(model, sgd(model), remedies("warm_up", "warm_up"))


def test_two_watched_models_of_one_optimizer_get_remedies_once() -> None:
    """If two watched models share an optimizer, the remedies are applied to it once."""
    model = perceptron()
    optimizer = sgd(model)
    first = AppliedRemedies(model[0], optimizer, remedies("clip_grad_norm"))
    first.attach_before_measurement()
    first.attach_after_measurement()
    assert AppliedRemedies(model[2], optimizer, remedies("clip_grad_norm")).optimizer_count == 0


def test_no_random_numbers_are_drawn() -> None:
    """Remedies leave torch's random generator unchanged."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 1))
    states = []
    for given in ([], remedies("clip_grad_norm", "switch_optimizer", "adaptive_clip")):
        copied = copy.deepcopy(model)
        optimizer = sgd(copied)
        if given:
            apply(optimizer, copied, given)
        torch.manual_seed(6)
        for _ in range(3):
            optimizer.zero_grad()
            copied(torch.randn(4, 6)).sum().backward()
            optimizer.step()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(
    ("id", "make", "reason"),
    [
        ("rescale_loss_gradient", lambda m: torch.optim.Adam(m.parameters()), "has no effect"),
        ("reduce_weight_decay", lambda m: torch.optim.SGD(m.parameters(), lr=0.1), "decays no weights"),
        ("switch_optimizer", lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS"),
        ("switch_optimizer", lambda m: torch.optim.Adam(m.parameters()), "is Adam already"),
        ("weight_decay", lambda m: torch.optim.SGD([m[0].bias], lr=0.1), "updates no matrix"),
    ],
    ids=["rescale Adam", "no decay", "LBFGS", "the same", "biases"],
)
def test_remedies_that_cannot_be_applied_are_refused_with_a_reason(
    id: str, make: Callable[[Any], Optimizer], reason: str
) -> None:
    """A remedy that cannot be applied is refused with its id and a reason, and leaves no hook."""
    model = perceptron()
    optimizer = make(model)
    with pytest.raises(NotApplicable, match=reason) as raised:
        AppliedRemedies(model, optimizer, remedies(id))
    assert id in str(raised.value)
    assert not optimizer._optimizer_step_pre_hooks


def test_sparse_gradients_and_complex_parameters_are_refused() -> None:
    """Sparse embeddings and complex parameters are refused with the reason."""
    sparse = nn.Embedding(4, 3, sparse=True)
    with pytest.raises(NotApplicable, match="sparse gradients"):
        AppliedRemedies(sparse, torch.optim.SGD(sparse.parameters(), lr=0.1), remedies("clip_grad_norm"))
    complex_ = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(NotApplicable, match="complex"):
        AppliedRemedies(complex_, torch.optim.SGD(complex_.parameters(), lr=0.1), remedies("clip_grad_value"))


def test_one_of_two_optimizers_is_enough() -> None:
    """A remedy that only one of two optimizers can get is applied to that one; the other has a reason."""
    model = perceptron()
    adam, other = torch.optim.Adam(model[0].parameters()), torch.optim.SGD(model[2].parameters(), lr=0.1)
    applied = AppliedRemedies(model, [adam, other], remedies("rescale_loss_gradient"))
    assert applied.optimizer_count == 1
    assert "Adam" in applied.not_applied[0]


def test_compiled_models_train_alike() -> None:
    """A model that torch compiles trains with the same remedies as one that it does not."""
    results = []
    for is_compiled in (False, True):
        model = perceptron()
        forward = torch.compile(model, backend="aot_eager") if is_compiled else model
        optimizer = sgd(model)
        apply(optimizer, model, remedies("clip_grad_norm"))
        for inputs, targets in batches():
            optimizer.zero_grad()
            ((forward(inputs) - targets) ** 2).mean().backward()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled)


def test_checkpointing_and_tied_weights() -> None:
    """A remedy gets the whole gradient of a weight that is used twice, once in a checkpoint."""
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    apply(optimizer, model, [Remedy(id="clip_grad_norm", parameters={"max_norm": 0.5})])
    before = [p.detach().clone() for p in model.parameters()]
    inputs = torch.ones(2, 4, requires_grad=True)
    hidden = torch.utils.checkpoint.checkpoint(model["a"], inputs, use_reentrant=False)
    (100 * model["b"](hidden)).sum().backward()
    optimizer.step()
    moved = sum(float(((a - b.detach()) ** 2).sum()) for a, b in zip(before, model.parameters(), strict=True)) ** 0.5
    assert moved == pytest.approx(0.5, rel=1e-4)


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
