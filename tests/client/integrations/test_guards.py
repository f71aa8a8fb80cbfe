"""Guards in the real frameworks: they step the optimizer themselves, perhaps by a closure or behind a wrapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

import gradmedic
from gradmedic.integrations import accelerate as for_accelerate
from gradmedic.integrations import lightning as for_lightning
from gradmedic.integrations import transformers as for_transformers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # frameworks warn of much

BATCH, STEPS, SPIKE, NONFINITE = 4, 50, 30, 40


@pytest.fixture(autouse=True)
def here(service_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs go to the test's service; what frameworks write goes to a scratch folder."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Poisoned(Dataset[dict[str, Tensor]]):
    """Batches of a regression, in order: one is a million times too large, one has a NaN."""

    def __len__(self) -> int:
        return BATCH * STEPS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        factor = {SPIKE: 1e6, NONFINITE: float("nan")}.get(index // BATCH, 1.0)
        inputs = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return {"inputs": inputs * factor, "labels": inputs.sum(dim=0, keepdim=True)}


class Regression(nn.Module):
    """A small model that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss."""
        return {"loss": nn.functional.mse_loss(self.layers(inputs), labels)}


class Module(pl.LightningModule):
    """The same for Lightning; by hand or not."""

    def __init__(self, *, is_manual: bool) -> None:
        super().__init__()
        self.model = Regression()
        self.automatic_optimization = not is_manual

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        """Return the loss; by hand, also step."""
        loss: Tensor = self.model(**batch)["loss"]
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=1.0)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def check(client: gradmedic.Client, run: gradmedic.Run | None, model: nn.Module) -> None:
    """Check that the two poisoned steps were not taken, that their actions are stored, and that all else went on."""
    assert run is not None
    actions = {action.step: action.reason for action in client.runs.guard_actions(run.id)}
    assert actions == {SPIKE: "gradient_spike", NONFINITE: "nonfinite_gradient"}
    assert client.runs.get(run.id).last_step == STEPS - 1
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("is_manual", [False, True])
def test_lightning(client: gradmedic.Client, is_manual: bool) -> None:
    """Lightning computes the gradients in a closure that it gives to the optimizer, and clips there."""
    callback = for_lightning.GradmedicCallback("lightning", on_unhealthy="skip")
    module = Module(is_manual=is_manual)
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, accelerator="cpu", gradient_clip_val=None if is_manual else 1.0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Poisoned(), batch_size=BATCH))
    check(client, callback.run, module)


def test_transformers(client: gradmedic.Client) -> None:
    """The Trainer clips with accelerate, and steps a wrapper of the optimizer."""
    callback = for_transformers.GradmedicCallback("transformers", on_unhealthy="skip")

    class InOrder(Trainer):  # type: ignore[misc, unused-ignore]
        def _get_train_sampler(self, *_: Any) -> None:
            return None

    model = Regression()
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
    check(client, callback.run, model)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_accelerate(client: gradmedic.Client, accumulation: int) -> None:
    """An optimizer in accelerate's wrapper is guarded, also if gradients are accumulated."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    tracker = for_accelerate.GradmedicTracker("accelerate", on_unhealthy="skip")
    accelerator = Accelerator(log_with=tracker, cpu=True, gradient_accumulation_steps=accumulation)
    accelerator.init_trackers("accelerate")
    plain = Regression()
    loader: Any = DataLoader(Poisoned(), batch_size=BATCH // accumulation)
    model, optimizer, loader = accelerator.prepare(plain, torch.optim.AdamW(plain.parameters(), lr=1e-3), loader)
    tracker.run.watch(model, optimizer)
    step = 0
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            accelerator.log({"loss": loss.item()}, step=step)
            step += 1
    accelerator.end_training()
    check(client, tracker.run, plain)
