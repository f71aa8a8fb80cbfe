"""The remedy that initializes the weights of a model again, by a scheme that preserves the size of signals.

Each matrix is drawn from a generator of its own, seeded by the trial's seed and the parameter's name. So the script's
generators do not change, and a matrix gets the same numbers in any model.

Several matrices in one parameter are initialized one by one: gates of recurrent cells, and queries, keys and values of
attention. Biases become zero. Embeddings stay, and so do layers that share their weights.
"""

from __future__ import annotations

import torch
from torch import nn

from gradmedic.torch.remedies.base import NotApplicable
from gradmedic.torch.remedies.module_remedy import AppliedPlaces, WeightRemedy
from gradmedic.torch.remedies.modules.parameters import (
    draw_matrix,
    find_signs_of_training,
    find_updated_ids,
    list_biases,
    list_embedding_parameters,
    list_matrices,
    make_generator,
)


class Reinitialize(WeightRemedy):
    """Draws the weight matrices again, by `scheme`."""

    id = "reinitialize"
    order = 20
    accepts_data_parallel = True

    def change_weights(self, model: nn.Module) -> AppliedPlaces:
        """Draw the matrices that an optimizer updates.

        Raises:
            NotApplicable: the weights were trained already.
        """
        if (reason := find_signs_of_training(model, self.context.optimizers)) is not None:
            raise NotApplicable(f"{self.id}: {reason}")
        updated = find_updated_ids(self.context.optimizers)
        return AppliedPlaces(
            _reinitialize(model, str(self.parameters["scheme"]), self.context.seed, updated),
            "the model has no linear, convolutional, recurrent or attention module that is trained",
        )


def _reinitialize(model: nn.Module, scheme: str, seed: int, updated: set[int]) -> list[str]:
    """Initialize every matrix that an optimizer updates; return the names of the modules.

    Args:
        model: without wrappers.
        scheme: name of a scheme in `SCHEMES`.
        seed: seed of the trial.
        updated: ids of the optimizers' parameters.
    """
    kept = list_embedding_parameters(model)
    drawn_ids: set[int] = set()
    changed = []
    with torch.no_grad():
        for path, module in model.named_modules():
            matrices = [
                (name, matrix, pieces)
                for name, matrix, pieces in list_matrices(module)
                if id(matrix) in updated and id(matrix) not in kept and id(matrix) not in drawn_ids
            ]
            for name, matrix, pieces in matrices:
                drawn_ids.add(id(matrix))
                draw_matrix(matrix, pieces, scheme, make_generator(seed, f"{path}.{name}"))
            if matrices:
                changed.append(path)
                for bias in list_biases(module):
                    if id(bias) in updated:
                        bias.zero_()
    return changed
