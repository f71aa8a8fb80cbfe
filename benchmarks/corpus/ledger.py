"""The ledger: the tensors that a model trains, in forward order, with the facts about each.

The code that builds a network records the facts of each layer. Nothing is inferred from the live
model, so the facts do not share errors with the SDK, which infers them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(slots=True, kw_only=True)
class LayerRecord:
    """The facts about one tensor; the fields are those of a layer in the API."""

    name: str
    kind: str
    shape: list[int]
    numel: int
    depth: int
    frozen: bool
    role: str
    fan_in: int | None
    fan_out: int | None
    activation: str | None
    normalized: bool | None
    branch: bool | None
    initial_rms: float | None = None
    spectral_norm: float | None = None

    def as_facts(self) -> dict[str, object]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(slots=True)
class Entry:
    """A tensor, its record, and the optimizer that trains it (-1: none)."""

    parameter: nn.Parameter
    record: LayerRecord
    group: int


def fans(shape: list[int]) -> tuple[int | None, int | None]:
    """Return (fan in, fan out) of a weight `[out, in, ...]`; (None, None) for a vector."""
    if len(shape) < 2:
        return None, None
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


class Ledger:
    """Collects a model's tensors in forward order."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.group = 0
        """Optimizer of the tensors that are added next."""
        self.prefix = ""
        self._seen: set[int] = set()

    def add(
        self,
        module: M,
        name: str,
        *,
        activation: str | None = "linear",
        normalized: bool | None = False,
        branch: bool | None = False,
        frozen: bool = False,
    ) -> M:
        """Add the tensors that `module` itself holds, each once, and return the module."""
        kind = type(module).__name__
        is_normalization = isinstance(module, NORMALIZATIONS)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if "bias" in parameter_name:
                role = "bias"
            elif is_normalization:
                role = "gain"
            elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                role = "embedding"
            elif "weight_hh" in parameter_name:
                role = "recurrent"
            else:
                role = "weight"
            self.add_parameter(
                parameter,
                f"{name}.{parameter_name}",
                kind=kind,
                role=role,
                activation=None if is_normalization or role == "embedding" else activation,
                normalized=None if is_normalization else normalized,
                branch=branch,
                frozen=frozen,
            )
        return module

    def add_parameter(
        self,
        parameter: nn.Parameter,
        name: str,
        *,
        kind: str,
        role: str,
        activation: str | None = "linear",
        normalized: bool | None = False,
        branch: bool | None = False,
        frozen: bool = False,
    ) -> nn.Parameter:
        """Add a tensor, unless it was added before, and return it."""
        if id(parameter) in self._seen:
            return parameter
        self._seen.add(id(parameter))
        if frozen:
            parameter.requires_grad_(False)
        shape = list(parameter.shape)
        fan_in, fan_out = fans(shape) if role in ("weight", "recurrent") else (None, None)
        record = LayerRecord(
            name=self.prefix + name,
            kind=kind,
            shape=shape,
            numel=parameter.numel(),
            depth=len(self.entries),
            frozen=frozen,
            role=role,
            fan_in=fan_in,
            fan_out=fan_out,
            activation=activation,
            normalized=normalized,
            branch=branch,
        )
        self.entries.append(Entry(parameter, record, -1 if frozen else self.group))
        return parameter

    def measure_initial_weights(self) -> None:
        """Measure the scale of each tensor and the spectral norm of recurrent matrices, before the first update."""
        for entry in self.entries:
            weights = entry.parameter.detach().double()
            rms = float(weights.square().mean().sqrt())
            entry.record.initial_rms = rms if math.isfinite(rms) else None
            if entry.record.role == "recurrent" and bool(torch.isfinite(weights).all()):
                entry.record.spectral_norm = float(torch.linalg.matrix_norm(weights, 2))

    def initialize(self, rule: str | None, gain: float = 1.0, *, roles: tuple[str, ...] = ("weight",)) -> None:
        """Initialize the tensors of these roles by `rule` (see `initialize`)."""
        for entry in self.entries:
            if entry.record.role in roles and rule is not None:
                initialize(entry.parameter, rule, gain)

    def rescale(self, accept: Callable[[LayerRecord], bool], factor: float) -> None:
        """Multiply the tensors whose records `accept` selects."""
        with torch.no_grad():
            for entry in self.entries:
                if accept(entry.record):
                    entry.parameter.mul_(factor)

    def parameters(self, group: int | None = None) -> list[nn.Parameter]:
        """Return the trained tensors, of one optimizer or of all."""
        return [e.parameter for e in self.entries if e.group >= 0 and (group is None or e.group == group)]


def initialize(weight: Tensor, rule: str, gain: float = 1.0) -> None:
    """Fill `weight` by a rule, times `gain`.

    The rules are `default` (leaves the weight), `xavier`, `he`, `lecun`, `orthogonal`, `eye`, `normal:STD`,
    `uniform:BOUND`, `const:VALUE` and `zeros`.
    """
    name, _, argument = rule.partition(":")
    fan_in, fan_out = fans(list(weight.shape))
    inputs, outputs = fan_in or 1, fan_out or 1
    with torch.no_grad():
        match name:
            case "default":
                pass
            case "xavier":
                weight.normal_(0.0, math.sqrt(2.0 / (inputs + outputs)))
            case "he":
                weight.normal_(0.0, math.sqrt(2.0 / inputs))
            case "lecun":
                weight.normal_(0.0, math.sqrt(1.0 / inputs))
            case "orthogonal":
                if weight.ndim >= 2:
                    nn.init.orthogonal_(weight)
            case "eye":
                if weight.ndim == 2:
                    nn.init.eye_(weight)
            case "normal":
                weight.normal_(0.0, float(argument))
            case "uniform":
                weight.uniform_(-float(argument), float(argument))
            case "const":
                weight.fill_(float(argument))
            case "zeros":
                weight.zero_()
            case _:
                raise ValueError(f"unknown initialization {rule!r}")
        if gain != 1.0:
            weight.mul_(gain)
