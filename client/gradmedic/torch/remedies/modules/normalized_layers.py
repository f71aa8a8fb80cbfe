"""Layers whose weights have a norm of their own (Salimans and Kingma 2016).

The forward uses `gain * weight / |weight|`, row by row. The parameter of the optimizer stays and is the direction; the
gain is a new parameter of the module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def row_norms(weight: Tensor) -> Tensor:
    """Return the norm of each row, in the shape in which it divides the weights."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
    return norms


class _NormalizedLayer:
    """The base of the classes below."""

    weight: Tensor
    weight_gain: Tensor

    def normalize_weight(self) -> Tensor:
        """Return the weights that the layer computes with."""
        return self.weight * (self.weight_gain / row_norms(self.weight))


class NormalizedLinear(_NormalizedLayer, nn.Linear):
    """A linear layer with normalized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Return the layer's output."""
        return functional.linear(input, self.normalize_weight(), self.bias)


class NormalizedConv1d(_NormalizedLayer, nn.Conv1d):
    """A convolution with normalized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the layer's output."""
        output: Tensor = self._conv_forward(input, self.normalize_weight(), self.bias)
        return output


class NormalizedConv2d(_NormalizedLayer, nn.Conv2d):
    """A convolution with normalized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the layer's output."""
        output: Tensor = self._conv_forward(input, self.normalize_weight(), self.bias)
        return output


class NormalizedConv3d(_NormalizedLayer, nn.Conv3d):
    """A convolution with normalized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the layer's output."""
        output: Tensor = self._conv_forward(input, self.normalize_weight(), self.bias)
        return output


NORMALIZED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: NormalizedLinear,
    nn.Conv1d: NormalizedConv1d,
    nn.Conv2d: NormalizedConv2d,
    nn.Conv3d: NormalizedConv3d,
}
"""The class that each class of modules is changed to."""
NORMALIZED_LAYERS = tuple(NORMALIZED_CLASSES.values())
