"""The remedy that lets a part of the gradient pass into embeddings (Zeng et al. 2023, GLM-130B, section 3.2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gradmedic.torch.remedies.module_remedy import AppliedPlaces, WeightRemedy
from gradmedic.torch.remedies.modules.remedy_hook import RemedyHook


class EmbeddingGradientShrink(WeightRemedy):
    """Multiplies the gradient at the output of each embedding by `share`. The output itself stays, to the bit.

    A weight that an output layer shares gets that layer's part of its gradient in full.
    """

    id = "embedding_gradient_shrink"
    order = 40
    needs_parameters = False
    needs_eager = True

    def change_weights(self, model: nn.Module) -> AppliedPlaces:
        """Add a hook to each embedding whose weights are trained. Nothing is changed now."""
        hook = ShrinkGradient(float(self.parameters["share"]))
        shrunk = []
        for path, module in model.named_modules():
            is_trained = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.weight.requires_grad
            if is_trained and not any(isinstance(other, ShrinkGradient) for other in module._forward_hooks.values()):
                module.register_forward_hook(hook)
                shrunk.append(path)
        return AppliedPlaces(shrunk, "the model has no embedding that is trained")


class ShrinkGradient(RemedyHook):
    """Forward hook of an embedding."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        """Multiply the gradient that will arrive at the output."""
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * self._share)  # type: ignore[no-untyped-call]
