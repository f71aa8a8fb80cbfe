"""The remedy that lets an LSTM remember at the start (Jozefowicz et al. 2015).

With biases of about zero, a forget gate keeps half of the cell's state at each time step, and gradients halve with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gradmedic.torch.remedies.base import NotApplicable
from gradmedic.torch.remedies.module_remedy import AppliedPlaces, WeightRemedy
from gradmedic.torch.remedies.modules.parameters import find_signs_of_training, find_updated_ids, list_recurrent_weights

_FORGET_GATE = 1
"""Place of the forget gate among the four that torch stacks: input, forget, cell, output."""


class ForgetGateBias(WeightRemedy):
    """Sets the bias of each forget gate to `bias` before training. Of torch's two biases, the other one becomes 0."""

    id = "forget_gate_bias"
    order = 25  # after new weights, whose biases are zero
    accepts_data_parallel = True

    def change_weights(self, model: nn.Module) -> AppliedPlaces:
        """Set the biases that an optimizer updates.

        Raises:
            NotApplicable: the weights were trained already.
        """
        if (reason := find_signs_of_training(model, self.context.optimizers)) is not None:
            raise NotApplicable(f"{self.id}: {reason}")
        updated = find_updated_ids(self.context.optimizers)
        value = float(self.parameters["bias"])
        changed, reason = [], "the model has no LSTM with biases that are trained"
        with torch.no_grad():
            for path, module in model.named_modules():
                pairs = [
                    pair for pair in _list_biases_of_forget_gates(module) if all(id(p) in updated for p, _ in pair)
                ]
                if not pairs:
                    continue
                if all(bool((pair[0][1] + pair[1][1] >= value).all()) for pair in pairs):
                    reason = "the forget gates start as open already"
                    continue
                for (_, input_bias), (_, hidden_bias) in pairs:
                    input_bias.fill_(value)
                    hidden_bias.zero_()
                changed.append(path)
        return AppliedPlaces(changed, reason)


_Bias = tuple[Tensor, Tensor]
"""A parameter, and the part of it that belongs to the forget gate."""


def _list_biases_of_forget_gates(module: nn.Module) -> Iterator[tuple[_Bias, _Bias]]:
    """Iterate over the two biases of each forget gate of an LSTM."""
    if not isinstance(module, (nn.LSTM, nn.LSTMCell)) or not module.bias:
        return
    parameters = dict(module.named_parameters(recurse=False))
    for name in list_recurrent_weights(module):
        if name.startswith("bias_ih") and name in parameters:
            pair = (parameters[name], parameters[name.replace("bias_ih", "bias_hh")])
            first, second = ((bias, bias.detach().chunk(4)[_FORGET_GATE]) for bias in pair)
            yield first, second
