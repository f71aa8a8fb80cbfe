"""Starts the weights of a model again, in place, by a scheme that preserves the size of signals.

One idea: each matrix is drawn from a generator of its own, seeded by the trial's seed and the parameter's name. The
script's generators stay where they are, and a matrix gets the same numbers whatever else is in the model.

What consists of several matrices is initialized matrix by matrix: gates of recurrent cells, queries, keys and values of
attention. Embeddings stay, and so does what shares their weights; biases become zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradmedic.torch.remedies import NotApplicable

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
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMALIZATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def seed_of(seed: int, name: str) -> int:
    """Return the seed of a parameter's own generator.

    >>> seed_of(0, "fc.weight") != seed_of(1, "fc.weight") != seed_of(1, "fc.bias")
    True
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest(), "little")


def reinitialize(model: nn.Module, scheme: str, seed: int, updated: set[int]) -> list[str]:
    """Initialize every matrix that an optimizer updates; return the names of the modules.

    Args:
        model: bare, without wrappers.
        scheme: of `SCHEMES`.
        seed: of the trial.
        updated: ids of the optimizers' parameters.

    Raises:
        NotApplicable: parameters are sharded, or not there yet.
    """
    _check_weights(model)
    kept = {id(p) for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
            for p in module.parameters(recurse=False)}  # fmt: skip
    done: set[int] = set()
    found = []
    with torch.no_grad():
        for path, module in model.named_modules():
            matrices = [
                (name, matrix, pieces)
                for name, matrix, pieces in _matrices_of(module)
                if id(matrix) in updated and id(matrix) not in kept and id(matrix) not in done
            ]
            for name, matrix, pieces in matrices:
                done.add(id(matrix))
                generator = torch.Generator().manual_seed(seed_of(seed, f"{path}.{name}"))
                drawn = torch.empty(matrix.shape)
                for piece in drawn.chunk(pieces):
                    SCHEMES[scheme](piece, generator)
                matrix.copy_(drawn)
            if matrices:
                found.append(path)
                for bias in _biases_of(module):
                    if id(bias) in updated:
                        bias.zero_()
    return found


def why_trained(model: nn.Module, optimizers: list[Optimizer]) -> str | None:
    """Say what shows that weights are not as they were initialized; None if nothing does."""
    if any(_has_stepped(state) for optimizer in optimizers for state in optimizer.state.values()):
        return "the optimizer has made steps already: initialization would undo them"
    source = getattr(model, "name_or_path", None)
    if isinstance(source, str) and source:
        return f"the weights are pretrained ({source})"
    for name, module in model.named_modules():
        if getattr(module, "num_batches_tracked", None) is not None and not is_lazy(module.running_mean):
            if int(module.num_batches_tracked) > 0 or bool(module.running_mean.any()):
                return f"the weights are pretrained: {name} has seen batches"
            continue  # scales that differ were drawn so: a script may initialize them with random numbers
        if isinstance(module, _NORMALIZATIONS) and any(
            p.numel() > 1 and not is_lazy(p) and bool((p != p.flatten()[0]).any()) for p in module.parameters()
        ):
            return f"the weights are pretrained: {name} has learned scales"
    matrices = [matrix for module in model.modules() for _, matrix, _ in _matrices_of(module) if not is_lazy(matrix)]
    if any(not matrix.requires_grad for matrix in matrices) and any(matrix.requires_grad for matrix in matrices):
        return "some weights are frozen: the model is pretrained, and the others fit to them"
    return None


def _has_stepped(state: Any) -> bool:
    """Whether the state of a parameter is of a step; some optimizers have one from the beginning."""
    return bool(state) and float(state.get("step", 1)) > 0


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise NotApplicable(f"{name} is built at the first call only")
        if hasattr(parameter, "device_mesh"):
            raise NotApplicable(f"{name} is sharded")


def _matrices_of(module: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Iterate over the matrices of a module, with the number that each is stacked of."""
    if isinstance(module, (nn.Linear, nn.Bilinear, *_CONVOLUTIONS)):
        if isinstance(module.weight, nn.Parameter):
            yield "weight", module.weight, 1
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        for name, parameter in module.named_parameters(recurse=False):
            if name in recurrent_weights_of(module) and name.startswith("weight"):
                is_projection = name.startswith("weight_hr")
                yield name, parameter, 1 if is_projection else len(parameter) // module.hidden_size
    elif isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            yield "in_proj_weight", module.in_proj_weight, 3
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            parameter = getattr(module, name)
            if parameter is not None:
                yield name, parameter, 1


def recurrent_weights_of(module: nn.RNNBase | nn.RNNCellBase) -> tuple[str, ...]:
    """Return the names that a recurrent module computes with; a parametrization has parameters of other names."""
    if isinstance(module, nn.RNNBase):
        return tuple(module._flat_weights_names)
    return ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))


def _biases_of(module: nn.Module) -> Iterator[Tensor]:
    for name, parameter in module.named_parameters(recurse=False):
        if "bias" in name:
            yield parameter
