"""Parts of a model that do not train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.diagnosis.probed_run import diagnose_in_pieces, with_probes
from tests.diagnosis.recorded_training import diagnose_recorded, diagnose_training, record_training
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import STEPS, find_finding
from torch import Tensor, nn

import gradmedic
from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.probes import name_metric
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis


def find(block: Block, of: tuple[Layer, ...] | None = None) -> Finding | None:
    """Return the finding of a run."""
    return find_finding(Diagnostician(of or layers()).update(block), "disconnected_parameters")


def with_zero_gradient(until: int = STEPS, layer: int = 1) -> Block:
    """Return a run of which one layer's gradient is exactly zero up to a step."""
    gradient = np.ones((STEPS, 4))
    gradient[:until, layer] = 0.0
    return run(falling(STEPS), gradient=gradient)


def test_a_gradient_of_exactly_zero_is_like_none() -> None:
    """A layer whose gradient has been zero for 50 steps while its siblings live is cut off, and a fault."""
    named = [dataclasses.replace(layer, name=name) for layer, name in zip(layers(), "abcd", strict=True)]
    diagnosis = Diagnostician(named).update(with_zero_gradient())
    assert (finding := find_finding(diagnosis, "disconnected_parameters")) is not None
    assert (finding.layers, finding.severity, diagnosis.level) == (["b"], "warning", "attention")
    assert "exactly zero since the start" in finding.explanation
    assert diagnosis.causes[0].cause == "disconnected_parameters"


def test_a_gradient_that_begins_later_is_none() -> None:
    """LoRA's first matrix has none before the second one has moved; a layer that joins later ends the finding."""
    assert find(with_zero_gradient(until=2)) is None
    finding = find(with_zero_gradient(until=120))
    assert finding is not None
    assert finding.resolved_step == 120


def test_a_network_that_is_dead_is_not_cut_off() -> None:
    """Where half of the matrices have zero gradients, `zero_gradient` explains them."""
    gradient = np.ones((STEPS, 4))
    gradient[:, :3] = 0.0
    assert find(run(falling(STEPS), gradient=gradient)) is None


def forget(*forgotten: int) -> tuple[Layer, ...]:
    """Return layers of which some want gradients and are in no optimizer."""
    return tuple(
        dataclasses.replace(layer, frozen=i in forgotten, requires_grad=True) for i, layer in enumerate(layers())
    )


def unused(
    share: float, until: int = STEPS, absent: tuple[int, ...] = (3,), loss: NDArray[np.float64] | None = None
) -> Block:
    """Return a run with this share of gradients in no optimizer, on probes up to a step."""
    block = run(falling(STEPS) if loss is None else loss)
    block.present[:, list(absent)] = False
    probes = {step: share if step < until else 0.0 for step in (0, 1, 2, 50, 100, 150, 200, 250)}
    return with_probes(block, {name_metric("unused_gradient_share"): probes})


def test_a_head_in_no_optimizer_is_a_fault() -> None:
    """Its gradients are computed in vain: it was made after the optimizer."""
    finding = find(unused(0.25), forget(3))
    assert finding is not None
    assert (finding.layers, finding.severity, finding.first_step) == (["3.weight"], "warning", 0)
    assert "in no optimizer" in finding.explanation
    finding = find(unused(0.25, until=100), forget(3))
    assert finding is not None
    assert finding.resolved_step == 100


def test_what_is_tuned_on_purpose_is_a_note() -> None:
    """Layers before a head that is trained alone, and all that follows a trained prompt, may be left out on purpose."""
    for forgotten in ((0, 1, 2), (1, 2, 3), (0,)):
        finding = find(unused(len(forgotten) / 4, absent=forgotten), forget(*forgotten))
        assert finding is not None
        assert finding.severity == "note"


@pytest.mark.parametrize("loss", [falling(STEPS), noisy(2.3, STEPS), np.geomspace(1.0, 3.0, STEPS)])
def test_an_optimizer_of_another_model_is_a_fault(loss: NDArray[np.float64]) -> None:
    """Where all gradients belong to layers in no optimizer, and no layer of one has a gradient, nothing trains."""
    nothing = np.zeros(STEPS, dtype=np.bool_)
    block = dataclasses.replace(run(loss), sampled=nothing, values=run(loss).values[:0], present=run(loss).present[:0])
    probed = with_probes(block, {name_metric("unused_gradient_share"): {0: 1.0, 1: 1.0, 2: 1.0, 100: 1.0}})
    diagnosis = Diagnostician(forget(0, 1, 2, 3)).update(probed)
    assert (finding := find_finding(diagnosis, "disconnected_parameters")) is not None
    assert (finding.severity, diagnosis.level) == ("warning", "attention")
    assert diagnosis.causes[0].cause == "disconnected_parameters"
    assert "parameters of another model" in finding.explanation


def test_a_body_in_no_optimizer_is_a_fault_where_its_head_learns_nothing() -> None:
    """A head that is trained alone on purpose learns; here the loss is flat."""
    finding = find(unused(0.75, absent=(0, 1, 2), loss=noisy(2.3, STEPS)), forget(0, 1, 2))
    assert finding is not None
    assert finding.severity == "warning"


def test_without_gradients_or_without_knowledge_it_is_no_finding() -> None:
    """A target network has no gradients, and a client may not have sent whether a layer wants any."""
    assert find(unused(0.0), forget(3)) is None
    unknown = tuple(dataclasses.replace(layer, requires_grad=None) for layer in forget(3))
    assert find(unused(0.25), unknown) is None
    frozen = tuple(dataclasses.replace(layer, requires_grad=not layer.frozen) for layer in forget(3))
    assert find(unused(0.25), frozen) is None


def test_the_finding_does_not_depend_on_the_cuts() -> None:
    """Cut into blocks, and through bytes after each, a run has the same finding."""
    for block, of in ((with_zero_gradient(until=120), layers()), (unused(0.25, until=100), forget(3))):
        pieces = find_finding(diagnose_in_pieces(block, of), "disconnected_parameters")  # type: ignore[arg-type]
        assert pieces == find(block, of)


class TwoTowers(nn.Module):
    """A network whose second tower counts as much as `weight`."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.weight = weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        outputs: Tensor = self.head(torch.tanh(self.first(inputs) + self.weight * self.second(inputs)))
        return outputs


def diagnose(model: nn.Module, change: Callable[[nn.Module], None] | None = None) -> UpdatedDiagnosis:
    """Train a model that is changed after its optimizer was made, and diagnose it."""

    def train(recorded: gradmedic.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if change is not None:
            change(model)
        recorded.watch(model, optimizer)
        for _ in range(100):
            for parameter in model.parameters():
                parameter.grad = None
            inputs = torch.randn(32, 8)
            loss = nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True))
            torch.autograd.backward(loss)
            optimizer.step()
            recorded.log(loss=loss)

    description, block = record_training(train)
    wanted = [dataclasses.replace(layer, requires_grad=True) for layer in description.layers]
    return diagnose_recorded(dataclasses.replace(description, layers=wanted), block)


def test_real_trainings() -> None:
    """A tower that is multiplied by zero, and a head that was replaced, are the first cause; a whole model has none."""
    diagnosis = diagnose(TwoTowers(0.0))
    assert diagnosis.causes[0].cause == "disconnected_parameters"
    assert "second.weight" in diagnosis.causes[0].explanation
    diagnosis = diagnose(TwoTowers(1.0), lambda model: setattr(model, "head", nn.Linear(8, 1)))
    assert diagnosis.causes[0].cause == "disconnected_parameters"
    assert "head.weight" in diagnosis.causes[0].explanation
    assert find_finding(diagnose(TwoTowers(1.0)), "disconnected_parameters") is None


def unregistered(shares: dict[int, float]) -> Block:
    """Return a healthy run with the share of gradients of unregistered parameters on some steps."""
    return with_probes(run(falling(STEPS)), {name_metric("unregistered_gradient_share"): shares})


def test_layers_that_are_not_registered_are_a_fault() -> None:
    """Three probes decide, also while the loss falls; a share of zero resolves it."""
    assert find(unregistered({0: 0.6, 1: 0.6})) is None
    finding = find(unregistered({0: 0.6, 1: 0.6, 2: 0.6, 50: 0.7}))
    assert finding is not None
    assert (finding.severity, finding.first_step) == ("warning", 0)
    assert finding.evidence == {"unregistered_gradient_share": pytest.approx(0.7)}
    assert "nn.ModuleList" in finding.explanation
    resolved = find(unregistered({0: 0.6, 1: 0.6, 2: 0.6, 50: 0.0}))
    assert resolved is not None
    assert resolved.resolved_step == 50


def test_layers_in_a_list_are_found_in_a_real_training() -> None:
    """The cause is the missing nn.ModuleList, and the advice has it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.Linear(6, 6), nn.Linear(6, 6)]
            self.head = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Any:
            for layer in self.hidden:
                x = torch.relu(layer(x))
            return self.head(x)

    def train(recorded: gradmedic.Run) -> None:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        recorded.watch(model, optimizer)
        for _ in range(80):
            inputs = torch.randn(16, 6)
            loss = nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            recorded.log(loss=loss)

    diagnosis = diagnose_training(train)
    assert diagnosis.causes[0].cause == "disconnected_parameters"
    assert diagnosis.causes[0].evidence["unregistered_gradient_share"] == pytest.approx(84 / 91)
    assert "nn.ModuleList" in diagnosis.advice[0].snippet
