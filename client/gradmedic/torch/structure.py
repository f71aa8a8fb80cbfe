"""Describes the layers of a torch model: role, fan-in and fan-out, activation, initial weights.

What is not known is left out. Nothing here changes a tensor, draws a random number or keeps a graph alive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from gradmedic.protocol.runs import Layer
from gradmedic.torch.followers import Follower
from gradmedic.torch.parameter_use import Execution, ParameterUse
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
"""Modules between a layer and its activation that are no activation themselves."""

_GATES = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3, nn.RNNCell: 1, nn.LSTMCell: 4, nn.GRUCell: 3}
"""Matrices stacked in each weight of a recurrent module."""

_LARGEST_EXACT = 512
"""Columns up to which all singular values of a matrix are computed. Larger ones are iterated: the training waits."""
_POWER_ITERATIONS = 50
"""Right to 1e-3 for a random matrix (Golub & Van Loan 2013, section 8.2); enough to judge a recurrence by."""


@dataclass(frozen=True, slots=True)
class OwnedParameter:
    """A parameter of a model, and the module that owns it."""

    name: str
    """Name of the layer in the run."""
    parameter: Tensor
    module: nn.Module | None
    """None if the parameter belongs to no watched model."""
    attribute: str
    """Name of the parameter in its module."""


def unwrap_model(model: nn.Module) -> tuple[nn.Module, set[str]]:
    """Return the model inside the wrappers of `torch.compile` and data parallelism, and class names of the latter."""
    wrappers = set()
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            wrappers.add("DistributedDataParallel")
            model = model.module
        elif isinstance(model, nn.DataParallel):
            wrappers.add("DataParallel")
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            return model, wrappers


def list_parameters(model: nn.Module, prefix: str = "") -> Iterator[OwnedParameter]:
    """Iterate over the parameters in the order of registration, each once.

    Names are those of the model without wrappers: what `torch.compile` and data parallelism add is left out.
    """
    model, _ = unwrap_model(model)
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        path, _, attribute = name.rpartition(".")
        module = modules.get(path)
        if isinstance(module, ParametrizationList):
            path, _, attribute = path.removesuffix(f".{attribute}").partition(".parametrizations.")
            module = modules.get(path, module)
        yield OwnedParameter(prefix + name.replace("_orig_mod.", ""), parameter, module, attribute)


def list_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the modules inside the model without wrappers, by their names; the model itself is left out."""
    model, _ = unwrap_model(model)
    for name, module in model.named_modules():
        if name:
            yield prefix + name.replace("_orig_mod.", ""), module


def describe_layers(
    parameters: list[OwnedParameter],
    models: list[nn.Module],
    updated: set[int],
    execution: Execution,
    module_names: Mapping[int, str],
) -> list[Layer]:
    """Return what is known of each parameter.

    Args:
        parameters: parameters to describe.
        models: models that the parameters belong to.
        updated: ids of the parameters that an optimizer updates.
        execution: what the first forward passes of the models showed.
        module_names: names of the modules in the run, by the module's id.
    """
    declared: dict[int, Follower] = {}
    for model in models:
        declared.update(_find_declared_followers(model))
    norms = _measure_norms_by_id([owned.parameter for owned in parameters])
    layers = []
    for owned in parameters:
        identity = id(owned.parameter)
        layer = _describe_layer(
            owned,
            _complete(declared.get(id(owned.module)), execution.uses.get(identity, ParameterUse()).follower),
            _find_role(owned, execution.uses.get(identity)),
            norms.get(identity),
            is_updated=identity in updated,
        )
        layers.append(_add_execution(layer, owned, execution, module_names))
    return layers


def _add_execution(layer: Layer, owned: OwnedParameter, execution: Execution, module_names: Mapping[int, str]) -> Layer:
    """Add to the description of a layer what the first forward passes showed."""
    use = execution.uses.get(id(owned.parameter))
    count = execution.calls.get(id(owned.module), 1) if use is None else use.count
    if isinstance(owned.module, (nn.RNNBase, nn.MultiheadAttention)):  # one call uses a matrix several times
        count = 1
    return replace(
        layer,
        depth=execution.depths.get(id(owned.parameter)),
        branch=None if use is None else use.branch,
        block=None if use is None or use.block is None else module_names.get(use.block),
        input_normalized=use.input_normalized if use is not None and layer.role in ("weight", "recurrent") else None,
        calls=count if count > 1 else None,
    )


def _complete(declared: Follower | None, in_graph: Follower) -> Follower:
    """Return what the modules declare, completed by what a graph shows."""
    declared = declared or Follower()
    return Follower(
        activation=in_graph.activation if declared.activation is None else declared.activation,
        normalized=in_graph.normalized if declared.normalized is None else declared.normalized,
    )


def _describe_layer(
    owned: OwnedParameter, follower: Follower, role: str, norm: float | None, *, is_updated: bool
) -> Layer:
    parameter, module = owned.parameter, owned.module
    is_frozen = not (parameter.requires_grad and is_updated)
    kind = None if module is None else _find_kind(module)
    if is_lazy(parameter):
        return Layer(name=owned.name, kind=kind, frozen=is_frozen, requires_grad=parameter.requires_grad)
    gates = next((count for module_class, count in _GATES.items() if isinstance(module, module_class)), 1)
    activation = follower.activation
    if isinstance(module, (nn.RNN, nn.RNNCell)):
        activation = str(module.nonlinearity)
    is_matrix = role in ("weight", "recurrent")
    fan_in, fan_out = _compute_fans(parameter, gates) if is_matrix else (None, None)
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
        spectral_norm=_compute_spectral_norm(parameter, gates) if role == "recurrent" else None,
        requires_grad=parameter.requires_grad,
    )


def _find_kind(module: nn.Module) -> str:
    """Return the name of a module's class; of a module in TorchScript, that of the class it was made from."""
    return str(module.original_name) if isinstance(module, torch.jit.ScriptModule) else type(module).__name__


def _find_role(owned: OwnedParameter, use: ParameterUse | None) -> str:
    attribute, parameter = owned.attribute, owned.parameter
    if owned.module is not None and _find_kind(owned.module) in ("Embedding", "EmbeddingBag"):
        return "embedding"
    if "bias" in attribute:
        return "bias"
    if attribute.startswith("weight_hh"):
        return "recurrent"
    if is_lazy(parameter) or parameter.ndim < 2:
        return "gain"
    match None if use is None else use.manner:
        case "factor":
            return "gain"
        case "summand" if sum(size > 1 for size in parameter.shape) <= 1:
            return "bias"
        case "summand" | "part":  # learned positions, or a learned token
            return "embedding"
    return "weight"


def _compute_fans(parameter: Tensor, gates: int) -> tuple[int, int]:
    """Return fan-in and fan-out as `torch.nn.init` counts them; those of one gate if several are stacked."""
    receptive_field = math.prod(parameter.shape[2:])
    return parameter.shape[1] * receptive_field, parameter.shape[0] // gates * receptive_field


def _measure_norms_by_id(parameters: list[Tensor]) -> dict[int, float]:
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


def _compute_spectral_norm(parameter: Tensor, gates: int) -> float | None:
    """Return the largest singular value of the hidden-to-hidden matrices stacked in `parameter`."""
    if local_part(parameter) is not parameter:  # a shard has only some of the rows
        return None
    with torch.no_grad():
        matrices = parameter.detach().float()
        if matrices.ndim != 2 or not bool(torch.isfinite(matrices).all()):
            return None
        stacked = matrices.reshape(gates, -1, matrices.shape[1])
        if matrices.shape[1] <= _LARGEST_EXACT:
            return float(torch.linalg.matrix_norm(stacked, ord=2).amax())
        vectors = stacked.abs().sum(dim=1, keepdim=True).mT  # a fixed start, because random numbers are the script's
        for _ in range(_POWER_ITERATIONS):
            vectors = stacked.mT @ (stacked @ vectors)
            vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(1e-30)
        return float(torch.linalg.vector_norm(stacked @ vectors, dim=1).amax())


def _find_declared_followers(model: nn.Module) -> dict[int, Follower]:
    """Return what follows each module inside a `Sequential`, by the module's id. Elsewhere, code decides it."""
    followers: dict[int, Follower] = {}
    nested = {id(child) for module in model.modules() if isinstance(module, nn.Sequential) for child in module}
    for module in model.modules():
        if isinstance(module, nn.Sequential) and id(module) not in nested:
            chain = list(_flatten_sequential(module))
            for i, member in enumerate(chain):
                followers[id(member)] = _find_follower(chain[i + 1 :])
    return followers


def _flatten_sequential(sequence: nn.Sequential) -> Iterator[nn.Module]:
    for module in sequence:
        if isinstance(module, nn.Sequential):
            yield from _flatten_sequential(module)
        else:
            yield module


def _find_follower(following: list[nn.Module]) -> Follower:
    """Return what comes first among the modules behind a layer."""
    normalized = False
    for module in following:
        if isinstance(module, NORMALIZATIONS):
            normalized = True
        elif type(module) in ACTIVATIONS:
            return Follower(ACTIVATIONS[type(module)], normalized)
        elif not isinstance(module, _TRANSPARENT):
            has_layers = next(module.parameters(), None) is not None
            is_plain = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
            return Follower("linear" if has_layers and is_plain else None, normalized)
    return Follower(None, normalized or None)
