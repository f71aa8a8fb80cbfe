"""Gradients that are never zeroed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.diagnosis.recorded_training import diagnose_training
from tests.diagnosis.synthetic_run import falling, layers, run
from tests.diagnosis.whole_run import STEPS, find_finding
from torch import nn

import gradmedic
from gradmedic.protocol.runs import Training
from gradmedic_diagnosis import Diagnostician, UpdatedDiagnosis


def diagnose(carries_gradients: bool | None) -> UpdatedDiagnosis:
    """Diagnose a healthy run whose gradients grow."""
    block = run(falling(STEPS), gradient=np.linspace(1, 8, STEPS)[:, None])
    return Diagnostician(layers(), Training(carries_gradients=carries_gradients)).update(block)


def test_a_missing_zero_grad_is_a_fault() -> None:
    """It asks for attention while the loss falls, and its evidence is how far the gradients have grown."""
    diagnosis = diagnose(True)
    assert (finding := find_finding(diagnosis, "accumulating_gradients")) is not None
    assert (finding.severity, finding.first_step, diagnosis.level) == ("warning", 0, "attention")
    assert finding.evidence["gradient_growth"] == pytest.approx(8.0)
    assert diagnosis.causes[0].cause == "accumulating_gradients"
    assert "zero_grad" in finding.explanation


@pytest.mark.parametrize("carries_gradients", [False, None])
def test_what_the_client_did_not_see_is_no_finding(carries_gradients: bool | None) -> None:
    """Gradients that grow are no evidence by themselves."""
    assert find_finding(diagnose(carries_gradients), "accumulating_gradients") is None


@pytest.mark.parametrize("micro_batches", [0, 1, 4])
@pytest.mark.parametrize("rate", [0.02, 1.0])
def test_real_trainings(micro_batches: int, rate: float) -> None:
    """Without `zero_grad` it is the first cause, whether the run explodes or not; with micro-batches it is none."""

    def train(recorded: gradmedic.Run) -> None:
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        recorded.watch(model, optimizer)
        for _ in range(80):
            for _ in range(max(1, micro_batches)):
                inputs = torch.randn(16, 6)
                loss = nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True))
                torch.autograd.backward(loss)
            optimizer.step()
            if micro_batches:
                optimizer.zero_grad()
            recorded.log(loss=loss)

    diagnosis = diagnose_training(train)
    finding = find_finding(diagnosis, "accumulating_gradients")
    assert (finding is not None) == (micro_batches == 0)
    if finding is not None:
        assert diagnosis.causes[0].cause == "accumulating_gradients"
        assert finding.evidence["gradient_growth"] > 2
