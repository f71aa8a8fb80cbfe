"""Queries and keys that are normalized before attention."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from tests.client.torch.remedies.training import apply, batch, perceptron, remedy, sgd, step
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

NORM = remedy("qk_norm")


def sequences(seed: int = 1) -> Tensor:
    """Return a batch of sequences."""
    return batch(seed, rows=4, columns=40).reshape(4, 5, 8)


def attention_by_hand(module: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return output and weights of attention with normalized queries and keys, written out."""
    q, k, v = (functional.linear(x, module.in_proj_weight, module.in_proj_bias)).chunk(3, dim=-1)
    heads = [signal.unflatten(-1, (2, 4)).transpose(1, 2) for signal in (q, k, v)]  # type: ignore[no-untyped-call]
    q, k = (signal / signal.square().mean(-1, keepdim=True).sqrt() for signal in heads[:2])
    logits = q @ k.transpose(-1, -2) / math.sqrt(4)
    if mask is not None:
        logits = logits.masked_fill(mask, -math.inf)
    weights = logits.softmax(-1)
    return module.out_proj((weights @ heads[2]).transpose(1, 2).flatten(2)), weights.mean(1)


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention(need_weights: bool, is_masked: bool) -> None:
    """Output and weights of torch's module are those of attention by hand, with its biases and masks."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            nn.init.normal_(self.attention.in_proj_bias)

        def forward(self, x: Tensor, mask: Tensor | None) -> Any:
            return self.attention(x, x, x, attn_mask=mask, need_weights=need_weights)

    model = Model()
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if is_masked else None
    applied = apply(model, None, NORM)
    for _ in range(2):
        output, weights = model(sequences(), mask)
        expected, expected_weights = attention_by_hand(model.attention, sequences(), mask)
        torch.testing.assert_close(output, expected)
        if need_weights:
            torch.testing.assert_close(weights, expected_weights)
    assert applied.places["qk_norm"] == ["attention"]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(sequences(), mask)[0], expected)


class Attention(nn.Module):
    """Attention by torch's function, with queries and keys that may be normalized already."""

    def __init__(self, *, is_normalized: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm: nn.Module = nn.RMSNorm(4) if is_normalized else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of attention."""
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = self.norm(q), self.norm(k)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return result


def test_the_attention_function_of_torch() -> None:
    """A script's module that calls the function computes what it computes with a norm of its own; so do copies."""
    model, by_hand = Attention(), Attention(is_normalized=True)
    by_hand.load_state_dict({**by_hand.state_dict(), **model.state_dict()})
    apply(model, None, NORM)
    torch.testing.assert_close(model(sequences()), by_hand(sequences()))
    loaded = torch.load(_save(model), weights_only=False)
    for each in (model, copy.deepcopy(model), loaded):
        torch.testing.assert_close(each(sequences()), by_hand(sequences()))
    assert list(model.state_dict()) == ["qkv.weight", "qkv.bias", "out.weight", "out.bias"]


def _save(model: nn.Module) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_around_the_module(reentrant: bool) -> None:
    """Gradients of a module that a checkpoint calls are those of the same module without one."""
    results = []
    for is_checkpointed in (False, True):
        inner = Attention()

        class Model(nn.Module):
            def __init__(self, inner: nn.Module, *, is_checkpointed: bool) -> None:
                super().__init__()
                self.inner, self.is_checkpointed = inner, is_checkpointed

            def forward(self, x: Tensor) -> Any:
                return checkpoint(self.inner, x, use_reentrant=reentrant) if self.is_checkpointed else self.inner(x)

        model = Model(inner, is_checkpointed=is_checkpointed)
        apply(model, None, NORM)
        for _ in range(2):
            model.zero_grad()
            model(sequences().requires_grad_()).square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_transformer_in_both_modes() -> None:
    """A transformer of torch trains, and evaluates to what it computes in training without dropout."""
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    optimizer = sgd(model, 0.01)
    applied = apply(model, optimizer, NORM)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[:, 4] = True
    step(model, optimizer, lambda m: m(sequences(), src_key_padding_mask=padding).square().mean())
    assert applied.reason_to_end() is None
    trained = model(sequences(), src_key_padding_mask=padding)
    model.eval()
    with torch.no_grad():
        evaluated = model(sequences(), src_key_padding_mask=padding)
    torch.testing.assert_close(trained[:, :4], evaluated[:, :4])


def test_large_weights_give_no_large_logits() -> None:
    """With weights a thousand times too large attention is one-hot; with the remedy its entropy stays."""

    def smallest_entropy(*given: Any) -> float:
        torch.manual_seed(3)
        model = nn.MultiheadAttention(8, 2, batch_first=True)
        with torch.no_grad():
            model.in_proj_weight.mul_(1e3)
        if given:
            apply(model, None, *given)
        weights = model(sequences(), sequences(), sequences(), average_attn_weights=False)[1]
        return float((-weights * weights.clamp(min=1e-30).log()).sum(-1).min().detach())

    assert smallest_entropy() < 1e-3
    assert smallest_entropy(NORM) > 0.1


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (perceptron(), "neither scaled_dot_product_attention nor MultiheadAttention"),
        (nn.Sequential(nn.Linear(6, 8), nn.Unflatten(0, (2, 4)), Attention(is_normalized=True)), "normalized already"),
    ],
)
def test_models_without_a_place(model: nn.Module, reason: str) -> None:
    """A model without attention, or with normalized queries and keys, is not applicable after the first step."""
    optimizer = sgd(model)
    applied = apply(model, optimizer, NORM)
    step(model, optimizer, lambda m: m(batch()).square().mean())
    assert reason in str(applied.reason_to_end())
