"""In a stock transformer whose learning rate is too high, the rate is the cause, and not the initial weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.corpus.foreign.recorder import read_journal
from torch import nn

import gradmedic
from gradmedic_diagnosis import Diagnostician


class Classifier(nn.Module):
    """A transformer encoder of torch with its own initialization."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        norm = nn.LayerNorm(32) if norm_first else None
        self.embed = nn.Linear(8, 32)
        self.encoder = nn.TransformerEncoder(layer, 4, norm=norm, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of the mean over a sequence."""
        return self.head(self.encoder(self.embed(inputs)).mean(dim=1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_learning_rate_is_blamed_and_lowered_first(tmp_path: Path, *, norm_first: bool) -> None:
    """AdamW at 0.05 stops the training: the cause is the learning rate, and the first advice lowers it."""
    torch.manual_seed(0)
    model = Classifier(norm_first=norm_first)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    run = gradmedic.init(mode="offline", dir=tmp_path, silent=True, project="stock", log_freq=1)
    run.watch(model, optimizer)
    for _ in range(200):
        inputs = torch.randn(16, 12, 8)
        labels = (inputs[:, 0, 0] * inputs[:, 1, 1] > 0).long() + 2 * (inputs[:, 2, 2] > 0).long()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        run.log(loss=loss)
    run.finish(timeout=30)
    description, block = read_journal(tmp_path, run.id)
    assert description.training is not None
    assert description.training.layer_order == "execution"
    diagnostician = Diagnostician(description.layers, description.training, framework=description.framework)
    diagnosis = diagnostician.update(block)
    assert diagnosis.verdict == "vanishing"
    causes = {cause.cause for cause in diagnosis.causes}
    assert "learning_rate_too_high" in causes
    assert causes <= {"learning_rate_too_high", "attention_logit_growth"}
    assert "scale_learning_rate" in [advice.remedy.id for advice in diagnosis.advice[:2]]
    assert not any(advice.remedy.id.startswith("clip_grad") for advice in diagnosis.advice[:3])
