"""What holds for every remedy that changes modules."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, remedy, sgd, step
from torch import Tensor, nn
from torch.nn import functional

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.remedies import AppliedRemedies, NotApplicable
from gradmedic.torch.remedies.module_remedy import CallRemedy, ModuleRemedy
from gradmedic.torch.remedies.registry import REMEDY_CLASSES

OF_MODULES = [
    remedy("replace_activation", activation="ELU"),
    remedy("insert_normalization", kind="BatchNorm"),
    remedy("insert_normalization", kind="LayerNorm"),
    remedy("add_residual"),
    remedy("reinitialize", scheme="orthogonal"),
    remedy("weight_normalization"),
    remedy("standardize_inputs"),
    remedy("standardize_targets"),
]
COMPOUND = [remedy("replace_activation", activation="SELU"), remedy("reinitialize", scheme="lecun_normal")]
FREE_OF_PARAMETERS = [each for each in OF_MODULES if each.id != "weight_normalization"]


def names(each: Remedy) -> str:
    """Return an id for a test."""
    return "-".join([each.id, *(str(value) for value in each.parameters.values())])


class Regression(nn.Module):
    """Draws random numbers of all three generators in its forward, as some scripts do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.dropout = nn.Dropout(0.3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        self.calls += 1
        random.random()
        np.random.rand()
        x = self.dropout(torch.sigmoid(self.a(x)))
        out: Tensor = self.c(self.dropout(torch.sigmoid(self.b(x))))
        return out


def loss_of(model: nn.Module, seed: int = 1) -> Tensor:
    """Return a squared error in units of the script."""
    x = 3 + 5 * batch(seed)
    return functional.mse_loss(model(x), 40 + x.sum(1, keepdim=True))


def latest(averages: Any, current: Any, _count: Any) -> None:
    """Average with all the weight on the latest model."""
    for average, value in zip(averages, current, strict=True):
        average.copy_(value)


def seed_all() -> None:
    """Seed every generator."""
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)


def states() -> tuple[Any, ...]:
    """Return where every generator stands."""
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@pytest.mark.parametrize("each", OF_MODULES, ids=names)
def test_generators_and_data_are_those_of_the_control(each: Remedy) -> None:
    """With a remedy, dropout masks, the order of the data and all random generators are those of the control."""
    seen: list[Any] = []
    for remedies in ([], [each]):
        model = Regression()
        optimizer = sgd(model, 0.001)
        seed_all()
        if remedies:
            apply(model, optimizer, *remedies)
        masked: list[Tensor] = []
        model.dropout.register_forward_hook(lambda _m, _a, out, masked=masked: masked.append(out.detach() == 0))
        orders = []
        for _ in range(3):
            orders.append(torch.randperm(100))
            step(model, optimizer, loss_of)
        seen.append((states(), torch.stack(masked), torch.stack(orders)))
        assert model.calls == 3  # the copy was run, not the model
    (control, masks, order), (trial, trial_masks, trial_order) = seen
    assert control == trial
    assert torch.equal(masks, trial_masks)
    assert torch.equal(order, trial_order)


@pytest.mark.parametrize("each", OF_MODULES, ids=names)
def test_it_changes_what_is_computed(each: Remedy) -> None:
    """A training with a remedy ends with other weights than one without."""
    ends = []
    for remedies in ([], [each]):
        model = Regression()
        model.dropout.p = 0.0
        optimizer = sgd(model, 0.001)
        applied = apply(model, optimizer, *remedies) if remedies else None
        for _ in range(3):
            step(model, optimizer, loss_of)
        assert applied is None or applied.reason_to_end() is None
        assert applied is None or all(applied.places.values())
        ends.append([p.detach() for p in (model.a.weight, model.b.weight)])
    assert not torch.allclose(ends[0][0], ends[1][0], rtol=1e-4)


@pytest.mark.parametrize("each", FREE_OF_PARAMETERS, ids=names)
def test_keys_stay_and_states_load_in_the_middle(each: Remedy) -> None:
    """`state_dict()` has the keys of the script's model, and loading it restores exactly what the model computed."""
    model = Regression().eval()
    keys = list(model.state_dict())
    parameters = list(model.parameters())
    optimizer = sgd(model, 0.001)
    apply(model, optimizer, each)
    step(model, optimizer, loss_of)
    assert list(model.state_dict()) == keys
    saved, expected = copy.deepcopy(model.state_dict()), model(batch())
    for _ in range(3):
        step(model, optimizer, loss_of)
    model.load_state_dict(saved)
    torch.testing.assert_close(model(batch()), expected, rtol=0, atol=0)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(parameters, optimizer.param_groups[0]["params"], strict=True))


@pytest.mark.parametrize("each", OF_MODULES, ids=names)
def test_copies_averages_and_files_compute_the_same(each: Remedy) -> None:
    """A deep copy, an average of the weights over time, and a model that was saved and loaded have the remedy too."""
    model = Regression().eval()
    apply(model, optimizer := sgd(model, 0.001), each)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=latest)
    early = average.module.state_dict()
    step(model, optimizer, loss_of)
    average.update_parameters(model)
    assert list(early) == list(model.state_dict())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other.eval()(batch()), model(batch()), rtol=0, atol=0)
    torch.testing.assert_close(average.module.eval()(batch()), model(batch()))  # made before the first call


@pytest.mark.parametrize("each", OF_MODULES, ids=names)
@pytest.mark.parametrize("moment", ["before", "after", "inside"])
@pytest.mark.slow
def test_compiled_models_train_alike(each: Remedy, moment: str) -> None:
    """A script that compiles its model as one graph, before or after watch(), trains as one that does not."""
    ends = []
    for is_compiled in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 1))
        optimizer = sgd(model, 0.001)
        called: Any = model
        if is_compiled and moment == "inside":
            model[:4].compile(backend="aot_eager", fullgraph=True)
        elif is_compiled and moment == "before":
            called = torch.compile(model, backend="aot_eager", fullgraph=True)
        applied = apply(called, optimizer, each)
        if is_compiled and moment == "after":
            called = torch.compile(model, backend="aot_eager", fullgraph=True)
        for seed in range(3):
            step(called, optimizer, lambda m, seed=seed: loss_of(m, seed))  # type: ignore[misc]
        assert applied.reason_to_end() is None
        applied.close()
        ends.append([p.detach() for p in model.parameters()])
    for plain, compiled in zip(*ends, strict=True):
        torch.testing.assert_close(plain, compiled)


def test_after_a_trial_torch_compiles_again() -> None:
    """After `close`, the compiler has its default stance."""
    model = Regression()
    apply(model, None, remedy("add_residual")).close()
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_remedies_of_one_candidate_act_together() -> None:
    """Activation, initialization, learning rate and clipping act together, in whichever order they are named."""
    ends = []
    more = [remedy("scale_learning_rate", factor=0.1), remedy("clip_grad_norm", max_norm=1.0)]
    for remedies in ([*COMPOUND, *more], [*more, *reversed(COMPOUND)]):
        model = Regression().eval()
        optimizer = sgd(model, 0.001)
        applied = apply(model, optimizer, *remedies)
        before = model.a.weight.detach().clone()
        step(model, optimizer, loss_of)
        moved = sum(float((p.grad * 0.0001).norm()) for p in [model.a.weight] if p.grad is not None)
        assert float((model.a.weight.detach() - before).norm()) == pytest.approx(moved, rel=1e-3)
        assert set(applied.places) == {"replace_activation", "reinitialize"}
        assert applied.reason_to_end() is None
        ends.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_candidate_is_applied_as_a_whole_or_not_at_all() -> None:
    """If one remedy of several has no place, the candidate ends with a reason that names it."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1))
    applied = apply(model, optimizer := sgd(model, 1e-4), *COMPOUND)
    step(model, optimizer, loss_of)
    assert "replace_activation: no hidden activation" in str(applied.reason_to_end())
    with pytest.raises(NotApplicable, match="reduce_weight_decay"):
        apply(other := Regression(), sgd(other), *COMPOUND, remedy("reduce_weight_decay", factor=0.5))


def test_two_calls_of_watch_change_a_model_once() -> None:
    """A model that is watched with each of its optimizers gets the remedies once."""
    model = Regression().eval()
    reference = Regression().eval()
    one, other = torch.optim.SGD(model.a.parameters(), lr=1e-3), torch.optim.SGD(model.b.parameters(), lr=1e-3)
    residual = remedy("add_residual")
    apply(model, one, residual)
    apply(model, other, residual)
    apply(reference, None, residual)
    torch.testing.assert_close(model(batch()), reference(batch()), rtol=0, atol=0)


def test_the_weights_of_each_optimizer_are_reinitialized() -> None:
    """The weights of a second optimizer are initialized when the model is watched with it."""
    model, reference = Regression(), Regression()
    start = remedy("reinitialize", scheme="orthogonal")
    for part in (model.a, model.b, model.c):
        apply(model, torch.optim.SGD(part.parameters(), lr=1e-3), start)
    apply(reference, None, start)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


def test_a_place_in_one_of_several_models_is_enough() -> None:
    """The discriminator's activations are replaced, although the generator has none."""
    models = {"G": nn.Linear(6, 6), "D": nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))}
    optimizers = {name: sgd(model) for name, model in models.items()}
    applied = AppliedRemedies(models, optimizers.values(), [remedy("replace_activation", activation="ELU")])
    applied.attach_before_measurement()
    applied.attach_after_measurement()
    step(models["G"], optimizers["G"], lambda m: m(batch()).sum())
    assert applied.reason_to_end() is None  # the other one was not called yet
    step(models["D"], optimizers["D"], lambda m: m(batch()).sum())
    assert applied.reason_to_end() is None
    assert applied.places == {"replace_activation": ["D.1"]}


def test_several_calls_in_one_step_are_changed() -> None:
    """Several calls in a step are changed alike."""
    model, reference = Regression().eval(), Regression().eval()
    for each in (model, reference):
        apply(each, None, remedy("add_residual"))
    for part in batch().chunk(2):
        (model(part).sum() / 2).backward()
    (reference(batch()).sum() / 2).backward()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_arguments_of_the_first_call_stay() -> None:
    """The traced copy gets copies of the arguments, which a model may change in place."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor, seen: list[int]) -> Tensor:
            x.add_(1)
            seen.append(1)
            out: Tensor = self.b(torch.tanh(self.a(x)))
            return out

    model, x, seen = InPlace(), torch.zeros(2, 6), list[int]()
    apply(model, None, remedy("add_residual"))
    model(x, seen)
    assert (float(x.sum()), seen) == (12.0, [1])


class Uncopiable(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.held = (i for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        out: Tensor = self.layer(x)
        return out


class Parts(nn.Module):
    """Has parts that the script calls one by one, as the `training_step` of a framework does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        out: Tensor = self.head(torch.tanh(self.body(x)))
        return out

    def training_step(self, x: Tensor) -> Tensor:
        """Return the loss, past `forward`."""
        value: Tensor = self.head(torch.tanh(self.body(x))).sum()
        return value


@pytest.mark.parametrize("each", [r for r in OF_MODULES if issubclass(REMEDY_CLASSES[r.id], CallRemedy)], ids=names)
def test_parts_that_the_script_calls_are_changed(each: Remedy) -> None:
    """Each part that the script calls is changed, and a later call of the whole model changes nothing twice."""
    model, reference = Parts(), Parts()
    applied = apply(model, optimizer := sgd(model), each)
    apply(reference.body, None, each)
    expected = torch.tanh(reference.body(batch()))
    for _ in range(2):
        torch.testing.assert_close(torch.tanh(model.body(batch())), expected)
        model.training_step(batch())
    optimizer.step()
    assert applied.reason_to_end() is None
    assert all(place.startswith("body.") for place in applied.places[each.id])
    before = len(applied.places[each.id])
    model(batch())
    # Now that it is seen whole, the activation between the parts is hidden, behind a layer; nothing else is new
    assert applied.places[each.id][before:] == ["forward" if each.id == "replace_activation" else "body.4"]


@pytest.mark.parametrize(
    ("model", "loss", "reason"),
    [
        (Uncopiable, lambda m: m(batch()).sum(), "cannot be copied"),
        (Regression, lambda m: functional.linear(batch(), m.a.weight).sum(), "never calls the model"),
    ],
    ids=["no copy", "past it"],
)
def test_models_that_cannot_be_traced_are_refused_with_a_reason(
    model: Callable[[], nn.Module], loss: Callable[[Any], Tensor], reason: str
) -> None:
    """A model that cannot be copied, or is never called, is refused after the first step."""
    made = model()
    applied = apply(made, optimizer := sgd(made), remedy("replace_activation", activation="ELU"))
    step(made, optimizer, loss)
    assert reason in str(applied.reason_to_end())


@pytest.mark.parametrize("each", [r for r in OF_MODULES if r.id != "reinitialize"], ids=names)
def test_data_parallel_models_are_refused(each: Remedy) -> None:
    """A model under DataParallel is refused."""
    parallel = nn.DataParallel(nn.Linear(6, 6))
    with pytest.raises(NotApplicable, match="DataParallel computes with copies"):
        apply(parallel, sgd(parallel), each)


@pytest.mark.parametrize("each", OF_MODULES, ids=names)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_models_are_refused(each: Remedy) -> None:
    """A model with a scripted part is refused."""
    model = nn.Sequential(torch.jit.script(nn.Linear(6, 6)), nn.Linear(6, 1))
    with pytest.raises(NotApplicable, match="is scripted"):
        apply(model, sgd(model), each)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_lazily_built_models() -> None:
    """Lazy layers are changed at the first call; remedies that need the weights before are refused."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(6), nn.Tanh(), nn.Linear(6, 1))
    optimizer = sgd(model)
    applied = apply(
        model,
        optimizer,
        remedy("replace_activation", activation="ELU"),
        remedy("insert_normalization", kind="LayerNorm"),
    )
    x = batch()
    out = model(x)
    hidden = x
    for layer in (model[0], model[2]):
        hidden = functional.elu(functional.layer_norm(layer.forward(hidden), (6,)))
    torch.testing.assert_close(out, model[4](hidden))
    step(model, optimizer, lambda m: m(x).sum())
    assert applied.reason_to_end() is None
    lazy = nn.Sequential(nn.LazyLinear(6))
    with pytest.raises(NotApplicable, match="built at the first call only"):
        apply(lazy, sgd(lazy), remedy("weight_normalization"))


def test_every_remedy_of_the_modules_is_tested_here() -> None:
    """Every remedy that changes modules is in the list of this file, or has a test file of its own."""
    elsewhere = {
        "replace_recurrent_cell", "scale_loss", "forget_gate_bias", "depth_scaled_initialization", "qk_norm",
        "zero_residual_branches", "unit_variance_initialization", "initialize_embeddings",
        "guard_operations", "use_float32",
        "embedding_gradient_shrink", "z_loss", "logit_soft_cap",
    }  # fmt: skip
    assert {each.id for each in OF_MODULES} | elsewhere == {
        id for id, remedy_class in REMEDY_CLASSES.items() if issubclass(remedy_class, ModuleRemedy)
    }


def test_wrong_remedies_name_their_field() -> None:
    """Wrong values and repeated remedies are errors that name the field."""
    model = Regression()
    with pytest.raises(ConfigurationError, match=r"remedies\[0\].parameters.activation: must be one of ReLU"):
        apply(model, None, remedy("replace_activation", activation="Swish"))
    with pytest.raises(ConfigurationError, match=r"remedies\[1\].id: repeats 'add_residual'"):
        apply(model, None, remedy("add_residual"), remedy("add_residual"))
