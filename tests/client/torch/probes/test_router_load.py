"""How evenly the routers of mixtures of experts spread their tokens."""

from __future__ import annotations

import pytest
import torch
from tests.client.torch.recording import Recording
from torch import Tensor, nn

from gradmedic.protocol.probes import name_metric
from gradmedic.torch.probes.module_names import name_modules
from gradmedic.torch.probes.router_load import MOST_TOKENS, find_gates

pytestmark = pytest.mark.usefixtures("one_thread", "no_warning")


class Mixture(nn.Module):
    """A mixture of experts with one expert per token."""

    def __init__(self, experts: int = 4, width: int = 6) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the expert of each token."""
        scores = self.gate(x).softmax(-1)
        best, chosen = scores.max(-1, keepdim=True)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        picked = outputs.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, x.shape[-1])).squeeze(-2)
        weighted: Tensor = picked * best
        return weighted


def probe(model: nn.Module, *batches: Tensor) -> dict[str, float]:
    """Make one step, and return the probes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        for batch in batches:
            model(batch).square().mean().backward()
        optimizer.step()
        return dict(recording.log().probes)


def test_the_share_is_that_of_the_expert_with_most_tokens() -> None:
    """The tokens of all calls count together."""
    mixture = Mixture()
    model = nn.Sequential(nn.Linear(6, 6), mixture)
    batches = [torch.randn(2, 7, 6), torch.randn(3, 7, 6)]
    with torch.no_grad():
        chosen = torch.cat([mixture.gate(model[0](batch)).argmax(-1).reshape(-1) for batch in batches])
    probes = probe(model, *batches)
    expected = chosen.bincount(minlength=4).max() / len(chosen)
    assert probes[name_metric("router_largest_share", "1.gate")] == pytest.approx(float(expected))


def test_many_tokens_are_sampled() -> None:
    """A share of more tokens than are counted is right to some percent."""
    mixture = Mixture(8)
    model = nn.Sequential(mixture)
    batch = torch.randn(MOST_TOKENS * 3 + 1, 6)
    with torch.no_grad():
        expected = mixture.gate(batch).argmax(-1).bincount(minlength=8).max() / len(batch)
    share = probe(model, batch)[name_metric("router_largest_share", "0.gate")]
    assert share == pytest.approx(float(expected), rel=0.05)


def test_what_looks_like_a_mixture_is_none() -> None:
    """A classifier behind equal blocks, unequal or few experts, and a gate that biases balance are no router."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(10))
            self.head = nn.Linear(6, 10)

    unequal, balanced = Mixture(), Mixture()
    unequal.experts[1] = nn.Linear(6, 6, bias=False)
    balanced.gate.register_buffer("score_correction_bias", torch.zeros(4))
    for module in (Network(), unequal, Mixture(3), balanced):
        assert not find_gates([module], name_modules([module], []))
    mixture = Mixture()
    assert find_gates([mixture], name_modules([mixture], [])) == {"gate": 4}


def test_mixtures_of_transformers_are_found() -> None:
    """The routers of Mixtral, whose experts are stacked in one parameter, are measured."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recording(model, optimizer) as recording:
        tokens = torch.randint(0, 20, (2, 8))
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        probes = recording.log().probes
    shares = [value for name, value in probes.items() if "router_largest_share" in name]
    assert len(shares) == 2
    assert all(0.25 <= share <= 1 for share in shares)
