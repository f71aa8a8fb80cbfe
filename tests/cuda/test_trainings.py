"""Watched trainings on a device: the same to the bit, with probes and loss scalers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from tests.client.torch.recording import Recording
from tests.cuda.networks import ATTENTION, Transformer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradmedic.protocol.probes import parse_metric
from gradmedic.recording.instrumentation import Measurement
from gradmedic.torch.probes import schedule

STEPS = 12


@pytest.fixture(autouse=True)
def probe_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe as often as may be, also where a step of the training takes no longer than a probe."""
    monkeypatch.setattr(schedule, "SHARE", float("inf"))


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Let torch compute the same each time."""
    torch.use_deterministic_algorithms(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def train(
    device: torch.device, precision: torch.dtype, *, is_watched: bool, overflow_at: int = -1
) -> tuple[list[Tensor], list[Measurement]]:
    """Train with autocast, and a loss scaler in float16; return losses and weights, and what was measured."""
    torch.manual_seed(0)
    model = Transformer().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=precision == torch.float16)
    recording = Recording(model, optimizer, scaler=scaler) if is_watched else None
    losses, measurements = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loss = model(torch.randn(4, 16, 8, device=device)).float().square().mean()
        if step == overflow_at:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
        if recording is not None:
            measurements.append(recording.log())
    if recording is not None:
        recording.watch.close()
    return [*losses, *(parameter.detach() for parameter in model.parameters())], measurements


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_the_training_is_the_same_to_the_bit(device: torch.device, precision: torch.dtype) -> None:
    """Losses and weights are those of a training without a watch, and every module that attends is measured."""
    with deterministic():
        watched, measurements = train(device, precision, is_watched=True)
        plain, _ = train(device, precision, is_watched=False)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(watched, plain, strict=True))
    names = [parse_metric(name) for measurement in measurements for name in measurement.probes]
    attending = {name[1] for name in names if name is not None and name[0] == "attention_logit_max"}
    assert attending == set(ATTENTION)


def test_a_loss_scaler_inside_the_optimizer_is_divided_out(device: torch.device) -> None:
    """With a fused optimizer, gradients are still scaled when it steps; a step that overflows is marked as skipped."""
    _, measurements = train(device, torch.float16, is_watched=True, overflow_at=5)
    _, reference = train(device, torch.float32, is_watched=True)
    assert [measurement.skipped for measurement in measurements] == [step == 5 for step in range(STEPS)]
    assert measurements[0].loss_scale == 1024.0
    assert measurements[0].row is not None
    assert reference[0].row is not None
    column = measurements[0].row.statistics.index("grad_norm")
    ours, theirs = measurements[0].row.values[:, column], reference[0].row.values[:, column]
    assert ours == pytest.approx(theirs, rel=0.1, abs=1e-3)
