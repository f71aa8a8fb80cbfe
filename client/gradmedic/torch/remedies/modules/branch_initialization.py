"""The base of remedies that set the last weights of each residual branch before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradmedic.torch.remedies.module_remedy import AppliedPlaces, CallRemedy
from gradmedic.torch.remedies.modules.changed_calls import CallChange
from gradmedic.torch.remedies.modules.parameters import find_signs_of_training, list_matrices
from gradmedic.torch.remedies.modules.places import Places

FEWEST_BRANCHES = 4
"""Residual branches from which there is something to set: two blocks of attention and a perceptron."""
_NO_BRANCHES = f"the model has fewer than {FEWEST_BRANCHES} residual branches that end in a layer of torch"


class BranchInitialization(CallRemedy):
    """Sets the weights of the last layer of each residual branch.

    They are set when the model is called first, because a trace of that call shows the branches.
    """

    needs_parameters = True

    def reason_against(self, model: nn.Module, wrappers: set[str]) -> str | None:
        """Return why the weights must stay as they are."""
        if (reason := super().reason_against(model, wrappers)) is not None:
            return reason
        return find_signs_of_training(model, self.context.optimizers)

    def change_calls(
        self,
        part: nn.Module,
        places: Places,
        *,
        is_copy: bool,  # noqa: ARG002  # a copy from before the first call starts with the same weights
    ) -> tuple[AppliedPlaces, Sequence[CallChange]]:
        """Set the weights of the branches."""
        branches = places.residual_branches
        layers = {name: layer for name in branches if (layer := _find_last_layer(part, name)) is not None}
        if len(branches) < FEWEST_BRANCHES or not layers:
            return AppliedPlaces([], _NO_BRANCHES), ()
        matrices = {id(matrix): matrix for layer in layers.values() if (matrix := find_matrix(layer)) is not None}
        if all(not bool(matrix.any()) for matrix in matrices.values()):
            return AppliedPlaces([], "the last layers of the residual branches start at zero"), ()
        if (reason := self.reason_against_branches(part, list(matrices.values()), len(branches))) is not None:
            return AppliedPlaces([], reason), ()
        with torch.no_grad():
            for layer in {id(layer): layer for layer in layers.values()}.values():
                self.set_weights(layer, len(branches))
        return AppliedPlaces(list(layers), ""), ()

    def reason_against_branches(self, part: nn.Module, last: Sequence[Tensor], count: int) -> str | None:  # noqa: ARG002
        """Return why the branches must stay as they are, None if nothing is known against it.

        Args:
            part: part of a model that the script calls.
            last: weights of the last layer of each branch.
            count: number of branches.
        """
        return None

    def set_weights(self, layer: nn.Module, count: int) -> None:
        """Set the weights of the last layer of a branch in place, without gradients.

        Args:
            layer: last layer of the branch.
            count: number of branches.
        """
        raise NotImplementedError


def find_matrix(layer: nn.Module) -> Tensor | None:
    """Return the matrix of weights of a layer, None if it has none."""
    return next((matrix for _, matrix, _ in list_matrices(layer)), None)


def _find_last_layer(part: nn.Module, name: str) -> nn.Module | None:
    """Return the last layer of a branch; of attention, its projection of the output."""
    module = part.get_submodule(name)
    if isinstance(module, nn.MultiheadAttention):
        module = module.out_proj
    return module if find_matrix(module) is not None else None
