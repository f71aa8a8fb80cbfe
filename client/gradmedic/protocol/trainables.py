"""Which values a parameter of a trainable may have.

One idea: the operator's declaration is checked twice, in the same way: by the service, which answers whoever asks for a
rerun, and by the worker, which need not trust the service.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from gradmedic.protocol.schema import SCHEMA, Number, OneOf, StrictBool, StrictInt

PARAMETER_TYPES = ("float", "int", "str", "bool")


LONGEST_TIMEOUT = 30 * 86400.0
"""Seconds that a trial may be given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableParameter:
    """What a rerun may set of a trainable."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    """Of its placeholder, and of its key in the run's config: dots lead into nested mappings."""
    type: Annotated[str, OneOf(*PARAMETER_TYPES)]
    minimum: Number | None = None
    maximum: Number | None = None
    choices: list[str] | None = None
    """Of a `str`, every value that it may have."""
    default: float | int | str | bool | None = None
    """Where the run's config has no such key."""
    is_optional: StrictBool = False
    """Whether it may have no value; its argument is then left out."""
    remedy: str | None = None
    """The remedy, or the parameter of one (`truncate_backpropagation.time_steps`), that it carries out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """A command that a worker's operator has allowed to be rerun. The command itself stays with the worker."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    name: str
    parameters: list[TrainableParameter] = field(default_factory=list)
    gpus: StrictInt = 0
    timeout: Number = 3600.0
    """Seconds after which a trial of it is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainablesOffer:
    """Body of `PUT /trainables`. A worker repeats it every few seconds, as long as it offers them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[Trainable]
    worker: str | None = None
    """Name of whoever offers them: what it offered before and no longer does is withdrawn, unless another offers it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainables:
    """Answer to `PUT /trainables` and to `GET /trainables`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[Trainable]


Value = float | int | str | bool | None


def value_error(parameter: TrainableParameter, value: Value) -> str | None:
    """Say what is wrong with a value of a trainable's parameter, None if nothing is.

    >>> value_error(TrainableParameter(name="lr", type="float", minimum=0.0, maximum=1.0), 2.0)
    'must be from 0 to 1, not 2.0'
    """
    if value is None:
        return None if parameter.is_optional else "has no value"
    kinds: dict[str, tuple[type, ...]] = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}
    is_kind = isinstance(value, kinds[parameter.type]) and (parameter.type == "bool" or not isinstance(value, bool))
    if not is_kind:
        return f"must be of type {parameter.type}, not {value!r}"
    if parameter.choices is not None and value not in parameter.choices:
        return f"must be one of {', '.join(parameter.choices)}, not {value!r}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        low = -math.inf if parameter.minimum is None else parameter.minimum
        high = math.inf if parameter.maximum is None else parameter.maximum
        if not math.isfinite(value) or not low <= value <= high:
            return f"must be from {low:g} to {high:g}, not {value!r}"
    return None
