"""A transformer whose attention logits grow, from the training to the diagnosis."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.corpus.foreign.recorder import read_journal
from benchmarks.transformer_block import TransformerBlock
from torch import Tensor, nn
from torch.nn import functional

import gradmedic
from gradmedic.torch.probes import schedule
from gradmedic_diagnosis import Diagnostician, UpdatedDiagnosis

SYMBOLS, HALF, WIDTH, HEADS, WARM_UP = 16, 12, 64, 4, 50


class Transformer(nn.Module):
    """Predicts the next symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols, self.positions = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(2 * HALF, WIDTH)
        self.blocks = nn.Sequential(*(TransformerBlock(WIDTH, HEADS) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, SYMBOLS)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return logits of the next symbols `[example, position, symbol]`."""
        signal = self.symbols(sequence) + self.positions.weight[: sequence.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(signal)))
        return logits


def train(folder: Path, rate: float, steps: int) -> UpdatedDiagnosis:
    """Let a transformer learn to repeat a sequence; return the diagnosis of what the SDK recorded."""
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    run = gradmedic.init(mode="offline", dir=str(folder), silent=True, project="attention", log_freq=1)
    try:
        run.watch(model, optimizer)
        for _ in range(steps):
            half = torch.randint(0, SYMBOLS, (16, HALF))
            sequence = torch.cat([half, half], dim=1)
            logits = model(sequence[:, :-1])[:, HALF - 1 :]
            loss = functional.cross_entropy(logits.reshape(-1, SYMBOLS), sequence[:, HALF:].reshape(-1))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            run.log(loss=loss)
    finally:
        run.finish(timeout=30)
    description, block = read_journal(folder, run.id)
    return Diagnostician(tuple(description.layers), training=description.training).update(block)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_learning_rate_that_makes_logits_grow_is_explained_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate of 0.06, logits of thousands are the first cause; at 0.003 the task is learned, with no finding."""
    monkeypatch.setattr(schedule, "SHARE", float("inf"))  # probes at the same steps on a busy machine
    diagnosis = train(tmp_path / "high", 0.06, 160)
    (finding,) = (finding for finding in diagnosis.findings if finding.detector == "attention_logit_growth")
    assert finding.severity == "warning"
    assert finding.layers[0].endswith("qkv.weight")
    assert finding.evidence["attention_logit_max"] > 1000
    assert diagnosis.level == "attention"
    assert diagnosis.causes[0].cause == "attention_logit_growth"
    healthy = train(tmp_path / "low", 0.003, 160)
    assert healthy.level == "ok"
    assert not [finding for finding in healthy.findings if finding.detector == "attention_logit_growth"]
    assert not healthy.causes
