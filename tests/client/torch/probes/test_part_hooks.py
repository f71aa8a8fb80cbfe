"""The hooks of parts of models: they are there while the model trains."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.client.torch.recording import Recording
from torch import nn

from gradmedic.torch.probes import part_hooks
from gradmedic.torch.probes.part_hooks import ProbeHook

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")


class Classifier(nn.Module):
    """A transformer's encoder and a head."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits `[example, class]`."""
        return torch.as_tensor(self.head(self.encoder(inputs).mean(1)))


def has_hooks(model: Classifier) -> bool:
    """Whether a layer of the encoder, or a part of one, has hooks of probes."""
    hooks = [hook for module in model.encoder.layers.modules() for hook in module._forward_hooks.values()]
    return any(isinstance(hook, ProbeHook) for hook in hooks)


def train(recording: Recording, model: Classifier, optimizer: torch.optim.Optimizer) -> list[str]:
    """Make a step and return the names of its probes."""
    model.train()
    optimizer.zero_grad()
    model(torch.randn(4, 5, 8)).square().mean().backward()
    optimizer.step()
    return list(recording.log().probes)


def test_a_model_in_eval_has_no_hooks_in_its_parts_and_computes_as_without_the_sdk() -> None:
    """An evaluation takes torch's fast path, with the same numbers bit for bit; the next step is measured again."""
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(4, 5, 8)
    with Recording(model, optimizer) as recording:
        assert any("output_rms" in name for name in train(recording, model, optimizer))
        plain = Classifier().eval()
        plain.load_state_dict(model.state_dict())
        model.eval()
        with torch.no_grad():
            assert torch.equal(model(inputs), plain(inputs))
        assert not has_hooks(model)
        assert any("output_rms" in name for name in train(recording, model, optimizer))
        assert has_hooks(model)
    assert not has_hooks(model)


def test_a_copy_of_a_watched_model_has_hooks_that_do_nothing() -> None:
    """A deep copy and a pickled model compute, and show nothing to the run."""
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        train(recording, model, optimizer)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 (our own bytes)
            other.train()
            other(torch.randn(4, 5, 8)).sum().backward()
        assert not recording.log().probes


def test_a_watch_of_a_model_in_eval_measures_it_once_it_trains() -> None:
    """Parts get their hooks with the first call in `train()`."""
    model = Classifier().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        assert not has_hooks(model)
        assert any("output_rms" in name for name in train(recording, model, optimizer))


def test_a_part_in_eval_has_no_hooks_inside_a_model_that_trains() -> None:
    """A frozen encoder inside a model that trains is left alone, also if it is set to `eval()` after `watch()`."""
    model = Classifier()
    model.encoder.requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        train(recording, model, optimizer)
        assert has_hooks(model)
        model.encoder.eval()
        model(torch.randn(4, 5, 8))
        assert not has_hooks(model)


@pytest.mark.parametrize("frames", [0, 1])
def test_hooks_are_there_only_while_a_probe_is_due(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    """After the first probes, most steps run without them; where code is compiled, they stay as they are."""
    monkeypatch.setattr(part_hooks, "count_compiled_frames", lambda: frames)
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        steps = [(has_hooks(model), bool(train(recording, model, optimizer))) for _ in range(60)]
    assert all(had_hooks for had_hooks, is_probed in steps if is_probed)
    assert [had_hooks for had_hooks, _ in steps[:3]] == [True, True, True]
    assert sum(had_hooks for had_hooks, _ in steps) == 60 if frames else sum(had_hooks for had_hooks, _ in steps) <= 20
