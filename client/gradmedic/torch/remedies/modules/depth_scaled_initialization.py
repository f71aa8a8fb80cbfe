"""The remedy that scales down the last layer of each residual branch before training (Radford et al. 2019, GPT-2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradmedic.torch.remedies.module_remedy import AppliedPlaces, CallRemedy
from gradmedic.torch.remedies.modules.changed_calls import CallChange
from gradmedic.torch.remedies.modules.parameters import find_signs_of_training, list_matrices
from gradmedic.torch.remedies.modules.places import Places

FEWEST_BRANCHES = 4
"""Residual branches from which there is something to scale: two blocks of attention and a perceptron."""
_NO_BRANCHES = f"the model has fewer than {FEWEST_BRANCHES} residual branches that end in a layer of torch"


class DepthScaledInitialization(CallRemedy):
    """Divides the weights of the last layer of each residual branch by the root of the number of branches.

    The sum of all branches then has the size of one, however deep the model is. The weights are scaled when the model
    is called first, because a trace of that call shows the branches.
    """

    id = "depth_scaled_initialization"
    order = 5
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
        """Scale the weights of the branches."""
        branches = places.residual_branches
        matrices = {name: matrix for name in branches if (matrix := _find_last_matrix(part, name)) is not None}
        if len(branches) < FEWEST_BRANCHES or not matrices:
            return AppliedPlaces([], _NO_BRANCHES), ()
        factor = len(branches) ** -0.5
        if all(not bool(matrix.any()) for matrix in matrices.values()):
            return AppliedPlaces([], "the last layers of the residual branches start at zero"), ()
        if _are_scaled(part, list(matrices.values()), factor):
            return AppliedPlaces([], "the last layers of the residual branches start with small weights already"), ()
        with torch.no_grad():
            for matrix in {id(matrix): matrix for matrix in matrices.values()}.values():
                matrix.mul_(factor)
        return AppliedPlaces(list(matrices), ""), ()


def _find_last_matrix(part: nn.Module, name: str) -> Tensor | None:
    """Return the weights of the last layer of a branch; of attention, of its projection of the output."""
    module = part.get_submodule(name)
    if isinstance(module, nn.MultiheadAttention):
        module = module.out_proj
    return next((matrix for _, matrix, _ in list_matrices(module)), None)


def _are_scaled(part: nn.Module, last: Sequence[Tensor], factor: float) -> bool:
    """Whether the last layers preserve so much less of a signal than the others that they were scaled already."""
    ids = {id(matrix) for matrix in last}
    gains: dict[bool, list[float]] = {True: [], False: []}
    for module in part.modules():
        for _, matrix, _ in list_matrices(module):
            wide = matrix.detach().float()
            gains[id(matrix) in ids].append(float(wide.square().mean().sqrt()) * (wide[0].numel() ** 0.5))
    if not gains[True] or not gains[False]:
        return False
    medians = {is_last: sorted(values)[len(values) // 2] for is_last, values in gains.items()}
    return bool(medians[True] <= medians[False] * factor**0.5)
