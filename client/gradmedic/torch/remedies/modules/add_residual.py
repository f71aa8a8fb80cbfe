"""The remedy that adds residual connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from gradmedic.torch.remedies.module_remedy import AppliedPlaces, CallRemedy
from gradmedic.torch.remedies.modules.changed_calls import CallChange
from gradmedic.torch.remedies.modules.places import NO_LAYER, Places
from gradmedic.torch.remedies.modules.remedy_hook import RemedyHook


class AddResidual(CallRemedy):
    """Adds the input of each block to its output, where they have the same shape."""

    id = "add_residual"
    order = 30

    def change_calls(
        self,
        part: nn.Module,
        places: Places,
        *,
        is_copy: bool,  # noqa: ARG002
    ) -> tuple[AppliedPlaces, Sequence[CallChange]]:
        """Add a hook to a layer that is a block by itself; return the activations that end the other blocks."""
        changes = []
        for block in places.blocks:
            if block.end is None:
                part.get_submodule(block.layer).register_forward_hook(AddInput())
            else:
                changes.append(CallChange(block.end, added_input=block.layer))
        reason = places.explain_none(NO_LAYER, places.not_blocks)
        return AppliedPlaces([block.layer for block in places.blocks], reason), changes


class AddInput(RemedyHook):
    """Forward hook of a layer that is a block by itself: adds the layer's input to its output."""

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the sum."""
        layer_input: Tensor = args[0]
        return output + layer_input
