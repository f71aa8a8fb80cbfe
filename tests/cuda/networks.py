"""A small transformer that attends in each of the ways that are measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS = 32, 4


class Attention(nn.Module):
    """Causal attention by the fused function, or by a softmax."""

    def __init__(self, *, is_fused: bool) -> None:
        super().__init__()
        self.is_fused = is_fused
        self.project, self.merge = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, signal: Tensor) -> Tensor:
        """Return what is added to the signal."""
        batch, length, _ = signal.shape
        q, k, v = (x.view(batch, length, HEADS, -1).transpose(1, 2) for x in self.project(signal).chunk(3, -1))
        if self.is_fused:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mask = torch.ones(length, length, dtype=torch.bool, device=signal.device).triu(1)
            logits = q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)
            mixed = torch.softmax(logits.masked_fill(mask, -math.inf), dim=-1) @ v
        merged: Tensor = self.merge(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return merged


class Transformer(nn.Module):
    """Three kinds of attention behind each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 1)
        self.fused, self.eager = Attention(is_fused=True), Attention(is_fused=False)
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one number for each position."""
        signal = self.embed(inputs)
        signal = signal + self.fused(signal)
        signal = self.layer(signal + self.eager(signal))
        output: Tensor = self.head(signal)
        return output


ATTENTION = ("fused", "eager", "layer.self_attn")
"""Names of the modules that attend."""
