"""The first advice for small trainings that fail, recorded through the SDK, is what an expert would try first."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.corpus.foreign.recorder import read_journal
from torch import Tensor, nn
from torch.nn import functional

import gradmedic
from gradmedic_diagnosis import Diagnostician, UpdatedDiagnosis

pytestmark = pytest.mark.usefixtures("one_thread")


def train(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], steps: int
) -> UpdatedDiagnosis:
    """Train a model that is watched, and return the diagnosis of its recording."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = gradmedic.init(mode="offline", dir=folder, silent=True, project="advice", log_freq=1)
        run.watch(model, optimizer)
        for _ in range(steps):
            loss = loss_of()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            run.log(loss=loss)
        run.finish(timeout=60)
    description, block = read_journal(folder, run.id)
    diagnostician = Diagnostician(tuple(description.layers), description.training, framework=description.framework)
    return diagnostician.update(block)


def ids(diagnosis: UpdatedDiagnosis) -> list[str]:
    """Return the ids of the advice."""
    return [advice.remedy.id for advice in diagnosis.advice]


def classifier() -> nn.Sequential:
    """Return a small perceptron."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def classification(model: nn.Module, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """Return the loss of the largest of ten inputs."""
    x = torch.randn(512, 20)
    y = x[:, :10].argmax(1)

    def loss() -> Tensor:
        rows = torch.randint(0, 512, (64,))
        return functional.cross_entropy(model(x[rows].to(dtype)).float(), y[rows])

    return loss


def test_a_perceptron_under_adamw_with_a_huge_rate(tmp_path: Path) -> None:
    """With AdamW at a rate of 5 the first advice is a lower rate, and clipping stands behind clipped updates."""
    model = classifier()
    diagnosis = train(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=5.0), classification(model), steps=200)
    found = ids(diagnosis)
    assert diagnosis.verdict == "exploding"
    assert found[0] == "scale_learning_rate"
    clips = [found.index(id) for id in found if id.startswith("clip_grad")]
    assert found.index("clip_update") < min(clips, default=len(found))
    assert "standardize_targets" not in found
    assert "stable_loss" not in found


class Recurrent(nn.Module):
    """A plain recurrent network over tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rnn = nn.Embedding(16, 16), nn.RNN(16, 64, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(64, 16)
        with torch.no_grad():
            next(p for name, p in self.rnn.named_parameters() if name == "weight_hh_l0").mul_(1.6)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.head(self.rnn(self.embed(x))[0])
        return result


def test_a_recurrent_network_under_gradient_descent(tmp_path: Path) -> None:
    """Of a plain recurrent network that explodes under SGD, the first advice is to clip."""
    model = Recurrent()

    def loss() -> Tensor:
        x = torch.randint(0, 16, (16, 1)).add(torch.arange(60) * 3).remainder(16)
        return functional.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    diagnosis = train(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.5), loss, steps=100)
    assert diagnosis.verdict == "exploding"
    assert ids(diagnosis)[0] == "clip_grad_norm"


class Transformer(nn.Module):
    """A stock transformer of torch over tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.embed, self.position = nn.Embedding(32, 64), nn.Parameter(0.02 * torch.randn(16, 64))
        self.encoder, self.head = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        mask = nn.Transformer.generate_square_subsequent_mask(16)
        result: Tensor = self.head(self.encoder(self.embed(x) + self.position, mask=mask))
        return result


def test_a_transformer_under_adamw_with_a_high_rate(tmp_path: Path) -> None:
    """Of a stock transformer under AdamW at .05, the first advice is a lower rate, whatever its weights start from."""
    model = Transformer()

    def loss() -> Tensor:
        x = torch.randint(0, 32, (16, 8)).repeat(1, 2)
        return functional.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    diagnosis = train(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=0.05), loss, steps=200)
    found = ids(diagnosis)
    assert found[0] == "scale_learning_rate"
    assert not {"insert_normalization", "add_residual", "standardize_inputs"} & set(found)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
def test_a_model_in_half_precision(tmp_path: Path, make: Callable[..., Any]) -> None:
    """A float16 model gets an epsilon that float16 can hold, or float32 weights, but no loss scaler: torch's raises."""
    model = classifier().half()
    optimizer = make(model.parameters(), lr=1e-3)
    diagnosis = train(tmp_path, model, optimizer, classification(model, torch.float16), steps=150)
    found = ids(diagnosis)
    assert diagnosis.verdict == "exploding"
    assert {"optimizer_epsilon", "float32_master_weights"} <= set(found[:3])
    assert "scale_loss" not in found
    epsilons = [each.remedy.parameters for each in diagnosis.advice if each.remedy.id == "optimizer_epsilon"]
    assert epsilons == [{"epsilon": 1e-4}]
