"""The remedy that scales down the last layer of each residual branch before training (Radford et al. 2019, GPT-2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gradmedic.torch.remedies.modules.branch_initialization import BranchInitialization, find_matrix
from gradmedic.torch.remedies.modules.parameters import list_matrices


class DepthScaledInitialization(BranchInitialization):
    """Divides the weights of the last layer of each residual branch by the root of the number of branches.

    The sum of all branches then has the size of one, however deep the model is.
    """

    id = "depth_scaled_initialization"
    order = 5

    def reason_against_branches(self, part: nn.Module, last: Sequence[Tensor], count: int) -> str | None:
        """Return that the weights are small already, if they are."""
        if _are_scaled(part, last, count**-0.5):
            return "the last layers of the residual branches start with small weights already"
        return None

    def set_weights(self, layer: nn.Module, count: int) -> None:
        """Scale the weights."""
        matrix = find_matrix(layer)
        if matrix is not None:
            matrix.mul_(count**-0.5)


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
