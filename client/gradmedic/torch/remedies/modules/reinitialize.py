"""The remedy that initializes the weights of a model again, by a scheme that preserves the size of signals.

Each matrix is drawn from a generator of its own, seeded by the trial's seed and the parameter's name. So the script's
generators do not change, and a matrix gets the same numbers in any model.

Several matrices in one parameter are initialized one by one: gates of recurrent cells, and queries, keys and values of
attention. Biases become zero. Embeddings stay, and so do layers that share their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradmedic.torch.remedies.base import NotApplicable
from gradmedic.torch.remedies.module_remedy import AppliedPlaces, WeightRemedy
from gradmedic.torch.remedies.modules.parameters import list_recurrent_weights, make_generator

_Scheme = Callable[[Tensor, torch.Generator], object]
SCHEMES: Mapping[str, _Scheme] = {
    "xavier_uniform": lambda matrix, generator: nn.init.xavier_uniform_(matrix, generator=generator),
    "kaiming_normal": lambda matrix, generator: nn.init.kaiming_normal_(
        matrix, nonlinearity="relu", generator=generator
    ),
    "lecun_normal": lambda matrix, generator: nn.init.kaiming_normal_(
        matrix, nonlinearity="linear", generator=generator
    ),
    "orthogonal": lambda matrix, generator: nn.init.orthogonal_(matrix, generator=generator),
}
"""Functions that draw a matrix in place, by the name of the scheme."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMALIZATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


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
        if (reason := _find_signs_of_training(model, self.context.optimizers)) is not None:
            raise NotApplicable(f"{self.id}: {reason}")
        groups = [group for optimizer in self.context.optimizers for group in optimizer.param_groups]
        updated = {id(parameter) for group in groups for parameter in group["params"]}
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
    kept = {id(p) for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
            for p in module.parameters(recurse=False)}  # fmt: skip
    drawn_ids: set[int] = set()
    changed = []
    with torch.no_grad():
        for path, module in model.named_modules():
            matrices = [
                (name, matrix, pieces)
                for name, matrix, pieces in _list_matrices(module)
                if id(matrix) in updated and id(matrix) not in kept and id(matrix) not in drawn_ids
            ]
            for name, matrix, pieces in matrices:
                drawn_ids.add(id(matrix))
                generator = make_generator(seed, f"{path}.{name}")
                drawn = torch.empty(matrix.shape)
                for piece in drawn.chunk(pieces):
                    SCHEMES[scheme](piece, generator)
                matrix.copy_(drawn)
            if matrices:
                changed.append(path)
                for bias in _list_biases(module):
                    if id(bias) in updated:
                        bias.zero_()
    return changed


def _find_signs_of_training(model: nn.Module, optimizers: Sequence[Optimizer]) -> str | None:
    """Return what shows that the weights were trained already, None if nothing does."""
    if any(_has_stepped(state) for optimizer in optimizers for state in optimizer.state.values()):
        return "the optimizer has made steps already: initialization would undo them"
    source = getattr(model, "name_or_path", None)
    if isinstance(source, str) and source:
        return f"the weights are pretrained ({source})"
    for name, module in model.named_modules():
        if getattr(module, "num_batches_tracked", None) is not None and not is_lazy(module.running_mean):
            if int(module.num_batches_tracked) > 0 or bool(module.running_mean.any()):
                return f"the weights are pretrained: {name} has seen batches"
            continue  # its scales prove nothing: a script may initialize them with random numbers
        if isinstance(module, _NORMALIZATIONS) and any(
            p.numel() > 1 and not is_lazy(p) and bool((p != p.flatten()[0]).any()) for p in module.parameters()
        ):
            return f"the weights are pretrained: {name} has learned scales"
    matrices = [matrix for module in model.modules() for _, matrix, _ in _list_matrices(module) if not is_lazy(matrix)]
    if any(not matrix.requires_grad for matrix in matrices) and any(matrix.requires_grad for matrix in matrices):
        return "some weights are frozen: the model is pretrained, and the others fit to them"
    return None


def _has_stepped(state: Any) -> bool:
    """Whether the optimizer made a step with this state. Some optimizers have a state before any step."""
    return bool(state) and float(state.get("step", 1)) > 0


def _list_matrices(module: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Iterate over the weight matrices of a module: name, matrix, and number of matrices stacked in it."""
    if isinstance(module, (nn.Linear, nn.Bilinear, *_CONVOLUTIONS)):
        if isinstance(module.weight, nn.Parameter):
            yield "weight", module.weight, 1
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        for name, parameter in module.named_parameters(recurse=False):
            if name in list_recurrent_weights(module) and name.startswith("weight"):
                is_projection = name.startswith("weight_hr")
                yield name, parameter, 1 if is_projection else len(parameter) // module.hidden_size
    elif isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            yield "in_proj_weight", module.in_proj_weight, 3
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            parameter = getattr(module, name)
            if parameter is not None:
                yield name, parameter, 1


def _list_biases(module: nn.Module) -> Iterator[Tensor]:
    for name, parameter in module.named_parameters(recurse=False):
        if "bias" in name:
            yield parameter
