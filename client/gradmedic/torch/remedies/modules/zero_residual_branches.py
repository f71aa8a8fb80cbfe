"""The remedy that lets each residual branch start at zero (Goyal et al. 2017, 5.1; Zhang et al. 2019, Fixup)."""

from __future__ import annotations

from torch import nn

from gradmedic.torch.remedies.modules.branch_initialization import BranchInitialization, find_matrix
from gradmedic.torch.remedies.modules.parameters import list_biases


class ZeroResidualBranches(BranchInitialization):
    """Sets the weights and biases of the last layer of each residual branch to zero.

    The model starts as its identity path, however deep it is and whatever its other weights are, and each branch grows
    from there.
    """

    id = "zero_residual_branches"
    order = 6

    def set_weights(self, layer: nn.Module, count: int) -> None:  # noqa: ARG002
        """Set the weights and biases to zero."""
        matrix = find_matrix(layer)
        for parameter in (*([] if matrix is None else [matrix]), *list_biases(layer)):
            parameter.zero_()
