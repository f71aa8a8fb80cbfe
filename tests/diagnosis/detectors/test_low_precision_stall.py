"""Weights in low precision that updates do not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
from gradmedic.protocol.runs import Loss, Training
from gradmedic_diagnosis import Block, Diagnostician, StepSeries, UpdatedDiagnosis

PROBED = (0, 1, 2, 50, 100, 150, 200, 250)


def probed(share: float | Iterable[float], loss: Any = None, rates: Any = 1e-5) -> Block:
    """Return a run with this share on the probed steps; by default, its loss is flat."""
    shares = np.broadcast_to(np.asarray(share, dtype=np.float64), len(PROBED))
    block = run(noisy(2.3, STEPS) if loss is None else loss)
    rate = StepSeries(np.broadcast_to(np.asarray(rates, dtype=np.float64), STEPS), np.ones(STEPS, dtype=np.bool_))
    block = dataclasses.replace(block, series={**block.series, "learning_rate": rate})
    return with_probes(block, {name_metric("unchanged_share"): dict(zip(PROBED, shares.tolist(), strict=True))})


def find(block: Block) -> Finding | None:
    """Return the finding of a run."""
    return find_finding(Diagnostician(layers()).update(block), "low_precision_stall")


def test_weights_that_do_not_change_are_found() -> None:
    """The three first probes and fifty steps are enough, and it is the first cause."""
    diagnosis = Diagnostician(layers()).update(probed(0.95))
    assert (finding := find_finding(diagnosis, "low_precision_stall")) is not None
    assert (finding.first_step, finding.severity, finding.resolved_step) == (0, "warning", None)
    assert finding.evidence["unchanged_share"] == 0.95
    assert diagnosis.causes[0].cause == "low_precision_stall"
    assert "bfloat16" in finding.explanation
    assert find(probed(0.95, loss=noisy(2.3, STEPS))) == finding


def test_a_loss_that_falls_all_the_same_makes_it_a_note() -> None:
    """What is left of the updates is enough where the loss has halved."""
    finding = find(probed(0.7, falling(STEPS)))
    assert finding is not None
    assert finding.severity == "note"


def test_a_loss_above_that_of_a_constant_output_is_no_progress() -> None:
    """A loss that halved, but is still worse than what a constant output gets, leaves it a warning."""
    loss = falling(STEPS, start=4.6, half_life=200.0)
    training = Training(loss=Loss(kind="squared_error", constant_level=1.0))
    finding = find_finding(Diagnostician(layers(), training).update(probed(0.7, loss)), "low_precision_stall")
    assert finding is not None
    assert finding.severity == "warning"
    assert (finding := find(probed(0.7, loss))) is not None
    assert finding.severity == "note"


def test_it_is_no_finding_where_few_updates_are_lost() -> None:
    """Less than half of the elements, or one odd probe, are no finding."""
    assert find(probed(0.4)) is None
    assert find(probed([0.0, 0.0, 0.0, 0.9, 0.1, 0.9, 0.9, 0.1])) is None


def test_a_rate_that_is_low_on_purpose_is_no_finding() -> None:
    """While the rate is warmed up from zero, and when a schedule has brought it down, small updates are wanted."""
    steps = np.arange(STEPS)
    assert find(probed([1, 1, 1, 0, 0, 0, 0, 0], rates=1e-3 * np.minimum(steps / 100, 1))) is None
    decayed = np.where(steps < 120, 1e-3, 1e-6)
    assert find(probed([0, 0, 0, 0, 0, 1, 1, 1], rates=decayed)) is None


def test_it_is_resolved_when_weights_change_again() -> None:
    """The first probe on which most weights have changed ends it."""
    finding = find(probed([0.95, 0.95, 0.95, 0.95, 0.2, 0.1, 0.1, 0.1]))
    assert finding is not None
    assert finding.resolved_step == 100


def test_the_finding_does_not_depend_on_the_cuts() -> None:
    """Cut into blocks, and through bytes after each, a run has the same finding."""
    block = probed([0.95, 0.95, 0.95, 0.95, 0.2, 0.9, 0.9, 0.9])
    pieces = find_finding(diagnose_in_pieces(block, layers()), "low_precision_stall")  # type: ignore[arg-type]
    assert pieces == find(block)


def diagnose(dtype: torch.dtype, rate: float, *, autocast: bool = False, adapter: bool = False) -> UpdatedDiagnosis:
    """Train a small network on a linear function, and diagnose it."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(8, 1).requires_grad_(False)
            self.down, self.up = nn.Linear(8, 4, bias=False), nn.Linear(4, 1, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.base(inputs) + self.up(self.down(inputs))
            return outputs

    def train(recorded: gradmedic.Run) -> None:
        model = Adapted() if adapter else nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        if not adapter and not autocast:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.sign())  # weights of size 1
        model.to(dtype)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        recorded.watch(model, optimizer)
        for _ in range(120):
            optimizer.zero_grad()
            inputs = torch.randn(32, 8)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                outputs = model(inputs.to(dtype)).float()
            loss = nn.functional.mse_loss(outputs, inputs.sum(dim=1, keepdim=True))
            torch.autograd.backward(loss)
            optimizer.step()
            recorded.log(loss=loss)

    return diagnose_training(train)


def test_a_real_training_that_stalls() -> None:
    """AdamW at 1e-5 changes no bfloat16 weight of size 1: the first cause, and a reason for attention."""
    diagnosis = diagnose(torch.bfloat16, 1e-5)
    assert diagnosis.causes[0].cause == "low_precision_stall"
    assert diagnosis.level == "attention"
    assert (finding := find_finding(diagnosis, "low_precision_stall")) is not None
    assert finding.evidence["unchanged_share"] > 0.99


@pytest.mark.parametrize(
    "training",
    [
        {"dtype": torch.bfloat16, "rate": 1e-2},
        {"dtype": torch.float32, "rate": 1e-5},
        {"dtype": torch.float32, "rate": 1e-2, "autocast": True},
        {"dtype": torch.bfloat16, "rate": 1e-2, "adapter": True},
    ],
)
def test_real_trainings_that_look_alike(training: dict[str, Any]) -> None:
    """Rates that suit bfloat16, float32 weights behind autocast, and adapters: no cause, at most a note."""
    diagnosis = diagnose(**training)
    finding = find_finding(diagnosis, "low_precision_stall")
    assert finding is None or (finding.severity == "note" and training["dtype"] is torch.bfloat16)
    assert diagnosis.level == "ok"
    assert not diagnosis.causes
