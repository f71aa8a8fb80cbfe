"""Rewinds on a GPU: states are copied to the host and back, and nothing waits for the device meanwhile."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.cuda.synchronizations import count_synchronizations
from torch import nn

import gradmedic
from gradmedic.torch.guards.snapshots import TrainingState

STEPS = 20


def make_training(device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model with a normalization, and its optimizer."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1)).to(device)
    return model, torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, device: torch.device) -> torch.Tensor:
    """Train on the batch of a step; return the loss."""
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step)).to(device)
    optimizer.zero_grad()
    loss: torch.Tensor = (model(inputs) - 1).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


def test_a_training_goes_back_to_the_bit(device: torch.device) -> None:
    """Weights, buffers and the state of the optimizer are what they were, also if the memory was used before."""
    model, optimizer = make_training(device)
    state = TrainingState([model], [optimizer])
    train(model, optimizer, 0, device)
    snapshot = state.take(0, state.take(0))
    assert snapshot is not None
    expected = [tensor.clone() for tensor in model.state_dict().values()]
    for step in range(1, 5):
        train(model, optimizer, step, device)
    assert state.is_finite(snapshot)
    assert state.is_finite_now()
    state.restore(snapshot)
    assert all(map(torch.equal, expected, model.state_dict().values()))
    assert float(next(iter(optimizer.state.values()))["step"]) == 1.0


def test_keeping_a_state_waits_for_nothing(gpu: torch.device) -> None:
    """The copies to the host are only begun; the first state is looked at, so it is not counted."""
    model, optimizer = make_training(gpu)
    state = TrainingState([model], [optimizer])
    train(model, optimizer, 0, gpu)
    state.take(0)
    with count_synchronizations() as counted:
        state.take(1)
    assert counted.waits == 0


def test_a_nan_in_the_weights_is_undone(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a step is read one step later on a GPU; the training goes back all the same."""
    monkeypatch.setattr("gradmedic.torch.guards.snapshots_ring.TIME_SHARE", 1e9)
    model, optimizer = make_training(device)
    run = gradmedic.init(mode="offline", dir=tmp_path, silent=True, on_unhealthy="rewind")
    run.watch(model, optimizer)
    rewinds: list[int] = []
    run.on_rewind(rewinds.append)
    for step in range(STEPS):
        if step == STEPS // 2:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = math.nan
        run.log(loss=train(model, optimizer, step, device))
    run.finish()
    assert len(rewinds) == 1
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
