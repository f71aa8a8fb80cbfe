"""Attention of models of the transformers library, fused and eager."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.client.torch.recording import Recording

from gradmedic.torch.probes import schedule

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_warning")]

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
MODELS = ("llama", "gpt2", "bert")


def build(kind: str, implementation: str) -> torch.nn.Module:
    """Return a small language model that is the same for both implementations of attention."""
    import transformers

    torch.manual_seed(0)
    configuration: Any
    if kind == "llama":
        configuration = transformers.LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)
        model_class: Any = transformers.LlamaForCausalLM
    elif kind == "gpt2":
        configuration = transformers.GPT2Config(
            vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=1
        )
        model_class = transformers.GPT2LMHeadModel
    else:
        configuration = transformers.BertConfig(**SIZES, num_attention_heads=4)
        model_class = transformers.BertForMaskedLM
    configuration._attn_implementation = implementation
    model: torch.nn.Module = model_class(configuration)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.train()


def measure(kind: str, implementation: str) -> dict[str, float]:
    """Return the probes of attention of a batch with padding."""
    model = build(kind, implementation)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tokens = torch.arange(24).reshape(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, 8:] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recording(model, optimizer) as recording:
        for _ in range(3):
            model(input_ids=tokens, labels=tokens, attention_mask=mask).loss.backward()
            optimizer.step()
            probes = recording.log().probes
    return {name.removeprefix("gradmedic/"): value for name, value in probes.items() if "/attention_" in name}


@pytest.mark.parametrize("kind", MODELS)
def test_fused_and_eager_attention_have_the_same_numbers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules are measured by name, with padding, causal masks and shared heads as the model applies them."""
    monkeypatch.setattr(schedule, "SHARE", math.inf)
    eager, fused = measure(kind, "eager"), measure(kind, "sdpa")
    assert len(fused) == 4
    assert all("0" in name or "1" in name for name in fused)
    assert eager == pytest.approx(fused, rel=1e-3)
    for name, value in fused.items():
        assert value < 1.0 if "entropy" in name else value > 1.0
