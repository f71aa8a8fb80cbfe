"""Real trainings whose probes reach the diagnosis, the service and recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradmedic
from gradmedic.export.recording import export_recording
from gradmedic.protocol.diagnosis import Diagnosis, Finding
from gradmedic.torch.probes import schedule
from gradmedic_diagnosis.replay import replay

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 200


@pytest.fixture(autouse=True)
def frequent_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let probes take as much time as the training, because the models are small."""
    monkeypatch.setattr(schedule, "SHARE", 1.0)


class Recaller(nn.Module):
    """Reads a sequence, and gives out the class of its first element."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(1, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Read a batch of sequences."""
        output: Tensor = self.head(self.memory(x)[0][:, -1])
        return output


class Mixture(nn.Module):
    """A classifier with a mixture of experts, whose gate prefers one expert from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 2) for _ in range(4))
        with torch.no_grad():
            self.gate.bias[1] = 9.0

    def forward(self, x: Tensor) -> Tensor:
        """Compute the expert that the gate chooses."""
        x = torch.tanh(self.first(x))
        weights, chosen = self.gate(x).softmax(-1).max(-1, keepdim=True)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        picked: Tensor = outputs.gather(1, chosen.unsqueeze(-1).expand(-1, 1, 2)).squeeze(1) * weights
        return picked


def train(service_url: str, model: nn.Module, make_batch: Callable[[], tuple[Tensor, Tensor]]) -> gradmedic.Run:
    """Train a classifier, and return its run."""
    run = gradmedic.init(f"probes-{uuid4()}", base_url=service_url, silent=True, log_freq=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run.watch(model, optimizer)
    for _ in range(STEPS):
        inputs, labels = make_batch()
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        run.log(loss)
    assert run.finish()
    return run


def find(findings: list[Finding], detector: str) -> Finding:
    """Return the finding of a detector."""
    return next(finding for finding in findings if finding.detector == detector)


def diagnose(service_url: str, run: gradmedic.Run) -> Diagnosis:
    """Return the diagnosis of the service."""
    with gradmedic.Client(service_url) as client:
        return client.runs.diagnosis(run.id)


def recall(length: int) -> tuple[Tensor, Tensor]:
    """Return sequences, and whether their first element is positive."""
    x = torch.randn(32, length, 1)
    return x, (x[:, 0, 0] > 0).long()


def test_a_cell_that_forgets_is_named_and_a_recording_has_it_without_names(service_url: str, tmp_path: Path) -> None:
    """An LSTM that must recall the first of 60 elements forgets it. An anonymous recording replays the finding."""
    run = train(service_url, Recaller(), lambda: recall(60))
    diagnosis = diagnose(service_url, run)
    finding = find(diagnosis.findings, "forgetting_recurrence")
    assert finding.severity == "warning"
    assert finding.layers[0] == "memory.weight_ih_l0"
    assert finding.evidence["time_steps"] == 60
    assert 0.3 < finding.evidence["factor_per_time_step"] < 0.8
    assert diagnosis.causes[0].cause == "forgetting_recurrence"
    path = tmp_path / "run.gradmedic"
    with gradmedic.Client(service_url) as client:
        export_recording(client, run.id, path)
    replayed = replay(path)
    found = find(list(replayed.diagnosis.findings), "forgetting_recurrence")
    assert (found.severity, found.evidence) == (finding.severity, finding.evidence)
    assert len(found.layers) == len(finding.layers)
    assert found.layers[0] == replayed.header.layers[0].name != "memory.weight_ih_l0"


def test_a_short_memory_that_is_enough_is_no_trouble(service_url: str) -> None:
    """Where the first of four elements decides, the same model learns and nothing is found."""
    run = train(service_url, Recaller(), lambda: recall(4))
    assert "forgetting_recurrence" not in [finding.detector for finding in diagnose(service_url, run).findings]


def test_a_router_that_prefers_one_expert_is_named(service_url: str) -> None:
    """A gate that sends every token to one expert is found by its layer."""

    def make_batch() -> tuple[Tensor, Tensor]:
        x = torch.randn(32, 4)
        return x, torch.randint(0, 2, (32,))

    finding = find(diagnose(service_url, train(service_url, Mixture(), make_batch)).findings, "router_collapse")
    assert finding.layers == ["gate.weight", "gate.bias"]
    assert finding.evidence["largest_share"] == 1.0
