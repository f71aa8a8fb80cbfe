"""The catalogue of remedies: the id, parameters, ranges and place of action of each.

The service refuses remedies that are not in the catalogue, the diagnosis advises only remedies of it, and
`gradmedic.torch` applies them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar

from gradmedic.protocol.schema import SCHEMA
from gradmedic.protocol.service import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One fix, by id and parameters."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: str
    """Id of the remedy in the catalogue, for example `clip_grad_norm`."""
    parameters: dict[str, float | int | str | bool] = field(default_factory=dict)
    """Values of the remedy's parameters, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberRange:
    """The values of a numeric parameter: numbers between two bounds, both included."""

    minimum: float
    maximum: float
    is_whole: bool = False
    """True if only whole numbers are allowed."""

    def error(self, value: Any) -> str | None:
        """Return why a value is not allowed, None if it is."""
        kinds = (int,) if self.is_whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return f"must be {'a whole number' if self.is_whole else 'a number'}, not {value!r}"
        if not math.isfinite(value) or not self.minimum <= value <= self.maximum:
            return f"must be from {self.minimum:g} to {self.maximum:g}, not {value!r}"
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """The values of a parameter that is one of several words."""

    values: tuple[str, ...]

    def error(self, value: Any) -> str | None:
        """Return why a value is not allowed, None if it is."""
        return None if value in self.values else f"must be one of {', '.join(self.values)}, not {value!r}"


class Target(StrEnum):
    """A part of the training that a remedy changes."""

    LEARNING_RATE = "learning_rate"
    """The optimizer's learning rate. The optimizer must have one."""
    WEIGHT_DECAY = "weight_decay"
    """The optimizer's own weight decay."""
    GRADIENTS = "gradients"
    """The gradients of a step, before the optimizer uses them."""
    WEIGHTS = "weights"
    """The weights, by another update than the optimizer's own."""
    PARAMETERS = "parameters"
    """The values or the number of a module's parameters, once, before training."""
    SIGNALS = "signals"
    """The signals between modules. They are found during the first forward pass."""
    INPUTS_AND_TARGETS = "inputs_and_targets"
    """The inputs of the model or the targets of the loss."""
    LOSS = "loss"
    """The loss, before the backward pass."""
    SCRIPT = "script"
    """The training script itself."""


_STEP_TARGETS = frozenset({Target.LEARNING_RATE, Target.WEIGHT_DECAY, Target.GRADIENTS, Target.WEIGHTS})
"""The targets that an optimizer uses at every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyKind:
    """One row of the catalogue."""

    targets: frozenset[Target]
    """The parts of the training that the remedy changes."""
    parameters: Mapping[str, NumberRange | Choice]
    """The allowed values of each parameter, by name."""

    @property
    def works_on_any_optimizer(self) -> bool:
        """Whether the remedy changes only what an optimizer uses at its steps, so that it works on any model."""
        return self.targets <= _STEP_TARGETS

    @property
    def needs_script(self) -> bool:
        """Whether only the script itself can apply the remedy."""
        return Target.SCRIPT in self.targets


OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")
"""The optimizers that `switch_optimizer` can switch to."""
_SMALLEST = 1e-12
_LARGEST = 1e6
"""The bounds of factors, norms and rates. No sensible experiment goes beyond them."""
_POSITIVE = NumberRange(minimum=_SMALLEST, maximum=_LARGEST)
_SHARE = NumberRange(minimum=_SMALLEST, maximum=1.0)


def _row(*targets: Target, **parameters: NumberRange | Choice) -> RemedyKind:
    return RemedyKind(targets=frozenset(targets), parameters=MappingProxyType(parameters))


REMEDIES: Mapping[str, RemedyKind] = MappingProxyType(
    {
        "clip_grad_norm": _row(Target.GRADIENTS, max_norm=_POSITIVE),
        "clip_grad_value": _row(Target.GRADIENTS, clip_value=_POSITIVE),
        "clip_grad_norm_per_layer": _row(Target.GRADIENTS, max_norm=_POSITIVE),
        "adaptive_clip": _row(Target.GRADIENTS, clipping=_POSITIVE),
        "scale_learning_rate": _row(Target.LEARNING_RATE, factor=_POSITIVE),
        "warm_up": _row(Target.LEARNING_RATE, steps=NumberRange(minimum=1, maximum=1_000_000_000, is_whole=True)),
        "switch_optimizer": _row(
            Target.LEARNING_RATE,
            Target.GRADIENTS,
            Target.WEIGHTS,
            optimizer=Choice(OPTIMIZERS),
            learning_rate=_POSITIVE,
        ),
        "weight_decay": _row(Target.LEARNING_RATE, Target.WEIGHTS, weight_decay=_SHARE),
        "l1_penalty": _row(Target.GRADIENTS, strength=_SHARE),
        "rescale_loss_gradient": _row(Target.GRADIENTS, factor=_POSITIVE),
        "reduce_weight_decay": _row(Target.WEIGHT_DECAY, factor=NumberRange(minimum=0.0, maximum=1.0)),
        "skip_nonfinite_steps": _row(Target.GRADIENTS),
        "reinitialize": _row(
            Target.PARAMETERS,
            scheme=Choice(("orthogonal", "xavier_uniform", "kaiming_normal", "lecun_normal")),
        ),
        "replace_activation": _row(
            Target.SIGNALS, activation=Choice(("ReLU", "LeakyReLU", "ELU", "SELU", "GELU", "Tanh"))
        ),
        "insert_normalization": _row(Target.SIGNALS, kind=Choice(("BatchNorm", "LayerNorm", "RMSNorm"))),
        "add_residual": _row(Target.SIGNALS),
        "replace_recurrent_cell": _row(Target.PARAMETERS, cell=Choice(("GRU", "LSTM"))),
        "weight_normalization": _row(Target.PARAMETERS),
        "standardize_inputs": _row(Target.INPUTS_AND_TARGETS),
        "standardize_targets": _row(Target.INPUTS_AND_TARGETS),
        "scale_loss": _row(Target.LOSS, Target.GRADIENTS),
        "truncate_backpropagation": _row(
            Target.SCRIPT, time_steps=NumberRange(minimum=1, maximum=1_000_000, is_whole=True)
        ),
        "relax_clipping": _row(Target.SCRIPT, max_norm=_POSITIVE),
        "use_bfloat16": _row(Target.SCRIPT),
        "stable_loss": _row(Target.SCRIPT),
    }
)
"""The catalogue: every remedy, by id."""

SET_PARAMETER = "set_parameter"
"""Id of the one remedy outside the catalogue. It sets parameters of the trainable itself, by their own names."""

MAX_COMBINED = 16
"""The largest number of remedies in one candidate."""


def remedy_errors(path: str, remedies: Sequence[Remedy]) -> Iterator[FieldError]:
    """Yield an error for each remedy of a candidate that is unknown or repeated, or has a bad parameter.

    >>> [error.message for error in remedy_errors("remedies[0]", [Remedy(id="warm_up", parameters={"steps": 0})])]
    ['must be from 1 to 1e+09, not 0']
    """
    if len(remedies) > MAX_COMBINED:
        yield FieldError(path=path, message=f"combines {len(remedies)} remedies; at most {MAX_COMBINED} are allowed")
        return
    seen: set[str] = set()
    for index, remedy in enumerate(remedies):
        remedy_path = f"{path}[{index}]"
        if remedy.id in seen:
            yield FieldError(path=f"{remedy_path}.id", message=f"repeats {remedy.id!r}: a remedy is applied once")
        seen.add(remedy.id)
        if remedy.id == SET_PARAMETER:
            continue  # its parameters are the trainable's, which are checked elsewhere
        kind = REMEDIES.get(remedy.id)
        if kind is None:
            ids = ", ".join([*REMEDIES, SET_PARAMETER])
            yield FieldError(path=f"{remedy_path}.id", message=f"{remedy.id!r} is not one of {ids}")
            continue
        for name in kind.parameters.keys() - remedy.parameters.keys():
            yield FieldError(path=f"{remedy_path}.parameters.{name}", message="is required")
        for name, value in remedy.parameters.items():
            parameter = kind.parameters.get(name)
            if parameter is None:
                expected = ", ".join(kind.parameters) or "none"
                yield FieldError(
                    path=f"{remedy_path}.parameters.{name}", message=f"there is no such parameter; it has {expected}"
                )
            elif (message := parameter.error(value)) is not None:
                yield FieldError(path=f"{remedy_path}.parameters.{name}", message=message)


def describe_remedies(remedies: Sequence[Remedy]) -> str:
    """Return the remedies of a candidate as one line of text.

    >>> describe_remedies([Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), Remedy(id="add_residual")])
    'clip_grad_norm(1.0) + add_residual()'
    >>> describe_remedies([])
    'control'
    """
    written = []
    for remedy in remedies:
        has_several = len(remedy.parameters) > 1
        values = (f"{name}={value}" if has_several else str(value) for name, value in remedy.parameters.items())
        written.append(f"{remedy.id}({', '.join(values)})")
    return " + ".join(written) or "control"
