"""Which remedies a rerun may ask for: their ids, their parameters and the ranges of those.

One idea: one catalogue, three readers. The service refuses what is not in it, the diagnosis' advice is written in its
words, and `gradmedic.torch.remedies` applies what stands in it. A remedy's tier says who can apply it: 1 the optimizer,
of any model; 2 only a change of modules; 3 only the script itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from gradmedic.protocol.schema import SCHEMA
from gradmedic.protocol.service import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One fix, by id and parameters."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: str
    parameters: dict[str, float | int | str | bool] = field(default_factory=dict)


LARGEST_FACTOR = 1e6
"""No factor, bound or rate of a sensible experiment is beyond it, nor below its inverse squared."""
SMALLEST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A parameter that is a number between two bounds."""

    minimum: float
    maximum: float
    is_whole: bool = False

    def error(self, value: Any) -> str | None:
        """Say what is wrong with a value, None if nothing is."""
        kinds = (int,) if self.is_whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return f"must be {'a whole number' if self.is_whole else 'a number'}, not {value!r}"
        if not math.isfinite(value) or not self.minimum <= value <= self.maximum:
            return f"must be from {self.minimum:g} to {self.maximum:g}, not {value!r}"
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """A parameter that is one of some words."""

    values: tuple[str, ...]

    def error(self, value: Any) -> str | None:
        """Say what is wrong with a value, None if nothing is."""
        return None if value in self.values else f"must be one of {', '.join(self.values)}, not {value!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyKind:
    """What there is to know about a remedy before it is applied."""

    tier: int
    parameters: Mapping[str, Number | Choice]


OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")
_POSITIVE = Number(minimum=SMALLEST, maximum=LARGEST_FACTOR)
_SHARE = Number(minimum=SMALLEST, maximum=1.0)


def _kind(tier: int, **parameters: Number | Choice) -> RemedyKind:
    return RemedyKind(tier=tier, parameters=MappingProxyType(parameters))


REMEDIES: Mapping[str, RemedyKind] = MappingProxyType(
    {
        "clip_grad_norm": _kind(1, max_norm=_POSITIVE),
        "clip_grad_value": _kind(1, clip_value=_POSITIVE),
        "clip_grad_norm_per_layer": _kind(1, max_norm=_POSITIVE),
        "adaptive_clip": _kind(1, clipping=_POSITIVE),
        "scale_learning_rate": _kind(1, factor=_POSITIVE),
        "warm_up": _kind(1, steps=Number(minimum=1, maximum=1_000_000_000, is_whole=True)),
        "switch_optimizer": _kind(1, optimizer=Choice(OPTIMIZERS), learning_rate=_POSITIVE),
        "weight_decay": _kind(1, weight_decay=_SHARE),
        "l1_penalty": _kind(1, strength=_SHARE),
        "rescale_loss_gradient": _kind(1, factor=_POSITIVE),
        "reduce_weight_decay": _kind(1, factor=Number(minimum=0.0, maximum=1.0)),
        "skip_nonfinite_steps": _kind(1),
        "reinitialize": _kind(2, scheme=Choice(("orthogonal", "xavier_uniform", "kaiming_normal", "lecun_normal"))),
        "replace_activation": _kind(2, activation=Choice(("ReLU", "LeakyReLU", "ELU", "SELU", "GELU", "Tanh"))),
        "insert_normalization": _kind(2, kind=Choice(("BatchNorm", "LayerNorm", "RMSNorm"))),
        "add_residual": _kind(2),
        "replace_recurrent_cell": _kind(2, cell=Choice(("GRU", "LSTM"))),
        "weight_normalization": _kind(2),
        "standardize_inputs": _kind(2),
        "standardize_targets": _kind(2),
        "scale_loss": _kind(2),
        "truncate_backpropagation": _kind(3, time_steps=Number(minimum=1, maximum=1_000_000, is_whole=True)),
        "relax_clipping": _kind(3, max_norm=_POSITIVE),
        "use_bfloat16": _kind(3),
        "stable_loss": _kind(3),
    }
)
"""Every remedy, by id."""

SET_PARAMETER = "set_parameter"
"""Not a remedy of the catalogue: it sets parameters of the trainable itself, by their own names."""

MAX_COMBINED = 16
"""Remedies of one candidate."""


def remedy_errors(path: str, remedies: Sequence[Remedy]) -> Iterator[FieldError]:
    """Say what is wrong with the remedies of one candidate: unknown, twice, or with parameters out of range.

    >>> from gradmedic.protocol.remedies import Remedy
    >>> [error.message for error in remedy_errors("remedies[0]", [Remedy(id="warm_up", parameters={"steps": 0})])]
    ['must be from 1 to 1e+09, not 0']
    """
    if len(remedies) > MAX_COMBINED:
        yield FieldError(path=path, message=f"combines {len(remedies)} remedies; at most {MAX_COMBINED} are allowed")
        return
    seen: set[str] = set()
    for index, remedy in enumerate(remedies):
        at = f"{path}[{index}]"
        if remedy.id in seen:
            yield FieldError(path=f"{at}.id", message=f"repeats {remedy.id!r}: a remedy is applied once")
        seen.add(remedy.id)
        if remedy.id == SET_PARAMETER:
            continue  # what it may set is the trainable's to say
        kind = REMEDIES.get(remedy.id)
        if kind is None:
            known = ", ".join([*REMEDIES, SET_PARAMETER])
            yield FieldError(path=f"{at}.id", message=f"{remedy.id!r} is not one of {known}")
            continue
        for name in kind.parameters.keys() - remedy.parameters.keys():
            yield FieldError(path=f"{at}.parameters.{name}", message="is required")
        for name, value in remedy.parameters.items():
            parameter = kind.parameters.get(name)
            if parameter is None:
                expected = ", ".join(kind.parameters) or "none"
                yield FieldError(
                    path=f"{at}.parameters.{name}", message=f"there is no such parameter; it has {expected}"
                )
            elif (message := parameter.error(value)) is not None:
                yield FieldError(path=f"{at}.parameters.{name}", message=message)


def describe_remedies(remedies: Sequence[Remedy]) -> str:
    """Write the remedies of a candidate as a person would.

    >>> from gradmedic.protocol.remedies import Remedy
    >>> describe_remedies([Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), Remedy(id="add_residual")])
    'clip_grad_norm(1.0) + add_residual()'
    >>> describe_remedies([])
    'control'
    """
    written = []
    for remedy in remedies:
        named = len(remedy.parameters) > 1
        values = (f"{name}={value}" if named else str(value) for name, value in remedy.parameters.items())
        written.append(f"{remedy.id}({', '.join(values)})")
    return " + ".join(written) or "control"
