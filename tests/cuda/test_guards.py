"""Guards on a GPU: how often they wait for it, and that they leave out what they should."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.client.torch.guards.guarding import SKIP, guard
from tests.client.torch.recording import Recording
from tests.cuda.networks import Transformer
from tests.cuda.synchronizations import count_synchronizations
from torch import nn

import gradmedic

SETTLING_STEPS, STEPS, LOG_FREQ = 30, 40, 5


def test_a_skipped_step_changes_nothing(device: torch.device) -> None:
    """A gradient that is not finite or a spike leaves weights as they are, with fused optimizers and loss scalers."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    with Recording(model, optimizer, scaler=scaler) as recording:
        guard(recording, SKIP)
        inputs = torch.randn(16, 8, device=device)
        for step in range(60):
            factor = {30: math.inf, 45: 1e5}.get(step, 1.0)
            optimizer.zero_grad()
            scaler.scale((model(inputs) - 1).square().mean() * factor).backward()
            before = [parameter.detach().clone() for parameter in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            has_moved = any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
            assert has_moved == (step not in (30, 45))
            assert len(recording.log().guard_actions) == (step == 45)  # the other one is the loss scaler's


@pytest.mark.cuda
@pytest.mark.parametrize("clips", [False, True])
def test_a_guarded_step_waits_once(gpu: torch.device, clips: bool, tmp_path: Path) -> None:
    """A guard waits for the norm, once a step; a sampled step waits once more at most."""
    model = Transformer().to(gpu)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    inputs = torch.randn(4, 16, 8, device=gpu)
    run = gradmedic.init(
        mode="offline", dir=str(tmp_path), silent=True, project="cuda", log_freq=LOG_FREQ, on_unhealthy="skip"
    )
    waits: dict[bool, list[int]] = {True: [], False: []}
    try:
        run.watch(model, optimizer)
        for step in range(SETTLING_STEPS + STEPS):
            is_sampled = run._sampler.is_sampling
            with count_synchronizations() as count:
                loss = model(inputs).square().mean()
                optimizer.zero_grad()
                loss.backward()
                if clips:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                run.log(loss.detach())
            if step >= SETTLING_STEPS:
                waits[is_sampled].append(count.waits)
    finally:
        run.finish(timeout=30)
    assert max(waits[False]) == 1
    assert max(waits[True]) <= 2
