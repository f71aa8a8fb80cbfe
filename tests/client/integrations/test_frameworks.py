"""Trainings with the real frameworks: the stored run equals the training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import gradmedic
from gradmedic.integrations import accelerate as for_accelerate
from gradmedic.integrations import lightning as for_lightning
from gradmedic.integrations import transformers as for_transformers
from gradmedic.protocol.runs import Objective

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # frameworks warn of much


@pytest.fixture(autouse=True)
def here(service_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs go to the test's service; what frameworks write goes to a scratch folder."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def true_norms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Norms of all gradients just before torch clips them, measured by the clipping itself."""
    norms: list[float] = []
    original = nn.utils.get_total_norm

    def note(*args: Any, **kwargs: Any) -> Tensor:
        total: Tensor = original(*args, **kwargs)
        norms.append(float(total))
        return total

    monkeypatch.setattr("torch.nn.utils.clip_grad._get_total_norm", note)
    return norms


def stored(client: gradmedic.Client, run: gradmedic.Run | None, statistic: str) -> np.ndarray[Any, Any]:
    """Return a statistic of a run, summed over layers as norms are, or a series."""
    assert run is not None
    series = client.runs.steps(run.id, statistic, max_points=1000).series
    values = np.array([[np.nan if v is None else v for v in item.mean] for item in series], dtype=np.float64)
    total: np.ndarray[Any, Any] = values[0] if len(values) == 1 else np.sqrt(np.nansum(values**2, axis=0))
    return total


class Regression(pl.LightningModule):
    """A small module with hyperparameters."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Return the loss."""
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.model(inputs), targets)
        self.log("accuracy", loss.detach() * 2)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=float(self.hparams["lr"]))


def batches(count: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return `count` batches of a regression with targets of size 100."""
    return DataLoader(TensorDataset(torch.randn(4 * count, 8), 100 * torch.randn(4 * count, 1)), batch_size=4)


def fit(callbacks: list[Any], **arguments: Any) -> Regression:
    """Train a module by Lightning."""
    torch.manual_seed(0)
    module = Regression()
    trainer = pl.Trainer(
        max_epochs=2, callbacks=callbacks, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, accelerator="cpu", gradient_clip_val=1.0, **arguments,
    )  # fmt: skip
    trainer.fit(module, batches(15))
    return module


def test_lightning(client: gradmedic.Client, true_norms: list[float]) -> None:
    """Losses, gradients before clipping, updates, metrics and hyperparameters are stored; training is unchanged."""
    callback = for_lightning.GradmedicCallback("lightning", log_freq=1, objective="maximize accuracy")
    watched = fit([callback])
    norms = list(true_norms)
    plain = fit([])
    for with_us, without in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(with_us, without)
    assert callback.run is not None
    run = client.runs.get(callback.run.id)
    assert (run.status, run.last_step, run.config) == ("finished", 29, {"lr": 0.05})
    assert [layer.name for layer in run.layers] == [name for name, _ in plain.named_parameters()]
    assert run.layers[0].activation == "tanh"
    np.testing.assert_allclose(stored(client, callback.run, "loss"), plain.losses, rtol=1e-6)
    np.testing.assert_allclose(stored(client, callback.run, "grad_norm"), norms, rtol=1e-5)
    np.testing.assert_allclose(stored(client, callback.run, "clip_coefficient"), 1 / np.array(norms), rtol=1e-4)
    assert stored(client, callback.run, "update_norm").min() > 0.0
    assert np.isfinite(stored(client, callback.run, "accuracy")[1:]).all()
    assert run.training is not None
    assert run.training.clips_gradients is True
    assert run.training.target_rms == pytest.approx(100.0, rel=0.8)
    assert run.training.loss is not None
    assert (run.training.loss.kind, run.training.loss.surrogate) == ("squared_error", False)
    assert run.training.loss.constant_level is not None
    assert run.training.objective == Objective(kind="metric", metric="accuracy", direction="maximize")


def test_lightning_that_accumulates_and_fails(client: gradmedic.Client) -> None:
    """Accumulated batches make one step; an exception makes the run failed."""
    callback = for_lightning.GradmedicCallback("lightning", log_freq=1)

    class Failing(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit([callback, Failing()], accumulate_grad_batches=5)
    assert callback.run is not None
    run = client.runs.get(callback.run.id)
    assert (run.status, run.last_step) == ("failed", 2)


class Losses(TrainerCallback):
    """Keeps the loss and norm that the Trainer itself reports of each step."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keep a step's loss and norm."""
        if "loss" in logs:
            self.logs.append(dict(logs))


def train(callbacks: list[Any], **arguments: Any) -> LlamaForCausalLM:
    """Train a small language model by the Trainer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
    texts = torch.randint(0, 32, (48, 10), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": text, "labels": text} for text in texts]
    settings = TrainingArguments(
        output_dir="out", per_device_train_batch_size=4, num_train_epochs=1, max_grad_norm=0.5, logging_steps=1,
        learning_rate=1e-2, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, seed=3, **arguments,
    )  # fmt: skip
    Trainer(model=model, args=settings, train_dataset=data, callbacks=callbacks).train()
    return model


@pytest.mark.parametrize("accumulate", [1, 3])
def test_transformers(client: gradmedic.Client, accumulate: int) -> None:
    """Losses and gradient norms are those that the Trainer reports: before clipping; the training is the same."""
    callback = for_transformers.GradmedicCallback("transformers", log_freq=1)
    reported = Losses()
    watched = train([callback, reported], gradient_accumulation_steps=accumulate)
    plain = train([], gradient_accumulation_steps=accumulate)
    for with_us, without in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(with_us, without)
    assert callback.run is not None
    run = client.runs.get(callback.run.id)
    assert (run.status, run.last_step) == ("finished", 12 // accumulate - 1)
    assert run.config["learning_rate"] == 0.01
    np.testing.assert_allclose(
        stored(client, callback.run, "loss"), [log["loss"] for log in reported.logs], atol=1e-4, rtol=1e-4
    )
    norms = [log["grad_norm"] for log in reported.logs]
    np.testing.assert_allclose(stored(client, callback.run, "grad_norm"), norms, rtol=1e-4)
    assert max(norms) > 0.5
    assert run.training is not None
    assert run.training.clips_gradients is True
    assert run.training.optimizers[0].name == "AdamW"
    loss = run.training.loss
    assert loss is not None
    assert (loss.kind, loss.classes, loss.surrogate) == ("cross_entropy", 32, False)
    assert loss.constant_level == pytest.approx(math.log(32), rel=0.02)  # the tokens are random


def test_accelerate(client: gradmedic.Client) -> None:
    """The tracker's run has what was logged, and the gradients of the prepared model."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    tracker = for_accelerate.GradmedicTracker("accelerate", log_freq=1)
    accelerator = Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("ignored", config={"lr": 0.1})
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(10))
    tracker.run.watch(model, optimizer)
    norms = []
    for step, (inputs, targets) in enumerate(loader):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        norms.append(float(accelerator.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        accelerator.log({"train_loss": loss, "progress": step / 10}, step=step)
        accelerator.log({"val_loss": 1.0}, step=step)
    accelerator.end_training()
    run = client.runs.get(tracker.run.id)
    assert (run.status, run.last_step, run.config, run.project) == ("finished", 9, {"lr": 0.1}, "accelerate")
    np.testing.assert_allclose(stored(client, tracker.run, "grad_norm"), norms, rtol=1e-5)
    np.testing.assert_allclose(stored(client, tracker.run, "progress"), np.arange(10) / 10)
    assert np.nanmin(stored(client, tracker.run, "val_loss")) == 1.0
