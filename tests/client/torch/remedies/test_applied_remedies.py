"""How remedies are applied to optimizers and models, or refused, and what is left of them in the end."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.optimizer_training import (
    batches,
    perceptron,
    remedies,
    sgd,
)
from tests.client.torch.remedies.training import apply
from torch import nn
from torch.optim import Optimizer

from gradmedic.exceptions import ConfigurationError, UsageError
from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.remedies import AppliedRemedies, NotApplicable
from gradmedic.torch.remedies.optimizer_remedies import has_remedies

pytestmark = pytest.mark.usefixtures("one_thread")


def test_copies_and_saved_models_have_no_remedies() -> None:
    """Copies of the optimizer and the model have no remedies, and the model can be saved and loaded."""
    model = perceptron()
    optimizer = sgd(model)
    keys = list(model.state_dict())
    apply(model, optimizer, *remedies("clip_grad_norm", "switch_optimizer"))
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
    applied = apply(model, optimizer, *remedies("clip_grad_norm"))
    applied.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    apply(model, optimizer, *remedies("clip_grad_norm")).close()


def test_applying_twice_is_an_error() -> None:
    """Attaching remedies to one optimizer twice is an error; so is a remedy that is named twice."""
    model = perceptron()
    optimizer = sgd(model)
    late = AppliedRemedies(model, optimizer, remedies("warm_up"))
    apply(model, optimizer, *remedies("clip_grad_norm"))
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
            apply(copied, optimizer, *given)
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
        apply(model, optimizer, *remedies("clip_grad_norm"))
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
    apply(model, optimizer, *[Remedy(id="clip_grad_norm", parameters={"max_norm": 0.5})])
    before = [p.detach().clone() for p in model.parameters()]
    inputs = torch.ones(2, 4, requires_grad=True)
    hidden = torch.utils.checkpoint.checkpoint(model["a"], inputs, use_reentrant=False)
    (100 * model["b"](hidden)).sum().backward()
    optimizer.step()
    moved = sum(float(((a - b.detach()) ** 2).sum()) for a, b in zip(before, model.parameters(), strict=True)) ** 0.5
    assert moved == pytest.approx(0.5, rel=1e-4)
