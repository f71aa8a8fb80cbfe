"""What a torch model is made of: the facts of each layer that a diagnosis reasons with.

One idea: say what is known and leave out what is not. Nothing here changes a tensor, draws a random number or keeps a
graph alive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from gradmedic.protocol.runs import Layer, Optimizer
from gradmedic.torch.graph import Follower
from gradmedic.torch.statistics import local_part, measure_norms

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.PReLU: "prelu", nn.RReLU: "rrelu",
    nn.ELU: "elu", nn.CELU: "celu", nn.SELU: "selu", nn.GELU: "gelu", nn.SiLU: "silu", nn.Mish: "mish",
    nn.Sigmoid: "sigmoid", nn.LogSigmoid: "logsigmoid", nn.Hardsigmoid: "hardsigmoid", nn.Hardswish: "hardswish",
    nn.Tanh: "tanh", nn.Hardtanh: "hardtanh", nn.Tanhshrink: "tanhshrink", nn.Softplus: "softplus",
    nn.Softsign: "softsign", nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax", nn.GLU: "glu",
}  # fmt: skip
NORMALIZATIONS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm,
)  # fmt: skip
_TRANSPARENT = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Flatten, nn.Unflatten,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample,
)  # fmt: skip
"""Modules that stand between a layer and its activation without changing which one that is."""

_GATES = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3, nn.RNNCell: 1, nn.LSTMCell: 4, nn.GRUCell: 3}
"""Matrices stacked in each weight of a recurrent module."""

_EXACT_SVD = 512
"""Largest matrix whose singular values are computed; larger ones are iterated, since training waits."""
_POWER_ITERATIONS = 50
"""Right to 1e-3 for a random matrix (Golub & Van Loan 2013, section 8.2); enough to judge a recurrence by."""


@dataclass(frozen=True, slots=True)
class Owned:
    """A parameter, the module that owns it, and its name there."""

    name: str
    parameter: Tensor
    module: nn.Module | None
    attribute: str


def list_parameters(model: nn.Module, prefix: str = "") -> Iterator[Owned]:
    """Iterate over the parameters in the order of registration, each once, under the names of the bare model.

    What `torch.compile` and data parallelism put into the names is left out.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            break
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        path, _, attribute = name.rpartition(".")
        module = modules.get(path)
        if isinstance(module, ParametrizationList):
            path, _, attribute = path.removesuffix(f".{attribute}").partition(".parametrizations.")
            module = modules.get(path, module)
        yield Owned(prefix + name.replace("_orig_mod.", ""), parameter, module, attribute)


def describe_layers(
    parameters: list[Owned], models: list[nn.Module], updated: set[int], seen: Mapping[int, Follower]
) -> list[Layer]:
    """Return what is known of each parameter.

    Args:
        parameters: to describe.
        models: that they belong to, to learn what follows each module.
        updated: ids of the parameters that an optimizer has.
        seen: what follows each parameter, by its id, as far as it was seen in a graph.
    """
    followers: dict[int, Follower] = {}
    for model in models:
        followers.update(_find_followers(model))
    followers = {
        id(owned.parameter): _complete(followers.get(id(owned.module)), seen.get(id(owned.parameter)))
        for owned in parameters
    }
    norms = _norms_of([owned.parameter for owned in parameters])
    return [
        _describe_layer(
            owned, followers[id(owned.parameter)], norms.get(id(owned.parameter)), id(owned.parameter) in updated
        )
        for owned in parameters
    ]


def describe_optimizer(optimizer: torch.optim.Optimizer) -> Optimizer:
    """Return name and settings of an optimizer; of several groups, the one with the largest learning rate counts."""
    group = max(optimizer.param_groups, key=lambda group: number_at_hand(group.get("lr")) or 0.0, default={})
    momentum = group.get("momentum")
    if momentum is None and isinstance(group.get("betas"), tuple):
        momentum = group["betas"][0]
    return Optimizer(
        name=type(optimizer).__name__,
        learning_rate=number_at_hand(group.get("lr")),
        momentum=number_at_hand(momentum),
        weight_decay=number_at_hand(group.get("weight_decay")),
    )


def number_at_hand(value: object) -> float | None:
    """Return a setting of an optimizer as a number; None if it is none, or if reading it would wait for a device."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return None
    if isinstance(value, (int, float, Tensor)):
        return float(value)
    return None


def _complete(declared: Follower | None, seen: Follower | None) -> Follower:
    """Return what the modules declare, completed by what a graph showed."""
    declared, seen = declared or Follower(), seen or Follower()
    return Follower(
        activation=seen.activation if declared.activation is None else declared.activation,
        normalized=seen.normalized if declared.normalized is None else declared.normalized,
    )


def _describe_layer(owned: Owned, follower: Follower, norm: float | None, is_updated: bool) -> Layer:
    parameter, module = owned.parameter, owned.module
    is_frozen = not (parameter.requires_grad and is_updated)
    kind = None if module is None else type(module).__name__
    if is_lazy(parameter):
        return Layer(name=owned.name, kind=kind, frozen=is_frozen)
    role = _role_of(owned)
    gates = next((gates for type_, gates in _GATES.items() if isinstance(module, type_)), 1)
    activation = follower.activation
    if isinstance(module, (nn.RNN, nn.RNNCell)):
        activation = str(module.nonlinearity)
    is_matrix = role in ("weight", "recurrent")
    fan_in, fan_out = _fans_of(parameter, gates) if is_matrix else (None, None)
    return Layer(
        name=owned.name,
        kind=kind,
        shape=list(parameter.shape),
        numel=parameter.numel(),
        frozen=is_frozen,
        role=role,
        fan_in=fan_in,
        fan_out=fan_out,
        activation=activation,
        normalized=follower.normalized,
        initial_rms=None if norm is None else norm / math.sqrt(max(1, local_part(parameter).numel())),
        spectral_norm=_spectral_norm(parameter, gates) if role == "recurrent" else None,
    )


def _role_of(owned: Owned) -> str:
    attribute, parameter = owned.attribute, owned.parameter
    if isinstance(owned.module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if "bias" in attribute:
        return "bias"
    if attribute.startswith("weight_hh"):
        return "recurrent"
    return "weight" if parameter.ndim >= 2 else "gain"


def _fans_of(parameter: Tensor, gates: int) -> tuple[int, int]:
    """Return fan-in and fan-out as `torch.nn.init` counts them, for one gate where several are stacked."""
    field = math.prod(parameter.shape[2:])
    return parameter.shape[1] * field, parameter.shape[0] // gates * field


def _norms_of(parameters: list[Tensor]) -> dict[int, float]:
    by_device: dict[torch.device, list[Tensor]] = {}
    for parameter in parameters:
        if not is_lazy(parameter) and parameter.device.type != "meta":
            by_device.setdefault(parameter.device, []).append(parameter)
    with torch.no_grad():
        return {
            id(parameter): float(norm)
            for group in by_device.values()
            for parameter, norm in zip(group, measure_norms(group).read(), strict=True)
        }


def _spectral_norm(parameter: Tensor, gates: int) -> float | None:
    """Return the largest singular value of the hidden-to-hidden matrices stacked in `parameter`."""
    if local_part(parameter) is not parameter:  # a shard tells of its rows alone
        return None
    with torch.no_grad():
        matrices = parameter.detach().float()
        if matrices.ndim != 2 or not bool(torch.isfinite(matrices).all()):
            return None
        stacked = matrices.reshape(gates, -1, matrices.shape[1])
        if matrices.shape[1] <= _EXACT_SVD:
            return float(torch.linalg.matrix_norm(stacked, ord=2).amax())
        vectors = stacked.abs().sum(dim=1, keepdim=True).mT  # a fixed start: no random numbers are drawn here
        for _ in range(_POWER_ITERATIONS):
            vectors = stacked.mT @ (stacked @ vectors)
            vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(1e-30)
        return float(torch.linalg.vector_norm(stacked @ vectors, dim=1).amax())


def _find_followers(model: nn.Module) -> dict[int, Follower]:
    """Return what follows each module inside a `Sequential`, by the module's id; elsewhere the code decides."""
    found: dict[int, Follower] = {}
    nested = {id(child) for module in model.modules() if isinstance(module, nn.Sequential) for child in module}
    for module in model.modules():
        if isinstance(module, nn.Sequential) and id(module) not in nested:
            chain = list(_flatten_sequential(module))
            for i, link in enumerate(chain):
                found[id(link)] = _follow(chain[i + 1 :])
    return found


def _flatten_sequential(sequence: nn.Sequential) -> Iterator[nn.Module]:
    for module in sequence:
        if isinstance(module, nn.Sequential):
            yield from _flatten_sequential(module)
        else:
            yield module


def _follow(rest: list[nn.Module]) -> Follower:
    normalized = False
    for module in rest:
        if isinstance(module, NORMALIZATIONS):
            normalized = True
        elif type(module) in ACTIVATIONS:
            return Follower(ACTIVATIONS[type(module)], normalized)
        elif not isinstance(module, _TRANSPARENT):
            has_layers = next(module.parameters(), None) is not None
            is_plain = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
            return Follower("linear" if has_layers and is_plain else None, normalized)
    return Follower(None, normalized or None)
