"""Attention that is measured on a device, against float64 and without waiting for the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradmedic.torch.probes.attention_logits import (
    measure_multi_head,
    measure_scaled_dot_product,
    measure_softmax,
    plain_arithmetic,
)


def draw(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random numbers whose attention is neither even nor one-hot."""
    return (2.0 * torch.randn(*shape, device=device)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_causal", [False, True])
def test_numbers_are_those_of_float64(device: torch.device, dtype: torch.dtype, is_causal: bool) -> None:
    """They agree to 1e-3 in every type, with heads that share keys, also within autocast."""
    query, key = draw(3, 6, 16, 8, device=device, dtype=dtype), draw(3, 2, 16, 8, device=device, dtype=dtype)
    with torch.autocast(device.type, torch.bfloat16), plain_arithmetic(device):
        measured = measure_scaled_dot_product(query, key, key, is_causal=is_causal, enable_gqa=True)
    logits = query.double() @ key.double().repeat_interleave(3, dim=1).transpose(-2, -1) / math.sqrt(8)
    allowed = torch.ones(16, 16, dtype=torch.bool, device=device)
    allowed = allowed.tril() if is_causal else allowed
    log_weights = logits.masked_fill(~allowed, -math.inf).log_softmax(-1).masked_fill(~allowed, 0.0)
    keys = allowed.sum(-1)
    entropy = -(log_weights.exp() * log_weights).sum(-1)[..., keys > 1] / keys[keys > 1].log()
    assert measured is not None
    largest = logits.abs().masked_fill(~allowed, 0.0).max()
    assert measured.tolist() == pytest.approx([largest.item(), entropy.mean((0, 2)).min().item()], rel=1e-3)


def measure_all(device: torch.device) -> list[Tensor | None]:
    """Measure a call of each kind, with masks, on a device."""
    query, key = draw(8, 4, 200, 16, device=device), draw(8, 4, 200, 16, device=device)
    mask = torch.ones(200, 200, dtype=torch.bool, device=device).tril()
    module = nn.MultiheadAttention(16, 4, device=device)
    inputs = draw(100, 8, 16, device=device)
    arguments: dict[str, Any] = {
        "embed_dim_to_check": 16, "num_heads": 4, "in_proj_weight": module.in_proj_weight,
        "in_proj_bias": module.in_proj_bias, "bias_k": None, "bias_v": None, "add_zero_attn": True, "dropout_p": 0.0,
        "out_proj_weight": module.out_proj.weight, "out_proj_bias": None, "attn_mask": mask[:100, :100].logical_not(),
        "key_padding_mask": torch.zeros(8, 100, dtype=torch.bool, device=device),
    }  # fmt: skip
    logits = (query.requires_grad_() @ key.transpose(-2, -1)).masked_fill(~mask, -math.inf)

    def measure() -> list[Tensor | None]:
        with torch.no_grad(), plain_arithmetic(device):
            return [
                measure_scaled_dot_product(query, key, key, is_causal=True),
                measure_scaled_dot_product(query, key, key, attn_mask=mask),
                measure_multi_head(inputs, inputs, inputs, **arguments),
                measure_softmax(logits, -1),
            ]

    measure()  # what a device does once only
    if device.type == "cpu":
        return measure()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return measure()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_measuring_does_not_wait_for_the_device(device: torch.device) -> None:
    """No kind of call, mask or projection needs a number from the device: torch would raise an error."""
    for numbers in measure_all(device):
        assert numbers is not None
        assert numbers.isfinite().all()
