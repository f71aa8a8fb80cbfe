"""Adam's epsilon: one that swallows updates, and one that is zero in half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from tests.diagnosis.probed_run import diagnose_in_pieces, with_probes
from tests.diagnosis.recorded_training import diagnose_training
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import STEPS, find_finding
from torch import nn

import gradmedic
from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.probes import name_metric
from gradmedic.protocol.runs import Optimizer, Training
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis

ADAM = Training(optimizers=[Optimizer(name="Adam", epsilon=1e-3)], precision="float32")
PROBED = (0, 1, 2, 50, 100, 150, 200, 250)


def probed(share: float | Iterable[float], loss: Any = None, **numbers: Any) -> Block:
    """Return a run with this share on the probed steps; by default, its loss is flat and its updates are tiny."""
    shares = np.broadcast_to(np.asarray(share, dtype=np.float64), len(PROBED))
    block = run(noisy(2.3, STEPS) if loss is None else loss, **{"update": 1e-4, "learning_rate": 1e-3, **numbers})
    by_step = dict(zip(PROBED, shares.tolist(), strict=True))
    return with_probes(block, {name_metric("epsilon_share", f"{i}.weight"): by_step for i in range(4)})


def find(block: Block) -> Finding | None:
    """Return the finding of a run."""
    return find_finding(Diagnostician(layers(), ADAM).update(block), "optimizer_epsilon")


def test_an_epsilon_that_swallows_updates_is_found() -> None:
    """Three probes are enough. An update of 1e-4 over 10 by 10 elements is a hundredth of the rate of 1e-3."""
    diagnosis = Diagnostician(layers(), ADAM).update(probed(0.9))
    assert (finding := find_finding(diagnosis, "optimizer_epsilon")) is not None
    assert (finding.first_step, finding.severity, finding.resolved_step) == (0, "warning", None)
    assert finding.evidence["swallowed_share"] == pytest.approx(0.9)
    assert finding.evidence["update_to_learning_rate"] == pytest.approx(1e-2, rel=1e-3)
    assert finding.evidence["epsilon"] == 1e-3
    assert diagnosis.causes[0].cause == "optimizer_epsilon"


def test_what_epsilon_does_not_swallow_is_not_found() -> None:
    """Few elements below epsilon, updates of the rate's size, a converged loss, and zero gradients are no finding."""
    assert find(probed(0.3)) is None
    assert find(probed(0.9, update=5e-3)) is None
    assert find(probed(0.9, gradient=0.0)) is None
    assert find(probed([0, 0, 0, 0, 0.2, 0.9, 0.9, 0.9], falling(STEPS))) is None


def test_weights_that_start_at_zero_hide_nothing() -> None:
    """The first update is infinitely large against them, and the next ones are swallowed all the same."""
    weight = np.full((STEPS, 4), 10.0)
    weight[0] = 0.0
    finding = find(probed(0.9, weight=weight))
    assert finding is not None
    assert finding.severity == "warning"


def test_gradients_that_vanish_on_their_way_are_no_fault_of_epsilon() -> None:
    """Where the input side has gradients a thousand times smaller than the output side, that is the reason."""
    assert find(probed(0.9, gradient=[1e-9, 1e-9, 1e-8, 1e-4])) is None


def test_it_is_resolved_when_updates_are_made_again() -> None:
    """The first probe with few elements below epsilon ends it."""
    finding = find(probed([0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1]))
    assert finding is not None
    assert finding.resolved_step == 100


def test_the_finding_does_not_depend_on_the_cuts() -> None:
    """Cut into blocks, and through bytes after each, a run has the same finding."""
    block = probed([0.9, 0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9])
    pieces = find_finding(diagnose_in_pieces(block, layers(), ADAM), "optimizer_epsilon")  # type: ignore[arg-type]
    assert pieces == find(block)


def diagnose(
    make: Callable[..., torch.optim.Optimizer], *, scale: float, dtype: torch.dtype = torch.float32, steps: int = 120
) -> UpdatedDiagnosis:
    """Train a small network on a linear function, and diagnose it."""

    def train(recorded: gradmedic.Run) -> None:
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)).to(dtype)
        optimizer = make(model.parameters())
        recorded.watch(model, optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            inputs = torch.randn(32, 8)
            outputs = model(inputs.to(dtype)).float()
            loss = nn.functional.mse_loss(outputs, inputs.sum(dim=1, keepdim=True)) * scale
            torch.autograd.backward(loss)
            optimizer.step()
            recorded.log(loss=loss)

    return diagnose_training(train)


@pytest.mark.parametrize("fused", [False, True])
def test_a_real_training_in_half_precision(fused: bool) -> None:
    """An epsilon of 1e-8 is 0 in float16: the first cause, whether weights become NaN or only far too large."""
    diagnosis = diagnose(lambda p: torch.optim.Adam(p, lr=1e-3, fused=fused), scale=1e-3, dtype=torch.float16)
    assert diagnosis.verdict == "exploding"
    assert diagnosis.causes[0].cause == "optimizer_epsilon"
    assert "float16" in diagnosis.causes[0].explanation
    healthy = diagnose(lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-4), scale=1.0, dtype=torch.float16)
    assert find_finding(healthy, "optimizer_epsilon") is None


def test_a_real_training_with_a_large_epsilon() -> None:
    """With gradients of about 1e-5, an epsilon of 1e-3 is the first cause, and the usual one is none."""
    diagnosis = diagnose(lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-3), scale=1e-4)
    assert diagnosis.causes[0].cause == "optimizer_epsilon"
    assert (finding := find_finding(diagnosis, "optimizer_epsilon")) is not None
    assert finding.evidence["update_to_learning_rate"] < 0.1
    for scale in (1.0, 1e-4):
        usual = diagnose(lambda p: torch.optim.Adam(p, lr=1e-3), scale=scale)
        assert find_finding(usual, "optimizer_epsilon") is None
        assert usual.level == "ok"
