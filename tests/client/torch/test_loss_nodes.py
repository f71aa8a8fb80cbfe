"""Loss functions that a script calls by references which it took before the watch."""

# mypy: disable-error-code="no-untyped-call"
# `backward` of torch has no types.

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.client.torch.test_loss_observer import (
    BATCH,
    CLASSES,
    ENTROPY,
    SHARES,
    WEIGHT,
    as_number,
    classes,
    network,
    observe,
    values,
    with_ignored,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from torch.utils.checkpoint import checkpoint

from gradmedic.torch.loss_nodes import read_call

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")

LossOf = Callable[[nn.Module, Tensor], Tensor]


def decisions(size: int) -> Tensor:
    """Return random decisions between two classes."""
    return (torch.rand(size, CLASSES) < SHARES).float()


LOSSES: dict[str, tuple[LossOf, LossOf]] = {
    "cross-entropy": (
        lambda m, x: cross_entropy(m(x), classes()), lambda m, x: functional.cross_entropy(m(x), classes())
    ),
    "class weights and ignored targets": (
        lambda m, x: cross_entropy(m(x), with_ignored(x), WEIGHT),
        lambda m, x: functional.cross_entropy(m(x), with_ignored(x), WEIGHT),
    ),
    "sequences": (
        lambda m, x: cross_entropy(m(x).reshape(8, 4, CLASSES).mT, classes().reshape(8, 4)),
        lambda m, x: functional.cross_entropy(m(x).reshape(8, 4, CLASSES).mT, classes().reshape(8, 4)),
    ),
    "sum": (
        lambda m, x: mse_loss(m(x), values(), reduction="sum"),
        lambda m, x: functional.mse_loss(m(x), values(), reduction="sum"),
    ),
    "squared error": (lambda m, x: mse_loss(m(x), values()), lambda m, x: functional.mse_loss(m(x), values())),
    "huber": (
        lambda m, x: huber_loss(m(x), values(), delta=0.5),
        lambda m, x: functional.huber_loss(m(x), values(), delta=0.5),
    ),
    "smooth l1": (
        lambda m, x: smooth_l1_loss(m(x), values(), beta=3.0),
        lambda m, x: functional.smooth_l1_loss(m(x), values(), beta=3.0),
    ),
    "decisions": (
        lambda m, x: binary_cross_entropy_with_logits(m(x), decisions(BATCH), WEIGHT, pos_weight=WEIGHT.flip(0)),
        lambda m, x: functional.binary_cross_entropy_with_logits(
            m(x), decisions(BATCH), WEIGHT, pos_weight=WEIGHT.flip(0)
        ),
    ),
    "probabilities": (
        lambda m, x: binary_cross_entropy(m(x).sigmoid(), decisions(BATCH)),
        lambda m, x: functional.binary_cross_entropy(m(x).sigmoid(), decisions(BATCH)),
    ),
    "accumulated": (
        lambda m, x: cross_entropy(m(x), classes()) / 4, lambda m, x: functional.cross_entropy(m(x), classes()) / 4
    ),
}  # fmt: skip
"""Losses by a reference from before the watch, and the same ones by the module."""


@pytest.mark.parametrize("name", LOSSES)
def test_a_reference_from_before_the_watch_shows_the_same(name: str) -> None:
    """Kind, classes and the loss of a constant answer are those of a call by the module."""
    by_reference, by_module = LOSSES[name]
    results = []
    for loss_of in (by_reference, by_module):
        torch.manual_seed(5)
        results.append(observe(loss_of, model=network(), log=as_number))
    first, second = results
    assert first.constant_level is not None
    assert (first.kind, first.classes, first.surrogate) == (second.kind, second.classes, second.surrogate)
    assert first.constant_level == pytest.approx(second.constant_level, rel=1e-5)


def test_a_loss_that_is_scaled_up_has_its_own_units() -> None:
    """A loss scaler multiplies the tensor of which gradients are computed; the script logs the loss itself."""
    loss = observe(lambda model, x: cross_entropy(model(x), classes()), log=as_number, scale=1024.0)
    assert loss.constant_level == pytest.approx(ENTROPY, rel=0.1)


@pytest.mark.parametrize(("shape", "broadcasts"), [((BATCH,), True), ((BATCH, 1), False)])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_that_broadcast_are_seen(shape: tuple[int, ...], broadcasts: bool) -> None:
    """The node holds tensors of the shape to which outputs and targets broadcast."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    assert observe(lambda model, x: mse_loss(model(x), values(*shape)), model=model).broadcasts is broadcasts


def test_what_no_node_holds_is_not_read() -> None:
    """An absolute error is written out in the graph, and a sum of two losses is neither of them."""
    output = network()(torch.randn(BATCH, 6))
    assert read_call(l1_loss(output, values())) is None
    assert read_call(mse_loss(output, values()) + cross_entropy(output, classes())) is None
    assert read_call(output.sum()) is None
    assert read_call(torch.zeros((), requires_grad=True)) is None


def test_a_node_that_is_freed_or_changed_is_not_read() -> None:
    """After the backward pass the arguments are gone; after a change in place they are not those of the call."""
    freed = mse_loss(network()(torch.randn(BATCH, 6)), values())
    freed.backward()
    assert read_call(freed) is None
    output = network()(torch.randn(BATCH, 6))
    changed = mse_loss(output, values())
    with torch.no_grad():
        output += 1.0
    assert read_call(changed) is None


def test_no_hook_of_saved_tensors_runs() -> None:
    """A loss inside of a checkpoint is left alone: its forward would run once more."""
    model, calls = network(), 0

    def loss_of(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return mse_loss(model(x), torch.zeros(BATCH, CLASSES))

    loss: Any = checkpoint(loss_of, torch.randn(BATCH, 6), use_reentrant=False)
    assert read_call(loss) is None
    assert calls == 1


def test_reading_changes_nothing() -> None:
    """Gradients, random generator and weights are those of a training that is not watched, to the bit."""

    def train(model: nn.Module, *, is_watched: bool) -> list[bytes]:
        torch.manual_seed(3)
        if is_watched:
            observe(lambda model, x: mse_loss(model(x), values()) / 2, model=model, log=as_number)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for _ in range(8):
                (mse_loss(model(torch.randn(BATCH, 6)), values()) / 2).backward()
                optimizer.step()
                optimizer.zero_grad()
        state = [parameter.detach().numpy().tobytes() for parameter in model.parameters()]
        return [*state, torch.get_rng_state().numpy().tobytes()]

    model = network()
    other = copy.deepcopy(model)
    assert train(model, is_watched=True) == train(other, is_watched=False)
    assert all(math.isfinite(float(parameter.detach().sum())) for parameter in model.parameters())
