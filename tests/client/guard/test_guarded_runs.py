"""Trainings that guards protect, as a user writes them, with a real service."""

from __future__ import annotations

import logging
import math
import re
import runpy
from pathlib import Path

import pytest
import torch
from tests.support.documents import ROOT, fenced_blocks
from torch import Tensor, nn

import gradmedic
from gradmedic.protocol.ids import new_id

POISONED = 60
STEPS = 150

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor")


def train(url: str, *, poison: float, logs: bool = True, **choices: str) -> tuple[gradmedic.Run, float, nn.Module]:
    """Fit a regression with one poisoned batch; return the run, the last loss on a clean batch, and the model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def compute_loss(inputs: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True))

    generator = torch.Generator().manual_seed(1)
    with gradmedic.init("guards", base_url=url, **choices) as run:  # type: ignore[arg-type]
        run.watch(model, optimizer)
        for step in range(STEPS):
            inputs = torch.randn(32, 8, generator=generator)
            loss = compute_loss(inputs * poison if step == POISONED else inputs)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if logs:
                run.log(loss)
    return run, compute_loss(torch.randn(64, 8, generator=generator)).item(), model


@pytest.mark.parametrize("poison", [1e3, math.nan])
def test_a_poisoned_batch_ruins_a_training_only_without_a_guard(
    service_url: str, client: gradmedic.Client, poison: float
) -> None:
    """With `on_unhealthy="skip"` one step is not taken, the loss ends as without poison, and the run tells it."""
    _, clean, _ = train(service_url, poison=1.0)
    _, ruined, _ = train(service_url, poison=poison)
    run, guarded, _ = train(service_url, poison=poison, on_unhealthy="skip")
    assert not ruined < 10 * clean
    assert guarded < 1.5 * clean
    (action,) = client.runs.guard_actions(run.id)
    assert (action.step, action.action) == (POISONED, "skip")
    assert action.reason == ("nonfinite_gradient" if math.isnan(poison) else "gradient_spike")
    stored = client.runs.get(run.id)
    assert (stored.status, stored.last_step) == ("finished", STEPS - 1)
    assert client.runs.diagnosis(run.id).verdict != "exploding"


def test_a_guard_that_never_acts_changes_nothing(service_url: str, client: gradmedic.Client) -> None:
    """Weights and losses of a clean training are the same to the bit with guards, and no action is recorded."""
    plain, loss, model = train(service_url, poison=1.0)
    run, guarded_loss, guarded_model = train(service_url, poison=1.0, on_unhealthy="skip", on_nonfinite="stop")
    assert guarded_loss == loss
    for mine, other in zip(guarded_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert list(client.runs.guard_actions(run.id)) == []
    results = [client.runs.steps(each.id, "loss", max_points=STEPS).series[0].mean for each in (plain, run)]
    assert results[0] == results[1]


@pytest.mark.parametrize("logs", [True, False])
def test_stop_ends_the_training_before_the_weights_are_harmed(
    service_url: str, client: gradmedic.Client, logs: bool
) -> None:
    """log() raises with the layer named, or the next step where the script never logs; the run is failed."""
    run_id = new_id()
    with pytest.raises(
        gradmedic.UnhealthyRunError, match=r"not finite in 4 of 4 layers, the last of them 2\.bias"
    ) as error:
        train(service_url, poison=math.nan, logs=logs, on_nonfinite="stop", id=str(run_id))
    assert error.value.verdict == "exploding"
    if logs:
        assert error.value.since_step == POISONED
        assert client.runs.get(run_id).status == "failed"
        (action,) = client.runs.guard_actions(run_id)
        assert (action.step, action.action, action.reason) == (POISONED, "stop", "nonfinite_gradient")


def test_a_model_that_is_watched_anew_keeps_what_its_guard_has_learnt(
    service_url: str, client: gradmedic.Client
) -> None:
    """After a second watch() of the same optimizer, a spike is still seen, once; unwatch() ends the guard."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradmedic.init("guards", base_url=service_url, on_unhealthy="skip") as run:
        run.watch(model, optimizer)
        for step in range(60):
            if step == 30:
                run.watch(model, optimizer)
            if step == 50:
                run.unwatch()
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 1e6 if step in (31, 55) else 1.0)
            optimizer.step()
            run.log(1.0)
    assert [action.step for action in client.runs.guard_actions(run.id)] == [31]
    assert not optimizer._optimizer_step_pre_hooks


def test_the_example_of_the_guide_skips_its_damaged_batch(
    service_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The program in docs/guards.md runs as it is, and logs the sentence that the guide shows."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)
    program, shown = (block.text for block in fenced_blocks(ROOT / "docs" / "guards.md")[:2])
    with caplog.at_level(logging.WARNING, "gradmedic"):
        (tmp_path / "train.py").write_text(program)
        runpy.run_path(str(tmp_path / "train.py"))

    def without_numbers(text: str) -> str:
        return re.sub(r"\d[\d.e+]*", "N", text.strip())

    (message,) = [record.getMessage() for record in caplog.records if "the gradient" in record.getMessage()]
    assert without_numbers(message) == without_numbers(shown)
