"""A loss scaler that has run out of scale."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.diagnosis.recorded_training import diagnose_training
from tests.diagnosis.synthetic_run import falling, layers, run
from tests.diagnosis.whole_run import find_finding
from torch import Tensor, nn

import gradmedic
from gradmedic.protocol.diagnosis import Finding
from gradmedic_diagnosis import Block, Diagnostician, StepSeries


def scaled(skipped: np.ndarray, *, first: float = 65536.0) -> Block:
    """Return a run whose loss scale halves with each skipped step."""
    steps = len(skipped)
    scales = first * 0.5 ** np.concatenate([[0], np.cumsum(skipped)[:-1]])
    block = run(falling(steps))
    sampled = ~skipped
    return dataclasses.replace(
        block,
        skipped=skipped,
        sampled=sampled,
        values=block.values[sampled],
        present=block.present[sampled],
        series={**block.series, "loss_scale": StepSeries(scales, np.ones(steps, dtype=np.bool_))},
    )


def find(block: Block) -> Finding | None:
    """Return the finding of a run."""
    return find_finding(Diagnostician(layers()).update(block), "loss_scale_exhausted")


def test_a_scale_that_falls_without_end_is_found() -> None:
    """From 2^16 it is 1 after 16 steps; ten skipped steps later the finding begins where the scale became useless."""
    finding = find(scaled(np.arange(60) >= 20))
    assert finding is not None
    assert (finding.first_step, finding.last_step, finding.severity) == (36, 59, "warning")
    assert finding.evidence["highest_loss_scale"] == 65536
    assert finding.evidence["loss_scale"] == 2.0**-23


def test_scalers_that_work_are_not_found() -> None:
    """Fourteen halvings at the start, one in fifty later, and a scale that settles below 1 are no trouble."""
    steps = np.arange(400)
    assert find(scaled((steps < 14) | (steps % 50 == 0))) is None
    assert find(scaled(steps < 18, first=65536.0)) is None
    assert find(scaled(np.zeros(400, dtype=np.bool_), first=2.0**-6)) is None


def test_it_is_resolved_when_steps_are_made_again() -> None:
    """After twenty steps of which at most one is skipped, the scaler works again."""
    finding = find(scaled((np.arange(120) >= 10) & (np.arange(120) < 50)))
    assert finding is not None
    assert finding.resolved_step == 50 + 18


def test_the_finding_does_not_depend_on_the_cuts() -> None:
    """Cut into blocks, and through bytes after each, a run has the same finding."""
    block = scaled((np.arange(120) >= 10) & (np.arange(120) < 50))
    rows: np.ndarray = np.cumsum(block.sampled) - block.sampled
    diagnostician = Diagnostician(layers())
    for begin in range(0, 120, 7):
        end = min(begin + 7, 120)
        first, last = int(rows[begin]), int(rows[end - 1] + block.sampled[end - 1])
        diagnostician.update(
            dataclasses.replace(
                block,
                steps=block.steps[begin:end],
                sampled=block.sampled[begin:end],
                skipped=block.skipped[begin:end],
                values=block.values[first:last],
                present=block.present[first:last],
                series={
                    name: StepSeries(series.values[begin:end], series.present[begin:end])
                    for name, series in block.series.items()
                },
            )
        )
        diagnostician = Diagnostician.from_bytes(diagnostician.to_bytes(), layers())
    assert find_finding(diagnostician.diagnose(), "loss_scale_exhausted") == find(block)  # type: ignore[arg-type]


@pytest.mark.parametrize("overflows", [True, False])
def test_real_trainings(overflows: bool) -> None:
    """A loss that always overflows in half precision is the first cause; a scale that is too high at first is none."""

    def compute_loss(outputs: Tensor) -> Tensor:
        if overflows:
            return (outputs.half() * 6e4).exp().float().mean()
        return (outputs * 100).square().mean()

    def train(recorded: gradmedic.Run) -> None:
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16 if overflows else 2.0**127)
        recorded.watch(model, optimizer, scaler=scaler)
        for _ in range(80):
            optimizer.zero_grad()
            loss = compute_loss(model(torch.randn(16, 6)))
            torch.autograd.backward(scaler.scale(loss))
            scaler.step(optimizer)
            scaler.update()
            recorded.log(loss=loss)

    diagnosis = diagnose_training(train)
    finding = find_finding(diagnosis, "loss_scale_exhausted")
    assert (finding is not None) == overflows
    if overflows:
        assert diagnosis.causes[0].cause == "loss_scale_exhausted"
