"""A block of a transformer, for benchmarks and tests."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class TransformerBlock(nn.Module):
    """Causal attention and a perceptron, each behind a normalization, with residuals.

    Args:
        width: number of features.
        heads: number of attention heads, which share the features.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, signal: Tensor) -> Tensor:
        """Return a signal `[example, position, feature]` with what this block adds."""
        batch, length, width = signal.shape
        projected = self.qkv(self.first_norm(signal)).chunk(3, -1)
        q, k, v = (x.view(batch, length, self.heads, -1).transpose(1, 2) for x in projected)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        signal = signal + self.merge(mixed.transpose(1, 2).reshape(batch, length, width))
        output: Tensor = signal + self.perceptron(self.second_norm(signal))
        return output
