"""Rewinds in the real frameworks, and with a real service: a bad batch reaches a buffer of the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from tests.client.integrations.test_guards import BATCH, NONFINITE, STEPS, Poisoned, Regression
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import gradmedic
from gradmedic.integrations import accelerate as for_accelerate
from gradmedic.integrations import lightning as for_lightning
from gradmedic.integrations import transformers as for_transformers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # frameworks warn of much


@pytest.fixture(autouse=True)
def here(service_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs go to the test's service; what frameworks write goes to a scratch folder."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradmedic.torch.guards.snapshots_ring.TIME_SHARE", 1e-9)  # so that some steps are taken back
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Centered(Regression):
    """A small model that subtracts the running average of its inputs, and returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
        self.average: Tensor
        self.register_buffer("average", torch.zeros(8))

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss."""
        self.average = 0.99 * self.average + 0.01 * inputs.mean(dim=0)
        return super().forward(inputs - self.average, labels)


class Module(pl.LightningModule):
    """The same for Lightning, with a scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Centered()

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        """Return the loss."""
        loss: Tensor = self.model(**batch)["loss"]
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its scheduler."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def check(client: gradmedic.Client, run: gradmedic.Run | None, model: nn.Module, *, counts_on: bool) -> int:
    """Check that the training went back once, that the service has it, and that it trained on; return the step."""
    assert run is not None
    assert all(bool(each.isfinite().all()) for each in model.state_dict().values())
    actions = list(client.runs.guard_actions(run.id))
    kinds = {(action.action, action.reason, action.step) for action in actions}
    assert kinds == {
        ("skip", "nonfinite_gradient", NONFINITE),
        ("rewind", "nonfinite_weights", NONFINITE),
    }
    (rewind,) = [action for action in actions if action.action == "rewind"]
    assert rewind.to_step is not None
    assert rewind.to_step < NONFINITE - 2
    detail = client.runs.get(run.id)
    assert detail.generation == 1
    taken_back = NONFINITE - rewind.to_step
    assert detail.last_step == (STEPS - 1 if counts_on else STEPS - 1 - taken_back)
    series = client.runs.steps(run.id, "loss", max_points=2000)
    steps = set(series.first_step)
    assert not {NONFINITE} & steps or not counts_on
    assert all(math.isfinite(loss) for loss in series.series[0].mean if loss is not None)
    return rewind.to_step


def test_a_plain_loop(client: gradmedic.Client, service_url: str) -> None:
    """The steps go on behind the state; the run is one that learns, and not one that exploded."""
    model = Centered()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = gradmedic.init("loop", base_url=service_url, on_unhealthy="rewind")
    run.watch(model, optimizer)
    for batch in DataLoader(Poisoned(), batch_size=BATCH):
        loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
    run.finish()
    check(client, run, model, counts_on=False)
    assert client.runs.get(run.id).verdict != "exploding"


def test_lightning(client: gradmedic.Client) -> None:
    """Lightning counts its steps itself, and its scheduler goes back."""
    callback = for_lightning.GradmedicCallback("lightning", on_unhealthy="rewind")
    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, accelerator="cpu", gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Poisoned(), batch_size=BATCH))
    step = check(client, callback.run, module, counts_on=True)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == pytest.approx(STEPS - (NONFINITE - step), abs=1)


def test_transformers(client: gradmedic.Client) -> None:
    """The Trainer counts its steps itself, and its scheduler goes back."""
    callback = for_transformers.GradmedicCallback("transformers", on_unhealthy="rewind")

    class InOrder(Trainer):  # type: ignore[misc, unused-ignore]
        def _get_train_sampler(self, *_: Any) -> None:
            return None

    model = Centered()
    trainer = InOrder(
        model=model,
        args=TrainingArguments(
            output_dir="out", num_train_epochs=1, per_device_train_batch_size=BATCH, report_to="none", use_cpu=True,
            save_strategy="no", disable_tqdm=True, max_grad_norm=1.0, learning_rate=1e-3,
        ),
        train_dataset=Poisoned(),
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    step = check(client, callback.run, model, counts_on=True)
    assert trainer.lr_scheduler is not None
    assert trainer.lr_scheduler.last_epoch == pytest.approx(STEPS - (NONFINITE - step), abs=1)


def test_accelerate(client: gradmedic.Client) -> None:
    """The optimizer in accelerate's wrapper goes back, too."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    tracker = for_accelerate.GradmedicTracker("accelerate", on_unhealthy="rewind")
    accelerator = Accelerator(log_with=tracker, cpu=True)
    accelerator.init_trackers("accelerate")
    plain = Centered()
    loader: Any = DataLoader(Poisoned(), batch_size=BATCH)
    model, optimizer, loader = accelerator.prepare(plain, torch.optim.AdamW(plain.parameters(), lr=1e-3), loader)
    tracker.run.watch(model, optimizer)
    for step, batch in enumerate(loader):
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"loss": loss.item()}, step=step)
    accelerator.end_training()
    check(client, tracker.run, plain, counts_on=True)
