"""The remedy that draws embeddings again, with a standard deviation (Glorot and Bengio 2010; Radford et al. 2018).

Torch draws them with a deviation of 1: the norm of a vector, and the product of two of them, grow with the width.
"""

from __future__ import annotations

import torch
from torch import nn

from gradmedic.torch.remedies.base import NotApplicable
from gradmedic.torch.remedies.module_remedy import AppliedPlaces, WeightRemedy
from gradmedic.torch.remedies.modules.parameters import find_signs_of_training, find_updated_ids, make_generator


class InitializeEmbeddings(WeightRemedy):
    """Draws each embedding from a normal distribution with the deviation `standard_deviation`.

    The vector of a padding index stays. A layer that shares the weights has the new ones, too.
    """

    id = "initialize_embeddings"
    order = 15
    accepts_data_parallel = True

    def change_weights(self, model: nn.Module) -> AppliedPlaces:
        """Draw the embeddings that an optimizer updates.

        Raises:
            NotApplicable: the weights were trained already.
        """
        if (reason := find_signs_of_training(model, self.context.optimizers)) is not None:
            raise NotApplicable(f"{self.id}: {reason}")
        updated = find_updated_ids(self.context.optimizers)
        deviation = float(self.parameters["standard_deviation"])
        changed = []
        with torch.no_grad():
            for path, module in model.named_modules():
                if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or id(module.weight) not in updated:
                    continue
                updated.remove(id(module.weight))  # several modules may share it
                drawn = torch.empty(module.weight.shape)
                drawn.normal_(std=deviation, generator=make_generator(self.context.seed, f"{path}.weight"))
                if module.padding_idx is not None:
                    drawn[module.padding_idx] = module.weight[module.padding_idx].to(drawn)
                module.weight.copy_(drawn)
                changed.append(path)
        return AppliedPlaces(changed, "the model has no embedding that is trained")
