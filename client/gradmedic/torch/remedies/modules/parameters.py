"""Parameters of modules that remedies draw anew, and signs that they were trained already."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

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


def make_generator(seed: int, name: str) -> torch.Generator:
    """Return the random generator of one parameter, so that its numbers depend on nothing else in the model.

    Args:
        seed: seed of the trial.
        name: name of the parameter.

    >>> make_generator(0, "fc.weight").initial_seed() != make_generator(0, "fc.bias").initial_seed()
    True
    """
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def list_recurrent_weights(module: nn.RNNBase | nn.RNNCellBase) -> tuple[str, ...]:
    """Return the names of the weights that a recurrent module computes with.

    A parametrization has parameters of other names, from which it computes them.
    """
    if isinstance(module, nn.RNNBase):
        return tuple(module._flat_weights_names)
    return ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))


def find_signs_of_training(model: nn.Module, optimizers: Sequence[Optimizer]) -> str | None:
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
    matrices = [matrix for module in model.modules() for _, matrix, _ in list_matrices(module) if not is_lazy(matrix)]
    if any(not matrix.requires_grad for matrix in matrices) and any(matrix.requires_grad for matrix in matrices):
        return "some weights are frozen: the model is pretrained, and the others fit to them"
    return None


def find_updated_ids(optimizers: Sequence[Optimizer]) -> set[int]:
    """Return the ids of the parameters that an optimizer updates."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {id(parameter) for group in groups for parameter in group["params"]}


def _has_stepped(state: Any) -> bool:
    """Whether the optimizer made a step with this state. Some optimizers have a state before any step."""
    return bool(state) and float(state.get("step", 1)) > 0


def list_matrices(module: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
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


def list_embedding_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters of embeddings, which other modules may share."""
    embeddings = (module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag)))
    return {id(parameter) for module in embeddings for parameter in module.parameters(recurse=False)}


def draw_matrix(matrix: Tensor, pieces: int, scheme: str, generator: torch.Generator) -> None:
    """Draw a matrix in place, without gradients.

    Args:
        matrix: on any device, of any floating-point type.
        pieces: number of matrices that are stacked in it. Each is drawn by itself.
        scheme: name of a scheme in `SCHEMES`.
        generator: generator of the CPU.
    """
    drawn = torch.empty(matrix.shape)
    for piece in drawn.chunk(pieces):
        SCHEMES[scheme](piece, generator)
    matrix.copy_(drawn)


def list_biases(module: nn.Module) -> Iterator[Tensor]:
    """Iterate over the biases of a module itself."""
    for name, parameter in module.named_parameters(recurse=False):
        if "bias" in name:
            yield parameter
